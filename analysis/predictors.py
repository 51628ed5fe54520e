"""What predicts the cells that break: learning rate, batch size, stability, or the batch size over the noise scale?

Each predictor makes a monotone rule, "broken where it is large", of what the cell itself has. Within an iso-ratio line
lr and batch size rise together and say the same, so what counts is whether a rule carries over from line to line. One
line at a time is left out: the area under the ROC curve is that of its cells against those of all other lines, and the
accuracy is that of a threshold which the other lines set. In each resample of the seeds cells are broken or sound anew.

A cell in which all trials diverged is broken. Its learning rate and batch size are known, its curvature and noise only
where they were measured before: each predictor is shown for the cells that have it, and predictors are compared on the
cells that have all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.contrasts import Contrasts, Estimate, contrasts, plain
from analysis.grid import Group, floats, groups
from analysis.resampling import SeedBootstrap, by_seed, with_interval
from analysis.sample import Sample
from analysis.scales import BoolArray, FloatArray, IntArray, half_width, scale_of

PREDICTORS = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "stability": "lr * lambda_max / 2, lambda_max at its highest in training where that is known, else at the end",
    "noise_ratio": "batch_size / B_simple, B_simple = tr C / |G|² at the end, of diverged trials the last one known",
}
"""Predictor -> what it is. The last is of arXiv 1812.06162."""

PEAK = "lambda_max_peak"
"""Column with the largest lambda_max of a trial over training, where curves have it."""

LAST = "noise_scale_last"
"""Column with the last noise_scale of a trial in training, where curves have it."""

DECIDED = 0.95
"""Probability from which on one predictor is named."""


@dataclass(frozen=True)
class Prediction:
    """How well one predictor tells broken cells from sound ones, on lines it has not seen; with 95% intervals.

    Attributes:
        predictor: its name in :data:`PREDICTORS`.
        auc: probability that of two cells on different lines the broken one has the larger value; ½ is chance.
        accuracy: mean of the shares of broken and of sound cells told right, by a threshold from the other lines.
        threshold: the value that tells all cells best.
        n_unknown: cells that lack it, which its numbers leave out.
        probability: how probable it is that this predictor has the largest area on the cells that have all compared
            predictors, by a bootstrap over seeds; predictors that are equal in a resample share it. NaN for one that is
            not compared: too few cells have it.
    """

    predictor: str
    auc: Estimate
    accuracy: Estimate
    threshold: Estimate
    n_unknown: int
    probability: float

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is unknown."""
        numbers = [plain(name, getattr(self, name)) for name in ("auc", "accuracy", "threshold")]
        merged = {k: v for part in numbers for k, v in part.items()}
        probability = None if np.isnan(self.probability) else self.probability
        return {"predictor": self.predictor, **merged, "n_unknown": self.n_unknown, "probability": probability}


@dataclass(frozen=True)
class Predictors:
    """The predictors side by side, for one metric in one group.

    Attributes:
        metric: its column in `trials`.
        group: the fields that tell this group from others of the sweep.
        margin: as given; a cell is broken where it differs by more from its reference, or always diverges.
        n_cells: cells that are told apart.
        n_broken: of them, beyond the margin by their estimate, or with no trial that did not diverge.
        n_compared: of the cells, those that have all predictors that are compared.
        n_seeds: independent seeds.
        best: the predictor with the largest area with a probability of at least 0.95; None where none is.
        predictions: best first; empty where they cannot be compared.
        note: why, whenever none is named, and what was left out.
    """

    metric: str
    group: dict[str, Any]
    margin: float | None
    n_cells: int
    n_broken: int
    n_compared: int
    n_seeds: int
    best: str | None
    predictions: tuple[Prediction, ...]
    note: str

    def as_row(self) -> dict[str, object]:
        """Plain values, None for what is unknown."""
        row: dict[str, object] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**row, "predictions": [p.as_row() for p in self.predictions]}


