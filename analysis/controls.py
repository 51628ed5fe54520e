"""Control trials: is a line's invariance one of noise, or of training time; and how far apart do equal trials end?

At a fixed number of epochs lr / batch_size is training time, t = lr * steps = ratio * N * epochs, so that trials of
equal ratio would also agree without any noise. Gradient descent at equal t (``sampler: full``) tells the two apart:
what it gives differs from what SGD gives by what noise does. Trials that differ in nothing but the order of examples
(A/A) show what chance does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.contrasts import Contrasts, Estimate, contrasts, plain
from analysis.grid import EQUAL, WITHIN_GROUP, Grid, Group, groups, levels, moments
from analysis.sample import Sample
from analysis.scales import BoolArray, FloatArray, IntArray
from trainables.trial import AGAIN, FIELDS

_REPLACED = ("sampler", "gradient_noise")
"""Fields in which a noise-free control differs from the trials that it is for."""

_ADDED = {b"noise_free": b"added"}
"""What the schema of a table says where its gradient descent is controls, and none of it was swept."""


@dataclass(frozen=True)
class LineNoise:
    """What the noise of SGD does to a metric on one iso-ratio line.

    Attributes:
        ratio: lr / batch_size.
        batch_size: the smallest on the line, that of the trials compared.
        nu: mean over seeds of y(SGD) - y(gradient descent at equal training time), with its 90% interval.
        n: shared seeds; where none is shared, seeds in the smaller of the two samples.
        informative: True where the interval lies outside the margin, so that invariance on this line says something
            about noise; False where it lies inside: training time explains it. None where neither is shown.
    """

    ratio: float
    batch_size: int
    nu: Estimate
    n: int
    informative: bool | None

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is missing."""
        numbers = {"ratio": self.ratio, "batch_size": self.batch_size, **plain("nu", self.nu)}
        return {**numbers, "n_seeds": self.n, "informative": self.informative}


@dataclass(frozen=True)
class Floor:
    """How far trials end apart that differ in nothing but the order of examples.

    Attributes:
        spread: root mean square of the differences, on the metric's scale.
        n: pairs.
    """

    spread: float
    n: int


@dataclass(frozen=True)
class Trials:
    """The trials of one sweep, apart by what they are for; rows of one table.

    Attributes:
        judged: those that are compared with each other.
        noise_free: gradient descent on the whole training set, where others have noise.
        again: with another order of examples.
    """

    judged: pa.Table
    noise_free: pa.Table
    again: pa.Table

    @classmethod
    def of(cls, trials: pa.Table) -> Trials:
        """Tells controls by their fields, as those of :mod:`orchestrator.controls` are.

        Gradient descent of which a line has several batch sizes is judged as well: it was swept, unless the table says
        that it was not (see :func:`of_file`). So have those lines whose controls moved as the grid grew.
        """
        full, again = is_full(trials), _is_again(trials)
        added = _ADDED.items() <= (trials.schema.metadata or {}).items()
        swept = bool(full.all()) or (not added and _has_lines(trials.filter(pa.array(full))))
        judged = ~again & (~full | swept)
        rest = trials if judged.all() else trials.filter(pa.array(judged))  # a copy of all takes its time
        return cls(rest, trials.filter(pa.array(full & ~again)), trials.filter(pa.array(again)))

    def controls_of(self, group: Group) -> GroupControls:
        """Those that differ from the trials of a group in what makes them controls only."""
        descent = not len(group.rows) or is_full(self.judged.take(group.rows[:1]))[0]
        noise_free = None if descent else self._like(group, self.noise_free, _REPLACED)
        return GroupControls(noise_free, self._like(group, self.again, ()))

    def _like(self, group: Group, controls: pa.Table, replaced: tuple[str, ...]) -> tuple[pa.Table, Group] | None:
        if not len(controls):
            return None
        but = (*WITHIN_GROUP, *replaced)
        compared = controls.drop_columns([name for name in replaced if name in controls.column_names])
        same = _configuration(self.judged, group, but)
        return next(((compared, g) for g in groups(compared) if _configuration(compared, g, but) == same), None)


def of_file(trials: pa.Table, content: Mapping[str, Any]) -> pa.Table:
    """The same trials; the table says whether their sweep file adds gradient descent as a control and sweeps none."""
    swept = (content.get("grid") or {}).get("sampler") or (content.get("train") or {}).get("sampler") or ()
    added = bool(content) and "full" not in swept
    return trials.replace_schema_metadata({**(trials.schema.metadata or {}), **_ADDED}) if added else trials


def is_full(trials: pa.Table) -> BoolArray:
    """Which trials are gradient descent on the whole training set."""
    if "sampler" not in trials.column_names:
        return np.zeros(len(trials), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(trials["sampler"], "full"), False))


def _is_again(trials: pa.Table) -> BoolArray:
    if not {"seed", "order_seed"} <= {*trials.column_names}:
        return np.zeros(len(trials), dtype=bool)
    order, seed = (pc.cast(trials[name], pa.int64()) for name in ("order_seed", "seed"))
    return np.asarray(pc.fill_null(pc.equal(order, pc.bit_wise_xor(seed, AGAIN)), False))


def _has_lines(trials: pa.Table) -> bool:
    """Whether some seed has two batch sizes on a line."""
    grids = [group.grid for group in groups(trials)]
    return any(((g.partner >= 0) & (g.reference[g.point_cell] != g.point_cell)).any() for g in grids)


