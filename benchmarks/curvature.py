"""Top-5 eigenvalues and trace of the Hessian: Isoratio against PyHessian and curvlinops with scipy's eigsh.

    python benchmarks/curvature.py [--save] [--quick] [--threads N]

One run, same cores, nets, examples and accuracy. Nets: MLP 64-128-128-10 and a small CNN, at initialisation and after ten
epochs, 512 digits, float32. Eigenvalues: the true ||Hv - theta v||, computed apart in float64, is at most 1e-3
lambda_max for each of the five; every rival runs with the cheapest of its settings that reaches that on two other nets.
Trace: (a) as many probes as Isoratio's 32; (b) the standard error that Isoratio reaches with its 32, for which each rival
takes its cheapest estimator and number of probes (plain Hutchinson: (sd / se)^2 probes, timed on a sample and scaled).
Rivals treat one trial after the other, so their time per trial is that of a sample of the pack.

`autograd` is what a careful user writes without a library: eigsh on products through a retained graph, as in plain.py.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import product
from statistics import mean, median
from typing import Any

import numpy as np
import pyhessian
import torch
from cases import Nets, nets, prepare, save, seconds
from curvlinops import HessianLinearOperator, hutchinson_trace, xtrace
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from trainables.lanczos import Wanted, lanczos
from trainables.operators import Hessian, chunk_and_group
from trainables.streams import Purpose, rademacher
from trainables.trace import hutchinson

TOP, PROBES, TOLERANCE, MAX_ITERATIONS = 5, 32, 1e-3, 100  # the library's defaults
MAX_PROBES = 128  # of plain Hutchinson that are run in earnest; the time of more is scaled
Pairs = tuple[Sequence[float], Sequence[Tensor]]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def products_of(module: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """v -> Hv through a retained graph."""
    parameters = list(module.parameters())
    loss = nn.functional.cross_entropy(module(inputs), targets)
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    return lambda v: flat(torch.autograd.grad(gradient, parameters, v, retain_graph=True))


def largest_residual(of: Nets, i: int, pairs: Pairs) -> float:
    """The largest ||Hv - theta v|| / lambda_max, in float64 and apart from all contestants."""
    h = products_of(of.module(i).double(), of.inputs.double(), of.targets[i])
    units = [(theta, v.double() / v.double().norm()) for theta, v in zip(*pairs, strict=True)]
    assert len(units) == TOP
    return max(float((h(v) - theta * v).norm()) for theta, v in units) / max(pairs[0])


# Rivals ---------------------------------------------------------------------------------------------------------------


class Rival(ABC):
    """One trial with one library."""

    settings: Sequence[dict[str, Any]]
    estimators: Sequence[str] = ("hutchinson",)

    def __init__(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self.module, self.inputs, self.targets = module, inputs, targets
        self.setup()

    @abstractmethod
    def setup(self) -> None:
        """What is done once per trial; timed with the eigenvalues."""

    @abstractmethod
    def eigenpairs(self, **settings: Any) -> Pairs: ...

    @abstractmethod
    def trace(self, probes: int, estimator: str = "hutchinson") -> float: ...


class PyHessian(Rival):
    """Power iteration with deflation; it finds the largest by magnitude."""

    settings = [{"tol": 10.0**-k, "maxIter": 1000} for k in (3, 4, 5, 6, 7, 8)]

    def setup(self) -> None:
        on_gpu = self.inputs.device.type == "cuda"
        self.hessian = pyhessian.hessian(self.module, nn.CrossEntropyLoss(), (self.inputs, self.targets), cuda=on_gpu)

    def eigenpairs(self, **settings: Any) -> Pairs:
        values, vectors = self.hessian.eigenvalues(top_n=TOP, **settings)
        return values, [flat(v) for v in vectors]

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        return float(np.mean(self.hessian.trace(maxIter=probes, tol=-np.inf)))


class InBlocks(HessianLinearOperator):
    """Eight columns at a time, which is faster than one, and on the CNN several times faster than 32 at once."""

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:  # noqa: N802
        blocks = zip(*(m.split(8, -1) for m in M), strict=True)
        return [
            torch.cat(parts, -1)
            for parts in zip(*(super(InBlocks, self)._matmat(list(b)) for b in blocks), strict=True)
        ]


class Curvlinops(Rival):
    settings = [{"ncv": ncv, "tol": tol} for ncv, tol in product((12, 16, 20, 32), (3e-2, 1e-2, 1e-3))]
    estimators = ("hutchinson", "xtrace")

    def setup(self) -> None:
        loss, parameters = nn.CrossEntropyLoss(), list(self.module.parameters())
        data = [(self.inputs, self.targets)]
        self.hessian = InBlocks(
            self.module, loss, parameters, data, num_data=len(self.inputs), check_deterministic=False
        )

    def eigenpairs(self, **settings: Any) -> Pairs:
        values, vectors = eigsh(self.hessian.to_scipy(), k=TOP, which="LA", **settings)
        return values.tolist(), list(torch.from_numpy(vectors.T).to(self.inputs))

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        return float({"xtrace": xtrace, "hutchinson": hutchinson_trace}[estimator](self.hessian, probes))


class Autograd(Rival):
    settings = Curvlinops.settings

    def setup(self) -> None:
        self.products = products_of(self.module, self.inputs, self.targets)
        self.dimension = sum(p.numel() for p in self.module.parameters())

    def eigenpairs(self, **settings: Any) -> Pairs:
        def matvec(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return self.products(torch.from_numpy(v.reshape(-1)).to(self.inputs)).cpu().numpy()

        operator = LinearOperator((self.dimension, self.dimension), matvec=matvec, dtype=np.float32)
        values, vectors = eigsh(operator, k=TOP, which="LA", **settings)
        return values.tolist(), list(torch.from_numpy(vectors.T).to(self.inputs))

    def trace(self, probes: int, estimator: str = "hutchinson") -> float:
        signs = (2.0 * torch.randint(2, (self.dimension,)).to(self.inputs) - 1 for _ in range(probes))
        return mean(float(v @ self.products(v)) for v in signs)


RIVALS: dict[str, type[Rival]] = {"pyhessian": PyHessian, "curvlinops": Curvlinops, "autograd": Autograd}


def rival_for(kind: type[Rival], of: Nets, i: int) -> Rival:
    return kind(of.module(i), of.inputs, of.targets[i])


@dataclass(frozen=True)
class Tuned:
    """A rival's cheapest settings and trace estimator of sufficient accuracy.

    Attributes:
        reached: whether the residuals are small enough; if not, the settings are the most accurate ones.
        probes: products with the estimator.
    """

    settings: dict[str, Any]
    reached: bool
    estimator: str
    probes: int


def tune(kind: type[Rival], of: Nets, plain_probes: int, se: float, device: torch.device) -> Tuned:
    """Tries settings on every trial of ``of``; ``se`` is the standard error of the trace to be reached."""
    rivals = [rival_for(kind, of, i) for i in range(len(of.trials))]
    tried: list[tuple[bool, float, dict[str, Any]]] = []  # missed; residual if so, else seconds; settings
    for settings in kind.settings:
        pairs: list[Pairs] = []
        times = [seconds(lambda r=r: pairs.append(r.eigenpairs(**settings)), device) for r in rivals]
        residual = max(largest_residual(of, i, p) for i, p in enumerate(pairs))
        tried.append((residual > TOLERANCE, residual if residual > TOLERANCE else mean(times), settings))
        if kind is PyHessian and residual <= TOLERANCE:
            break  # later ones are stricter
    missed, _, settings = min(tried, key=lambda t: t[:2])
    probes = {"hutchinson": plain_probes} | (
        {"xtrace": xtrace_probes(rivals, se)} if "xtrace" in kind.estimators else {}
    )
    estimator = min(probes, key=lambda e: trace_seconds(rivals[0], probes[e], e, device))
    return Tuned(settings, not missed, estimator, probes[estimator])


def root_mean_square(values: Iterable[float]) -> float:
    return float(np.sqrt(np.mean(np.square(list(values)))))


def hutchinson_probes(of: Nets, se: float) -> int:
    """(sd / se)^2 of plain Hutchinson, with the sd of 128 probes on every trial."""
    rivals = [rival_for(Autograd, of, i) for i in range(len(of.trials))]
    sd = root_mean_square(np.std([r.trace(1) for _ in range(128)], ddof=1) for r in rivals)
    return max(2, round((sd / se) ** 2))


def xtrace_probes(rivals: Sequence[Rival], se: float) -> int:
    """The first number whose estimates spread by no more than ``se``."""
    for probes in (16, 32, 48, 64, 96, 128, 192, 256):
        spread = (np.std([r.trace(probes, "xtrace") for _ in range(8)], ddof=1) for r in rivals)
        if root_mean_square(spread) <= se:
            break
    return probes


def trace_seconds(rival: Rival, probes: int, estimator: str, device: torch.device) -> float:
    run = min(probes, MAX_PROBES) if estimator == "hutchinson" else probes
    return seconds(lambda: rival.trace(run, estimator), device) * probes / run


# Isoratio -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """Times of a whole pack, and what came out."""

    eigenvalue_seconds: float
    trace_seconds: float
    pairs: list[Pairs]
    products: list[int]
    trace: list[float]
    trace_se: list[float]


def ours(of: Nets, bottom: int, device: torch.device) -> Ours:
    """Isoratio's kernel on a pack, in the groups that it is measured in."""
    chunk, size = chunk_and_group(of.engine, of.inputs, MAX_ITERATIONS)
    parts = [ours_together(of.take(slice(i, i + size)), bottom, chunk, device) for i in range(0, len(of.trials), size)]
    times = [sum(getattr(p, n) for p in parts) for n in ("eigenvalue_seconds", "trace_seconds")]
    return Ours(*times, *(sum((getattr(p, n) for p in parts), []) for n in ("pairs", "products", "trace", "trace_se")))


