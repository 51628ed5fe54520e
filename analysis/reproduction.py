"""Claims of a sweep file against what its trials say: reproduced, contradicted or undecided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.claims import MARGINS, NUMBERS, RATES, TRENDS, Claim, claims_of
from analysis.contrasts import LEAST_SEEDS, Estimate, mean_estimate
from analysis.controls import Trials
from analysis.decision import Outcome
from analysis.grid import EQUAL, codes, floats
from analysis.invariance import read_trials, stated
from analysis.report import frontier_text
from analysis.scales import default_margin, on_scale, scale_of
from analysis.sequential import at_looks
from analysis.slopes import within
from analysis.verdict import Verdict, judge
from trainables.schema import Status
from trainables.trial import FIELDS


class Result(StrEnum):
    """What became of a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Checked:
    """A claim about one group of trials, and what became of it.

    Attributes:
        claim: what was expected.
        group: the fields that tell this group from others of the sweep.
        result: reproduced, contradicted or undecided.
        estimate: what it rests on, on the metric's scale: slope, exponent, or largest contrast; with its interval.
        why: in words.
    """

    claim: Claim
    group: Mapping[str, Any]
    result: Result
    estimate: Estimate
    why: str

    def as_row(self) -> dict[str, object]:
        """The row of `isoratio check --format json`."""
        numbers = zip(("estimate", "low", "high"), self.estimate, strict=True)
        known = {name: x if math.isfinite(x) else None for name, x in numbers}
        return {
            "claim": str(self.claim),
            "group": dict(self.group),
            "result": str(self.result),
            **known,
            "why": self.why,
        }


def check(store: str | Path, sweep: str) -> list[Checked]:
    """Says of each claim in the sweep file whether the stored trials reproduce it.

    Raises:
        ValueError: unknown sweep or metric, or a sweep file that expects nothing.
    """
    content = stated(store, sweep)
    claims = [claim for entry in content.get("expect") or [] for claim in claims_of(entry)]
    if not claims:
        raise ValueError(f"the sweep file of {sweep!r} expects nothing: it has no `expect`")
    trials = read_trials(store, sweep, list(dict.fromkeys(claim.metric for claim in claims)))
    margins, looks = content.get("margins") or {}, content.get("looks") or []
    return [found for claim in claims for found in checked(claim, trials, margins.get(claim.metric), looks)]


def checked(
    claim: Claim, trials: pa.Table, margin: float | None = None, looks: Sequence[int] = ()
) -> Iterator[Checked]:
    """A claim about every group that it speaks of.

    Args:
        claim: what is expected.
        trials: as for :func:`analysis.verdict.judge`.
        margin: of its metric, where the claim itself states none; None: the default one.
        looks: planned numbers of seeds, over which the error of verdicts is spent.
    """
    for field, value in claim.where.items():
        trials = trials.filter(pc.equal(trials[field], pa.scalar(value, trials[field].type)))
    if not len(trials):
        yield Checked(claim, {}, Result.UNDECIDED, Estimate(), "there are no such trials")
    elif claim.kind in NUMBERS:
        why = [f"slope in {claim.kind}, all else equal", *_left_out(trials, claim.metric)]
        yield _judged(claim, {}, trend(trials, claim.metric, claim.kind), "; ".join(why))
    else:
        chosen = claim.value if claim.kind in MARGINS else margin or default_margin(claim.metric)
        verdicts = judge(trials, {claim.metric: chosen})
        for verdict in at_looks(verdicts, trials, looks) if looks else verdicts:
            yield _AGAINST[claim.kind](claim, verdict)