def predict_frontier(
    trials: pa.Table, metric: str, margin: float | None, resamples: int = 2000, rng: int = 0
) -> list[Predictors]:
    """One comparison per group.

    Args:
        trials: those of one sweep that are judged: lr, batch_size, seed, status, the metric, every scientific field
            that may vary, and, where known, `lambda_max_peak`, `lambda_max`, `noise_scale` and `noise_scale_last`.
        metric: a column of `trials`.
        margin: of equivalence: 0.1 means a factor 1.1 on the log scale.
        resamples: of the seeds.
        rng: seed of the bootstrap.
    """
    m = half_width(margin, scale_of(metric))
    return [_predict(trials, group, metric, margin, m, resamples, rng) for group in groups(trials)]


def _predict(
    trials: pa.Table, group: Group, metric: str, margin: float | None, m: float, resamples: int, rng: int
) -> Predictors:
    sample = Sample.of(trials, group, metric)
    compared = contrasts(group.grid, sample.y, sample.h, sample.diverged, sample.spoiled)
    blank = Predictors(metric, group.fields, margin, 0, 0, 0, group.seeds, None, (), "")
    reason = _too_little(compared, m)
    if reason:
        return dataclasses.replace(blank, note=f"not compared: {reason}")
    bootstrap = SeedBootstrap.of(group.seeds, resamples, np.random.default_rng(rng))
    cells, notes = _cells(trials, group, sample.y, compared, bootstrap)
    broken = cells.extinct | (np.abs(cells.difference) > m)
    told = dataclasses.replace(blank, n_cells=len(cells.line), n_broken=int(broken[0].sum()))
    if not _pairs(broken[:1], cells.line)[0]:
        why = "no broken and sound cells on different lines"
        return dataclasses.replace(told, note="; ".join([f"not compared: {why}", *notes]))
    common = _Common.of(cells, broken)
    predictions = _predictions(cells, broken, common)
    best, why = _named(predictions, common)
    return dataclasses.replace(
        told,
        n_compared=int(common.cells.sum()),
        best=best,
        predictions=tuple(predictions),
        note="; ".join(filter(None, [why, *_lacking(predictions, common), *notes])),
    )


def _too_little(compared: Contrasts, m: float) -> str:
    """Why nothing can be told, or an empty text."""
    if np.isnan(m):
        return "no margin is given"
    if not len(compared) or not compared.testable.any():
        return "no contrast of at least 4 seeds"
    if compared.motionless:
        return "no difference varies over the seeds"
    if compared.unpaired.any():
        return "cells do not share their seeds"
    if not compared.outside(m).any():
        return "no cell is surely broken"
    return "" if compared.inside(m).any() else "no cell is surely sound"


@dataclass(frozen=True)
class _Cells:
    """Contrasted cells; R counts the data first and then the draws.

    Attributes:
        line: shape (cells,).
        extinct: all trials diverged, shape (cells,).
        difference: from the reference, on the scale, shape (R, cells).
        scores: log of each predictor that any cell has, NaN where unknown, shape (R, cells).
    """

    line: IntArray
    extinct: BoolArray
    difference: FloatArray
    scores: dict[str, FloatArray]

    def known(self, name: str) -> BoolArray:
        """Cells that have a predictor."""
        return np.asarray(np.isfinite(self.scores[name][0]))


def _cells(
    trials: pa.Table, group: Group, y: FloatArray, compared: Contrasts, bootstrap: SeedBootstrap
) -> tuple[_Cells, list[str]]:
    grid, notes = group.grid, []

    def drawn(point_values: FloatArray) -> FloatArray:
        values = by_seed(grid.point_cell, grid.point_seed, point_values, len(grid.lr))[grid.contrasted]
        n = np.isfinite(values).sum(axis=1)
        mean = np.divide(np.nansum(values, axis=1), n, out=np.full(len(n), np.nan), where=n > 0)
        return np.vstack([mean, bootstrap.means(values)])

    value = grid.point_means(y)
    usable = compared.testable | compared.extinct
    scores = {}
    for name, log in _logs(trials, group):
        found = drawn(grid.point_means(log))[:, usable]
        if np.isfinite(found[0]).any():
            scores[name] = found
        else:
            notes.append(f"{name} unknown: no {_MISSING[name]}")
    left_out = len(usable) - int(usable.sum())
    notes += [f"cells of fewer than 4 seeds, left out: {left_out}"] if left_out else []
    difference = drawn(np.where(grid.partner < 0, np.nan, value - value[grid.partner]))
    return _Cells(grid.line[grid.contrasted][usable], compared.extinct[usable], difference[:, usable], scores), notes


