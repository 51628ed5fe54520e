"""Contrasts whose truth is assumed: the power of their verdict, and the seeds that it takes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.contrasts import LEAST_SEEDS
from analysis.decision import ALPHA, MOST_SEEDS, Outcome
from analysis.noncentral import difference_power, equivalence_power
from analysis.scales import FloatArray

UPPER = 0.8
"""Confidence of the upper limit of a spread that a pilot has estimated (Browne 1995)."""


@dataclass(frozen=True)
class Design:
    """K contrasts whose truth is assumed; every array has shape (K,).

    Attributes:
        size: true differences, absolute values.
        sd: of one seed's difference, so that the standard error is sd / sqrt(seeds).
        per_seed: degrees of freedom are this times (seeds - 1): 1 for paired contrasts, 2 for two unpaired arms.
        level: at which each is tested for "different".
        m: margin, on the scale.
    """

    size: FloatArray
    sd: FloatArray
    per_seed: FloatArray
    level: FloatArray
    m: float

    @property
    def asks(self) -> Outcome:
        """What the truth would make of the verdict: equivalent where all differences are within the margin."""
        return Outcome.EQUIVALENT if (self.size < self.m).all() else Outcome.DIFFERENT

    def power(self, seeds: int, alpha: float = ALPHA) -> float:
        """Chance of the verdict that the truth asks for, with so many seeds per cell.

        Equivalent: of all contrasts together, counted as independent. Different: of the contrast that is most likely to
        be found, so that the chance of any is at least that.
        """
        se, df = self.sd / math.sqrt(seeds), self.per_seed * (seeds - 1)
        if self.asks is Outcome.EQUIVALENT:
            return float(np.prod(equivalence_power(self.size, se, df, self.m, alpha)))
        return float(difference_power(self.size, se, df, self.m, self.level * alpha / ALPHA).max())

    def seeds(self, power: float, least: int = LEAST_SEEDS) -> int | None:
        """The fewest seeds, from ``least`` on, that have this power; None where 10,000 have not."""
        if self.power(MOST_SEEDS) < power:
            return None
        low, high = least - 1, MOST_SEEDS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.power(middle) >= power else (middle, high)
        return high

    def spread(self, factor: FloatArray) -> Design:
        """The same with other spreads."""
        return dataclasses.replace(self, sd=self.sd * factor)


def upper_limit(df: FloatArray, confidence: float = UPPER) -> FloatArray:
    """Factor from an estimated spread to its one-sided upper limit, sqrt(df / χ² quantile of 1 - confidence)."""
    return np.asarray(np.sqrt(df / 2 / special.gammaincinv(df / 2, 1 - confidence)))