@dataclass(frozen=True)
class GroupControls:
    """The controls of one group of trials.

    Attributes:
        noise_free: gradient descent, with the table that its rows are of.
        again: A/A trials, likewise.
    """

    noise_free: tuple[pa.Table, Group] | None
    again: tuple[pa.Table, Group] | None

    def noise(self, sample: Sample, metric: str, m: float) -> tuple[LineNoise, ...]:
        """What noise does to a metric, line by line."""
        return tuple(line_noise(sample, Sample.of(*self.noise_free, metric), m)) if self.noise_free else ()

    def floor(self, sample: Sample, metric: str) -> Floor | None:
        """How far equal trials end apart in a metric."""
        return floor(sample, Sample.of(*self.again, metric)) if self.again else None


def _configuration(trials: pa.Table, group: Group, but: Collection[str]) -> str:
    """What all trials of a group share, except for some fields: a text that is equal where it is equal."""
    names = [name for name in FIELDS if name in trials.column_names and name not in but]
    return str(trials.select(names).take(group.rows[:1]).to_pylist())


def line_noise(sgd: Sample, descent: Sample, m: float) -> list[LineNoise]:
    """What noise does on each line that has a control.

    Args:
        sgd: the trials that are judged; of each line those of the smallest batch size count.
        descent: trials without noise; of several learning rates at a ratio the one with the most seeds counts, of those
            the one next to that of SGD.
        m: margin on the scale; NaN where none is given.
    """
    ratio = np.concatenate([sgd.lr / sgd.batch_size, descent.lr / descent.batch_size])
    line, n = levels(np.log(ratio)), len(sgd.lr)
    lines = int(line.max(initial=-1)) + 1
    smallest = _least(line[:n], sgd.batch_size, lines)
    first = sgd.where(sgd.batch_size == smallest[line[:n]])
    lr = _least(line[:n], sgd.lr, lines)
    with np.errstate(invalid="ignore"):
        away = np.abs(np.log(descent.lr / lr[line[n:]]))
    few = -_seeds_beside(descent, line[n:])
    rank = np.where(few <= _least(line[n:], few, lines)[line[n:]], away, np.inf)
    nearest = rank <= _least(line[n:], rank, lines)[line[n:]] + EQUAL
    compared = _compared(first, descent.where(nearest))
    return [_line_noise(compared, k, first, m) for k in range(len(compared))]


def _seeds_beside(sample: Sample, line: IntArray) -> FloatArray:
    """How many seeds there are at each trial's line and learning rate."""
    cell = np.unique(np.stack([line, levels(np.log(sample.lr))]), axis=1, return_inverse=True)[1].ravel()
    pairs = np.unique(np.stack([cell, _codes(sample.seed)]), axis=1)[0]
    return np.asarray(np.bincount(pairs, minlength=len(cell))[cell], dtype=np.float64)


def _line_noise(compared: Contrasts, k: int, first: Sample, m: float) -> LineNoise:
    on_line = np.isclose(first.lr / first.batch_size, compared.ratio[k], rtol=EQUAL, atol=0)
    batch_size = int(first.batch_size[on_line][0])
    known = math.isfinite(m) and bool(compared.testable[k] and not compared.spoiled[k])
    informative = None
    if known:
        informative = True if compared.outside(m)[k] else False if compared.inside(m)[k] else None
    return LineNoise(float(compared.ratio[k]), batch_size, compared.interval(k), int(compared.n[k]), informative)


def _compared(sample: Sample, control: Sample) -> Contrasts:
    """Sample minus control at each ratio that both have: as two cells of a line, of batch sizes 1 and 2."""
    both = [np.concatenate(pair) for pair in zip(vars(control).values(), vars(sample).values(), strict=True)]
    joined = Sample(*both)
    size = np.repeat([1.0, 2.0], [len(control.lr), len(sample.lr)])
    grid = Grid.of(joined.lr / joined.batch_size * size, size, _codes(joined.seed))
    return contrasts(grid, joined.y, joined.h, joined.diverged, joined.spoiled)


def floor(original: Sample, again: Sample) -> Floor | None:
    """How far A/A trials lie apart, over all cells that have them; None without any pair."""
    lr, batch_size, seed = (
        np.concatenate([getattr(s, n) for s in (original, again)]) for n in ("lr", "batch_size", "seed")
    )
    cell = np.stack([levels(np.log(lr)).astype(float), batch_size, _codes(seed).astype(float)])
    point = np.unique(cell, axis=1, return_inverse=True)[1].ravel()
    parts = np.split(point, [len(original.lr)])
    one, other = (moments(index, s.y, len(point)).mean for index, s in zip(parts, (original, again), strict=True))
    difference = one - other
    found = difference[np.isfinite(difference)]
    return Floor(float(np.sqrt(np.mean(found**2))), len(found)) if len(found) else None


def _least(index: IntArray, values: FloatArray, size: int) -> FloatArray:
    """The smallest value under each index in range(size), infinite where there is none."""
    least = np.full(size, np.inf)
    np.minimum.at(least, index, values)
    return least


def _codes(seed: FloatArray) -> IntArray:
    """Equal numbers for equal seeds; a trial without one is alone."""
    alone = np.isnan(seed)
    codes = np.unique(np.where(alone, -1.0, seed), return_inverse=True)[1].astype(np.int64)
    return np.where(alone, len(seed) + np.arange(len(seed)), codes)
