"""Rival rules: which one number made of learning rate, batch size and the like does a metric depend on?

A rule x claims that a metric is a smooth function of log x alone. It is judged out of sample: each cell is predicted by
a curve through the means of all others, a natural cubic spline with four coefficients (a polynomial where log x has
fewer distinct values). Four let the curve bend as those of sweeps do, and leave most cells to contradict it; local
interpolation would follow the noise where a rule spreads its x out and average it away where it does not. Effects of
seeds are removed first. Groups that differ only in :data:`POOLED` are put on one curve, without an intercept each: what
a rule claims is that momentum and the length of training matter through x alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.collapse import COEFFICIENTS, Curve, errors, without_seeds
from analysis.contrasts import LEAST_SEEDS, Estimate, plain
from analysis.grid import Group, given, groups, moments
from analysis.resampling import SeedBootstrap, by_seed, with_interval
from analysis.sample import Sample, training_examples
from analysis.scales import ROUNDING, BoolArray, FloatArray, Scale, default_margin, half_width, scale_of
from analysis.verdict import plural

RULES = {
    "ratio": "lr / batch_size",
    "square_root": "lr / sqrt(batch_size)",
    "time": "lr * steps",
    "finite_n": "lr * (1 / batch_size - 1 / N)",
    "momentum": "lr / (batch_size * (1 - momentum))",
}
"""Rule -> its x. N is the size of the training set."""

POOLED = ("momentum", "epochs", "max_steps")
"""Fields that rules are about: trials that differ in them are compared with each other."""

LEAST_CELLS = 2 * COEFFICIENTS
"""Twice the coefficients of the curve."""

DECIDED = 0.95
"""Probability from which on one rule is named."""

_SAME = 0.01  # rules are one where x, but for a power of it, differs by less than this factor


@dataclass(frozen=True)
class RuleFit:
    """How well the metric is a function of one rule's x; errors are on the metric's scale.

    Attributes:
        rule: its name in :data:`RULES`.
        same_as: other rules that are a power of it here, so that nothing tells them apart.
        error: root mean square error of the prediction of a cell from all others.
        noise: how much of it the noise of the cells' means alone would give.
        misfit: what is left, sqrt(error² - noise²), with its 95% interval.
        explained: share of what differs between cells that the curve predicts, 1 - misfit² / that of a constant, with
            its 95% interval.
        probability: how probable it is that this rule has the smallest misfit, by a bootstrap over seeds.
    """

    rule: str
    same_as: tuple[str, ...]
    error: float
    noise: float
    misfit: Estimate
    explained: Estimate
    probability: float

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is unknown."""
        numbers = {"error": self.error, "noise": self.noise}
        found = {**numbers, **plain("misfit", self.misfit), **plain("explained", self.explained)}
        return {"rule": self.rule, "same_as": [*self.same_as], **found, "probability": self.probability}


