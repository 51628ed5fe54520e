"""Cell contrasts on iso-ratio lines: each cell against the smallest batch size at the same lr / batch_size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.grid import Grid, levels, moments
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
    """K contrasts y(cell) - y(reference), on the metric's scale; every array has shape (K,).

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
    def motionless(self) -> bool:
        """No difference varies over the seeds: they had no effect, so nothing can be tested."""
        return bool((self.n > 1).any() and self.constant[self.n > 1].all())

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
    cell = grid.contrasted
    reference = grid.reference[cell]
    value, rounding = grid.point_means(y), grid.point_means(np.where(np.isfinite(y), h**2 / 12, np.nan))
    paired, unpaired = _paired(grid, value, rounding), _welch(grid, value, rounding)
    shared = paired.n[cell] > 0
    n, estimate, variance, df, seen = (
        np.where(shared, p[cell], w[cell]) for p, w in zip(paired, unpaired, strict=True)
    )
    trials = grid.count(np.ones(len(y), dtype=bool))
    lost = grid.count(diverged)
    bad = grid.count(spoiled) > 0
    extinct = (lost[cell] == trials[cell]) & (trials[cell] >= LEAST_SEEDS) & (lost[reference] == 0)
    return Contrasts(
        lr=grid.lr[cell],
        batch_size=grid.batch_size[cell],
        reference_batch_size=grid.batch_size[reference],
        n=n,
        estimate=estimate,
        sd=np.sqrt(variance),
        df=df,
        constant=seen <= (ROUNDING * np.max(np.abs(y), where=np.isfinite(y), initial=0.0)) ** 2,
        unpaired=~shared & (n > 0),
        spoiled=bad[cell] | bad[reference],
        extinct=extinct,
    )


class _Differences(NamedTuple):
    """Per cell, against its reference."""

    n: IntArray
    estimate: FloatArray
    variance: FloatArray  # n times the squared standard error
    df: FloatArray
    seen: FloatArray  # variance before the resolution is allowed for


def _paired(grid: Grid, value: FloatArray, rounding: FloatArray) -> _Differences:
    """Seed by seed, n - 1 degrees of freedom."""
    difference = np.where(grid.partner < 0, np.nan, value - value[grid.partner])
    found = moments(grid.point_cell, difference, len(grid.lr))
    floor = moments(grid.point_cell, difference * 0 + rounding + rounding[grid.partner], len(grid.lr)).mean
    variance = np.maximum(found.variance, floor)
    return _Differences(found.n, found.mean, variance, np.subtract(found.n, 1.0), found.variance)


def _welch(grid: Grid, value: FloatArray, rounding: FloatArray) -> _Differences:
    """Two independent samples, Welch's degrees of freedom."""
    arm, other = moments(grid.point_cell, value, len(grid.lr)), grid.reference
    floor = moments(grid.point_cell, rounding, len(grid.lr)).mean
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.maximum(arm.variance, floor) / arm.n
        df = (error + error[other]) ** 2 / (error**2 / (arm.n - 1) + error[other] ** 2 / (arm.n[other] - 1))
    n = np.minimum(arm.n, arm.n[other])
    seen = arm.variance + arm.variance[other]
    return _Differences(n, arm.mean - arm.mean[other], n * (error + error[other]), df, seen)


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
