"""Losses, accuracies and what else a pass over the data tells of how a net fits and generalizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trainables.findings import Value
from trainables.study import Study


def training_set(study: Study) -> Iterator[Value]:
    """Loss, accuracy, memorized fraction and gradient norm over the whole training set."""
    group, outputs = study.group, study.train_outputs
    yield Value("train_loss", group.engine.losses(outputs, group.targets).double().mean(1), 0.0)
    if group.data.dataset.is_classification:
        right = (outputs.argmax(-1) == group.targets).double()
        yield Value("train_accuracy", right.mean(1), 0.0)
        count = group.changed.sum(1)
        yield Value("memorized", torch.where(count > 0, (right * group.changed).sum(1) / count, torch.nan), 0.0)
    yield Value("gradient_norm", study.train_gradient.double().norm(dim=1), 0.0)


def test_set(study: Study) -> Iterator[Value]:
    """Loss and accuracy over the whole test set."""
    outputs, targets = study.test_outputs, study.test_targets
    yield Value("test_loss", study.group.engine.losses(outputs, targets).double().mean(1), 0.0)
    if study.group.data.dataset.is_classification:
        yield Value("test_accuracy", (outputs.argmax(-1) == targets).double().mean(1), 0.0)
