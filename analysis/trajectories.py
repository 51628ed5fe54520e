"""Whether trials of equal lr / batch_size agree all along training: contrasts at every time of a curve.

Time is epochs, so that trials of one seed have seen the same examples; steps are the negative control, on which trials
of another batch size have had another training time, so that they should not agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from analysis.alignment import Curves
from analysis.contrasts import LEAST_SEEDS, Contrasts, Estimate, contrasts
from analysis.controls import Trials, of_file
from analysis.database import connect, fetch, quoted
from analysis.decision import ALPHA, Outcome, furthest
from analysis.grid import Grid, Group, groups
from analysis.invariance import margins_of, stated
from analysis.known import check_known
from analysis.permutation import beyond_margin, line_tests
from analysis.scales import BoolArray, FloatArray, Scale, half_width, scale_of
from analysis.verdict import Cell, cell_of
from trainables.store import Store
from trainables.trial import FIELDS

Axis = Literal["epoch", "step"]

AXES: tuple[Axis, ...] = ("epoch", "step")
"""Training time, and the negative control."""

_POINTS = """
SELECT {fields}, status, points.epoch, points.step, points.value, points."error"
FROM trials LEFT JOIN (
    SELECT trial_id, list(epoch ORDER BY step) AS epoch, list(step ORDER BY step) AS step,
        list(value ORDER BY step) AS value, list("error" ORDER BY step) AS "error"
    FROM curves WHERE statistic = {statistic} GROUP BY trial_id
) AS points USING (trial_id)"""


@dataclass(frozen=True)
class TrajectoryVerdict:
    """The answer for one statistic in one group of trials, along one axis of time.

    Attributes:
        metric: the statistic.
        axis: epoch, or step for the negative control.
        scale: on which it is compared (natural logarithms).
        group: the fields that tell this group from others of the sweep.
        verdict: equivalent: every contrast's 90% interval at every time is within the margin, and no trial diverged
            (intersection-union: no correction). Different: by the max-T test over all contrasts and times, at 5%.
        margin: as given.
        n_trials: trials that finished or diverged.
        n_diverged: of them.
        n_seeds: independent seeds.
        n_contrasts: cells compared with the smallest batch size of their line.
        n_times: at which they are.
        effect: the contrast that reaches furthest from 0 at any time, with its 90% interval.
        effect_cell: where that is.
        effect_time: when: epochs, or steps.
        p_different: of the max-T test beyond the margin, seeds' signs flipped.
        friedman_p: whether cells of a line differ at all at the last time, Friedman's test.
        permutation_p: the same by permutation within seeds.
        note: why, whenever the answer is a non-answer, and what was left out.
    """

    metric: str
    axis: Axis
    scale: Scale
    group: dict[str, Any]
    verdict: Outcome
    margin: float | None
    n_trials: int
    n_diverged: int
    n_seeds: int
    n_contrasts: int
    n_times: int
    effect: Estimate
    effect_cell: Cell | None
    effect_time: float | None
    p_different: float | None
    friedman_p: float | None
    permutation_p: float | None
    note: str

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is missing."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        value, low, high = (x if math.isfinite(x) else None for x in self.effect)
        row |= {name: str(row[name]) for name in ("scale", "verdict")}
        row |= {"effect": value, "effect_low": low, "effect_high": high}
        return row | {"effect_cell": dataclasses.asdict(self.effect_cell) if self.effect_cell else None}

    def text(self) -> str:
        """One line for people."""
        group = ", ".join(f"{name} {value}" for name, value in self.group.items())
        head = f"{self.metric} by {self.axis}{f' ({group})' if group else ''}: {self.verdict.upper()}"
        size = f"{self.n_contrasts} contrasts at {self.n_times} times, {self.n_seeds} seeds"
        p = "" if self.p_different is None else f", p {self.p_different:.2g} for a difference beyond the margin"
        return ". ".join(filter(None, [f"{head} ({size}{p})", self._largest(), self.note]))

    def _largest(self) -> str:
        cell = self.effect_cell
        if cell is None:
            return ""
        log = self.scale is Scale.LOG
        value, low, high = (f"×{math.exp(min(x, 700)):.3g}" if log else f"{x:+.3g}" for x in self.effect)
        where = f"from batch size {cell.reference_batch_size} to {cell.batch_size} at ratio {cell.ratio:.3g}"
        return f"Largest contrast {value} (90% interval {low} to {high}), {where}, {self.axis} {self.effect_time:.4g}"


def trajectory(
    store: str | Path, sweep: str, statistic: str, margin: float | None = None, axes: Sequence[Axis] = AXES
) -> list[TrajectoryVerdict]:
    """Judges whether trials of equal lr / batch_size agree at every time: one verdict per group and axis.

    Times are those at which the trials of the largest batch size were measured, within the range that all finished
    trials cover. A trial's value at a time is its own, or between its two points around it; along epochs a time is left
    out where a trial has no point within one step of the largest batch size.

    Args:
        store: directory or URL of the store.
        sweep: name of the sweep.
        statistic: one in `curves`.
        margin: of equivalence at every time; else the sweep file's for this statistic, else its default.
        axes: of time.

    Raises:
        ValueError: for an unknown sweep or statistic, or a margin that is not a positive number.

    Example:
        >>> for verdict in trajectory("results", "digits", "train_loss"):  # doctest: +SKIP
        ...     print(verdict.text())
    """
    read, content = _read(store, sweep, statistic), stated(store, sweep)
    points = Trials.of(of_file(read, content)).judged
    given = margins_of([statistic], [statistic], content.get("margins") or {}, margin)[statistic]
    return [_judge(points, group, statistic, given, axis) for group in groups(points) for axis in axes]


def _read(store: str | Path, sweep: str, statistic: str) -> pa.Table:
    """One row per trial, its points in lists, None where it has none."""
    files = Store(store)
    check_known("sweep", [sweep], files.sweeps(), f"{files.url} holds")
    there = [files.sweep(sweep)]
    with closing(connect(files, sweep)) as connection:
        measured = fetch(connection, "SELECT DISTINCT statistic FROM curves ORDER BY ALL", there)
        check_known("statistic", [statistic], measured["statistic"].to_pylist(), "curves has")
        literal = "'" + statistic.replace("'", "''") + "'"
        return fetch(
            connection,
            _POINTS.format(fields=", ".join(f"trials.{quoted(name)}" for name in FIELDS), statistic=literal),
            there,
        )


@dataclass(frozen=True)
class _Course:
    """The values of a group's trials at common times.

    Attributes:
        times: shape (times,).
        y: on the scale, NaN where missing, shape (times, trials).
        h: resolution of y, likewise.
        spoiled: trials that diverged or have an unusable value, shape (trials,).
        notes: what was left out.
    """

    times: FloatArray
    y: FloatArray
    h: FloatArray
    spoiled: BoolArray
    notes: list[str]


def _course(points: pa.Table, group: Group, statistic: str, axis: Axis) -> _Course:
    curves = Curves.of(points, group.rows, axis, scale_of(statistic))
    size = group.grid.batch_size[group.grid.cell]
    whole = ~group.diverged & curves.has_points()
    times = curves.common_times(whole, size == np.max(size, where=whole, initial=0))
    y, h, distance = curves.at(times)
    near = ~(distance[:, whole] > curves.step_length).any(axis=1) | (axis == "step")
    times, y, h = times[near], np.where(group.diverged, np.nan, y[near]), h[near]
    unusable = whole & np.isnan(y).any(axis=0)
    counts = {
        "diverged trials": int(group.diverged.sum()),
        "trials with values that are not usable": int(unusable.sum()),
        "finished trials without the curve": int((~group.diverged & ~whole).sum()),
        "failed trials, left out": group.failed,
        "times without a measurement nearby in every trial, left out": int((~near).sum()),
    }
    return _Course(times, y, h, group.diverged | unusable, [f"{what}: {n}" for what, n in counts.items() if n])


def _judge(points: pa.Table, group: Group, statistic: str, margin: float | None, axis: Axis) -> TrajectoryVerdict:
    course, m = _course(points, group, statistic, axis), half_width(margin, scale_of(statistic))
    compared = [
        contrasts(group.grid, y, h, group.diverged, course.spoiled) for y, h in zip(course.y, course.h, strict=True)
    ]
    p = math.nan if math.isnan(m) else beyond_margin(_differences(group.grid, course.y, compared), m)
    outcome = _decide(compared, m, bool(course.spoiled.any()), p)
    effect, cell, when = _effect(compared, course.times)
    tests = line_tests(group.grid, course.y[-1]) if len(course.times) else (math.nan, math.nan)
    reasons = _reasons(compared, m, statistic, group.seeds) if outcome is Outcome.INCONCLUSIVE else []
    return TrajectoryVerdict(
        metric=statistic,
        axis=axis,
        scale=scale_of(statistic),
        group=group.fields,
        verdict=outcome,
        margin=margin,
        n_trials=len(group.rows),
        n_diverged=int(group.diverged.sum()),
        n_seeds=group.seeds,
        n_contrasts=len(group.grid.contrasted),
        n_times=len(course.times),
        effect=effect,
        effect_cell=cell,
        effect_time=when,
        p_different=_known(p),
        friedman_p=_known(tests[0]),
        permutation_p=_known(tests[1]),
        note="; ".join(reasons + course.notes),
    )


def _differences(grid: Grid, y: FloatArray, compared: Sequence[Contrasts]) -> FloatArray:
    """Seed by seed, cell against reference, of contrasts with enough seeds: shape (seeds, times * contrasts)."""
    found = np.full((len(y), int(grid.point_seed.max(initial=-1)) + 1, len(grid.lr)), np.nan)
    for k, values in enumerate(y):
        value = grid.point_means(values)
        difference = np.where(grid.partner < 0, np.nan, value - value[grid.partner])
        found[k, grid.point_seed, grid.point_cell] = difference
    kept = found[:, :, grid.contrasted]
    for k, each in enumerate(compared):
        kept[k, :, ~each.testable | each.unpaired] = np.nan
    return kept.transpose(1, 0, 2).reshape(kept.shape[1], -1)


def _decide(compared: Sequence[Contrasts], m: float, blocked: bool, p: float) -> Outcome:
    if math.isnan(m) or not any(c.testable.any() for c in compared) or all(c.motionless for c in compared):
        return Outcome.INCONCLUSIVE
    if p <= ALPHA:
        return Outcome.DIFFERENT
    equivalent = not blocked and all(c.inside(m).all() for c in compared)
    return Outcome.EQUIVALENT if equivalent else Outcome.INCONCLUSIVE


def _effect(compared: Sequence[Contrasts], times: FloatArray) -> tuple[Estimate, Cell | None, float | None]:
    """The contrast and time that reach furthest from 0."""
    found = [(k, at) for at, c in enumerate(compared) if (k := furthest(c)) is not None]
    if not found:
        return Estimate(), None, None
    k, at = max(found, key=lambda each: max(map(abs, compared[each[1]].interval(each[0])[1:])))
    return compared[at].interval(k), cell_of(compared[at], k), float(times[at])


def _reasons(compared: Sequence[Contrasts], m: float, statistic: str, seeds: int) -> list[str]:
    """Why there is no answer."""
    if not compared:
        return ["no time lies within the range that all finished trials cover"]
    if not len(compared[0]):
        return ["no two trials have equal lr / batch_size and different batch sizes"]
    if math.isnan(m):
        return [f"{statistic} has no default margin: state one"]
    if not any(c.testable.any() for c in compared):
        return [f"at least {LEAST_SEEDS} seeds per contrast are needed, there are {seeds}"]
    if all(c.motionless for c in compared):
        return ["no difference varies over the seeds, so nothing can be tested"]
    sure = sum(bool(c.inside(m).all()) for c in compared)
    reasons = [f"all contrasts are within the margin at {sure} of {len(compared)} times"]
    few = max(int(c.n.max()) for c in compared)
    if 2.0 ** (1 - few) > ALPHA:
        reasons.append(f"{few} shared seeds cannot show a difference by sign flips, at least 6 are needed")
    return reasons


def _known(p: float) -> float | None:
    return p if math.isfinite(p) else None
