"""Beside the verdict on a stored sweep: which rule collapses it, what tells where it breaks, what diverges."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from analysis.contrasts import Estimate
from analysis.controls import Trials
from analysis.divergence import DivergenceModel, divergence, given_survival
from analysis.invariance import asked
from analysis.predictors import PEAK, Predictors, predict_frontier
from analysis.report import described, summary
from analysis.rules import RuleComparison, compare_rules
from analysis.verdict import Verdict

Margins = Mapping[str, float] | float | None
"""Equivalence margins: one number for all metrics, or by metric; None: those of the sweep file, or the defaults."""

Found = TypeVar("Found", RuleComparison, Predictors)


@dataclass(frozen=True)
class Diverged:
    """What diverges in one group, and what the trials say that did not.

    Attributes:
        model: how probable divergence is.
        given_survival: one verdict per metric on the trials that survived; none where all did, or none.
    """

    model: DivergenceModel
    given_survival: tuple[Verdict, ...]

    def as_row(self) -> dict[str, object]:
        """That of the model, with those of the verdicts in it."""
        return {**self.model.as_row(), "given_survival": [v.as_row() for v in self.given_survival]}


def rules(
    store: str | Path, sweep: str, metrics: Sequence[str] | None = None, margins: Margins = None
) -> list[RuleComparison]:
    """Rival rules side by side, for each metric and family of groups; arguments as for `invariance`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    return _each(compare_rules, *asked(store, sweep, metrics, margins, ["steps"]))


def predictors(
    store: str | Path, sweep: str, metrics: Sequence[str] | None = None, margins: Margins = None
) -> list[Predictors]:
    """What best tells where invariance breaks, for each metric and group; arguments as for `invariance`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    return _each(predict_frontier, *asked(store, sweep, metrics, margins, ["lambda_max", "noise_scale", PEAK]))


def divergences(
    store: str | Path, sweep: str, metrics: Sequence[str] | None = None, margins: Margins = None
) -> list[Diverged]:
    """How probable divergence is at each learning rate and batch size, then the verdicts given survival, by group.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    trials, chosen = asked(store, sweep, metrics, margins)
    survived = given_survival(trials, chosen)
    return [
        Diverged(model, tuple(v for v in survived if v.group == model.group))
        for model in divergence(Trials.of(trials).judged)
    ]


def _each(
    compare: Callable[[pa.Table, str, float | None], list[Found]], trials: pa.Table, margins: Mapping[str, float | None]
) -> list[Found]:
    """A comparison of the judged trials, metric by metric."""
    judged = Trials.of(trials).judged
    return [found for metric, margin in margins.items() for found in compare(judged, metric, margin)]


def rules_text(found: Sequence[RuleComparison]) -> str:
    """A line for each rule, best first, and what is to be said of them."""
    return _paragraphs((f"{c.metric}{described(c.group)}", _rule_lines(c), c.note) for c in found)


def predictors_text(found: Sequence[Predictors]) -> str:
    """A line for each predictor, best first, and what is to be said of them."""
    return _paragraphs((f"{p.metric}{described(p.group)}", _predictor_lines(p), p.note) for p in found)


def divergences_text(found: Sequence[Diverged]) -> str:
    """The learning rate at which half diverge, for each batch size, and the verdicts on what survived."""
    return _paragraphs(
        (
            f"{d.model.n_diverged} of {d.model.n_trials} trials diverged{described(d.model.group)}",
            [*_half_lines(d.model), *_survival_lines(d)],
            d.model.note,
        )
        for d in found
    )


def _paragraphs(parts: Iterable[tuple[str, list[str], str]]) -> str:
    """A head, indented lines and a note each."""
    return "\n\n".join("\n".join([head, *lines, *_note(note)]) for head, lines, note in parts)


def _rule_lines(c: RuleComparison) -> list[str]:
    lines = []
    for fit in c.rules:
        same = f" (here the same as {', '.join(fit.same_as)})" if fit.same_as else ""
        mark = "  <- best" if fit.rule == c.best else ""
        numbers = f"misfit {_interval(fit.misfit)}, explains {_interval(fit.explained)}, P {fit.probability:.3g}"
        lines.append(f"  {fit.rule}{same}: {numbers}{mark}")
    return lines


def _predictor_lines(p: Predictors) -> list[str]:
    lines = []
    for each in p.predictions:
        mark = "  <- best" if each.predictor == p.best else ""
        p_best = "not compared" if math.isnan(each.probability) else f"P {each.probability:.3g}"
        numbers = f"AUC {_interval(each.auc)}, threshold {_interval(each.threshold)}, {p_best}"
        lacking = f", unknown in {each.n_unknown} of {p.n_cells} cells" if each.n_unknown else ""
        lines.append(f"  {each.predictor}: {numbers}{lacking}{mark}")
    return lines


def _half_lines(m: DivergenceModel) -> list[str]:
    lines = [f"  batch size {half.batch_size}: half diverge at lr {_interval(half.lr)}" for half in m.lr_half]
    if math.isfinite(m.exponent.value):
        lines.append(f"  that is lr ∝ batch size^{_interval(m.exponent)}")
    return lines


def _survival_lines(d: Diverged) -> list[str]:
    if not d.given_survival:
        return []
    head = f"  given survival, {d.model.n_diverged} left out and one look at 5%:"
    verdicts = [dataclasses.replace(v, group={}) for v in d.given_survival]
    return [head, textwrap.indent(summary(verdicts), "    ")]


def _interval(x: Estimate) -> str:
    return f"{x.value:.3g} ({x.low:.3g} to {x.high:.3g})"


def _note(text: str) -> list[str]:
    return [f"  note: {text}"] if text else []
