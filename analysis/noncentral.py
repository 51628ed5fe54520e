"""Exact power of the two tests of a contrast: integrals over its estimated spread.

With D ~ N(δ, se²) and an independent S² ~ se² χ²(df) / df, what a test says of D depends on S, so that its power is a
normal probability averaged over S (Owen 1965; Phillips 1990 for two one-sided tests).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.contrasts import t_quantile, t_upper
from analysis.scales import FloatArray

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_TAIL = 1e-12  # of the distribution of S, left out at both ends
_STEPS = 6  # of Newton's method, which converges from one side; m = 0 needs most


def equivalence_power(size: FloatArray, se: FloatArray, df: FloatArray, m: float, alpha: float) -> FloatArray:
    """P(|D| + t S < m), the chance that the 1 - 2 alpha interval lies inside ±m; shape (K,).

    Args:
        size: |δ|, shape (K,).
        se: true standard error of D, shape (K,).
        df: degrees of freedom of S, shape (K,).
        m: margin.
        alpha: level of each one-sided test.
    """
    t = t_quantile(df, 1 - alpha)
    u, weight = _spread(df, m / (se * t))
    reach, size, se = (t * se)[:, None] * u, size[:, None], se[:, None]
    inside = special.ndtr((m - reach - size) / se) - special.ndtr((reach - m - size) / se)
    return np.asarray((weight * inside).sum(axis=1))


def difference_power(size: FloatArray, se: FloatArray, df: FloatArray, m: float, level: FloatArray) -> FloatArray:
    """Chance that p = T((|D| - m) / S) + T((|D| + m) / S) ≤ level, T the upper tail of t; shape (K,).

    Args:
        size: |δ|, shape (K,).
        se: true standard error of D, shape (K,).
        df: degrees of freedom of S, shape (K,).
        m: margin.
        level: of each contrast, shape (K,).
    """
    u, weight = _spread(df, np.full(len(df), np.inf))
    size, se = size[:, None], se[:, None]
    c = _threshold(m / (se * u), df[:, None], level[:, None]) * se * u
    beyond = special.ndtr((size - c) / se) + special.ndtr((-size - c) / se)
    return np.asarray((weight * beyond).sum(axis=1))


def _threshold(m: FloatArray, df: FloatArray, level: FloatArray) -> FloatArray:
    """The x with T(x - m) + T(x + m) = level, by Newton's method from below: T is convex there."""
    x = m + t_quantile(df, 1 - level)
    for _ in range(_STEPS):
        slope = _density(x - m, df) + _density(x + m, df)
        x = x + (t_upper(df, x - m) + t_upper(df, x + m) - level) / slope
    return x


def _density(t: FloatArray, df: FloatArray) -> FloatArray:
    """Of Student's t."""
    log = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - np.log(df * np.pi) / 2
    return np.asarray(np.exp(log - (df + 1) / 2 * np.log1p(t**2 / df)))


class _Spread(NamedTuple):
    """Nodes of u = S / se and the probability that each stands for, shape (K, nodes)."""

    u: FloatArray
    weight: FloatArray


def _spread(df: FloatArray, highest: FloatArray) -> _Spread:
    """Gauss-Legendre quadrature over the density of sqrt(χ²(df) / df), up to ``highest``, shape (K,)."""
    half = df / 2
    low = np.sqrt(special.gammaincinv(half, _TAIL) / half)
    high = np.maximum(low, np.minimum(highest, np.sqrt(special.gammainccinv(half, _TAIL) / half)))
    width, half = (high - low)[:, None] / 2, half[:, None]
    u = low[:, None] + width * (1 + _NODES)
    log = np.log(2) + half * np.log(half) - special.gammaln(half) + (2 * half - 1) * np.log(u) - half * u**2
    return _Spread(u, _WEIGHTS * width * np.exp(log))
