"""The data a trial sees: the type that data-set plug-ins return. Imports no torch of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from trainables.streams import Purpose, words

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256
"""Examples taken to double precision at once."""


@dataclass(frozen=True)
class Dataset:
    """A data set, whole in memory.

    Attributes:
        train_inputs: shape (N, ...), floating point.
        train_targets: class labels, shape (N,), int64; or real values, shape (N, outputs).
        test_inputs: shape (M, ...).
        test_targets: like ``train_targets``.
        num_classes: number of classes, or of outputs where targets are real values.

    Raises:
        ValueError: where shapes, types or labels do not fit together.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            self._check(part, getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets"))

    def _check(self, part: str, inputs: Tensor, targets: Tensor) -> None:
        if not inputs.is_floating_point() or len(inputs) == 0:
            raise ValueError(
                f"{part}_inputs: floating point, at least one example; got {inputs.dtype} {tuple(inputs.shape)}"
            )
        if len(inputs) != len(targets):
            raise ValueError(f"{part}: {len(inputs)} inputs but {len(targets)} targets")
        if targets.is_floating_point():
            if targets.ndim != 2 or targets.shape[1] != self.num_classes:
                raise ValueError(
                    f"{part}_targets: real values need shape (N, {self.num_classes}), got {tuple(targets.shape)}"
                )
        elif str(targets.dtype) != "torch.int64":
            raise ValueError(f"{part}_targets: labels of type int64 are expected, got {targets.dtype}")
        elif targets.ndim != 1 or targets.min() < 0 or targets.max() >= self.num_classes:
            raise ValueError(
                f"{part}_targets: labels 0 to {self.num_classes - 1}, shape (N,), got {tuple(targets.shape)}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def is_classification(self) -> bool:
        """Whether targets are class labels."""
        return not self.train_targets.is_floating_point()

    @property
    def train_size(self) -> int:
        """N, the number of training examples."""
        return len(self.train_inputs)

    @cached_property
    def input_moments(self) -> tuple[float, float]:
        """Mean and standard deviation over all numbers of the training inputs together."""
        parts, numbers = self.train_inputs.split(CHUNK), self.train_inputs.numel()
        mean = sum(float(part.double().sum()) for part in parts) / numbers
        variance = sum(float((part.double() - mean).square_().sum()) for part in parts) / numbers
        return mean, sqrt(variance)

    def first(self, n: int) -> Dataset:
        """The first ``n`` training examples of one fixed random order, the whole test set.

        Of two such sets the smaller is the beginning of the larger; example i is the same in both.

        Raises:
            ValueError: for more examples than there are.
        """
        if not 1 <= n <= self.train_size:
            raise ValueError(
                f"train_size {n}: the training set has {self.train_size} examples: allowed are 1 to {self.train_size}"
            )
        order = np.argsort(words(0, Purpose.TRAIN_SUBSET, self.train_size), kind="stable")[:n]
        return replace(self, train_inputs=self.train_inputs[order], train_targets=self.train_targets[order])

    def sha256(self) -> str:
        """Hash over all tensors: types, shapes and bytes."""
        digest = hashlib.sha256()
        for tensor in (self.train_inputs, self.train_targets, self.test_inputs, self.test_targets):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.ravel().data)
        return digest.hexdigest()
