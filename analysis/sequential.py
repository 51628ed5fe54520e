"""Verdicts at planned looks: seeds are added until one is reached, and all looks together are wrong in at most 5%.

A study that is judged at 5% whenever seeds were added is wrong more often than 5%. So the looks are planned, and each
spends a share of the error: every seed buys an equal part of it (the spending function α t of Kim & DeMets 1987, with
t the share of the last look's seeds), and each look tests all seeds so far at what was bought since the look before.
By the union bound no verdict is wrong with more than alpha over all looks, for any number of seeds and whatever the
correlation between looks; the price, against exact boundaries, is a last look at less than alpha.

What a look said stands: later seeds do not change it. Verdicts follow from the trials and the planned looks alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.contrasts import LEAST_SEEDS, Contrasts, contrasts
from analysis.controls import Trials
from analysis.decision import ALPHA, Outcome, decide, judged_at, seeds_needed
from analysis.grid import Group, groups
from analysis.noncentral import difference_power, equivalence_power
from analysis.sample import Sample
from analysis.scales import FloatArray, half_width, scale_of
from analysis.verdict import Verdict, judge

FUTILE = 0.1
"""Where the last look would decide with a smaller chance than this, no seeds are added; that makes no error larger."""


@dataclass(frozen=True)
class Look:
    """One planned look.

    Attributes:
        seeds: per cell.
        level: of its tests.
        spent: of the error, this look and those before.
    """

    seeds: int
    level: float
    spent: float


@dataclass(frozen=True)
class LookVerdict:
    """What the looks so far say of one metric in one group.

    Attributes:
        metric: its column in `trials`.
        group: the fields that tell this group from others of the sweep.
        verdict: of the first look that decided; else inconclusive.
        margin: as given.
        looks: seeds of all planned looks.
        look: how many were taken.
        n_seeds: of the last one taken.
        level: of its tests.
        spent: chance of a wrong verdict so far, at most; at the last look 0.05.
        open: whether the next look may decide.
        seeds_needed: for a decision without looks, were the differences seen the true ones.
        note: why more seeds would not help, or what is missing.
    """

    metric: str
    group: dict[str, Any]
    verdict: Outcome
    margin: float | None
    looks: tuple[int, ...]
    look: int
    n_seeds: int
    level: float
    spent: float
    open: bool
    seeds_needed: int | None
    note: str

    @property
    def taken(self) -> str:
        """Which look this is, in words."""
        if not self.look:
            return f"no look yet, the first is at {self.looks[0]} seeds"
        return f"look {self.look} of {len(self.looks)}, {self.n_seeds} seeds, error spent {self.spent:.3g} of {ALPHA}"

    def as_row(self) -> dict[str, object]:
        """Plain values."""
        return dataclasses.asdict(self) | {"verdict": str(self.verdict), "looks": list(self.looks)}


def planned_looks(seeds: Sequence[int], alpha: float = ALPHA) -> list[Look]:
    """The looks at these numbers of seeds, with the error that each spends.

    Raises:
        ValueError: unless the numbers grow, from at least 4.

    Example:
        >>> [look.level for look in planned_looks([8, 16, 32])]
        [0.0125, 0.0125, 0.025]
    """
    if not seeds or seeds[0] < LEAST_SEEDS or any(b <= a for a, b in pairwise(seeds)):
        raise ValueError(f"looks {list(seeds)}: growing numbers of seeds are needed, from at least {LEAST_SEEDS}")
    spent = [alpha * n / seeds[-1] for n in seeds]
    return [Look(n, s - before, s) for n, s, before in zip(seeds, spent, [0.0, *spent], strict=False)]


def judge_looks(trials: pa.Table, margins: Mapping[str, float | None], seeds: Sequence[int]) -> list[LookVerdict]:
    """What the planned looks say, for each metric and group.

    A look is taken once every cell of the group has ended trials of its first seeds, in ascending order; it sees no
    later ones.

    Args:
        trials: as for :func:`analysis.verdict.judge`.
        margins: metric -> margin, None where none is given.
        seeds: numbers of seeds of the looks.

    Raises:
        ValueError: unless the numbers grow, from at least 4.
    """
    judged, looks = Trials.of(trials).judged, planned_looks(seeds)
    first = [_First.of(judged, look) for look in looks]
    parts = [(group, list(_seen(group, first))) for group in groups(judged)]
    return [
        _judge(seen, looks, group.fields, metric, margin) for metric, margin in margins.items() for group, seen in parts
    ]


def at_looks(verdicts: Sequence[Verdict], trials: pa.Table, seeds: Sequence[int]) -> list[Verdict]:
    """Verdicts as planned looks have them, in place of those of one look at 5%.

    What stands beside a verdict rests on the seeds that its look saw, at the levels of a single look; where none was
    taken yet, on all seeds.

    Args:
        verdicts: of :func:`analysis.verdict.judge`.
        trials: the table they were judged on.
        seeds: numbers of seeds of the looks.
    """
    looks = judge_looks(trials, {v.metric: v.margin for v in verdicts}, seeds)
    of = {(look.metric, *look.group.items()): look for look in looks}
    pairs = [(v, of[v.metric, *v.group.items()]) for v in verdicts]
    at: dict[int, list[Verdict]] = {}
    for n in {look.n_seeds for look in looks} - {0}:
        at[n] = judge(_of_seeds(trials, n), {look.metric: look.margin for look in looks if look.n_seeds == n})
    return [_at_look(v, look, at.get(look.n_seeds), len(_seeds(trials))) for v, look in pairs]


def _at_look(v: Verdict, look: LookVerdict, at: Sequence[Verdict] | None, seeds: int) -> Verdict:
    """The verdict of a look, with what its seeds say beside it."""
    found, notes = v, [look.taken]
    if at is not None:
        found = next(each for each in at if each.metric == v.metric and each.group.items() <= v.group.items())
        notes += [look.note, f"later seeds do not count: {seeds - look.n_seeds}" if seeds > look.n_seeds else ""]
    else:
        notes.append("what stands beside it is of all seeds so far")
    undecided = look.verdict is Outcome.INCONCLUSIVE
    return dataclasses.replace(
        found,
        group=v.group,
        verdict=look.verdict,
        seeds_needed=look.seeds_needed if undecided and at is not None else None,
        note="; ".join(dict.fromkeys(part for note in (*notes, found.note) for part in note.split("; ") if part)),
    )


@dataclass(frozen=True)
class _Seen:
    """A look that was taken, and the trials that it saw: those of one group."""

    look: Look
    trials: pa.Table
    group: Group

    def compared(self, metric: str) -> tuple[Contrasts, bool]:
        """The contrasts, and whether any trial diverged or ended with an unusable value."""
        sample = Sample.of(self.trials, self.group, metric)
        found = contrasts(self.group.grid, sample.y, sample.h, sample.diverged, sample.spoiled)
        return found, bool(sample.spoiled.any())


@dataclass(frozen=True)
class _First:
    """The trials of the first seeds, those that a look sees, and their groups; none where there are fewer seeds."""

    look: Look
    trials: pa.Table
    groups: list[Group]

    @classmethod
    def of(cls, trials: pa.Table, look: Look) -> _First:
        part = _of_seeds(trials, look.seeds)
        return cls(look, part, groups(part) if len(_seeds(part)) == look.seeds else [])

    def has(self, group: Group, fields: Mapping[str, Any]) -> bool:
        """Whether a group has these values; further fields may vary where all seeds are."""
        row = self.trials.select([*fields]).take(group.rows[:1]).to_pylist()
        return row == [fields] if fields else bool(len(group.rows))


def _seeds(trials: pa.Table) -> FloatArray:
    """The seeds that there are, in ascending order."""
    return np.unique(trials["seed"].drop_null().to_numpy())


def _of_seeds(trials: pa.Table, n: int) -> pa.Table:
    """The trials of the first n seeds."""
    return trials.filter(pc.is_in(trials["seed"], pa.array(_seeds(trials)[:n], trials.schema.field("seed").type)))


def _seen(group: Group, first: Sequence[_First]) -> Iterator[_Seen]:
    """The looks that can be taken of a group."""
    cells = len(group.grid.lr)
    for each in first:
        found = next((g for g in each.groups if each.has(g, group.fields)), None)
        if found is None or len(found.grid.point_cell) + found.failed < cells * each.look.seeds:
            return
        yield _Seen(each.look, each.trials, found)


def _judge(
    seen: Sequence[_Seen], looks: Sequence[Look], group: dict[str, Any], metric: str, margin: float | None
) -> LookVerdict:
    m, numbers = half_width(margin, scale_of(metric)), tuple(look.seeds for look in looks)
    outcome, taken, needed = Outcome.INCONCLUSIVE, Look(0, 0.0, 0.0), None
    note = "no margin is known: state one" if math.isnan(m) else ""
    for each in seen if not note else ():
        compared, blocked = each.compared(metric)
        taken, outcome = each.look, decide(compared, m, blocked, each.look.level)
        if outcome is not Outcome.INCONCLUSIVE:
            needed, note = None, ""
            break
        needed = seeds_needed(compared, m, blocked)
        note = _closed(compared, m, blocked, needed, taken, looks[-1])
    number = numbers.index(taken.seeds) + 1 if taken.seeds else 0
    waits = outcome is Outcome.INCONCLUSIVE and not note
    return LookVerdict(
        metric, group, outcome, margin, numbers, number, taken.seeds, taken.level, taken.spent, waits, needed, note
    )


def _closed(compared: Contrasts, m: float, blocked: bool, needed: int | None, taken: Look, last: Look) -> str:
    """Why no more seeds are to be added; empty where they are."""
    if not len(compared):
        return "no two trials have equal lr / batch_size and different batch sizes"
    if compared.motionless:
        return "no difference varies over the seeds, so nothing can be tested"
    about = f"; about {needed} would" if needed else ""
    if taken == last:
        return f"undecided at the last look{about}"
    if _chance(compared, m, blocked, last) < FUTILE:
        return f"{last.seeds} seeds would decide it with a chance below {FUTILE:.0%}{about}"
    return ""


def _chance(compared: Contrasts, m: float, blocked: bool, look: Look) -> float:
    """Chance of a verdict at a look, seen kindly: were all differences 0, or those seen the true ones.

    For "equivalent" it is that of the contrast with the largest spread alone, for "different" that of the clearest.
    """
    known = compared.n > 1
    if not known.any():
        return 1.0
    size, se = np.abs(compared.estimate[known]), compared.sd[known] / math.sqrt(look.seeds)
    df = compared.df[known] * (look.seeds - 1) / (compared.n[known] - 1)
    level = judged_at(compared, known)[known] * (look.level / ALPHA)
    equivalent = 0.0 if blocked else float(equivalence_power(np.zeros_like(se), se, df, m, look.level).min())
    return max(equivalent, float(difference_power(size, se, df, m, level).max()))
