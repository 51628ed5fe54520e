"""Top-5 eigenvalues and trace of the Hessian: Isoratio against PyHessian and curvlinops with scipy's eigsh.

    python benchmarks/curvature.py [--save] [--quick] [--threads N]

One run, same cores, nets, examples and accuracy. Nets: MLP 64-128-128-10 and a small CNN, at initialisation and after
ten epochs, 512 digits, float32; packs of 1, 16 and 64. Milliseconds are per trial; contestants take turns.

Eigenvalues: ||Hv - theta v||, computed apart in float64, is at most 1e-3 lambda_max for each of the five. Every rival
runs with the cheapest of its settings that reaches this on nets kept apart; the residual shown is the largest one in
the comparison itself. `bottom_1` also finds the smallest eigenvalue, as Isoratio does by default; `bottom_0` does not.

Trace, three ways: as many probes as Isoratio's 32; the standard error that Isoratio reaches with its 32 (`bottom_0`),
by plain Hutchinson, which takes (sd / se)^2 probes (timed on at most 64 and scaled); and that standard error by the
cheapest estimator that the rival has: curvlinops has XTrace.

Rivals treat one trial after the other, so three trials of the largest pack tell their time. Packs of 64 run once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Nets, nets, prepare, save, timed
from benchmarks.rivals import RIVALS, TOP, Autograd, Pairs, PyHessian, Rival, products_of
from trainables.eigenpairs import Top, with_copies
from trainables.lanczos import Wanted, lanczos
from trainables.operators import chunk_and_group, hessian_of
from trainables.streams import Purpose, rademacher
from trainables.trace import Traces, hutchinson

PROBES, TOLERANCE, MAX_ITERATIONS = 32, 1e-3, 100  # the library's defaults
MOST_PROBES = 64  # that are run; the time of more is scaled
TUNING = 8  # nets that are kept apart
WAYS = ("same_probes", "same_se_by_hutchinson", "same_se")


@dataclass(frozen=True)
class Row:
    """Milliseconds per trial, and the largest true residual relative to lambda_max."""

    eigenvalues: float
    trace_same_probes: float
    trace_same_se_by_hutchinson: float
    trace_same_se: float
    residual: float

    def total(self, way: str) -> float:
        """Eigenvalues and trace."""
        return self.eigenvalues + float(getattr(self, f"trace_{way}"))


def largest_residual(of: Nets, i: int, pairs: Pairs) -> float:
    """The largest ||Hv - theta v|| / lambda_max of a trial, in float64 and apart from all contestants."""
    h = products_of(of.module(i).double(), of.inputs[i].double(), of.targets[i])
    units = [(theta, v.double() / v.double().norm()) for theta, v in zip(*pairs, strict=True)]
    assert len(units) == TOP
    return max(float((h(v) - theta * v).norm()) for theta, v in units) / max(pairs[0])


# Isoratio -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """What the kernel gives of some trials, and the seconds it took for all of them."""

    eigenvalue_seconds: float
    trace_seconds: float
    top: Top
    traces: Traces


def ours(of: Nets, bottom: int) -> list[Ours]:
    """Isoratio's kernel, group by group as a pack is measured."""
    chunk, size = chunk_and_group(of.engine, of.inputs[0], 10 + 2 * MAX_ITERATIONS + PROBES)
    return [ours_together(of.take(slice(i, i + size)), bottom, chunk) for i in range(0, len(of.trials), size)]


def ours_together(of: Nets, bottom: int, chunk: int) -> Ours:
    dimension = sum(v[0].numel() for v in of.parameters.values())

    def signs(purpose: Purpose, index: int) -> Tensor:
        return torch.from_numpy(np.stack([rademacher(t.seed, purpose, dimension, 0, index) for t in of.trials])).to(
            of.inputs
        )

    def eigenvalues() -> tuple[Any, ...]:
        hessian = hessian_of(of.engine, of.parameters, of.buffers, of.inputs, of.targets, chunk)
        start, wanted = signs(Purpose.LANCZOS, 0), Wanted(TOP, bottom, TOLERANCE)
        krylov = lanczos(hessian, start, MAX_ITERATIONS, wanted)
        return hessian, krylov, Top.of(krylov, TOP)

    def trace() -> tuple[Top, Traces]:
        traces = hutchinson(hessian, krylov, lambda k: signs(Purpose.TRACE, k), PROBES)
        return with_copies(hessian, top, traces, TOLERANCE, MAX_ITERATIONS)

    eigenvalue_seconds, (hessian, krylov, top) = timed(eigenvalues, of.inputs.device)
    trace_seconds, results = timed(trace, of.inputs.device)
    return Ours(eigenvalue_seconds, trace_seconds, *results)


