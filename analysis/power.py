"""How many seeds a verdict takes: from an assumed spread, or from that of a pilot sweep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.contrasts import LEAST_SEEDS, Contrasts, contrasts
from analysis.controls import Trials
from analysis.decision import ALPHA, MOST_SEEDS, Outcome, judged_at
from analysis.design import Design, upper_limit
from analysis.grid import groups
from analysis.invariance import asked
from analysis.sample import Sample
from analysis.scales import FloatArray, Scale, half_width, scale_of


@dataclass(frozen=True)
class Power:
    """Seeds per cell for one verdict.

    Attributes:
        metric: of the pilot; None where the spread was assumed.
        scale: of difference and spread (natural logarithms).
        group: of the pilot's trials.
        verdict: what is to be shown, equivalent or different.
        margin: as given; on the scale where the spread was assumed.
        difference: the true one, of every contrast for "equivalent", of that at the highest learning rate for
            "different"; None: as the pilot has them.
        n_contrasts: how many must all be equivalent.
        n_seeds: of the pilot.
        sd: spread of one seed's difference, the largest of the contrasts.
        sd_high: its upper 80% limit.
        seeds_80: for a chance of 80%, were the spread the true one; None where 10,000 do not suffice.
        seeds_90: for 90%.
        seeds_80_high: for 80%, were every spread at its upper 80% limit.
        seeds_90_high: for 90%, likewise.
        power: seeds -> chance, for the numbers of seeds asked for.
        note: what stands behind the numbers, or why there are none.
    """

    metric: str | None
    scale: Scale | None
    group: dict[str, Any]
    verdict: Outcome | None
    margin: float | None
    difference: float | None
    n_contrasts: int
    n_seeds: int | None = None
    sd: float | None = None
    sd_high: float | None = None
    seeds_80: int | None = None
    seeds_90: int | None = None
    seeds_80_high: int | None = None
    seeds_90_high: int | None = None
    power: dict[int, float] = field(default_factory=dict)
    note: str = ""

    def as_row(self) -> dict[str, object]:
        """The row of `isoratio power --format json`."""
        row = dataclasses.asdict(self)
        named = {name: str(row[name]) for name in ("scale", "verdict") if row[name] is not None}
        return row | named | {"power": {str(n): p for n, p in self.power.items()}}

    def text(self) -> str:
        """One line for people."""
        group = ", ".join(f"{name} {value}" for name, value in self.group.items())
        name = (self.metric or "assumed spread") + (f" ({group})" if group else "")
        if self.sd is None or self.verdict is None:
            return f"{name}: {self.note}"
        head = f"{name}: {self.verdict} within {self.margin:.3g} takes {_counts(self.seeds_80, self.seeds_90)}"
        spread = f"; spread {self.sd:.3g}"
        if self.sd_high is not None:
            wide = _counts(self.seeds_80_high, self.seeds_90_high)
            spread += f" from {self.n_seeds} seeds, at its upper 80% limit {self.sd_high:.3g} it takes {wide}"
        chances = "".join(f"; {n} seeds: {p:.0%}" for n, p in self.power.items())
        return f"{head}{spread}{chances}" + (f". {self.note}" if self.note else "")


def power(
    sd: float,
    margin: float,
    *,
    difference: float = 0.0,
    contrasts: int = 1,
    paired: bool = True,
    seeds: Sequence[int] = (),
) -> Power:
    """Seeds for a verdict where the spread is assumed; all numbers are on one scale (natural logarithms of a loss).

    Exact for normal data: a t-test's power, integrated over the spread's estimate; several contrasts count as
    independent, which asks for a few more seeds than contrasts that share a reference need.

    Args:
        sd: of one seed's difference between two cells; where ``paired`` is false, of one seed's value.
        margin: of equivalence; log(1.1) = 0.095 for a factor 1.1.
        difference: the true one: "equivalent" is asked for where it is below the margin, else "different".
        contrasts: how many have to be equivalent, or are tested besides.
        paired: whether the cells share seeds.
        seeds: numbers of seeds to give the power of.

    Raises:
        ValueError: for a number that cannot be.

    Example:
        >>> power(0.1, 0.1).seeds_80
        11
    """
    for name, value in {"sd": sd, "margin": margin}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} {value!r} is not a positive number")
    if not math.isfinite(difference) or contrasts < 1:
        raise ValueError(f"difference {difference!r}, contrasts {contrasts!r}: a number and at least 1 are needed")
    k = contrasts if abs(difference) < margin else 1  # "different" is tested at half of alpha where it leads
    arms, shape = (1, 2)[not paired], np.ones(k)
    design = Design(abs(difference) * shape, sd * arms**0.5 * shape, arms * shape, ALPHA / 2 * shape, margin)
    return _planned(design, contrasts, seeds, margin, difference)


def power_of_pilot(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | float | None = None,
    *,
    difference: float | None = 0.0,
    seeds: Sequence[int] = (),
) -> list[Power]:
    """Seeds for the verdicts on a stored sweep, with the spreads that it shows, and with their upper 80% limits.

    Args:
        store: directory or URL of the store.
        sweep: name of the pilot.
        metrics: columns of `trials`; by default all that were measured.
        margins: as for :func:`analysis.invariance.invariance`.
        difference: the true one, on the metric's scale; None: the differences are those that the pilot shows.
        seeds: numbers of seeds to give the power of.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    trials, chosen = asked(store, sweep, metrics, margins)
    judged = Trials.of(trials).judged
    found = groups(judged)
    return [
        _of_contrasts(_compared(judged, group, metric), metric, group.fields, margin, difference, seeds)
        for metric, margin in chosen.items()
        for group in found
    ]


