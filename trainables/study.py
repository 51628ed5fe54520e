"""A group of trials at one moment, and what its statistics share so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trainables.hessian import Hessian, gradient_and_outputs
from trainables.settings import Measure
from trainables.snapshot import Snapshot
from trainables.streams import Purpose, rademacher


@dataclass(frozen=True)
class Study:
    """Trials that are measured together.

    Attributes:
        group: the trials.
        settings: what is due.
        chunk: most examples in one forward pass that is to be differentiated.
    """

    group: Snapshot
    settings: Measure
    chunk: int

    @cached_property
    def training(self) -> tuple[Tensor, Tensor]:
        """Gradient of the training loss, shape (trials, parameters), and outputs, (trials, N, outputs)."""
        of = self.group
        inputs = of.data.dataset.train_inputs
        return gradient_and_outputs(of.engine, of.parameters, of.buffers, inputs, of.targets, self.chunk)

    @property
    def train_gradient(self) -> Tensor:
        """Gradient of the training loss; shape (trials, parameters)."""
        return self.training[0]

    @property
    def train_outputs(self) -> Tensor:
        """Outputs on the training set; shape (trials, N, outputs)."""
        return self.training[1]

    @cached_property
    @torch.no_grad()
    def test_outputs(self) -> Tensor:
        """Outputs on the test set; shape (trials, M, outputs)."""
        of = self.group
        chunks = of.data.dataset.test_inputs.split(self.chunk)
        return torch.cat([of.engine.outputs(of.parameters, of.buffers, c) for c in chunks], 1)

    @property
    def test_targets(self) -> Tensor:
        """Targets of the test set, for every trial; shape (trials, M[, outputs])."""
        targets = self.group.data.dataset.test_targets
        return targets.expand(len(self.group.trials), *targets.shape)

    @property
    def inputs(self) -> Tensor:
        """The curvature examples; shape (n, ...)."""
        return self.group.data.dataset.train_inputs[self.group.data.curvature_examples]

    @property
    def targets(self) -> Tensor:
        """Their targets, noise included; shape (trials, n[, outputs])."""
        return self.group.targets[:, self.group.data.curvature_examples]

    @cached_property
    def hessian(self) -> Hessian:
        """Of the mean loss over the curvature examples."""
        of = self.group
        return Hessian(of.engine, of.parameters, of.buffers, self.inputs, self.targets, self.chunk)

    def signs(self, purpose: Purpose, index: int) -> Tensor:
        """Random signs, shape (trials, parameters); keyed by epoch, so that iso-ratio trials of a seed share them."""
        block, dimension = round(self.group.epoch * 2**20), self.hessian.shape[1]
        drawn = [rademacher(t.seed, purpose, dimension, block, index) for t in self.group.trials]
        return torch.from_numpy(np.stack(drawn)).to(self.train_gradient)

    def members(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Parameters and buffers of one trial after the other, by name."""
        for i in range(len(self.group.trials)):
            yield {k: v[i] for k, v in self.group.parameters.items()}, {k: v[i] for k, v in self.group.buffers.items()}
