"""On which scale a metric is compared, and how fine its values are. Fixed per metric by its name, never by the data."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ROUNDING = 1e-12
"""Differences below this, relative to the values, are rounding."""


class Scale(StrEnum):
    """How two values of a metric are compared: by their ratio or by their difference."""

    LOG = "log"
    ABSOLUTE = "absolute"


_LOG = {
    *["lambda_max", "unseen_bound", "hessian_frobenius", "effective_dimension", "stability", "step_along_e1"],
    *["gradient_covariance_trace", "noise_scale", "covariance_lambda_max", "covariance_frobenius"],
}
_FRACTIONS = {"memorized", "recovered", "critical_sample_ratio", "subspace_overlap"}


def scale_of(metric: str) -> Scale:
    """Log for what is positive, such as losses, norms, lambda_max, tr C; absolute for all else.

    Absolute are what may be negative (lambda_min, Tr H, gaps, margins, cosines), fractions and epochs.

    A metric of a plug-in or an import goes by its ending: ``val_loss`` and ``weight_norm`` are on the log scale.
    """
    return Scale.LOG if metric in _LOG or metric.endswith(("_loss", "_norm")) else Scale.ABSOLUTE


def default_margin(metric: str) -> float | None:
    """0.1 on the log scale, 0.01 for accuracies and fractions, None where a margin has to be given."""
    if scale_of(metric) is Scale.LOG:
        return 0.1
    return 0.01 if metric in _FRACTIONS or metric.endswith(("_accuracy", "_fraction")) else None


def worst_of(metric: str) -> float:
    """What counts as worst: infinity, or minus infinity for accuracies and margins, of which more is better."""
    better = metric in {"recovered"} or metric.endswith("_accuracy") or "_margin" in metric
    return -math.inf if better else math.inf


def half_width(margin: float | None, scale: Scale) -> float:
    """The margin m on the scale: log(1 + margin) or the number itself; NaN where none is given."""
    if margin is None:
        return math.nan
    return math.log1p(margin) if scale is Scale.LOG else margin


def on_scale(values: FloatArray, scale: Scale) -> FloatArray:
    """The values to compare; NaN for what is not finite or, on the log scale, not positive."""
    usable = np.isfinite(values) & ((values > 0) | (scale is Scale.ABSOLUTE))
    kept = np.where(usable, values, np.nan)
    return np.log(kept) if scale is Scale.LOG else kept


def resolution_on_scale(resolution: FloatArray, values: FloatArray, scale: Scale) -> FloatArray:
    """The resolution h of the values to compare: divided by the value on the log scale, at least the rounding."""
    size, rounding = np.abs(values), ROUNDING
    if scale is Scale.LOG:
        with np.errstate(divide="ignore", invalid="ignore"):
            resolution = resolution / size
    else:
        rounding *= np.max(size, where=np.isfinite(size), initial=0.0)
    return np.asarray(np.fmax(resolution, rounding))


def smallest_step(values: FloatArray) -> float:
    """Resolution that shows in the data: the smallest nonzero difference of values that repeat, 0 if none repeats.

    Fractions k/n repeat and differ by multiples of 1/n; without repetition nothing speaks for steps.
    """
    finite = values[np.isfinite(values)]
    distinct = np.unique(finite)
    if len(distinct) == len(finite) or len(distinct) < 2:
        return 0.0
    float32_rounding = 1e-6 * np.abs(distinct).max()
    steps = np.diff(distinct)
    steps = steps[steps > float32_rounding]
    return float(steps.min()) if len(steps) else 0.0