_MISSING = {"stability": "lambda_max", "noise_ratio": "noise_scale"}


def _logs(trials: pa.Table, group: Group) -> Iterator[tuple[str, FloatArray]]:
    """Predictor -> its logarithm for each trial, NaN where unknown."""
    lr, size = group.grid.lr[group.grid.cell], group.grid.batch_size[group.grid.cell]
    sharpness = _positive(trials, PEAK, group)
    sharpness = np.where(np.isfinite(sharpness), sharpness, _positive(trials, "lambda_max", group))
    yield "lr", np.log(lr)
    yield "batch_size", np.log(size)
    yield "stability", np.log(lr * sharpness / 2)
    noise = _positive(trials, "noise_scale", group)
    noise = np.where(np.isfinite(noise) | ~group.diverged, noise, _positive(trials, LAST, group))
    yield "noise_ratio", np.log(size / noise)


def _positive(trials: pa.Table, name: str, group: Group) -> FloatArray:
    """A column of the group's trials, NaN where missing or not positive."""
    if name not in trials.column_names:
        return np.full(len(group.rows), np.nan)
    values = floats(trials, name, group.rows)
    return np.where(values > 0, values, np.nan)


@dataclass(frozen=True)
class _Common:
    """The predictors that are compared, on the cells that have all of them.

    Attributes:
        cells: shape (cells,).
        areas: of each compared predictor there, shape (R,).
    """

    cells: BoolArray
    areas: dict[str, FloatArray]

    @classmethod
    def of(cls, cells: _Cells, broken: BoolArray) -> _Common:
        """Without those that the most cells lack, as long as no broken and sound cells on different lines have all."""
        names = sorted(cells.scores, key=lambda name: int(cells.known(name).sum()))  # all cells have the last ones
        while True:
            common = np.all([cells.known(name) for name in names], axis=0)
            line, bad = cells.line[common], broken[:, common]
            if _pairs(bad[:1], line)[0]:
                return cls(common, {name: _areas(cells.scores[name][:, common], bad, line) for name in names})
            names = names[1:]

    def probability(self, name: str) -> float:
        """How probable it is that a predictor has the largest area; NaN where it is not compared."""
        if name not in self.areas:
            return float("nan")
        areas = np.array([*self.areas.values()])
        leads = (areas >= areas.max(axis=0) - 1e-12)[:, 1:][:, np.isfinite(areas[0, 1:])]
        return float((leads / leads.sum(axis=0)).mean(axis=1)[[*self.areas].index(name)])


def _predictions(cells: _Cells, broken: BoolArray, common: _Common) -> list[Prediction]:
    """All predictors, best first, each on the cells that have it."""
    found = []
    for name, scores in cells.scores.items():
        known = cells.known(name)
        here, bad, line = scores[:, known], broken[:, known], cells.line[known]
        found.append(
            Prediction(
                predictor=name,
                auc=with_interval(_areas(here, bad, line)),
                accuracy=with_interval(_accuracies(here, bad, line)),
                threshold=with_interval(np.exp(_thresholds(here, bad))),
                n_unknown=int((~known).sum()),
                probability=common.probability(name),
            )
        )
    return sorted(found, key=lambda p: (-np.nan_to_num(p.probability, nan=-1.0), -np.nan_to_num(p.auc.value)))


