"""Curves of trials that were measured at different moments, at common times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.scales import BoolArray, FloatArray, IntArray, Scale, on_scale, resolution_on_scale, smallest_step

DIGITS = 9
"""Decimals to which two times are compared."""


class Aligned(NamedTuple):
    """Curves at common times; every array has shape (times, trials).

    Attributes:
        y: NaN where a trial has no points on both sides.
        h: resolution of y.
        distance: to the nearest point of the trial's own.
    """

    y: FloatArray
    h: FloatArray
    distance: FloatArray


@dataclass(frozen=True)
class Curves:
    """The points of some trials' curves, sorted by trial and then by time; every array has shape (points,).

    Attributes:
        trial: index of the trial.
        time: epochs or steps.
        y: the statistic on its scale, NaN where unusable.
        h: resolution of y.
        step_length: the largest step of any trial, in the unit of time: measurements are at whole steps.
        n: number of trials.
    """

    trial: IntArray
    time: FloatArray
    y: FloatArray
    h: FloatArray
    step_length: float
    n: int

    @classmethod
    def of(cls, points: pa.Table, rows: IntArray, axis: str, scale: Scale) -> Curves:
        """From a table with one row per trial and its points as lists: epoch, step, value and error, sorted by step."""
        lists = points.select(["epoch", "step", "value", "error"]).take(rows)
        count = pc.fill_null(pc.list_value_length(lists["value"]), 0).to_numpy()
        epoch, step, value, error = (
            np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.float64) for column in lists.columns
        )
        time = np.round(epoch if axis == "epoch" else step, DIGITS)
        fine = np.where(np.isnan(error), smallest_step(value), error)
        later = step > 0
        return cls(
            trial=np.repeat(np.arange(len(rows)), count),
            time=time,
            y=on_scale(value, scale),
            h=resolution_on_scale(fine, value, scale),
            step_length=float(np.max(time[later] / step[later], initial=0.0)),
            n=len(rows),
        )

    def has_points(self) -> BoolArray:
        """Which trials have any, shape (trials,)."""
        return np.bincount(self.trial, minlength=self.n) > 0

    def common_times(self, compared: BoolArray, coarsest: BoolArray) -> FloatArray:
        """Times of the coarsest trials' points, moved into the range that all compared trials cover.

        Args:
            compared: trials whose range counts, shape (trials,).
            coarsest: trials whose points count, those of the largest batch size.
        """
        there = np.flatnonzero(compared & self.has_points())
        low = self.time[np.searchsorted(self.trial, there)].max(initial=-np.inf)
        high = self.time[np.searchsorted(self.trial, there, side="right") - 1].min(initial=np.inf)
        chosen = self.time[(compared & coarsest)[self.trial]]
        return np.unique(np.clip(chosen, low, high)) if low <= high else np.empty(0)

    def at(self, times: FloatArray) -> Aligned:
        """Linear interpolation between a trial's own points; never beyond them."""
        pool = np.unique(np.concatenate([self.time, times]))
        key = self.trial * len(pool) + np.searchsorted(pool, self.time)
        trial = np.arange(self.n)
        wanted = np.searchsorted(pool, times)[:, None] + trial * len(pool)
        right = np.searchsorted(key, wanted)
        left = right - (np.append(key, -1)[right] != wanted)
        owner = np.append(self.trial, -1)  # of no point, beyond both ends
        inside = (owner[left] == trial) & (owner[right] == trial)
        left, right = (np.where(inside, end, 0) for end in (left, right))
        before, after = times[:, None] - self.time[left], self.time[right] - times[:, None]
        weight = np.divide(before, before + after, out=np.zeros_like(before), where=right > left)
        distance = np.where(inside, np.minimum(before, after), np.nan)
        y, h = (_between(v, left, right, weight, inside) for v in (self.y, self.h))
        return Aligned(y, h, distance)


def _between(v: FloatArray, left: IntArray, right: IntArray, weight: FloatArray, inside: BoolArray) -> FloatArray:
    return np.where(inside, v[left] + np.where(weight > 0, weight * (v[right] - v[left]), 0.0), np.nan)
