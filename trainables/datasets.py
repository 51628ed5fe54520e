"""Built-in data sets, and the one place where a data set is loaded."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.registry import DIGITS_TRAIN_SIZE, load, resolve
from trainables.streams import Purpose, normals, words


def data_root() -> Path:
    """Where data files lie: ``$ISORATIO_DATA``, else the user's cache."""
    given = os.environ.get("ISORATIO_DATA")
    return Path(given) if given else Path("~/.cache/isoratio").expanduser()


@lru_cache(maxsize=4)
def load_dataset(reference: str) -> Dataset:
    """The data set that a trial's ``dataset`` names; kept, since actors run many packs."""
    resolved = resolve("dataset", reference)
    dataset = load(resolved.target)(data_root(), **resolved.parameters)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset {reference}: returned {type(dataset).__name__}, not trainables.Dataset")
    return dataset


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


def teacher(
    root: Path,
    train_size: int = 4096,
    test_size: int = 1024,
    dimension: int = 64,
    classes: int = 10,
    width: int = 32,
    seed: int = 0,
) -> Dataset:
    """Standard normal inputs, labelled by the largest output of a random net with one hidden ReLU layer."""
    examples = train_size + test_size
    inputs = _normal(seed, 0, (examples, dimension))
    hidden = torch.relu(inputs @ _normal(seed, 1, (dimension, width)) / dimension**0.5)
    scores = (hidden - hidden.mean(0)) @ _normal(seed, 2, (width, classes))
    targets = scores.argmax(1)
    split = slice(None, train_size), slice(train_size, None)
    return Dataset(inputs[split[0]], targets[split[0]], inputs[split[1]], targets[split[1]], num_classes=classes)


def _normal(seed: int, block: int, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(normals(seed, Purpose.DATA, shape[0] * shape[1], block + 1)).reshape(shape)
