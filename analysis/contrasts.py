"""Cell contrasts on iso-ratio lines: each cell against the smallest batch size at the same lr / batch_size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.grid import Grid, Moments, levels, moments
from analysis.scales import ROUNDING, BoolArray, FloatArray, IntArray

LEAST_SEEDS = 4
"""A contrast of fewer seeds decides nothing."""

CONFIDENCE = 0.9
"""Of the contrasts' intervals: both one-sided tests against the margin are at 5%."""


class Estimate(NamedTuple):
    """A number with its interval; NaN where there is none, infinite where unbounded."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan


def plain(name: str, estimate: Estimate) -> dict[str, float | None]:
    """An estimate as three numbers, `name`, `name_low` and `name_high`; None for what is not finite."""
    names = (name, f"{name}_low", f"{name}_high")
    return {k: x if math.isfinite(x) else None for k, x in zip(names, estimate, strict=True)}


@dataclass(frozen=True)
class Contrasts:
    """K contrasts y(cell) - y(reference), on the metric's scale; every array has shape (K,), or as stated (S, K).

    Attributes:
        lr: of the cell; its reference has a lower one.
        batch_size: of the cell.
        reference_batch_size: the smallest on the line.
        n: shared seeds; where none is shared, seeds in the smaller of the two cells.
        estimate: mean difference over the seeds.
        sd: spread of one seed's difference, so that the standard error is sd / sqrt(n); never below the resolution.
        df: degrees of freedom of the t distribution.
        constant: the difference was the same for every seed.
        unpaired: no seed is shared.
        spoiled: a trial of either cell diverged or has no usable value.
        extinct: all trials of the cell (at least 4) diverged, and none of its reference.
    """

    lr: FloatArray
    batch_size: FloatArray
    reference_batch_size: FloatArray
    n: IntArray
    estimate: FloatArray
    sd: FloatArray
    df: FloatArray
    constant: BoolArray
    unpaired: BoolArray
    spoiled: BoolArray
    extinct: BoolArray

    def __len__(self) -> int:
        return len(self.lr)

    @property
    def ratio(self) -> FloatArray:
        """Learning rate / batch size, equal for cell and reference."""
        return self.lr / self.batch_size

    @property
    def se(self) -> FloatArray:
        """Standard error of the estimate."""
        return self.sd / np.sqrt(np.maximum(self.n, 1))

    @property
    def reach(self) -> FloatArray:
        """Half the length of the 90% interval, t * se."""
        return t_quantile(self.df, (1 + CONFIDENCE) / 2) * self.se

    @property
    def testable(self) -> BoolArray:
        """At least 4 seeds, and an error that is known."""
        return (self.n >= LEAST_SEEDS) & np.isfinite(self.estimate) & (self.se > 0)

    @property
    def motionless(self) -> BoolArray:
        """No difference varies over the seeds: they had no effect, so nothing can be tested; shape () or (S,)."""
        several = self.n > 1
        return np.asarray(several.any(-1) & (self.constant | ~several).all(-1))

    @property
    def lr_level(self) -> IntArray:
        """Rank of the learning rate among the contrasts."""
        return levels(np.log(self.lr))

    def interval(self, k: int) -> Estimate:
        """Contrast k with its 90% interval."""
        value, reach = float(self.estimate[k]), float(self.reach[k])
        return Estimate(value, value - reach, value + reach)

    def inside(self, m: float, alpha: float = (1 - CONFIDENCE) / 2) -> BoolArray:
        """The 1 - 2 alpha interval, of 90%, lies inside (-m, m) and nothing spoils it: equivalent."""
        reach = t_quantile(self.df, 1 - alpha) * self.se
        return self.testable & ~self.spoiled & (np.abs(self.estimate) + reach < m)

    def outside(self, m: float) -> BoolArray:
        """The 90% interval lies outside [-m, m], or only the cell itself diverges, always: broken."""
        return (self.testable & (np.abs(self.estimate) - self.reach > m)) | self.extinct


def contrasts(grid: Grid, y: FloatArray, h: FloatArray, diverged: BoolArray, spoiled: BoolArray) -> Contrasts:
    """All contrasts of a grid.

    Seeds that a cell shares with its reference are compared one by one (n - 1 degrees of freedom); where none is
    shared, Welch's comparison of two means applies.

    Args:
        grid: cells and where the trials fall.
        y: metric on its scale, NaN where missing, shape (trials,).
        h: resolution of y, shape (trials,): values are taken as uniform within h, of variance h^2 / 12.
        diverged: shape (trials,).
        spoiled: trials that diverged or ended with a value that the scale cannot take, shape (trials,).
    """

    def at_cells(points: FloatArray) -> Moments:
        return moments(grid.point_cell, points, len(grid.lr))

    value, rounding = grid.point_means(y), grid.point_means(_rounding(y, h))
    difference = np.where(grid.partner < 0, np.nan, value - value[grid.partner])
    paired = _paired(at_cells(difference), at_cells(difference * 0 + rounding + rounding[grid.partner]))
    apart = paired
    if not (paired.n[grid.contrasted] > 0).all():
        apart = _welch(at_cells(value), at_cells(rounding), grid.reference)
    counts = _Counts(*(grid.count(marked) for marked in (np.ones(len(y), dtype=bool), diverged, spoiled)))
    return _contrasts(grid, paired, apart, counts, _coarse(y))


def without_each_seed(
    grid: Grid, y: FloatArray, h: FloatArray, diverged: BoolArray, spoiled: BoolArray
) -> tuple[Contrasts, BoolArray]:
    """The contrasts of a grid as they are when one seed is left out, each of S in turn; takes what `contrasts` takes.

    Returns:
        Contrasts whose arrays have shape (S, K), but for lr and batch sizes; and whether any other seed has a spoiled
        trial, shape (S,).
    """
    seeds = int(grid.point_seed.max(initial=-1)) + 1
    shape = (len(grid.lr), seeds)

    def by_seed(points: FloatArray) -> FloatArray:
        table = np.full(shape, np.nan)
        table[grid.point_cell, grid.point_seed] = points
        return table

    def others(trials: BoolArray) -> IntArray:
        place = (grid.cell * seeds + grid.point_seed[grid.point])[trials]
        counted = np.bincount(place, minlength=shape[0] * seeds).reshape(shape)
        return np.asarray((counted.sum(1, keepdims=True) - counted).T)

    value, rounding = by_seed(grid.point_means(y)), by_seed(grid.point_means(_rounding(y, h)))
    difference = value - value[grid.reference]
    paired = _paired(_of_others(difference), _of_others(difference * 0 + rounding + rounding[grid.reference]))
    apart = _welch(_of_others(value), _of_others(rounding), grid.reference)
    counts = _Counts(*map(others, (np.ones(len(y), dtype=bool), diverged, spoiled)))
    return _contrasts(grid, paired, apart, counts, _coarse(y)), np.asarray(counts.spoiled.any(1))


class _Differences(NamedTuple):
    """Of each cell to its reference, shape (..., cells)."""

    n: IntArray
    estimate: FloatArray
    variance: FloatArray  # n times the squared standard error
    df: FloatArray
    seen: FloatArray  # variance before the resolution is allowed for


class _Counts(NamedTuple):
    """Trials of each cell, shape (..., cells)."""

    trials: IntArray
    diverged: IntArray
    spoiled: IntArray


def _contrasts(grid: Grid, paired: _Differences, apart: _Differences, counts: _Counts, coarse: float) -> Contrasts:
    cell = grid.contrasted
    reference = grid.reference[cell]
    shared = paired.n[..., cell] > 0
    n, estimate, variance, df, seen = (
        np.where(shared, p[..., cell], a[..., cell]) for p, a in zip(paired, apart, strict=True)
    )
    trials, lost, bad = counts.trials[..., cell], counts.diverged, counts.spoiled > 0
    return Contrasts(
        lr=grid.lr[cell],
        batch_size=grid.batch_size[cell],
        reference_batch_size=grid.batch_size[reference],
        n=n,
        estimate=estimate,
        sd=np.sqrt(variance),
        df=df,
        constant=seen <= coarse**2,
        unpaired=~shared & (n > 0),
        spoiled=bad[..., cell] | bad[..., reference],
        extinct=(lost[..., cell] == trials) & (trials >= LEAST_SEEDS) & (lost[..., reference] == 0),
    )


def _rounding(y: FloatArray, h: FloatArray) -> FloatArray:
    """Variance of each value for its resolution."""
    return np.where(np.isfinite(y), h**2 / 12, np.nan)


def _coarse(y: FloatArray) -> float:
    """Differences up to here are rounding."""
    return float(ROUNDING * np.max(np.abs(y), where=np.isfinite(y), initial=0.0))


def _paired(difference: Moments, rounding: Moments) -> _Differences:
    """Seed by seed, n - 1 degrees of freedom."""
    variance = np.maximum(difference.variance, rounding.mean)
    return _Differences(difference.n, difference.mean, variance, np.subtract(difference.n, 1.0), difference.variance)


def _welch(arm: Moments, rounding: Moments, other: IntArray) -> _Differences:
    """Two independent samples, Welch's degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.maximum(arm.variance, rounding.mean) / arm.n
        of_other, n_other = error[..., other], arm.n[..., other]
        df = (error + of_other) ** 2 / (error**2 / (arm.n - 1) + of_other**2 / (n_other - 1))
    n, seen = np.minimum(arm.n, n_other), arm.variance + arm.variance[..., other]
    return _Differences(n, arm.mean - arm.mean[..., other], n * (error + of_other), df, seen)


