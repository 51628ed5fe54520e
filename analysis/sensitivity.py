"""Would the verdict be the same without its assumptions: a normal mean, trials that live, every single seed?"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.contrasts import LEAST_SEEDS, Contrasts, without_each_seed
from analysis.decision import ALPHA, Outcome, decide_each, judged_at
from analysis.grid import Grid
from analysis.sample import Sample
from analysis.scales import ROUNDING, BoolArray, FloatArray, IntArray

MOST_SEEDS = 64
"""Leaving each seed out in turn is for so many at most: of more, one changes little."""


@dataclass(frozen=True)
class Sensitivity:
    """Verdicts on the same trials by other means.

    Attributes:
        median: of sign tests on the median difference of each contrast, which no outlier moves; with fewer than 5
            seeds it cannot say "equivalent".
        worst_rank: of sign tests where a trial that diverged is worse than any that did not, whatever the metric; where
            none diverged it is that of `median`.
        without_one: outcome -> how often it comes when each seed in turn is left out; empty for more than 64 seeds.
    """

    median: Outcome
    worst_rank: Outcome
    without_one: dict[Outcome, int]

    def as_row(self) -> dict[str, object]:
        """Plain values."""
        left_out = {str(outcome): times for outcome, times in self.without_one.items()}
        return {"median": str(self.median), "worst_rank": str(self.worst_rank), "without_one": left_out}


def sensitivity(grid: Grid, sample: Sample, compared: Contrasts, m: float, worst: float = math.inf) -> Sensitivity:
    """Judges a grid by other means.

    Args:
        grid: cells and where the trials fall.
        sample: the metric of those trials.
        compared: the contrasts of the verdict.
        m: margin on the scale; NaN where none is given.
        worst: what a trial that diverged ends with: infinity, or minus infinity where larger is better.
    """
    blocked = bool(sample.spoiled.any())
    median = _by_signs(compared, _Signs.of(grid, sample.y, m), m, blocked=blocked)
    ranked = np.where(sample.diverged, worst, sample.y)
    by_rank = _by_signs(compared, _Signs.of(grid, ranked, m), m, blocked=blocked)
    return Sensitivity(median, by_rank, _without_one(grid, sample, m))


@dataclass(frozen=True)
class _Signs:
    """Of the paired differences of each contrast, shape (K,)."""

    n: IntArray
    above: IntArray  # more than m
    below: IntArray  # less than -m

    @classmethod
    def of(cls, grid: Grid, y: FloatArray, m: float) -> _Signs:
        """Counts signs; y may be infinite, and two infinite values are equal."""
        value = _point_values(grid, y)
        other = np.where(grid.partner < 0, np.nan, value[grid.partner])
        with np.errstate(invalid="ignore"):
            difference = np.where(np.isinf(value) & np.isinf(other), 0.0, value - other)
        m += ROUNDING * (1 + m)  # a difference of exactly the margin is not beyond it
        marks = ~np.isnan(difference), difference > m, difference < -m
        return cls(*(np.bincount(grid.point_cell[k], minlength=len(grid.lr))[grid.contrasted] for k in marks))

    def beyond(self) -> FloatArray:
        """P value of each contrast for "the median is within ±m"; the exact two-sided sign test where m is 0."""
        smaller: FloatArray = np.minimum(_tail(self.n, self.above), _tail(self.n, self.below))
        return np.asarray(np.minimum(1.0, 2 * smaller))

    def inside(self) -> BoolArray:
        """Both one-sided tests say that the median is within ±m."""
        worse = np.maximum(_tail(self.n, self.n - self.above), _tail(self.n, self.n - self.below))
        return (self.n > 0) & (worse <= ALPHA)


def _point_values(grid: Grid, y: FloatArray) -> FloatArray:
    """Mean of the trials of each point, infinite where one of them is."""
    means = grid.point_means(np.where(np.isinf(y), np.nan, y))
    lost = np.isinf(y)
    means[grid.point[lost]] = y[lost]
    return means


def _tail(n: IntArray, k: IntArray) -> FloatArray:
    """P(X >= k) for X ~ Binomial(n, 1/2)."""
    return np.asarray(np.where(k <= 0, 1.0, special.bdtrc(np.maximum(k - 1, 0), n, 0.5)))


def _by_signs(compared: Contrasts, signs: _Signs, m: float, *, blocked: bool) -> Outcome:
    """The rule of :func:`analysis.decision.decide` with exact sign tests in place of t tests."""
    tested = signs.n >= LEAST_SEEDS
    if math.isnan(m) or not tested.any() or compared.motionless:
        return Outcome.INCONCLUSIVE
    if (signs.beyond()[tested] <= judged_at(compared, tested)[tested]).any():
        return Outcome.DIFFERENT
    return Outcome.EQUIVALENT if not blocked and bool(signs.inside().all()) else Outcome.INCONCLUSIVE


def _without_one(grid: Grid, sample: Sample, m: float) -> dict[Outcome, int]:
    if grid.point_seed.max(initial=-1) >= MOST_SEEDS:
        return {}
    compared, blocked = without_each_seed(grid, sample.y, sample.h, sample.diverged, sample.spoiled)
    return dict(Counter(decide_each(compared, m, blocked)))