def trend(trials: pa.Table, metric: str, field: str) -> Estimate:
    """Change of a metric, on its scale, per unit of a field at equal values of all others.

    The slope within each seed, with an intercept for every combination of the other fields; mean over the seeds with
    its 95% interval.
    """
    judged = Trials.of(trials).judged
    judged = judged.filter(pc.equal(judged["status"], Status.FINISHED))
    rows = np.arange(len(judged))
    y = on_scale(floats(judged, metric, rows), scale_of(metric))
    stratum = np.zeros(len(judged), dtype=np.int64)
    for name in (name for name in FIELDS if name in judged.column_names and name not in {field, "seed", "order_seed"}):
        found, values = codes(judged[name])
        stratum = np.unique(stratum * len(values) + found, return_inverse=True)[1]
    seed, _ = codes(judged["seed"])
    slopes = within(y, floats(judged, field, rows), stratum, seed)
    mean = mean_estimate(slopes)
    return mean if np.isfinite(slopes).sum() >= LEAST_SEEDS else Estimate(mean.value)


def _left_out(trials: pa.Table, metric: str) -> list[str]:
    """What a trend does not rest on, each with its count."""
    judged = Trials.of(trials).judged
    finished = judged.filter(pc.equal(judged["status"], Status.FINISHED))
    y = on_scale(floats(finished, metric, np.arange(len(finished))), scale_of(metric))
    unmeasured = finished[metric].null_count
    counts = {
        **{f"{s} trials, left out": _count(judged, s) for s in (Status.DIVERGED, Status.FAILED)},
        "values that are not usable, left out": int(np.isnan(y).sum()) - unmeasured,
        "finished trials without the metric": unmeasured,
    }
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _count(trials: pa.Table, status: Status) -> int:
    return int(pc.sum(pc.equal(trials["status"], status)).as_py() or 0)


def _of_slope(claim: Claim, v: Verdict) -> Checked:
    slope, other = (v.slope_ratio, "batch size") if claim.kind == "ratio" else (v.slope_batch, "ratio")
    slope = slope if v.n_seeds >= LEAST_SEEDS else Estimate(slope.value)
    notes = f"; {v.note}" if v.note else ""
    return _judged(claim, v.group, slope, f"slope in log {claim.kind} at equal {other}, up to the frontier{notes}")


def _of_exponent(claim: Claim, v: Verdict) -> Checked:
    return _judged(claim, v.group, v.exponent, "95% set of p in the rule lr ∝ batch size^p")


def _of_frontier(claim: Claim, v: Verdict) -> Checked:
    low, high = v.frontier or (None, None)
    holds = low is not None and low >= claim.value * (1 - EQUAL)
    broken = high is not None and high <= claim.value * (1 + EQUAL)
    side = int(holds) - int(broken)
    side = side if claim.kind == "holds_to" else -side
    return Checked(claim, v.group, _result(side), v.effect, frontier_text(v) or "no frontier was found")


def _of_verdict(claim: Claim, v: Verdict) -> Checked:
    side = {Outcome.EQUIVALENT: 1, Outcome.DIFFERENT: -1, Outcome.INCONCLUSIVE: 0}[v.verdict]
    why = f"verdict {v.verdict}" + (f": {v.note}" if v.note else "")
    return Checked(claim, v.group, _result(side if claim.kind == "invariant" else -side), v.effect, why)


_AGAINST = {
    **dict.fromkeys(("ratio", "batch_size"), _of_slope),
    **dict.fromkeys(RATES, _of_frontier),
    **dict.fromkeys(MARGINS, _of_verdict),
    "exponent": _of_exponent,
}


def _judged(claim: Claim, group: Mapping[str, Any], found: Estimate, why: str) -> Checked:
    """By an interval: reproduced where all of it is as claimed, contradicted where none of it is."""
    if claim.value in TRENDS:
        up, down = found.low > 0, found.high < 0
        side = int(up) - int(down) if claim.value == "increasing" else int(down) - int(up)
    else:
        low, high = claim.value
        side = int(low <= found.low and found.high <= high) - int(found.high < low or found.low > high)
    return Checked(claim, group, _result(side), found, why)


def _result(side: int) -> Result:
    return {1: Result.REPRODUCED, -1: Result.CONTRADICTED, 0: Result.UNDECIDED}[side]
