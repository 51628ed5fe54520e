"""Tests that exchange what belongs to one seed: the signs of whole trajectories, the cells of a line."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from analysis.grid import Grid
from analysis.scales import FloatArray

FLIPS = 4096
"""Sign flips, all of them up to 12 seeds and a seeded sample above; the data as they are count as one."""

PERMUTATIONS = 2000
"""Seeded; the data as they are count as one."""

_CHUNK = 512  # columns at a time


def beyond_margin(differences: FloatArray, m: float) -> float:
    """P value of the max-T test that some mean lies beyond ±m, for all columns together (Westfall & Young 1993).

    With d the differences, T is the largest of the t statistics of d - m and of -d - m. The seeds' rows keep or change
    their signs as wholes, which leaves the law of the data as it is where every mean is at the margin, whatever the
    dependence between columns. P is the share of sign patterns with a T at least that of the data; never below 2 / 2^n,
    since -d - m with all signs changed exceeds d - m.

    Args:
        differences: of paired trials, NaN where missing, shape (seeds, columns).
        m: margin.

    Returns:
        NaN where there are no differences.
    """
    found = differences[np.isfinite(differences).any(axis=1)]
    found = found[:, np.isfinite(found).sum(axis=0) > 1]
    if not found.size:
        return math.nan
    signs = sign_patterns(len(found))
    top = np.full(len(signs), -np.inf)
    for start in range(0, found.shape[1], _CHUNK):
        part = found[:, start : start + _CHUNK]
        for shifted in (part - m, -part - m):
            np.maximum(top, _t_statistics(signs, shifted).max(axis=1), out=top)
    return float((top >= top[0] - 1e-9 * abs(top[0])).mean())


def sign_patterns(n: int) -> FloatArray:
    """Patterns of n signs, the first of them all positive: every one where there are at most 4096, shape (flips, n)."""
    if 2**n <= FLIPS:
        return np.asarray(1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1))
    signs = np.random.default_rng(n).choice([-1.0, 1.0], (FLIPS, n))
    signs[0] = 1.0
    return signs


def _t_statistics(signs: FloatArray, values: FloatArray) -> FloatArray:
    """Of every column under every pattern, shape (flips, columns): signs leave the sum of squares as it is."""
    n, values = np.isfinite(values).sum(axis=0), np.nan_to_num(values)
    length = np.sqrt((values**2).sum(axis=0))
    r = signs @ (values / np.where(length > 0, length, 1.0))
    return np.asarray(r * np.sqrt((n - 1) / np.maximum(n - r**2, 1e-12 * n)))


def line_tests(grid: Grid, y: FloatArray) -> tuple[float, float]:
    """Whether the cells of a line differ at all, seeds being blocks: P values without any margin.

    Args:
        grid: cells and where the trials fall.
        y: shape (trials,); seeds that lack a cell of a line are left out of it.

    Returns:
        Friedman's test of the lines of three cells and more, the smallest of the lines times their number; and that of
        the differences between cells of all lines, with cells permuted within seed and line. NaN where there is none.
    """
    lines = [block for block in _blocks(grid, grid.point_means(y)) if len(block) > 1]
    friedman = [_friedman(block) for block in lines if block.shape[1] > 2]
    known = [p for p in friedman if math.isfinite(p)]
    return min(1.0, len(known) * min(known)) if known else math.nan, _permutation(lines)


def _blocks(grid: Grid, value: FloatArray) -> list[FloatArray]:
    """Values of every line with two cells or more, shape (complete seeds, cells)."""
    table = np.full((int(grid.point_seed.max(initial=-1)) + 1, len(grid.lr)), np.nan)
    table[grid.point_seed, grid.point_cell] = value
    lines = [table[:, grid.line == line] for line in np.unique(grid.line[grid.contrasted])]
    return [block[np.isfinite(block).all(axis=1)] for block in lines]


def _friedman(block: FloatArray) -> float:
    if (np.ptp(block, axis=1) == 0).all():
        return math.nan  # all tied
    return float(stats.friedmanchisquare(*block.T).pvalue)


def _permutation(lines: list[FloatArray]) -> float:
    """P value of the share of the variance within seeds that lies between cells: the smallest times the lines' number.

    Lines of one seed depend on each other, so that each is a test of its own.
    """
    rng, found = np.random.default_rng(0), []
    for block in lines:
        residual = block - block.mean(axis=1, keepdims=True)
        residual /= np.sqrt((residual**2).sum()) or 1.0
        drawn = rng.permuted(np.broadcast_to(residual, (PERMUTATIONS, *residual.shape)), axis=2)
        drawn[0] = residual
        between = (drawn.mean(axis=1) ** 2).sum(axis=1)
        found += [float((between >= between[0] * (1 - 1e-9)).mean())] if between[0] > 0 else []
    return min(1.0, len(found) * min(found)) if found else math.nan
