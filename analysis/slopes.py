"""Per-seed slopes in the ratio and in the batch size, and the exponent of the rescaling rule that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.contrasts import Estimate, mean_estimate, t_quantile
from analysis.frontier import Frontier
from analysis.grid import EQUAL, Grid, moments
from analysis.scales import BoolArray, FloatArray, IntArray

_KNOTS = (0.05, 0.35, 0.65, 0.95)  # quantiles of the log ratio


@dataclass(frozen=True)
class Slopes:
    """Means over seeds, with 95% intervals.

    Attributes:
        ratio: a, from y ~ C(batch size) + a log ratio within each seed.
        batch: γ, from y ~ C(ratio) + γ log batch size within each seed.
        exponent: p = 1 - γ / a: along lr ∝ batch_size^p the metric stays the same. Infinite ends mean unbounded.
        model_based: no line has two batch sizes, so γ rests on a spline in the ratio instead of C(ratio).
    """

    ratio: Estimate
    batch: Estimate
    exponent: Estimate
    model_based: bool


def slopes(grid: Grid, y: FloatArray, where: BoolArray) -> Slopes:
    """Slopes over some cells of a grid.

    Args:
        grid: cells and where the trials fall.
        y: metric on its scale, NaN where missing, shape (trials,).
        where: the cells to use, shape (cells,).
    """
    used = where[grid.point_cell]
    value = np.where(used, grid.point_means(y), np.nan)
    cell, seed = grid.point_cell, grid.point_seed
    x_batch, x_ratio = np.log(grid.batch_size)[cell], np.log(grid.ratio)[cell]
    size = np.unique(grid.batch_size, return_inverse=True)[1]
    in_ratio = within(value, x_ratio, size[cell], seed)
    model_based = not where[grid.contrasted].any()
    in_batch = (
        _beside_spline(value, x_batch, x_ratio, seed) if model_based else within(value, x_batch, grid.line[cell], seed)
    )
    return Slopes(mean_estimate(in_ratio), mean_estimate(in_batch), exponent(in_batch, in_ratio), model_based)


def inside(grid: Grid, edge: Frontier | None) -> tuple[BoolArray, str]:
    """The cells that slopes describe, shape (cells,), and a remark where they are not those up to the frontier.

    Cells with lr up to `lr_low`; without one those below `lr_high`; where that leaves no contrast, all.
    """
    if edge and edge.lr_low is not None:
        return grid.lr <= edge.lr_low * (1 + EQUAL), ""
    below = grid.lr < (edge.lr_high if edge and edge.lr_high is not None else 0) * (1 - EQUAL)
    if below[grid.contrasted].any():
        return below, "slopes are over the cells not shown to be broken"
    remark = "slopes are over all cells, for lack of a frontier" if len(grid.contrasted) else ""
    return np.ones(len(grid.lr), dtype=bool), remark


def within(y: FloatArray, x: FloatArray, stratum: IntArray, seed: IntArray) -> FloatArray:
    """Least-squares slope of y on x with an intercept per stratum, by seed: shape (seeds,), NaN if unidentified."""
    key = np.unique(seed * (stratum.max(initial=0) + 1) + stratum, return_inverse=True)[1]
    finite = np.isfinite(y)
    x = np.where(finite, x, np.nan)
    dx, dy = (v - moments(key, v, int(key.max(initial=-1)) + 1).mean[key] for v in (x, y))
    dx, dy, seeds = dx[finite], dy[finite], int(seed.max(initial=-1)) + 1
    leverage = np.bincount(seed[finite], weights=dx**2, minlength=seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.bincount(seed[finite], weights=dx * dy, minlength=seeds) / leverage
    return np.where(leverage > 1e-9, slope, np.nan)


def exponent(batch: FloatArray, ratio: FloatArray, confidence: float = 0.95) -> Estimate:
    """The exponent p = 1 - mean(γ) / mean(a), with Fieller's set {1 - ρ : |mean(γ - ρ a)| ≤ t se(γ - ρ a)}.

    Args:
        batch: γ of each seed, NaN where unidentified, shape (seeds,).
        ratio: a of each seed.
        confidence: of the set.

    Returns:
        NaN where unidentified; infinite ends where mean(a) cannot be told from 0, so that the set is unbounded.
    """
    both = np.isfinite(batch) & np.isfinite(ratio)
    pairs, n = np.stack([batch[both], ratio[both]]), int(both.sum())
    if not n or (mean := pairs.mean(axis=1))[1] == 0:
        return Estimate()
    value = float(1 - mean[0] / mean[1])
    if n < 2:
        return Estimate(value)
    t = float(t_quantile(np.array(n - 1.0), (1 + confidence) / 2))
    (c, b), (_, a) = np.outer(mean, mean) - t**2 * np.cov(pairs) / n  # a ρ² - 2 b ρ + c ≤ 0
    if a <= 0:
        return Estimate(value, -math.inf, math.inf)
    half = math.sqrt(max(b**2 - a * c, 0.0))
    return Estimate(value, float(1 - (b + half) / a), float(1 - (b - half) / a))


def _beside_spline(y: FloatArray, x: FloatArray, along: FloatArray, seed: IntArray) -> FloatArray:
    """Slope of y on x beside a natural cubic spline in `along`, for each seed: shape (seeds,)."""
    found = np.full(int(seed.max(initial=-1)) + 1, np.nan)
    enough = np.bincount(seed[np.isfinite(y)], minlength=len(found)) > len(_KNOTS) + 1
    for s in np.flatnonzero(enough):
        used = (seed == s) & np.isfinite(y)
        design = np.column_stack([x[used], natural_spline(along[used])])
        solution, _, rank, _ = np.linalg.lstsq(design, y[used], rcond=None)
        found[s] = solution[0] if rank == design.shape[1] else np.nan
    return found


def natural_spline(x: FloatArray) -> FloatArray:
    """Basis of cubic splines that are linear beyond the outer of four knots, intercept included, shape (len(x), 4)."""
    knots = np.quantile(x, _KNOTS)
    scaled, k = (x - knots[0]) / np.ptp(knots), (knots - knots[0]) / np.ptp(knots)
    cubes = np.maximum(scaled[:, None] - k, 0) ** 3
    last, before = cubes[:, 3], cubes[:, 2]
    weight = 1 / (k[3] - k[2])
    bends = [cubes[:, j] - before * (k[3] - k[j]) * weight + last * (k[2] - k[j]) * weight for j in range(2)]
    return np.column_stack([np.ones_like(scaled), scaled, *bends])
