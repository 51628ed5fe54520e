"""Random streams that are pure functions of (seed, purpose, block): nothing to checkpoint, nothing shared.

Each draws the raw words of the counter-based generator Philox (Salmon et al. 2011), whose output numpy guarantees
never to change. Streams of one seed do not depend on the batch size, so trials on an iso-ratio line are paired.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Purpose(IntEnum):
    """What a stream is for; part of the key, so no two purposes share a word."""

    INIT = 1
    ORDER = 2
    LABEL_NOISE = 3
    LANCZOS = 4
    TRACE = 5
    SUBSET = 6
    DATA = 7
    LAYERS = 8
    CRITICAL = 9
    DENSITY = 10
    COVARIANCE = 11
    ALIGNMENT = 12
    CHECK = 13
    INPUT_NOISE = 14
    PIXELS = 15
    GRADIENT_NOISE = 16
    AUGMENTATION = 17
    TRAIN_SUBSET = 18
    NUDGE = 19
    DROPOUT = 20


def words(seed: int, purpose: Purpose, n: int, block: int = 0, index: int = 0, start: int = 0) -> NDArray[np.uint64]:
    """``n`` uniform 64-bit words of stream ``(seed, purpose)``, from position ``start`` of ``(block, index)``."""
    counter, skipped = divmod(start, 4)  # a counter gives four words
    philox = np.random.Philox(key=[seed, int(purpose)], counter=[counter, 0, index, block])
    return philox.random_raw(skipped + n)[skipped:]


def uniforms(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as floats in [0, 1)."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(
    seed: int, purpose: Purpose, n: int, block: int = 0, index: int = 0, start: int = 0, stop: int | None = None
) -> NDArray[np.float64]:
    """``n`` independent standard normal numbers, or those from ``start`` to ``stop``, by Box and Muller's transform."""
    count = (n if stop is None else stop) - start
    u, v = (uniforms(words(seed, purpose, count, block, index, offset + start)) for offset in (0, n))
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))


def init_seed(seed: int) -> int:
    """Seed of the framework's generator while a net is initialised."""
    return int(words(seed, Purpose.INIT, 1)[0] >> np.uint64(1))


@lru_cache(maxsize=4096)
def layer_seed(seed: int) -> int:
    """Seed of the framework's generator for layers that draw random numbers; each step adds its number to it."""
    return int(words(seed, Purpose.LAYERS, 1)[0] >> np.uint64(2))


def permutation(seed: int, epoch: int, n: int) -> Indices:
    """Order in which epoch ``epoch`` visits ``n`` examples; shape (n,)."""
    return np.argsort(words(seed, Purpose.ORDER, n, epoch), kind="stable")


def subset(n: int, size: int) -> Indices:
    """The first ``size`` of a fixed permutation of ``n`` examples, the same for every trial, in ascending order."""
    return np.sort(np.argsort(words(0, Purpose.SUBSET, n), kind="stable")[:size])


def draws(seed: int, epoch: int, n: int) -> Indices:
    """``n`` examples drawn with replacement; shape (n,)."""
    return (words(seed, Purpose.ORDER, n, epoch) % np.uint64(n)).astype(np.int64)


def examples(seed: int, start: int, stop: int, n: int, *, replacement: bool) -> Indices:
    """Positions ``start`` to ``stop`` of the endless example stream of ``seed`` over ``n`` examples.

    The stream is the concatenation of one block per epoch, whatever the batch size; step s takes the positions
    ``s * batch_size`` to ``(s + 1) * batch_size``.
    """
    block = draws if replacement else permutation
    first, last = start // n, -(-stop // n)
    stream = np.concatenate([block(seed, epoch, n) for epoch in range(first, max(last, first + 1))])
    return stream[start - first * n : stop - first * n]


def label_noise(seed: int, probability: float, labels: Indices, num_classes: int, whole: int | None = None) -> Indices:
    """Each label redrawn, with ``probability``, uniformly over all classes (so it may stay the same); shape (n,).

    At one seed the labels redrawn at a smaller probability are among those redrawn at a larger one. Where these are
    the first of a set of size ``whole``, they become what they would in the whole set.
    """
    raw = words(seed, Purpose.LABEL_NOISE, 2 * (whole or len(labels))).reshape(2, -1)[:, : len(labels)]
    redrawn = (raw[1] % np.uint64(num_classes)).astype(np.int64)
    return np.where(uniforms(raw[0]) < probability, redrawn, labels)


def rademacher(seed: int, purpose: Purpose, n: int, block: int, index: int = 0) -> NDArray[np.int8]:
    """A vector of independent signs; shape (n,)."""
    bits = np.unpackbits(words(seed, purpose, -(-n // 64), block, index).view(np.uint8), count=n)
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)