@dataclass(frozen=True)
class RuleComparison:
    """The rules side by side, for one metric in one family of groups.

    Attributes:
        metric: its column in `trials`.
        scale: on which errors are.
        group: the fields that tell this family from others of the sweep.
        pooled: the fields that vary within it besides lr, batch size and seeds.
        n_trials: trials that finished or diverged.
        n_cells: cells that are predicted.
        n_seeds: independent seeds.
        best: the rule that fits best with a probability of at least 0.95; None where no rule does.
        rules: best first; empty where they cannot be compared.
        note: why, whenever no rule is named, and what was left out.
    """

    metric: str
    scale: Scale
    group: dict[str, Any]
    pooled: tuple[str, ...]
    n_trials: int
    n_cells: int
    n_seeds: int
    best: str | None
    rules: tuple[RuleFit, ...]
    note: str

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is unknown."""
        row: dict[str, object] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        listed = {"pooled": [*self.pooled], "rules": [fit.as_row() for fit in self.rules]}
        return {**row, "scale": str(self.scale), **listed}


def compare_rules(
    trials: pa.Table, metric: str, margin: float | None = None, resamples: int = 2000, rng: int = 0
) -> list[RuleComparison]:
    """One comparison per family of groups.

    The best rule need not be a good one: what breaks at high learning rates follows none. The note says when all are
    surely off by more than the margin; then compare the trials up to the frontier alone.

    Args:
        trials: those of one sweep that are judged: lr, batch_size, seed, status, the metric, and every scientific field
            that may vary; `steps` where known, else they follow from epochs or max_steps.
        metric: a column of `trials`.
        margin: of equivalence, 0.1 means a factor 1.1 on the log scale; by default that of the metric, if it has one.
        resamples: of the seeds.
        rng: seed of the bootstrap.
    """
    apart = trials.drop_columns([name for name in POOLED if name in trials.column_names])
    m = half_width(default_margin(metric) if margin is None else margin, scale_of(metric))
    return [_compare(trials, group, metric, m, resamples, np.random.default_rng(rng)) for group in groups(apart)]


@dataclass(frozen=True)
class _Cells:
    """Cells of a family that can be compared.

    Attributes:
        y: the metric without effects of seeds, NaN where missing, shape (cells, seeds).
        x: log x of each rule that is known everywhere, shape (cells,).
        left_out: why others were, with their counts.
        unknown: rules that are not, each with the reason.
    """

    y: FloatArray
    x: dict[str, FloatArray]
    left_out: list[str]
    unknown: list[str]


def _compare(
    trials: pa.Table, group: Group, metric: str, m: float, resamples: int, rng: np.random.Generator
) -> RuleComparison:
    sample = Sample.of(trials, group, metric)
    pooled = tuple(n for n in POOLED if n in trials.column_names and len(np.unique(given(trials, n, group.rows))) > 1)
    blank = RuleComparison(
        metric, scale_of(metric), group.fields, pooled, len(group.rows), 0, group.seeds, None, (), ""
    )
    if len(group.grid.point_cell) * 2 < len(group.grid.lr) * group.seeds:
        return dataclasses.replace(blank, note="not compared: cells do not share their seeds")
    cells = _cells(trials, group, sample, pooled)
    notes = [*cells.left_out, *cells.unknown]
    reason = _too_little(cells)
    if reason:
        return dataclasses.replace(blank, note="; ".join([reason, *notes]))
    fits, scored = _fits(cells, SeedBootstrap.of(cells.y.shape[1], resamples, rng))
    hidden = len(scored) - int(scored.sum())
    notes = [*notes, *([f"cells that no other cell can predict, not scored: {hidden}"] if hidden else [])]
    best, why = _named(fits, m)
    note = "; ".join([*why, *notes])
    return dataclasses.replace(blank, n_cells=int(scored.sum()), best=best, rules=tuple(fits), note=note)


def _cells(trials: pa.Table, group: Group, sample: Sample, pooled: tuple[str, ...]) -> _Cells:
    cell = group.grid.cell
    for name in pooled:
        value = np.unique(given(trials, name, group.rows), return_inverse=True)[1]
        cell = np.unique(cell * (value.max() + 1) + value, return_inverse=True)[1]
    size = int(cell.max(initial=-1)) + 1
    seed = group.grid.point_seed[group.grid.point]
    y = by_seed(cell, seed, sample.y, size)
    spoiled = np.bincount(cell[sample.spoiled], minlength=size) > 0
    few = ~spoiled & (np.isfinite(y).sum(axis=1) < LEAST_SEEDS)
    kept = ~spoiled & ~few
    counts = {
        "cells with trials that diverged or have no usable value, left out": int(spoiled.sum()),
        f"cells of fewer than {LEAST_SEEDS} seeds, left out": int(few.sum()),
    }
    x = {rule: moments(cell, values, size).mean[kept] for rule, values in _numbers(trials, group)}
    known = {rule: values for rule, values in x.items() if np.isfinite(values).all()}
    unknown = [f"{rule} unknown: {_MISSING[rule]}" for rule in x if rule not in known]
    left_out = [f"{what}: {n}" for what, n in counts.items() if n]
    y = y[kept]
    return _Cells(without_seeds(y[:, np.isfinite(y).any(axis=0)]), known, left_out, unknown)


_MISSING = {
    "time": "neither steps nor the size of the training set are known",
    "finite_n": "the size of the training set is not known, or no larger than a batch size",
    "momentum": "no momentum is given",
}


def _numbers(trials: pa.Table, group: Group) -> Iterator[tuple[str, FloatArray]]:
    """Rule -> log x of each trial, NaN where unknown."""
    lr, size = group.grid.lr[group.grid.cell], group.grid.batch_size[group.grid.cell]
    known = training_examples(trials, group)
    examples = np.full(len(lr), np.nan) if known is None else known
    steps = given(trials, "epochs", group.rows) * examples / size
    for column in ("max_steps", "steps"):
        stated = given(trials, column, group.rows)
        steps = np.where(np.isfinite(stated), stated, steps)
    x = {
        "ratio": lr / size,
        "square_root": lr / np.sqrt(size),
        "time": lr * steps,
        "finite_n": lr * (1 / size - 1 / examples),
        "momentum": lr / (size * (1 - given(trials, "momentum", group.rows))),
    }
    for rule, values in x.items():
        yield rule, np.log(np.where(values > 0, values, np.nan))


def _too_little(cells: _Cells) -> str:
    if len(cells.y) < LEAST_CELLS:
        return f"not compared: {plural(len(cells.y), 'cell')} of {LEAST_SEEDS} seeds, at least {LEAST_CELLS} are needed"
    if np.nanvar(cells.y, axis=1).max() <= (ROUNDING * np.nanmax(np.abs(cells.y))) ** 2:
        return "not compared: no difference varies over the seeds"
    if len(_classes(cells.x)) < 2:
        return f"indistinguishable here: {', '.join(cells.x)}"
    return ""


def _classes(x: dict[str, FloatArray]) -> list[list[str]]:
    """Rules of which each is a power of the others, but for a factor: alike on any smooth curve."""
    found: list[list[str]] = []
    for rule in x:
        same = next((c for c in found if _powers(x[c[0]], x[rule]) and _powers(x[rule], x[c[0]])), None)
        if same is None:
            found.append([rule])
        else:
            same.append(rule)
    return found


def _powers(x: FloatArray, other: FloatArray) -> bool:
    """Whether `other` follows from x by a straight line, within 1%."""
    line = np.column_stack([np.ones_like(x), x - x.mean()])
    return bool(np.abs(other - line @ np.linalg.lstsq(line, other, rcond=None)[0]).max() < _SAME)


def _fits(cells: _Cells, bootstrap: SeedBootstrap) -> tuple[list[RuleFit], BoolArray]:
    """One fit for each class of rules, best first, and the cells that count."""
    classes = _classes(cells.x)
    curves = [Curve.of(cells.x[names[0]]) for names in classes]
    scored = np.all([curve.free > 1e-6 for curve in curves], axis=0)
    constant = Curve.of(np.zeros(len(scored)))
    error, noise, misfit = errors([*curves, constant], cells.y, bootstrap, scored)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(misfit[-1] > 0, 1 - np.maximum(misfit, 0) / misfit[-1], 0.0)
    first = np.bincount(misfit[:-1, 1:].argmin(axis=0), minlength=len(classes)) / len(bootstrap.widening)
    fits = [
        RuleFit(
            rule=names[0],
            same_as=tuple(names[1:]),
            error=float(error[k] ** 0.5),
            noise=float(noise[k] ** 0.5),
            misfit=with_interval(np.maximum(misfit[k], 0) ** 0.5),
            explained=with_interval(explained[k]),
            probability=float(first[k]),
        )
        for k, names in enumerate(classes)
    ]
    return sorted(fits, key=lambda fit: -fit.probability), scored


def _named(fits: list[RuleFit], m: float) -> tuple[str | None, list[str]]:
    """The rule that surely fits best, and what there is to say against it, or why none is named."""
    leader = fits[0]
    if not leader.explained.low > 0:
        return None, ["undecided: no rule surely predicts cells better than their mean does"]
    poor = [f"no rule holds within the margin: cells are off by {leader.misfit.value:.2g}"]
    against = poor if min(fit.misfit.low for fit in fits) > m else []
    if leader.probability < DECIDED:
        return None, [f"undecided: {leader.rule} fits best with probability {leader.probability:.2f}", *against]
    return leader.rule, against