def _counts(eighty: int | None, ninety: int | None) -> str:
    shown = [f"{n} seeds" if n else f"more than {MOST_SEEDS} seeds" for n in (eighty, ninety)]
    return f"{shown[0]} for a chance of 80%, {shown[1]} for 90%"


def _compared(trials: pa.Table, group: Any, metric: str) -> Contrasts:
    sample = Sample.of(trials, group, metric)
    return contrasts(group.grid, sample.y, sample.h, sample.diverged, sample.spoiled)


def _of_contrasts(
    compared: Contrasts,
    metric: str,
    group: dict[str, Any],
    margin: float | None,
    difference: float | None,
    seeds: Sequence[int],
) -> Power:
    scale, known = scale_of(metric), compared.n > 1
    m = half_width(margin, scale)
    reason = _nothing_to_plan(compared, m, metric)
    if reason:
        return Power(metric, scale, group, None, margin, difference, len(compared), note=reason)
    design = _design(compared, m, difference)
    kept = known if design.asks is Outcome.EQUIVALENT or difference is None else known & _leading(compared)
    upper = upper_limit(compared.df[kept])
    design = dataclasses.replace(
        design, **{name: getattr(design, name)[kept] for name in ("size", "sd", "per_seed", "level")}
    )
    planned = _planned(design, len(compared), seeds, margin, difference, upper)
    pilot = int(compared.n[known].max())
    few = int((~known).sum())
    note = "; ".join(filter(None, [planned.note, f"contrasts of fewer than 2 seeds, left out: {few}" if few else ""]))
    return dataclasses.replace(planned, metric=metric, scale=scale, group=group, n_seeds=pilot, note=note)


def _nothing_to_plan(compared: Contrasts, m: float, metric: str) -> str:
    if not len(compared):
        return "no two trials have equal lr / batch_size and different batch sizes"
    if math.isnan(m):
        return f"{metric} has no default margin: state one"
    if not (compared.n > 1).any():
        return "no contrast has two seeds, so its spread is unknown"
    return "no difference varies over the seeds, so the spread is unknown" if compared.motionless else ""


def _design(compared: Contrasts, m: float, difference: float | None) -> Design:
    size = np.abs(compared.estimate) if difference is None else np.full(len(compared), abs(difference))
    per_seed = compared.df / np.maximum(compared.n - 1, 1)
    return Design(size, compared.sd, per_seed, judged_at(compared, compared.n > 1), m)


def _leading(compared: Contrasts) -> Any:
    """Marks the contrast that is tested at half of alpha, that at the highest learning rate."""
    known = compared.n > 1
    return np.arange(len(compared)) == int(np.argmax(np.where(known, judged_at(compared, known), 0)))


def _planned(
    design: Design,
    n_contrasts: int,
    seeds: Sequence[int],
    margin: float | None,
    difference: float | None,
    upper: FloatArray | None = None,
) -> Power:
    wide = None if upper is None else design.spread(upper)
    needed = {target: design.seeds(target) for target in (0.8, 0.9)}
    cautious = {target: wide.seeds(target) if wide else None for target in needed}
    return Power(
        metric=None,
        scale=None,
        group={},
        verdict=design.asks,
        margin=margin,
        difference=difference,
        n_contrasts=n_contrasts,
        sd=float(design.sd.max()),
        sd_high=float(wide.sd.max()) if wide else None,
        seeds_80=needed[0.8],
        seeds_90=needed[0.9],
        seeds_80_high=cautious[0.8],
        seeds_90_high=cautious[0.9],
        power={n: design.power(n) if n >= LEAST_SEEDS else 0.0 for n in seeds},
        note=_remark(design, needed[0.8]),
    )


def _remark(design: Design, needed: int | None) -> str:
    if needed is None:
        return f"more than {MOST_SEEDS} seeds per cell would be needed: the difference is about the margin"
    together = design.asks is Outcome.EQUIVALENT and len(design.size) > 1
    return f"{len(design.size)} contrasts counted as independent" if together else ""
