"""Beside the verdict on a stored sweep: which rule collapses it, what tells where it breaks, what diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.contrasts import Estimate
from analysis.controls import Trials
from analysis.divergence import DivergenceModel, divergence
from analysis.invariance import asked, read_trials
from analysis.predictors import PEAK, Predictors, predict_frontier
from analysis.report import described
from analysis.rules import RuleComparison, compare_rules


def rules(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | float | None = None,
) -> list[RuleComparison]:
    """Rival rules side by side, for each metric and family of groups; arguments as for `invariance`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    trials, chosen = asked(store, sweep, metrics, margins, ["steps"])
    trials = Trials.of(trials).judged
    return [found for metric, margin in chosen.items() for found in compare_rules(trials, metric, margin)]


def predictors(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | float | None = None,
) -> list[Predictors]:
    """What best tells where invariance breaks, for each metric and group; arguments as for `invariance`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    trials, chosen = asked(store, sweep, metrics, margins, ["lambda_max", "noise_scale", PEAK])
    trials = Trials.of(trials).judged
    return [found for metric, margin in chosen.items() for found in predict_frontier(trials, metric, margin)]


def divergences(store: str | Path, sweep: str) -> list[DivergenceModel]:
    """How probable divergence is at each learning rate and batch size, in each group.

    Raises:
        ValueError: for an unknown sweep.
    """
    return divergence(Trials.of(read_trials(store, sweep, ["train_loss"])).judged)


def rules_text(found: Sequence[RuleComparison]) -> str:
    """A line for each rule, best first, and what is to be said of them."""
    return "\n\n".join("\n".join([f"{c.metric}{described(c.group)}", *_rule_lines(c), *_note(c.note)]) for c in found)


def predictors_text(found: Sequence[Predictors]) -> str:
    """A line for each predictor, best first, and what is to be said of them."""
    return "\n\n".join(
        "\n".join([f"{p.metric}{described(p.group)}", *_predictor_lines(p), *_note(p.note)]) for p in found
    )


def divergences_text(found: Sequence[DivergenceModel]) -> str:
    """The learning rate at which half diverge, for each batch size."""
    return "\n\n".join(
        "\n".join(
            [f"{m.n_diverged} of {m.n_trials} trials diverged{described(m.group)}", *_half_lines(m), *_note(m.note)]
        )
        for m in found
    )


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
        numbers = f"AUC {_interval(each.auc)}, threshold {_interval(each.threshold)}, P {each.probability:.3g}"
        lines.append(f"  {each.predictor}: {numbers}{mark}")
    return lines


def _half_lines(m: DivergenceModel) -> list[str]:
    lines = [f"  batch size {half.batch_size}: half diverge at lr {_interval(half.lr)}" for half in m.lr_half]
    if math.isfinite(m.exponent.value):
        lines.append(f"  that is lr ∝ batch size^{_interval(m.exponent)}")
    return lines


def _interval(x: Estimate) -> str:
    return f"{x.value:.3g} ({x.low:.3g} to {x.high:.3g})"


def _note(text: str) -> list[str]:
    return [f"  note: {text}"] if text else []
