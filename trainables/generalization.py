"""Losses, accuracies, margins: what a pass over the data tells of how a net fits and generalizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.findings import Value
from trainables.study import Study


def training_set(study: Study) -> Iterator[Value]:
    """Losses, accuracies and margins over the training set, clean and corrupted examples apart; the gradient's norm.

    An example is corrupted where noise has changed its label or replaced its input. What concerns examples that there
    are none of is NaN; without classes only losses and the norm are given.
    """
    group, outputs = study.group, study.train_outputs
    losses = group.engine.losses(outputs, group.targets).double()
    yield Value("train_loss", losses.mean(1), 0.0)
    yield Value("clean_loss", _mean(losses, ~group.corrupted), 0.0)
    yield Value("corrupted_loss", _mean(losses, group.corrupted), 0.0)
    yield Value("gradient_norm", study.train_gradient.double().norm(dim=1), 0.0)
    dataset = group.data.dataset
    if dataset.is_classification:
        predicted = outputs.argmax(-1)
        right = (predicted == group.targets).double()
        yield Value("train_accuracy", right.mean(1), 0.0)
        yield Value("clean_accuracy", _mean(right, ~group.corrupted), 0.0)
        yield Value("corrupted_accuracy", _mean(right, group.corrupted), 0.0)
        yield Value("memorized", _mean(right, group.changed), 0.0)
        yield Value("recovered", _mean((predicted == dataset.train_targets).double(), group.changed), 0.0)
        yield from _margins("train_margin", outputs, group.targets)


def test_set(study: Study) -> Iterator[Value]:
    """Loss, accuracy and margins over the whole test set."""
    outputs, targets = study.test_outputs, study.test_targets
    yield Value("test_loss", study.group.engine.losses(outputs, targets).double().mean(1), 0.0)
    if study.group.data.dataset.is_classification:
        yield Value("test_accuracy", (outputs.argmax(-1) == targets).double().mean(1), 0.0)
        yield from _margins("test_margin", outputs, targets)


def _mean(numbers: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each trial's chosen numbers, NaN where none is chosen; shapes (trials, n) -> (trials,)."""
    return torch.where(chosen, numbers, 0).sum(1) / chosen.sum(1)


def _margins(name: str, outputs: Tensor, labels: Tensor) -> Iterator[Value]:
    """Mean and 10% quantile of the output of the label minus the largest other output; none with a single output."""
    if outputs.shape[-1] < 2:
        return
    label = labels[..., None]
    others = outputs.scatter(-1, label, -torch.inf).amax(-1)
    margins = outputs.gather(-1, label)[..., 0].double() - others.double()
    yield Value(name, margins.mean(1), 0.0)
    yield Value(f"{name}_p10", torch.stack([m.quantile(0.1) for m in margins]), 0.0)  # its size is limited: one by one