def ours_together(of: Nets, bottom: int, chunk: int, device: torch.device) -> Ours:
    found: dict[str, Any] = {}

    def signs(purpose: Purpose) -> Callable[[int], Tensor]:
        dimension = found["hessian"].shape[1]
        return lambda index: torch.from_numpy(
            np.stack([rademacher(t.seed, purpose, dimension, 0, index) for t in of.trials])
        ).to(of.inputs)

    def eigenvalues() -> None:
        found["hessian"] = Hessian(of.engine, of.parameters, of.buffers, of.inputs, of.targets, chunk)
        draw = signs(Purpose.LANCZOS)
        wanted = Wanted(TOP, bottom, TOLERANCE)
        found["krylov"] = lanczos(found["hessian"], draw(0), lambda j: draw(j + 1), MAX_ITERATIONS, wanted)
        theta, _, s = found["krylov"].ritz
        found["pairs"] = list(zip(theta[:, :TOP].tolist(), found["krylov"].vectors(s[:, :, :TOP]), strict=True))

    def trace() -> None:
        found["traces"] = hutchinson(found["hessian"], found["krylov"], signs(Purpose.TRACE), PROBES)

    times = seconds(eigenvalues, device), seconds(trace, device)
    products, se = found["krylov"].size.tolist(), found["traces"].trace_se.tolist()
    return Ours(*times, found["pairs"], products, found["traces"].trace.tolist(), se)


