"""How probable divergence is at a learning rate and batch size, and what the metrics say of the trials that survive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.contrasts import Estimate, plain
from analysis.controls import Trials
from analysis.firth import Counts, Fit
from analysis.grid import Grid, Group, groups
from analysis.scales import BoolArray, FloatArray
from analysis.verdict import Verdict, judge, plural
from trainables.schema import Status

_UNKNOWN = Estimate()


@dataclass(frozen=True)
class HalfDiverge:
    """The learning rate at which half of the trials diverge, with its 95% interval, at one batch size."""

    batch_size: int
    lr: Estimate


@dataclass(frozen=True)
class DivergenceModel:
    """logit P(diverge) = c + slope_lr log lr + slope_batch log batch_size, in one group of trials.

    By Firth's penalised likelihood with profile intervals (95%): finite also where divergence is perfectly predicted.
    Trials count as independent given lr and batch size. NaN is unknown, infinite ends are unbounded.

    Attributes:
        group: the fields that tell this group from others of the sweep.
        n_trials: trials that finished or diverged.
        n_diverged: of them.
        n_seeds: independent seeds.
        slope_lr: change of the log odds per unit of log lr, at equal batch size.
        slope_batch: change of the log odds per unit of log batch size, at equal lr.
        exponent: q in lr_half ∝ batch_size^q, where lr_half is the learning rate at which half diverge.
        lr_half: that learning rate at each batch size.
        note: why, whenever something is not estimated.
    """

    group: dict[str, Any]
    n_trials: int
    n_diverged: int
    n_seeds: int
    slope_lr: Estimate = _UNKNOWN
    slope_batch: Estimate = _UNKNOWN
    exponent: Estimate = _UNKNOWN
    lr_half: tuple[HalfDiverge, ...] = ()
    note: str = ""

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is unknown or unbounded."""
        row: dict[str, object] = {name: getattr(self, name) for name in ("group", "n_trials", "n_diverged", "n_seeds")}
        for name in ("slope_lr", "slope_batch", "exponent"):
            row |= plain(name, getattr(self, name))
        row["lr_half"] = [{"batch_size": half.batch_size, **plain("lr", half.lr)} for half in self.lr_half]
        return {**row, "note": self.note}


def divergence(trials: pa.Table) -> list[DivergenceModel]:
    """One model per group.

    Args:
        trials: those of one sweep that are judged: lr, batch_size, seed, status and every scientific field that varies.
    """
    return [_model(group) for group in groups(trials)]


def given_survival(trials: pa.Table, margins: Mapping[str, float | None]) -> list[Verdict]:
    """The verdicts on the trials that did not diverge: whether these agree at equal lr / batch_size.

    What survives where others of its cell diverged is a selection, so the note counts them; the verdict on all trials,
    which divergence keeps from "equivalent", stands beside these. Each is that of one look at 5%.

    Args:
        trials: as for :func:`analysis.verdict.judge`.
        margins: metric -> margin, None where none is given.

    Returns:
        One per metric and group in which some trials diverged and some did not.
    """
    lost = pc.equal(trials["status"], Status.DIVERGED)
    whole = [group for group in groups(Trials.of(trials).judged) if 0 < group.diverged.sum() < len(group.rows)]
    verdicts = judge(trials.filter(pc.invert(lost)), margins) if whole else []
    return [_survived(v, group) for v in verdicts for group in whole if v.group.items() <= group.fields.items()]


def _survived(verdict: Verdict, group: Group) -> Verdict:
    given = f"given survival: {plural(int(group.diverged.sum()), 'diverged trial')} left out"
    note = "; ".join(filter(None, (given, verdict.note)))
    return dataclasses.replace(verdict, group=group.fields, note=note)


