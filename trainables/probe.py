"""What a plug-in metric sees of one trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.engine import Tensors
from trainables.operators import GaussNewton, GradientCovariance, Operator, chunk_and_group, hessian_of
from trainables.snapshot import Snapshot
from trainables.trial import Trial


@dataclass(frozen=True)
class Probe:
    """One trial at one moment of training, in evaluation mode.

    Attributes:
        trial: its configuration.
        step: optimizer steps taken.
        epoch: examples seen, divided by the training-set size.
        parameters: by name, detached.
        dataset: with the clean training targets, and inputs without noise.
        train_targets: as the trial sees them, label noise included; shape (N[, outputs]).
        changed: training labels that noise has changed; shape (N,).

    Example:
        ``def weight_norm(probe): return {"weight_norm": float(probe.vector.norm())}``
    """

    trial: Trial
    step: int
    epoch: float
    parameters: Tensors
    dataset: Dataset
    train_targets: Tensor
    changed: Tensor
    _snapshot: Snapshot
    _operators: dict[Callable[..., Operator], Operator] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Probe:
        """The probe of a snapshot that holds one trial."""
        (trial,) = snapshot.trials
        parameters = {k: v[0] for k, v in snapshot.parameters.items()}
        dataset, targets, changed = snapshot.data.dataset, snapshot.targets[0], snapshot.changed[0]
        return cls(trial, snapshot.step, snapshot.epoch, parameters, dataset, targets, changed, snapshot)

    @property
    def vector(self) -> Tensor:
        """All parameters as one vector, in the order of ``parameters``; shape (d,)."""
        return torch.cat([v.reshape(-1) for v in self.parameters.values()])

    def model(self, inputs: Tensor, parameters: Tensors | None = None) -> Tensor:
        """Outputs, shape (batch, outputs), differentiable in ``parameters`` (default: the trial's own)."""
        given = self.parameters if parameters is None else parameters
        stacked = {k: v[None] for k, v in given.items()}
        return self._snapshot.engine.outputs(stacked, self._snapshot.buffers, inputs[None])[0]

    def train_inputs(self, part: slice = slice(None)) -> Tensor:
        """Training inputs as the trial sees them, noise included, not augmented; shape (n, ...)."""
        return self._snapshot.inputs.training(part)[0]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per-example losses, shape (batch,)."""
        return self._snapshot.engine.losses(outputs[None], targets[None])[0]

    def gradient(self) -> Tensor:
        """Gradient of the mean training loss over the examples of the curvature measurements; shape (d,)."""
        return self._operator(hessian_of).gradient()[0]

    def hvp(self, vector: Tensor) -> Tensor:
        """Product of the Hessian of the mean loss over the same examples with a vector; shapes (d,)."""
        return (self._operator(hessian_of) @ vector[None])[0]

    def ggn_vp(self, vector: Tensor) -> Tensor:
        """Likewise of the generalized Gauss-Newton matrix."""
        return (self._operator(GaussNewton) @ vector[None])[0]

    def covariance_vp(self, vector: Tensor) -> Tensor:
        """Likewise of the covariance of the examples' gradients."""
        return (self._operator(GradientCovariance) @ vector[None])[0]

    def _operator(self, kind: Callable[..., Operator]) -> Operator:
        if kind not in self._operators:  # built once, when a metric first asks
            of = self._snapshot
            inputs = of.inputs.training(of.data.curvature_examples)
            targets = of.targets[:, of.data.curvature_examples]
            chunk, _ = chunk_and_group(of.engine, self.dataset.train_inputs, 0)
            self._operators[kind] = kind(of.engine, of.parameters, of.buffers, inputs, targets, chunk)
        return self._operators[kind]