# The comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Milliseconds per trial, and the largest true residual relative to lambda_max.

    Attributes:
        trace_ms: with as many probes as Isoratio takes.
        trace_same_se_ms: with the standard error that Isoratio reaches.
    """

    eigenvalues_ms: float
    trace_ms: float
    trace_same_se_ms: float
    residual: float

    def total(self, *, same_se: bool) -> float:
        return self.eigenvalues_ms + (self.trace_same_se_ms if same_se else self.trace_ms)


def row_of_ours(of: Nets, bottom: int, sample: Sequence[int], device: torch.device) -> Row:
    found = ours(of, bottom, device)
    eigenvalues_ms, trace_ms = (1e3 * t / len(of.trials) for t in (found.eigenvalue_seconds, found.trace_seconds))
    residual = max(largest_residual(of, i, found.pairs[i]) for i in sample if i < len(of.trials))
    return Row(eigenvalues_ms, trace_ms, trace_ms, residual)


def row_of_rival(kind: type[Rival], tuned: Tuned, of: Nets, sample: Sequence[int], device: torch.device) -> Row:
    rows = []
    for i in sample:
        found: list[Any] = []
        times = [
            seconds(lambda i=i, found=found: found.append(rival_for(kind, of, i)), device)
            + seconds(lambda found=found: found.append(found[0].eigenpairs(**tuned.settings)), device),
            trace_seconds(found[0], PROBES, "hutchinson", device),
            trace_seconds(found[0], tuned.probes, tuned.estimator, device),
        ]
        rows.append(Row(*(1e3 * t for t in times), largest_residual(of, i, found[1])))
    times = (mean(getattr(r, n) for r in rows) for n in ("eigenvalues_ms", "trace_ms", "trace_same_se_ms"))
    return Row(*times, max(r.residual for r in rows))


def compare(
    of: Nets, packs: Sequence[int], tuned: dict[str, Tuned], repeats: int, device: torch.device
) -> dict[str, Row]:
    """Medians; contestants take turns. Rivals run on the first and two more trials."""
    sample = [0, *range(1, len(of.trials), max(1, len(of.trials) // 2))][:3]
    runs: dict[str, list[Row]] = {}
    for _ in range(repeats):
        for name in tuned:
            runs.setdefault(name, []).append(row_of_rival(RIVALS[name], tuned[name], of, sample, device))
        for trials, bottom in product(packs, (0, 1)):
            row = row_of_ours(of.take(slice(0, trials)), bottom, sample, device)
            runs.setdefault(f"isoratio_{trials}_bottom_{bottom}", []).append(row)
    names = [f.name for f in fields(Row)]
    return {name: Row(*(median(getattr(r, n) for r in rows) for n in names)) for name, rows in runs.items()}


def times_faster(rows: dict[str, Row], *, same_se: bool) -> dict[str, float]:
    """Than the better of the two libraries."""
    better = min(rows[rival].total(same_se=same_se) for rival in ("pyhessian", "curvlinops"))
    return {n: round(better / r.total(same_se=same_se), 2) for n, r in rows.items() if n.startswith("isoratio")}


def figures_of(of: Nets, packs: Sequence[int], repeats: int, device: torch.device) -> dict[str, Any]:
    """The comparison of one kind of net at one moment; the last two trials are there for tuning."""
    to_tune = of.take(slice(-2, None))
    warm = ours(to_tune, 1, device)
    se = root_mean_square(warm.trace_se)
    plain = hutchinson_probes(to_tune, se)
    tuned = {name: tune(kind, to_tune, plain, se, device) for name, kind in RIVALS.items()}
    rows = compare(of.take(slice(0, -2)), packs, tuned, repeats, device)
    return {
        "trace": mean(warm.trace),
        "trace_se": se,
        "plain_probes_for_same_se": plain,
        "tuned": {name: vars(t) for name, t in tuned.items()},
        "ms_per_trial": {n: {k: float(f"{v:.4g}") for k, v in vars(row).items()} for n, row in rows.items()},
        "times_faster_same_se": times_faster(rows, same_se=True),
        "times_faster_same_probes": times_faster(rows, same_se=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="packs of 1 and 4 after training, one repeat")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    device = torch.device(options.device)
    figures: dict[str, Any] = prepare(options.threads) | {"device": options.device}
    packs, moments, repeats = ((1, 4), (10,), 1) if options.quick else ((1, 16, 64), (10, 0), 3)
    for name, epochs in product(("mlp", "cnn"), moments):
        case = f"{name}_{'trained' if epochs else 'initial'}"
        figures[case] = figures_of(nets(name, max(packs) + 2, epochs, device), packs, repeats, device)
        print(case, json.dumps(figures[case], indent=1), flush=True)
    if options.save:
        save("curvature", figures)


if __name__ == "__main__":
    main()