def _of_others(table: FloatArray) -> Moments:
    """Moments of the finite values in each row without one of its columns, shape (columns, rows).

    Counted from the row's median, so that an outlier leaves no rounding error where it is left out.
    """
    found = np.isfinite(table)
    n = found.sum(1, keepdims=True) - found
    middle = np.maximum(found.sum(1, keepdims=True) - 1, 0) // 2
    center = np.nan_to_num(np.take_along_axis(np.sort(table, axis=1), middle, 1)) if table.size else 0.0
    away = np.where(found, table - center, 0.0)
    total, squares = _sum_of_others(away), _sum_of_others(away**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, center + total / n, np.nan)
        variance = np.where(n > 1, np.maximum(squares - total**2 / n, 0.0) / (n - 1), np.nan)
    return Moments(n.T, mean.T, variance.T)


def _sum_of_others(table: FloatArray) -> FloatArray:
    """Of each row without one of its columns, with no subtraction."""
    before, after = np.zeros_like(table), np.zeros_like(table)
    before[:, 1:] = np.cumsum(table[:, :-1], axis=1)
    after[:, :-1] = np.cumsum(table[:, :0:-1], axis=1)[:, ::-1]
    return before + after


def t_quantile(df: FloatArray, probability: float | FloatArray) -> FloatArray:
    """Quantile of Student's t; NaN where df is not positive."""
    return np.asarray(special.stdtrit(np.where(df > 0, df, np.nan), probability), dtype=np.float64)


def t_upper(df: FloatArray, t: FloatArray) -> FloatArray:
    """Upper tail of Student's t, P(T > t)."""
    return np.asarray(special.stdtr(np.where(df > 0, df, np.nan), -t), dtype=np.float64)


def mean_estimate(values: FloatArray, confidence: float = 0.95) -> Estimate:
    """Mean of independent values (NaN left out) with its t-interval, which takes at least two."""
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Estimate(float(values[0])) if n else Estimate()
    t, mean = float(t_quantile(np.array(n - 1.0), (1 + confidence) / 2)), float(values.mean())
    reach = t * float(values.std(ddof=1)) / n**0.5
    return Estimate(mean, mean - reach, mean + reach)
