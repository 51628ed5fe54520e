"""Built-in data sets, and the one place where a data set is loaded."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data import Dataset
from trainables.files import data_root, read
from trainables.published import PUBLISHED
from trainables.registry import DIGITS_TRAIN_SIZE, load, resolve
from trainables.streams import Purpose, normals, words
from trainables.trial import Trial

AT_ONCE = 2**22
"""Random numbers drawn at once; what they pass through takes a few times 32 MB."""


@lru_cache(maxsize=4)
def load_dataset(reference: str) -> Dataset:
    """The data set that a trial's ``dataset`` names; kept, since actors run many packs."""
    resolved = resolve("dataset", reference)
    dataset = load(resolved.target)(data_root(), **resolved.parameters)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset {reference}: returned {type(dataset).__name__}, not trainables.Dataset")
    return dataset


def dataset_of(trial: Trial) -> Dataset:
    """The data set of a trial, its training set cut down to ``train_size``."""
    return _first(trial.dataset, trial.train_size)


@lru_cache(maxsize=1)
def _first(reference: str, train_size: int | None) -> Dataset:
    whole = load_dataset(reference)
    return whole if train_size is None else whole.first(train_size)


def digits(root: Path) -> Dataset:
    """Scikit-learn's digits: 1,797 real 8x8 images of ten classes, 1,437 to train and 360 to test.

    Pixels are scaled to [0, 1], centred on the training mean and divided by the training standard deviation (one number
    each). The split is a fixed permutation.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.argsort(words(0, Purpose.DATA, len(labels)), kind="stable")
    train, test = order[:DIGITS_TRAIN_SIZE], order[DIGITS_TRAIN_SIZE:]
    pixels = images / 16.0
    pixels = (pixels - pixels[train].mean()) / pixels[train].std()
    inputs, targets = torch.tensor(pixels, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)
    return Dataset(inputs[train], targets[train], inputs[test], targets[test], num_classes=10)


def mnist(root: Path) -> Dataset:
    """MNIST: 60,000 and 10,000 grey 28x28 images of ten digits; see :func:`standardized`."""
    return _published("mnist", root)


def fashion_mnist(root: Path) -> Dataset:
    """Fashion-MNIST: 60,000 and 10,000 grey 28x28 images of ten kinds of clothing; see :func:`standardized`."""
    return _published("fashion-mnist", root)


def cifar10(root: Path) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 colour 32x32 images of ten classes; see :func:`standardized`."""
    return _published("cifar10", root)


def cifar100(root: Path, labels: str = "fine") -> Dataset:
    """CIFAR-100: 50,000 and 10,000 colour 32x32 images of 100 classes, or 20 coarse ones; see :func:`standardized`."""
    return _published("cifar100", root, labels)


def _published(name: str, root: Path, labels: str = "class") -> Dataset:
    published = PUBLISHED[name]
    train, test = read(published, root)
    train_inputs, test_inputs = standardized(train.pixels, test.pixels)
    train_targets, test_targets = (torch.from_numpy(part.labels[labels]) for part in (train, test))
    return Dataset(train_inputs, train_targets, test_inputs, test_targets, published.classes[labels])


def standardized(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Pixels less the training mean of their channel, divided by its training standard deviation.

    Both come from sums of integers, so that they do not depend on the order of summation.

    Args:
        train: shape (N, channels, height, width).
        test: shape (M, channels, height, width).

    Returns:
        The same shapes, float32.
    """
    numbers = train[:, 0].size
    mean = np.einsum("nchw->c", train, dtype=np.int64) / numbers
    variance = np.einsum("nchw,nchw->c", train, train, dtype=np.int64) / numbers - mean**2
    shift, scale = (torch.from_numpy(of).float().view(-1, 1, 1) for of in (mean, np.sqrt(variance)))
    train_inputs, test_inputs = (torch.from_numpy(of).float().sub_(shift).div_(scale) for of in (train, test))
    return train_inputs, test_inputs


def teacher(
    root: Path,
    train_size: int = 4096,
    test_size: int = 1024,
    dimension: int = 64,
    classes: int = 10,
    width: int = 32,
    seed: int = 0,
    shape: list[int] | None = None,
) -> Dataset:
    """Standard normal inputs, labelled by the largest output of a random net with one hidden ReLU layer.

    Inputs are vectors of ``dimension`` in float64 or, where ``shape`` is given, of that shape in float32.
    """
    examples, numbers = train_size + test_size, prod(shape) if shape else dimension
    inputs = torch.empty(examples, numbers, dtype=torch.float32 if shape else torch.float64)
    hidden, weights = torch.empty(examples, width, dtype=torch.float64), _normal(seed, 1, (numbers, width))
    rows = max(1, AT_ONCE // numbers)
    for start in range(0, examples, rows):
        stop = min(start + rows, examples)
        inputs[start:stop] = part = _normal(seed, 0, (examples, numbers), start, stop)
        hidden[start:stop] = torch.relu(part @ weights / numbers**0.5)
    scores = (hidden - hidden.mean(0)) @ _normal(seed, 2, (width, classes))
    targets, inputs = scores.argmax(1), inputs.view(examples, *(shape or [dimension]))
    split = slice(None, train_size), slice(train_size, None)
    return Dataset(inputs[split[0]], targets[split[0]], inputs[split[1]], targets[split[1]], num_classes=classes)


def _normal(seed: int, block: int, shape: tuple[int, int], start: int = 0, stop: int | None = None) -> Tensor:
    """Rows ``start`` to ``stop`` of a matrix of standard normal numbers."""
    rows, columns = shape
    ends = start * columns, (rows if stop is None else stop) * columns
    return torch.from_numpy(normals(seed, Purpose.DATA, rows * columns, block + 1, 0, *ends)).reshape(-1, columns)