def _model(group: Group) -> DivergenceModel:
    grid, diverged = group.grid, group.diverged
    n, lost = len(diverged), int(diverged.sum())
    blank = DivergenceModel(group.fields, n, lost, group.seeds)
    if lost in (0, n):
        what = "all" if lost else "none"
        return dataclasses.replace(blank, note=f"not estimated: {what} of {plural(n, 'trial')} diverged")
    terms, x = _Terms.of(grid)
    counts = Counts(x, grid.count(diverged).astype(float), grid.count(np.ones(n, dtype=bool)).astype(float))
    if not terms.lr:
        return dataclasses.replace(blank, note="not estimated: one learning rate")
    fit = Fit.of(counts)
    along = np.eye(x.shape[1])[1]
    return dataclasses.replace(
        blank,
        slope_lr=fit.coefficient(1),
        slope_batch=fit.coefficient(2) if terms.batch else _UNKNOWN,
        exponent=fit.root(np.eye(3)[2], along) if terms.batch else _UNKNOWN,
        lr_half=(halves := _halves(grid, fit, terms)),
        note="; ".join(_notes(grid, counts, fit, terms, halves)),
    )


@dataclass(frozen=True)
class _Terms:
    """Which logarithms the model has; both are taken from their mean over the cells."""

    lr: bool
    batch: bool
    mean_lr: float
    mean_batch: float

    @classmethod
    def of(cls, grid: Grid) -> tuple[_Terms, FloatArray]:
        """Those that vary, log batch_size only if apart from log lr; and the design, shape (cells, 1 + terms)."""
        lr, batch = np.log(grid.lr), np.log(grid.batch_size)
        columns = np.column_stack([np.ones_like(lr), lr - lr.mean(), batch - batch.mean()])
        varies = bool(np.ptp(lr) > _TOLD_APART)
        apart = bool(np.linalg.matrix_rank(columns, tol=_TOLD_APART * len(lr) ** 0.5) == 3)
        terms = cls(varies, apart, float(lr.mean()), float(batch.mean()))
        return terms, columns[:, [True, varies, apart]]


_TOLD_APART = 1e-3
"""Logarithms that vary by less, or by less beside each other, have no slope."""


def _halves(grid: Grid, fit: Fit, terms: _Terms) -> tuple[HalfDiverge, ...]:
    """Where the logit is 0, for each batch size; only for all of them at once where it is not a term of the model."""
    sizes = np.unique(grid.batch_size)
    if not terms.batch and len(sizes) > 1:
        return ()
    found = []
    for size in sizes:
        at = np.array([1.0, 0.0, math.log(size) - terms.mean_batch][: len(fit.beta)])
        theta = fit.root(at, np.eye(len(at))[1])
        ends = (math.exp(t + terms.mean_lr) if abs(t) < _UNBOUNDED else math.nan for t in theta)
        found.append(HalfDiverge(int(size), Estimate(*ends)))
    return tuple(found)


_UNBOUNDED = 600.0
"""A log learning rate beyond which it is as good as infinite."""


def _notes(grid: Grid, counts: Counts, fit: Fit, terms: _Terms, halves: tuple[HalfDiverge, ...]) -> list[str]:
    notes = []
    if not terms.batch:
        one = len(np.unique(grid.batch_size)) == 1
        notes.append("one batch size" if one else "lr and batch size vary together: slope_lr is along both")
    if any(math.isnan(half.lr.value) for half in halves):
        notes.append("where half diverge is unidentified: divergence does not clearly depend on lr")
    elif fit.beta[1] < 0:
        notes.append("divergence becomes rarer with lr: half diverge below lr_half")
    outside = [str(h.batch_size) for h in halves if not _tried(grid, h)]
    if outside:
        notes.append(f"lr_half lies beyond the learning rates tried at batch size {', '.join(outside)}")
    if _separated(counts, fit):
        notes.append(
            "separated: lr and batch size tell all diverged trials from the others; the penalty sets how steep"
        )
    return notes


def _tried(grid: Grid, half: HalfDiverge) -> bool:
    lr = grid.lr[grid.batch_size == half.batch_size]
    return math.isnan(half.lr.value) or bool(lr.min() <= half.lr.value <= lr.max())


def _separated(counts: Counts, fit: Fit) -> bool:
    """Every cell with divergence has a higher logit than every cell with survivors."""
    logit, lost = counts.design @ fit.beta, counts.events > 0
    survived: BoolArray = counts.events < counts.trials
    return bool(logit[lost].min() > logit[survived].max())
