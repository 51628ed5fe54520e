"""One verdict per metric and group, from a table of trials."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.contrasts import LEAST_SEEDS, Contrasts, Estimate, contrasts, plain
from analysis.controls import Floor, GroupControls, LineNoise, Trials
from analysis.decision import MOST_SEEDS, Outcome, decide, furthest, seeds_needed
from analysis.frontier import Frontier, frontier
from analysis.grid import Group, groups
from analysis.sample import Sample
from analysis.scales import Scale, half_width, scale_of, worst_of
from analysis.sensitivity import Sensitivity, sensitivity
from analysis.slopes import Slopes, inside, slopes


@dataclass(frozen=True)
class Cell:
    """The cell of a contrast, and the batch size of its reference at the same ratio."""

    ratio: float
    lr: float
    batch_size: int
    reference_batch_size: int


@dataclass(frozen=True)
class Verdict:
    """The answer for one metric in one group of trials.

    Attributes:
        metric: its column in `trials`.
        scale: on which it is compared; effect and slopes are on it (natural logarithms).
        group: the fields that tell this group from others of the sweep.
        n_trials: trials that finished or diverged.
        n_diverged: of them.
        n_measured: of them, with a value that counts.
        n_seeds: independent seeds.
        n_contrasts: cells compared with the smallest batch size of their line.
        verdict: equivalent, different or inconclusive.
        margin: as given: 0.1 means a factor 1.1 on the log scale. None where none was given.
        effect: the contrast that reaches furthest from 0, with its 90% interval.
        effect_cell: where that is.
        slope_ratio: change per unit of log ratio at equal batch size, with its 95% interval.
        slope_batch: change per unit of log batch size at equal ratio, with its 95% interval.
        exponent: p in the rule lr ∝ batch_size^p that leaves the metric unchanged, with its 95% Fieller set.
        frontier: up to which lr invariance holds.
        seeds_needed: per cell, for a decision, where more seeds would bring one.
        note: why, whenever the answer is a non-answer, and what was left out.
        noise: on which lines invariance is one of noise, rather than of training time; where there are controls.
        floor: how far trials end apart that differ in the order of examples only; where there are A/A trials.
        sensitivity: verdicts on the same trials by other means.
    """

    metric: str
    scale: Scale
    group: dict[str, Any]
    n_trials: int
    n_diverged: int
    n_measured: int
    n_seeds: int
    n_contrasts: int
    verdict: Outcome
    margin: float | None
    effect: Estimate
    effect_cell: Cell | None
    slope_ratio: Estimate
    slope_batch: Estimate
    exponent: Estimate
    frontier: Frontier | None
    seeds_needed: int | None
    note: str
    noise: tuple[LineNoise, ...]
    floor: Floor | None
    sensitivity: Sensitivity

    def as_row(self) -> dict[str, object]:
        """The row of `isoratio invariance --format json`: plain values, None for what is missing or unbounded."""
        row: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Estimate):
                row |= plain(field.name, value)
            elif isinstance(value, Frontier):
                row[field.name] = value._asdict()
            elif isinstance(value, Cell | Floor):
                row[field.name] = dataclasses.asdict(value)
            elif isinstance(value, Sensitivity):
                row[field.name] = value.as_row()
            elif field.name == "noise":
                row[field.name] = [line.as_row() for line in value]
            elif field.name not in {"n_measured", "seeds_needed"}:
                row[field.name] = str(value) if isinstance(value, StrEnum) else value
        return row


def judge(trials: pa.Table, margins: Mapping[str, float | None]) -> list[Verdict]:
    """One verdict per metric and group.

    Args:
        trials: one sweep's rows of the `trials` table: lr, batch_size, seed, status, the metrics with the columns that
            hold their errors, and every scientific field that may vary.
        margins: metric -> margin, None where none is given.
    """
    apart = Trials.of(trials.combine_chunks())  # whose rows are taken time and again
    found = [(group, apart.controls_of(group)) for group in groups(apart.judged)]
    return [_judge(apart, group, own, metric, margin) for metric, margin in margins.items() for group, own in found]


def plural(n: int, noun: str) -> str:
    """A number of things in words, "1 seed" or "2 seeds"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _judge(apart: Trials, group: Group, own: GroupControls, metric: str, margin: float | None) -> Verdict:
    grid, sample, scale = group.grid, Sample.of(apart.judged, group, metric), scale_of(metric)
    m = half_width(margin, scale)
    compared = contrasts(grid, sample.y, sample.h, sample.diverged, sample.spoiled)
    blocked = bool(sample.spoiled.any())
    outcome = decide(compared, m, blocked)
    edge = frontier(compared, m)
    where, region = inside(grid, edge)
    slope = slopes(grid, sample.y, where)
    needed = seeds_needed(compared, m, blocked) if outcome is Outcome.INCONCLUSIVE else None
    notes = _left_out(group, sample, compared, scale) + _slope_notes(slope, region)
    if outcome is Outcome.INCONCLUSIVE:
        notes = _reasons(compared, m, metric, blocked, needed) + notes
    largest = furthest(compared)
    return Verdict(
        metric=metric,
        scale=scale,
        group=group.fields,
        n_trials=len(group.rows),
        n_diverged=int(group.diverged.sum()),
        n_measured=int(np.isfinite(sample.y).sum()),
        n_seeds=group.seeds,
        n_contrasts=len(compared),
        verdict=outcome,
        margin=margin,
        effect=Estimate() if largest is None else compared.interval(largest),
        effect_cell=None if largest is None else cell_of(compared, largest),
        slope_ratio=slope.ratio,
        slope_batch=slope.batch,
        exponent=slope.exponent,
        frontier=edge,
        seeds_needed=needed,
        note="; ".join(notes),
        noise=own.noise(sample, metric, m),
        floor=own.floor(sample, metric),
        sensitivity=sensitivity(grid, sample, compared, m, worst_of(metric)),
    )


