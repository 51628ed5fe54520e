"""Bootstrap over seeds: means of cells in studies that might have been, each seed with all of its trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.contrasts import Estimate
from analysis.grid import moments
from analysis.scales import FloatArray, IntArray


@dataclass(frozen=True)
class SeedBootstrap:
    """R resamples of the seeds, the same for every quantity.

    Attributes:
        weights: how often each resample has each seed, shape (R, seeds).
        widening: factor on each resample's distance from the mean, shape (R,).
    """

    weights: FloatArray
    widening: FloatArray

    @classmethod
    def of(cls, seeds: int, resamples: int, rng: np.random.Generator) -> SeedBootstrap:
        """Draws resamples of n seeds, widened by sqrt(n / χ²) with χ² of n - 1 degrees of freedom.

        A plain bootstrap of few seeds is too narrow: its variance lacks a factor n / (n - 1), and it takes the spread
        seen for the true one. So widened, a mean is spread about as s / sqrt(n) times Student's t with n - 1 degrees.
        """
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(np.float64)
        return cls(weights, np.sqrt(seeds / rng.chisquare(max(seeds - 1, 1), resamples)))

    def means(self, values: FloatArray) -> FloatArray:
        """Mean over the seeds of each cell in each resample.

        Args:
            values: NaN where missing, shape (cells, seeds).

        Returns:
            Shape (R, cells); the mean over all seeds where a resample has none of the cell's, NaN where there are none.
        """
        finite = np.isfinite(values)
        present = np.where(finite, values, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = present.sum(axis=1) / finite.sum(axis=1)
            drawn = (self.weights @ present.T) / (self.weights @ finite.T)
        drawn = np.where(np.isnan(drawn), mean, drawn)
        return np.asarray(mean + self.widening[:, None] * (drawn - mean))


def by_seed(cell: IntArray, seed: IntArray, values: FloatArray, cells: int) -> FloatArray:
    """Mean of the finite values of each seed in each cell, NaN where there is none, shape (cells, seeds)."""
    seeds = int(seed.max(initial=-1)) + 1
    return np.asarray(moments(cell * seeds + seed, values, cells * seeds).mean.reshape(cells, seeds))


def with_interval(values: FloatArray) -> Estimate:
    """The first value, that of the data, with the 95% interval of the others, those of R resamples."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))