def row_of_ours(of: Nets, bottom: int, sample: Sequence[int]) -> Row:
    groups = ours(of, bottom)
    eigenvalues = 1e3 * sum(g.eigenvalue_seconds for g in groups) / len(of.trials)
    trace = 1e3 * sum(g.trace_seconds for g in groups) / len(of.trials)
    pairs = [p for g in groups for p in zip(g.top.values.tolist(), g.top.vectors, strict=True)]
    residual = max(largest_residual(of, i, pairs[i]) for i in sample if i < len(pairs))
    return Row(eigenvalues, trace, trace, trace, residual)


# Rivals ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """A rival's cheapest settings of sufficient accuracy.

    Attributes:
        reached: whether the residuals are small enough; if not, the settings are the most accurate ones.
        plain_probes: of plain Hutchinson, for the standard error that is to be reached.
        probes: of the cheapest estimator, likewise.
    """

    settings: dict[str, Any]
    reached: bool
    plain_probes: int
    estimator: str
    probes: int


def rival(kind: type[Rival], of: Nets, i: int) -> Rival:
    return kind(of.module(i), of.inputs[i], of.targets[i])


def tune(kind: type[Rival], of: Nets, plain_probes: int, se: float) -> Tuned:
    """Tries all settings on four trials, and the estimators on all of ``of``."""
    rivals = [rival(kind, of, i) for i in range(len(of.trials))]
    tried: list[tuple[bool, float, dict[str, Any]]] = []  # missed; residual if so, else seconds; settings
    for settings in kind.settings:
        runs = [timed(lambda r=r, s=settings: r.eigenpairs(**s)) for r in rivals[:4]]
        residual = max(largest_residual(of, i, pairs) for i, (_, pairs) in enumerate(runs))
        missed = residual > TOLERANCE
        tried.append((missed, residual if missed else mean(t for t, _ in runs), settings))
        if kind is PyHessian and not missed:
            break
    missed, _, settings = min(tried, key=lambda t: t[:2])
    probes = {"hutchinson": plain_probes}
    if "xtrace" in kind.estimators:
        probes["xtrace"] = xtrace_probes(rivals, se)
    cheapest = min(probes, key=lambda e: trace_seconds(rivals[0], e, probes[e]))
    return Tuned(settings, not missed, plain_probes, cheapest, probes[cheapest])


def root_mean_square(values: Iterable[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(values)))))


def hutchinson_probes(of: Nets, se: float) -> int:
    """(sd / se)^2, with the sd of 64 probes on every trial."""
    rivals = (rival(Autograd, of, i) for i in range(len(of.trials)))
    sd = root_mean_square(np.std([r.trace(1) for _ in range(64)], ddof=1) for r in rivals)
    return max(2, round((sd / se) ** 2))


def xtrace_probes(rivals: Sequence[Rival], se: float) -> int:
    """An even number whose estimates spread by ``se``: four on every trial for powers of two, interpolated between."""
    sizes, spreads = [16], [spread_of_xtrace(rivals, 16)]
    while spreads[-1] > se and sizes[-1] < 512:
        sizes.append(2 * sizes[-1])
        spreads.append(spread_of_xtrace(rivals, sizes[-1]))
    found = np.exp(np.interp(-np.log(se), -np.log(spreads[-2:]), np.log(sizes[-2:])))
    return 2 * round(float(found) / 2)


def spread_of_xtrace(rivals: Sequence[Rival], probes: int) -> float:
    estimates = ([r.trace(probes, "xtrace") for _ in range(4)] for r in rivals)
    return root_mean_square(np.std(e, ddof=1) for e in estimates)


def trace_seconds(of: Rival, estimator: str, probes: int) -> float:
    run = min(probes, MOST_PROBES) if estimator == "hutchinson" else probes
    return timed(lambda: of.trace(run, estimator), of.inputs.device)[0] * probes / run


def row_of_rival(kind: type[Rival], tuned: Tuned, of: Nets, sample: Sequence[int]) -> Row:
    rows = []
    for i in sample:
        building, one = timed(lambda i=i: rival(kind, of, i), of.inputs.device)
        solving, pairs = timed(lambda one=one: one.eigenpairs(**tuned.settings), of.inputs.device)
        times = [building + solving, *(trace_seconds(one, "hutchinson", n) for n in (PROBES, tuned.plain_probes))]
        times.append(times[2] if tuned.estimator == "hutchinson" else trace_seconds(one, tuned.estimator, tuned.probes))
        rows.append([*(1e3 * t for t in times), largest_residual(of, i, pairs)])
    *times, residuals = zip(*rows, strict=True)
    return Row(*map(mean, times), max(residuals))


# The comparison -------------------------------------------------------------------------------------------------------


def compare(of: Nets, packs: Sequence[int], tuned: dict[str, Tuned], repeats: int) -> dict[str, Row]:
    """Medians over the repeats; rivals and residuals on three trials."""
    sample = sorted({0, len(of.trials) // 2, len(of.trials) - 1})
    contestants: dict[str, Callable[[], Row]] = {
        name: lambda name=name: row_of_rival(RIVALS[name], tuned[name], of, sample) for name in tuned
    }
    for pack, bottom in product(packs, (0, 1)):
        part = of.take(slice(0, pack))
        contestants[f"isoratio_{pack}_bottom_{bottom}"] = lambda part=part, b=bottom: row_of_ours(part, b, sample)
    runs: dict[str, list[Row]] = {name: [] for name in contestants}
    for round_, (name, run) in product(range(repeats), contestants.items()):
        if round_ == 0 or "_64_" not in name:
            runs[name].append(run())
    columns = [f.name for f in fields(Row)]
    return {name: Row(*(median(getattr(r, c) for r in rows) for c in columns)) for name, rows in runs.items()}


def times_faster(rows: dict[str, Row], way: str) -> dict[str, float]:
    """Than the better of the two libraries."""
    better = min(rows[name].total(way) for name in ("pyhessian", "curvlinops"))
    return {name: round(better / row.total(way), 2) for name, row in rows.items() if name not in RIVALS}


def figures_of(of: Nets, packs: Sequence[int], repeats: int) -> dict[str, Any]:
    """The comparison for one kind of net at one moment."""
    apart, of = of.take(slice(-TUNING, None)), of.take(slice(0, -TUNING))
    traces = [group.traces for group in ours(apart, 0)]  # also warms up
    se = root_mean_square(se for t in traces for se in t.trace_se.tolist())
    plain_probes = hutchinson_probes(apart, se)
    tuned = {name: tune(kind, apart, plain_probes, se) for name, kind in RIVALS.items()}
    rows = compare(of, packs, tuned, repeats)
    return {
        "trace": round(mean(t for group in traces for t in group.trace.tolist()), 2),
        "trace_se": round(se, 3),
        "tuned": {name: vars(t) for name, t in tuned.items()},
        "ms_per_trial": {n: {k: float(f"{v:.3g}") for k, v in vars(row).items()} for n, row in rows.items()},
        "times_faster": {way: times_faster(rows, way) for way in WAYS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="packs of 1 and 16 after training, one repeat")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    figures: dict[str, Any] = prepare(options.threads) | {"device": options.device}
    packs, moments, repeats = ((1, 16), (10,), 1) if options.quick else ((1, 16, 64), (10, 0), 3)
    for name, epochs in product(("mlp", "cnn"), moments):
        case = f"{name}_{'trained' if epochs else 'initial'}"
        everyone = nets(name, max(packs) + TUNING, epochs, torch.device(options.device))
        figures[case] = figures_of(everyone, packs, repeats)
        print(case, json.dumps(figures[case], indent=1), flush=True)
    if options.save:
        save("curvature", figures)


if __name__ == "__main__":
    main()