def cell_of(compared: Contrasts, k: int) -> Cell:
    """Where contrast k is."""
    ratio, lr = float(compared.ratio[k]), float(compared.lr[k])
    return Cell(ratio, lr, int(compared.batch_size[k]), int(compared.reference_batch_size[k]))


def _reasons(compared: Contrasts, m: float, metric: str, blocked: bool, needed: int | None) -> list[str]:
    """Why there is no answer, and what would bring one."""
    if not len(compared):
        return ["no two trials have equal lr / batch_size and different batch sizes"]
    if not (compared.n > 0).any():
        return ["no contrast has values in both of its cells"]
    reasons = [f"{metric} has no default margin: state one"] if math.isnan(m) else []
    if compared.motionless:
        return [*reasons, "no difference varies over the seeds, so nothing can be tested"]
    if not compared.testable.any():
        reasons.append(f"{plural(int(compared.n.max()), 'seed')} per contrast, at least {LEAST_SEEDS} are needed")
    if needed is not None:
        reasons.append(f"about {needed} seeds per cell would decide it, were the differences seen the true ones")
    elif blocked and not (np.abs(compared.estimate) >= m).any():
        reasons.append("trials that diverged or have no usable value rule out 'equivalent' at any number of seeds")
    elif not math.isnan(m):
        reasons.append(f"more than {MOST_SEEDS} seeds per cell would be needed: a difference is about the margin")
    return reasons


def _left_out(group: Group, sample: Sample, compared: Contrasts, scale: Scale) -> list[str]:
    """What a verdict does not rest on, each with its count."""
    few = int((~compared.testable).sum()) if compared.testable.any() else 0
    averaged = len(group.rows) - len(group.grid.point_cell)
    positive = " or not positive" if scale is Scale.LOG else ""
    counts = {
        "diverged trials": int(group.diverged.sum()),
        f"values not finite{positive}, left out": int(sample.unusable.sum()),
        "finished trials without the metric": int(sample.unmeasured.sum()),
        "failed trials, left out": group.failed,
        f"contrasts of fewer than {LEAST_SEEDS} seeds, not tested": few,
        "contrasts without shared seeds, compared as independent samples": int(compared.unpaired.sum()),
        "trials that repeat a seed in a cell, averaged": averaged,
    }
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _slope_notes(slope: Slopes, region: str) -> list[str]:
    notes = [region] if region else []
    if slope.model_based and math.isfinite(slope.batch.value):
        notes.append("slope_batch is model-based: a spline in the ratio stands for the missing lines")
    if math.isnan(slope.exponent.value):
        notes.append("exponent unidentified")
    elif math.isinf(slope.exponent.low):
        notes.append("exponent unbounded: the ratio has no clear effect of its own")
    return notes
