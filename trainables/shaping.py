"""Slopes of piecewise linear activations that keep very deep nets trainable without normalization or shortcuts.

Both give slopes (negative, positive) whose mean square is 1, so that weights of variance 1 / fan-in (``init: lecun``)
keep the size of what passes through.
"""

from __future__ import annotations

from functools import lru_cache
from math import acos, hypot, pi, sqrt

Slopes = tuple[float, float]

SHAPE = (-1.0, 0.0)
"""c- and c+ of shaped ReLUs; those of the figures of Li, Nica and Roy."""

ETA = 0.9
"""What tailored ReLUs make of the cosine 0 of two inputs; the choice of Zhang, Botev and Martens."""


def shaped_relu(width: int) -> Slopes:
    """Slopes proportional to 1 + c- / sqrt(width) and 1 + c+ / sqrt(width).

    Source: Li, Nica and Roy 2022, arXiv:2206.02768; their normalization of the weights is part of the slopes.
    """
    return _normalized(*(1 + c / sqrt(width) for c in SHAPE))


@lru_cache(maxsize=256)
def tailored_relu(layers: int) -> Slopes:
    """sqrt(2 / (1 + a^2)) (a, 1), where a is such that so many activations in a row map the cosine 0 to 0.9.

    Fewer than 13 layers cannot reach that: even a = 0, a scaled ReLU, stays below and is taken. Shortcuts, which
    keep cosines lower, are not accounted for.

    Source: Zhang, Botev and Martens 2022, arXiv:2203.08120, section 3 (TAT for leaky ReLUs).
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _composed(middle, layers) > ETA else (low, middle)
    return _normalized(low, 1.0)


def cosine_map(cosine: float, a: float) -> float:
    """Cosine of the outputs of a wide layer of leaky ReLUs of slope a, for inputs at a given cosine.

    c + (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c), the local C map.
    """
    c = min(1.0, max(-1.0, cosine))
    return c + (1 - a) ** 2 / (pi * (1 + a * a)) * (sqrt(1 - c * c) - c * acos(c))


def _composed(a: float, layers: int) -> float:
    cosine = 0.0
    for _ in range(layers):
        cosine = cosine_map(cosine, a)
    return cosine


def _normalized(negative: float, positive: float) -> Slopes:
    size = hypot(negative, positive) / sqrt(2)
    return negative / size, positive / size