def _lacking(predictions: list[Prediction], common: _Common) -> list[str]:
    """How many cells lack each predictor, and on how many they are compared."""
    lacking = ", ".join(f"{p.predictor} ({p.n_unknown})" for p in predictions if p.n_unknown)
    apart = ", ".join(p.predictor for p in predictions if p.predictor not in common.areas)
    if not lacking:
        return []
    notes = [f"unknown in some cells: {lacking}", f"compared on the {int(common.cells.sum())} cells that have all"]
    return [*notes[:1], notes[1] + (f" but {apart}: of those that have it none, or all, are broken" if apart else "")]


def _pairs(broken: BoolArray, line: IntArray) -> FloatArray:
    """How many pairs of a broken and a sound cell on different lines there are, shape (R,)."""
    both = [broken, *(broken[:, line == k] for k in np.unique(line))]
    everywhere, *within = (part.sum(axis=1) * (~part).sum(axis=1) for part in both)
    return np.asarray(everywhere - np.sum(within, axis=0), dtype=np.float64)


def _areas(scores: FloatArray, broken: BoolArray, line: IntArray) -> FloatArray:
    """Share of those pairs of which the broken cell scores higher, ties as ½; NaN without any, shape (R,)."""
    won = np.zeros(len(scores))
    for k in range(len(line)):
        against = ~broken & (line != line[k])
        higher = (scores[:, k : k + 1] > scores) + 0.5 * (scores[:, k : k + 1] == scores)
        won += broken[:, k] * (higher * against).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return won / _pairs(broken, line)


def _thresholds(scores: FloatArray, broken: BoolArray) -> FloatArray:
    """The score above which cells are best called broken, midway between two; NaN without both kinds, shape (R,)."""
    order = np.argsort(scores, axis=1)
    score, bad = np.take_along_axis(scores, order, 1), np.take_along_axis(broken, order, 1)
    with np.errstate(invalid="ignore"):
        missed = np.cumsum(bad, axis=1) / bad.sum(axis=1, keepdims=True)
        passed = np.cumsum(~bad, axis=1) / (~bad).sum(axis=1, keepdims=True)
    gain = np.where(np.diff(score) > 0, (passed - missed)[:, :-1], -np.inf)
    if not gain.size:
        return np.full(len(scores), np.nan)
    best = np.nanargmax(np.nan_to_num(gain, nan=-np.inf), axis=1)[:, None]
    middle = (np.take_along_axis(score, best, 1) + np.take_along_axis(score, best + 1, 1))[:, 0] / 2
    return np.where(np.isfinite(np.take_along_axis(gain, best, 1)[:, 0]), middle, np.nan)


def _accuracies(scores: FloatArray, broken: BoolArray, line: IntArray) -> FloatArray:
    """Balanced accuracy of thresholds from the other lines; NaN where none could be set, shape (R,)."""
    threshold = np.full(scores.shape, np.nan)
    for k in np.unique(line):
        here = line == k
        threshold[:, here] = _thresholds(scores[:, ~here], broken[:, ~here])[:, None]
    known, right = np.isfinite(threshold), (scores > threshold) == broken
    with np.errstate(invalid="ignore"):
        shares = [(right & known & kind).sum(axis=1) / (known & kind).sum(axis=1) for kind in (broken, ~broken)]
    return np.asarray((shares[0] + shares[1]) / 2)


def _named(predictions: list[Prediction], common: _Common) -> tuple[str | None, str]:
    """The predictor that is surely best, or why none is named."""
    leader, areas = predictions[0], common.areas
    area = with_interval(areas[leader.predictor])
    if leader.probability >= DECIDED and area.low > 0.5:
        return leader.predictor, ""
    equal = {name for name in areas if areas[name][0] == area.value}
    alike = [name for name in PREDICTORS if name in equal]
    if len(alike) > 1:
        return None, f"undecided: {', '.join(alike)} tell the cells alike"
    return None, f"undecided: {leader.predictor} is best with probability {leader.probability:.2f}"
