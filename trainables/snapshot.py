"""The trials of a pack at one moment of training, and the data as each of them sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.datasets import load_dataset
from trainables.engine import Engine, Tensors, take
from trainables.inputs import Inputs
from trainables.streams import label_noise, subset
from trainables.trial import Trial


@dataclass(frozen=True)
class PackData:
    """The data set as the trials of a pack see it, on the device and in the precision of training.

    Attributes:
        dataset: the data set; its training targets are the clean ones, its inputs those without noise.
        inputs: as the trials see them.
        targets: training targets of every trial, noise included; shape (trials, N[, outputs]).
        changed: training labels that noise has changed; shape (trials, N).
        curvature_examples: training examples on which curvature is measured, the same for every trial; shape (n,).
    """

    dataset: Dataset
    inputs: Inputs
    targets: Tensor
    changed: Tensor
    curvature_examples: Tensor

    @classmethod
    def of(
        cls, dataset: Dataset, trials: Sequence[Trial], examples: int, dtype: torch.dtype, device: torch.device
    ) -> PackData:
        """Draws each trial's label noise and moves everything to ``device``.

        Raises:
            ValueError: label noise on real-valued targets.
        """
        targets, changed = _noisy_targets(dataset, trials)
        placed = Dataset(
            _place(dataset.train_inputs, dtype, device),
            _place(dataset.train_targets, dtype, device),
            _place(dataset.test_inputs, dtype, device),
            _place(dataset.test_targets, dtype, device),
            dataset.num_classes,
        )
        measured = torch.from_numpy(subset(dataset.train_size, examples))
        inputs = Inputs.of(placed, trials)
        return cls(placed, inputs, _place(targets, dtype, device), changed.to(device), measured.to(device))


@dataclass(frozen=True)
class Snapshot:
    """Trials at one moment; the leading dimension of every tensor counts them.

    Attributes:
        engine: gives outputs and losses.
        data: of all trials of the pack.
        trials: their configurations.
        slots: their places in the pack.
        parameters: stacked by name; zero where a trial has diverged, so that its products stay finite.
        buffers: stacked by name.
        inputs: as these trials see them.
        targets: training targets, noise included.
        changed: training labels that noise has changed.
        alive: which trials have not diverged.
        step: optimizer steps taken.
        epoch: examples seen, divided by the training-set size.
    """

    engine: Engine
    data: PackData
    trials: Sequence[Trial]
    slots: list[int]
    parameters: Tensors
    buffers: Tensors
    inputs: Inputs
    targets: Tensor
    changed: Tensor
    alive: Tensor
    step: int
    epoch: float

    @classmethod
    def of(cls, engine: Engine, data: PackData, trials: Sequence[Trial], step: int, epoch: float) -> Snapshot:
        """The present state of ``engine``."""
        parameters, buffers = engine.state()
        dead = ~engine.alive
        zeroed = {k: v.masked_fill(dead.view(-1, *[1] * (v.ndim - 1)), 0) for k, v in parameters.items()}
        seen = data.inputs, data.targets, data.changed
        return cls(engine, data, trials, list(range(len(trials))), zeroed, buffers, *seen, engine.alive, step, epoch)

    @property
    def corrupted(self) -> Tensor:
        """Training examples whose label noise has changed or whose input it has replaced; shape (trials, N)."""
        return self.changed | self.inputs.replaced

    def take(self, part: list[int]) -> Snapshot:
        """The trials at these positions."""
        return replace(
            self,
            trials=[self.trials[i] for i in part],
            slots=[self.slots[i] for i in part],
            parameters={k: v[part] for k, v in self.parameters.items()},
            buffers={k: v[part] for k, v in self.buffers.items()},
            inputs=self.inputs.take(part),
            targets=take(self.targets, part),
            changed=self.changed[part],
            alive=self.alive[part],
        )


def _noisy_targets(dataset: Dataset, trials: Sequence[Trial]) -> tuple[Tensor, Tensor]:
    clean = dataset.train_targets
    if not dataset.is_classification:
        if any(t.label_noise for t in trials):
            raise ValueError(f"label_noise: data set {trials[0].dataset} has real-valued targets, no labels to redraw")
        return clean.expand(len(trials), *clean.shape), torch.zeros(len(trials), len(clean), dtype=torch.bool)
    labels = clean.cpu().numpy()
    whole = load_dataset(trials[0].dataset).train_size
    noisy = np.stack([label_noise(t.seed, t.label_noise, labels, dataset.num_classes, whole) for t in trials])
    return torch.from_numpy(noisy), torch.from_numpy(noisy != labels)


def _place(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
