"""The values of a metric in one group of trials, on the scale on which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.grid import Group, floats, given
from analysis.scales import BoolArray, FloatArray, on_scale, resolution_on_scale, scale_of, smallest_step
from trainables.registry import train_size
from trainables.statistics import ERROR_COLUMN


@dataclass(frozen=True)
class Sample:
    """A metric of the trials of a group; every array has shape (trials,).

    Attributes:
        lr: learning rate.
        batch_size: of the minibatch.
        seed: NaN where a trial has none.
        y: on the scale, NaN where missing.
        h: resolution of y.
        diverged: no value can be had.
        unusable: finished with a value that is not finite or, on the log scale, not positive.
        unmeasured: finished without the metric.
    """

    lr: FloatArray
    batch_size: FloatArray
    seed: FloatArray
    y: FloatArray
    h: FloatArray
    diverged: BoolArray
    unusable: BoolArray
    unmeasured: BoolArray

    @classmethod
    def of(cls, trials: pa.Table, group: Group, metric: str) -> Sample:
        """From a table of trials and the rows of the group."""
        scale, grid = scale_of(metric), group.grid
        missing = trials[metric].take(group.rows).is_null().to_numpy() & ~group.diverged
        values = np.where(group.diverged, np.nan, floats(trials, metric, group.rows))
        y = on_scale(values, scale)
        return cls(
            lr=grid.lr[grid.cell],
            batch_size=grid.batch_size[grid.cell],
            seed=floats(trials, "seed", group.rows),
            y=y,
            h=resolution_on_scale(_resolution(trials, group, metric, values), values, scale),
            diverged=group.diverged,
            unusable=np.isnan(y) & ~group.diverged & ~missing,
            unmeasured=missing,
        )

    @property
    def spoiled(self) -> BoolArray:
        """Diverged or unusable."""
        return self.diverged | self.unusable

    def where(self, chosen: BoolArray) -> Sample:
        """Some of the trials."""
        return Sample(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def error_column(metric: str, columns: Sequence[str]) -> str | None:
    """The column that holds the error of a metric, if there is one."""
    names = (ERROR_COLUMN.get(metric), f"{metric}_se", f"{metric}_residual")
    return next((name for name in names if name in columns), None)


def training_examples(trials: pa.Table, group: Group) -> FloatArray | None:
    """Size N of each trial's training set, shape (trials,); None where the data set does not tell."""
    datasets = trials["dataset"].take(group.rows[:1]).to_pylist() if "dataset" in trials.column_names else []
    whole = train_size(datasets[0]) if datasets and datasets[0] else None
    return np.fmin(given(trials, "train_size", group.rows), whole) if whole else None


def _resolution(trials: pa.Table, group: Group, metric: str, values: FloatArray) -> FloatArray:
    """How fine the values are: the solver's error, else one example of the training set, else the step that shows."""
    error = error_column(metric, trials.column_names)
    if error is not None:
        return floats(trials, error, group.rows)
    if metric in _COUNTED and (examples := training_examples(trials, group)) is not None:
        noise = (np.nan_to_num(given(trials, name, group.rows)) for name in ("label_noise", "input_noise"))
        counted = examples * _COUNTED[metric](*noise)
        return np.divide(1.0, counted, out=np.zeros_like(counted), where=counted > 0)
    return np.full(len(values), smallest_step(values))


_COUNTED: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "train_accuracy": lambda labels, inputs: np.ones_like(labels),
    "clean_accuracy": lambda labels, inputs: (1 - labels) * (1 - inputs),
    "corrupted_accuracy": lambda labels, inputs: 1 - (1 - labels) * (1 - inputs),
    "memorized": lambda labels, inputs: labels,
    "recovered": lambda labels, inputs: labels,
}
"""Metric -> of which share of the training set, about, it is a fraction, by label and input noise."""
