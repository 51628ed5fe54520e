"""Verdicts in words, and a metric over learning rate and batch size as a map of text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.controls import Trials
from analysis.decision import Outcome
from analysis.grid import Group, floats, groups, levels, moments
from analysis.invariance import read_trials
from analysis.scales import FloatArray, IntArray, Scale, on_scale, scale_of
from analysis.verdict import Verdict, plural

_SHADES = " ░▒▓█"


def verdict_text(
    store: str | Path, sweep: str, verdicts: Sequence[Verdict], width: int = 80, *, in_full: bool = False
) -> str:
    """What `isoratio invariance` prints: a line for each verdict and the answer in words.

    With ``in_full``, before that, every conclusion with its intervals, each beside a map of the metric.
    """
    if not verdicts:
        return conclusion(verdicts)
    parts = [summary(verdicts), *answer(verdicts, width)]
    if not in_full:
        metric = max(verdicts, key=lambda v: v.verdict is Outcome.DIFFERENT).metric
        return "\n\n".join([*parts, f"with intervals and a map: isoratio invariance {sweep} --metric {metric}"])
    trials = Trials.of(read_trials(store, sweep, [v.metric for v in verdicts])).judged
    found = {_key(group.fields): group for group in groups(trials)}
    full = [(conclusion([v], width), _group_map(found[_key(v.group)], trials, v.metric, width)) for v in verdicts]
    return "\n\n".join([*filter(None, (text for pair in full for text in pair)), *parts])


def summary(verdicts: Sequence[Verdict]) -> str:
    """One aligned line per verdict: metric, group, verdict, and the frontier or what is missing."""
    rows = [(v.metric, described(v.group)[2:-1], v.verdict.upper(), _in_short(v)) for v in verdicts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True) if w) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def answer(verdicts: Sequence[Verdict], width: int = 80) -> list[str]:
    """For which quantities only lr / batch size matters and for which not: a paragraph each; the rest is undecided."""
    heads = {
        Outcome.EQUIVALENT: "Within the margin, only lr / batch size matters for",
        Outcome.DIFFERENT: "More than lr / batch size matters, beyond the frontier above, for",
    }
    paragraphs = []
    for outcome, head in heads.items():
        named: dict[str, list[str]] = {}
        for v in verdicts:
            if v.verdict is outcome:
                named.setdefault(v.metric, []).append(described(v.group)[2:-1])
        listed = ", ".join(m + (f" ({'; '.join(groups_)})" if any(groups_) else "") for m, groups_ in named.items())
        if listed:
            paragraphs.append(textwrap.fill(f"{head} {listed}.", width, subsequent_indent="  "))
    return paragraphs


def conclusion(verdicts: Sequence[Verdict], width: int = 80) -> str:
    """What a researcher can quote: one paragraph per verdict, wrapped to ``width`` columns.

    Example:
        >>> print(conclusion([]))
        No trial has ended yet, so there is nothing to judge.
    """
    if not verdicts:
        return "No trial has ended yet, so there is nothing to judge."
    paragraphs = (" ".join(_sentences(v)) for v in verdicts)
    return "\n\n".join(textwrap.fill(p, width, subsequent_indent="  ", break_long_words=False) for p in paragraphs)


def heat_map(trials: pa.Table, metric: str, width: int = 80) -> str:
    """A metric's mean over seeds: learning rate across, batch size down, so that iso-ratio lines run diagonally.

    One map per group; columns that do not fit into ``width`` follow below. Means are geometric on the log scale, shades
    go from the lowest to the highest mean of the group.

    Args:
        trials: as for :func:`analysis.verdict.judge`; see :func:`analysis.invariance.read_trials`.
        metric: one of its columns.
        width: columns of the terminal.
    """
    judged = Trials.of(trials).judged
    return "\n\n".join(filter(None, (_group_map(group, judged, metric, width) for group in groups(judged))))


def _sentences(v: Verdict) -> list[str]:
    subject = f"{v.metric}{described(v.group)}"
    margin = "" if v.margin is None else f" within {_margin(v)}"
    size = f"{plural(v.n_contrasts, 'contrast')}, {plural(v.n_seeds, 'seed')}"
    head = {
        Outcome.EQUIVALENT: f"{subject} depends on lr / batch size alone{margin} ({size}).",
        Outcome.DIFFERENT: f"{subject} is NOT the same at equal lr / batch size{margin} ({size}).",
        Outcome.INCONCLUSIVE: f"{subject}: undecided whether lr / batch size alone matters{margin} ({size}).",
    }[v.verdict]
    return [head, *_effect(v), *_floor(v), *_frontier(v), *_exponent(v), *_noise(v), *_notes(v)]


def _effect(v: Verdict) -> list[str]:
    cell = v.effect_cell
    if cell is None:
        return []
    shown = [_difference(x, v.scale) for x in v.effect]
    sizes = f"from batch size {cell.reference_batch_size} to {cell.batch_size}"
    where = f"{sizes} at ratio {cell.ratio:.3g} (lr {cell.lr:.3g})"
    return [f"The largest contrast is {shown[0]} (90% interval {shown[1]} to {shown[2]}), {where}."]


def _floor(v: Verdict) -> list[str]:
    if v.floor is None or v.effect_cell is None or not v.floor.spread:
        return []
    apart = _difference(v.floor.spread, v.scale)
    times = f"the largest contrast is {abs(v.effect.value) / v.floor.spread:.2g} times that"
    return [f"Equal trials with another order of examples end {apart} apart ({plural(v.floor.n, 'pair')}): {times}."]


def _noise(v: Verdict) -> list[str]:
    """On which lines there is noise that could have broken invariance, and where training time alone explains it."""
    told = [line for line in v.noise if line.informative]
    timed = [f"{line.ratio:.3g}" for line in v.noise if line.informative is False]
    open_ = [f"{line.ratio:.3g}" for line in v.noise if line.informative is None]
    sentences = []
    if told:
        ratios = ", ".join(f"{line.ratio:.3g} ({_difference(line.nu.value, v.scale)})" for line in told)
        sentences.append(f"It is informative about noise at ratio {ratios}: so far is SGD from gradient descent there.")
    if timed:
        sentences.append(
            f"At ratio {', '.join(timed)} it is explained by training time: noise does less than the margin."
        )
    if open_:
        sentences.append(f"At ratio {', '.join(open_)} it is not told whether noise or training time explains it.")
    return sentences


def _frontier(v: Verdict) -> list[str]:
    whole = " (the highest tried)" if v.verdict is Outcome.EQUIVALENT else ""
    return [f"Invariance {frontier_text(v)}{whole}."] if v.frontier else []


def frontier_text(v: Verdict) -> str:
    """Up to where invariance holds and from where it is broken; empty where neither is known."""
    low, high = v.frontier or (None, None)
    parts = [f"holds up to lr {low:.3g}"] if low is not None else []
    parts += [f"is broken from lr {high:.3g}"] if high is not None else []
    return " and ".join(parts)


def _in_short(v: Verdict) -> str:
    parts = [frontier_text(v)]
    if v.margin is None:
        parts.append("needs a margin")
    elif v.verdict is Outcome.INCONCLUSIVE and v.seeds_needed:
        parts.append(f"about {v.seeds_needed} seeds would decide")
    return "; ".join(filter(None, parts))


def _exponent(v: Verdict) -> list[str]:
    p, low, high = v.exponent
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    where = "Up to there" if v.frontier and v.frontier.lr_low is not None else "Fitted without a frontier,"
    return [f"{where} the rule that leaves it unchanged is lr ∝ batch size^{p:.2f} (95% set {low:.2f} to {high:.2f})."]


def _notes(v: Verdict) -> list[str]:
    return [f"Note: {v.note}."] if v.note else []


def _margin(v: Verdict) -> str:
    assert v.margin is not None
    return f"a factor {1 + v.margin:.4g}" if v.scale is Scale.LOG else f"±{v.margin:.3g}"


def _difference(x: float, scale: Scale) -> str:
    if scale is Scale.ABSOLUTE:
        return f"{x:+.3g}"
    return f"×{math.exp(min(x, 700)):{'.3f' if abs(x) < 2.3 else '.3g'}}"


def _key(fields: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(fields.items())


def described(fields: Mapping[str, Any]) -> str:
    """A group in brackets, behind a blank; empty where there is only one."""
    text = ", ".join(f"{name} {value if value is not None else 'none'}" for name, value in fields.items())
    return f" ({text})" if text else ""


def _group_map(group: Group, trials: pa.Table, metric: str, width: int) -> str:
    if not len(group.rows):
        return ""
    scale, grid = scale_of(metric), group.grid
    y = np.where(group.diverged, np.nan, on_scale(floats(trials, metric, group.rows), scale))
    means = moments(grid.point_cell, grid.point_means(y), len(grid.lr)).mean
    cells = _cell_texts(means, grid.count(group.diverged), grid.count(~group.diverged), scale)
    column, sizes = levels(np.log(grid.lr)), np.unique(grid.batch_size)
    lrs = [f"{grid.lr[column == c][0]:.3g}" for c in range(column.max() + 1)]
    rows = [[""] * len(lrs) for _ in sizes]
    for text, row, c in zip(cells, np.searchsorted(sizes, grid.batch_size), column, strict=True):
        rows[row][c] = text
    mean = "geometric mean" if scale is Scale.LOG else "mean"
    title = f"{metric}{described(group.fields)}: {mean} over {plural(group.seeds, 'seed')}; lr across, batch size down"
    legend = "! some trials diverged; div all of them" if group.diverged.any() else ""
    panels = _panels(lrs, [f"{size:.0f}" for size in sizes], rows, width)
    return "\n".join(filter(None, [textwrap.fill(title, width), *panels, legend]))


def _cell_texts(means: FloatArray, diverged: IntArray, alive: IntArray, scale: Scale) -> list[str]:
    """Shade and three digits for each cell, "div" where all of its trials diverged, "-" where nothing was measured."""
    known = means[np.isfinite(means)]
    low, span = (known.min(), np.ptp(known)) if len(known) else (0.0, 0.0)
    texts = []
    for mean, lost, left in zip(means, diverged, alive, strict=True):
        if not math.isfinite(mean):
            texts.append("-" if left else "div")
            continue
        shade = _SHADES[int((mean - low) / span * (len(_SHADES) - 1) + 0.5) if span else 0]
        texts.append(f"{shade}{_digits(math.exp(mean) if scale is Scale.LOG else mean)}{'!' if lost else ''}")
    return texts


def _panels(columns: list[str], labels: list[str], rows: list[list[str]], width: int) -> list[str]:
    """Aligned lines, as many columns at a time as fit."""
    head = max(map(len, labels))
    cell = 1 + max(len(text) for line in [columns, *rows] for text in line)
    fit = max(1, (width - head) // cell)
    lines = []
    for start in range(0, len(columns), fit):
        for label, line in zip(["", *labels], [columns, *rows], strict=True):
            shown = "".join(text.rjust(cell) for text in line[start : start + fit])
            lines.append(f"{label.rjust(head)}{shown}".rstrip())
    return lines


def _digits(x: float) -> str:
    """Three significant digits."""
    return f"{x:#.3g}".removesuffix(".")
