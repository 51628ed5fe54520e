"""How well the cells of a grid lie on one smooth curve: each predicted from all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.grid import levels
from analysis.resampling import SeedBootstrap
from analysis.scales import BoolArray, FloatArray
from analysis.slopes import natural_spline

COEFFICIENTS = 4
"""Of a curve; fewer where x has fewer distinct values."""


@dataclass(frozen=True)
class Curve:
    """Least squares on a basis, each cell predicted by all others.

    Attributes:
        q: orthonormal basis of what the curve can be, shape (cells, coefficients).
        free: 1 - leverage, 0 where a cell has a coefficient of its own, shape (cells,).
    """

    q: FloatArray
    free: FloatArray

    @classmethod
    def of(cls, x: FloatArray) -> Curve:
        """The curve in x, shape (cells,); a constant where x is."""
        left, size, _ = np.linalg.svd(_basis(x), full_matrices=False)
        q = left[:, size > 1e-9 * size[0]]
        return cls(q, 1 - (q**2).sum(axis=1))

    def mean_square(self, y: FloatArray, scored: BoolArray) -> FloatArray:
        """Mean over the scored cells of the squared error of prediction; y has shape (..., cells)."""
        residual = (y - (y @ self.q) @ self.q.T)[..., scored] / self.free[scored]
        return np.asarray((residual**2).mean(axis=-1))


def _basis(x: FloatArray) -> FloatArray:
    """Natural cubic spline with knots at quantiles of the distinct values, a polynomial where these are few."""
    level = levels(x)
    distinct = np.array([x[level == k].mean() for k in range(level.max() + 1)])
    if len(distinct) < COEFFICIENTS:
        scaled = (distinct - distinct[0]) / (np.ptp(distinct) or 1.0)
        return np.vander(scaled, len(distinct))[level]
    return natural_spline(distinct)[level]


def without_seeds(y: FloatArray) -> FloatArray:
    """Less the least-squares effect of each seed beside those of cells; both shape (cells, seeds)."""
    present = np.isfinite(y).astype(np.float64)
    filled, n = np.where(present > 0, y, 0.0), present.sum(axis=1)
    share = present / n[:, None]
    normal = np.diag(present.sum(axis=0)) - present.T @ share
    effect = np.linalg.lstsq(normal, filled.sum(axis=0) - share.T @ filled.sum(axis=1), rcond=None)[0]
    return np.asarray(y - effect)


def errors(
    curves: list[Curve], y: FloatArray, bootstrap: SeedBootstrap, scored: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean squares of each curve: error and noise, shape (curves,), and misfit of the data and then of the draws."""
    mean, drawn, seeds = np.nanmean(y, axis=1), bootstrap.means(y), y.shape[1]
    error = np.array([curve.mean_square(mean, scored) for curve in curves])
    noise = np.array([_noise(curve, y, mean, scored) for curve in curves])
    drawn_error = np.array([curve.mean_square(drawn, scored) for curve in curves])
    # A draw has the noise of the data and, widened, that of drawing seeds.
    again = 1 + bootstrap.widening**2 * (seeds - 1) / seeds
    return error, noise, np.column_stack([error - noise, drawn_error - noise[:, None] * again])


def _noise(curve: Curve, y: FloatArray, mean: FloatArray, scored: BoolArray) -> float:
    """Expected mean square error of predictions were the truth on the curve: the errors that the cells' means have."""
    n = np.isfinite(y).sum(axis=1)
    apart = np.nan_to_num(y - mean[:, None]) / np.sqrt(n * (n - 1))[:, None]
    return float(curve.mean_square(apart.T, scored).sum())
