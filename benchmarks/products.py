"""One Hessian-vector product: against its matrix products alone, and by the ways of forming it.

    python benchmarks/products.py [--save] [--quick] [--threads N]

MLP 64-128-128-10 and a small CNN on 512 images, float32. Milliseconds and megabytes are per trial; contestants take
turns. `kept` means that the graph of the gradient (reverse) or the values at which it is linearised (forward) are
recorded once and used by every product. `plain` ways call the module of one trial as it is, the others stack or vmap.
`system_share` is the operating system's share of the time: page faults, where freed memory went back to it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, linearize

from benchmarks.cases import CPU, EXAMPLES, Nets, medians, nets, prepare, save
from trainables.engine import Tensors
from trainables.operators import hessian_of

warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # linearize's way

Product = Callable[[Tensors], Any]
TRIALS = (1, 2, 4, 8, 16, 64)


def stacked_loss(of: Nets) -> Callable[[Tensors], Tensor]:
    """Sum over trials of the mean loss."""

    def loss(parameters: Tensors) -> Tensor:
        outputs = of.engine.outputs(parameters, of.buffers, of.inputs)
        return of.engine.losses(outputs, of.targets).sum() / EXAMPLES

    return loss


def plain_loss(of: Nets) -> Callable[[Tensors], Tensor]:
    """The same for one trial, its module called as it is: no vmap, no leading dimension."""
    module = of.module(0)

    def loss(parameters: Tensors) -> Tensor:
        return torch.nn.functional.cross_entropy(functional_call(module, parameters, (of.inputs[0],)), of.targets[0])

    return loss


def reverse_over_reverse(loss: Callable[[Tensors], Tensor], at: Tensors, *, keep: bool) -> Product:
    """The derivative of the gradient's graph (Pearlmutter 1994), recorded once or for every product."""
    tracked = {k: v.detach().clone().requires_grad_() for k, v in at.items()}
    values = list(tracked.values())

    def record() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(tracked), values, create_graph=True)

    graph = record() if keep else None
    return lambda v: torch.autograd.grad(graph or record(), values, list(v.values()), retain_graph=keep)


def forward_over_reverse(loss: Callable[[Tensors], Tensor], at: Tensors, *, keep: bool) -> Product:
    """The directional derivative of the gradient, in forward mode."""
    if keep:
        return linearize(grad(loss), at)[1]  # type: ignore[no-any-return]
    return lambda v: jvp(grad(loss), (at,), (v,))[1]


WAYS: dict[str, tuple[Callable[..., Product], bool]] = {
    "reverse_over_reverse_kept": (reverse_over_reverse, True),
    "reverse_over_reverse": (reverse_over_reverse, False),
    "forward_over_reverse_kept": (forward_over_reverse, True),
    "forward_over_reverse": (forward_over_reverse, False),
}


def directions(at: Tensors) -> Tensors:
    return {k: torch.randn_like(v) for k, v in at.items()}


@contextmanager
def silent() -> Iterator[None]:
    """Without what the profiler writes on stderr whenever it starts and stops."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory that tensors made in a call take at one time."""
    with silent(), torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def ways(of: Nets, repeats: int) -> dict[str, Any]:
    """Milliseconds per trial of each way, and megabytes per trial with its recording."""
    trials, vectors = len(of.trials), directions(of.parameters)
    losses = {"": (stacked_loss(of), of.parameters)}
    if trials == 1:
        losses["plain_"] = (plain_loss(of), {k: v[0] for k, v in of.parameters.items()})
    found: dict[str, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    for prefix, (loss, at) in losses.items():
        v = vectors if not prefix else {k: t[0] for k, t in vectors.items()}
        for name, (make, keep) in WAYS.items():
            product = make(loss, at, keep=keep)
            found[prefix + name] = lambda product=product, v=v: product(v)
            memory[prefix + name] = peak_bytes(
                lambda make=make, loss=loss, at=at, keep=keep, v=v: make(loss, at, keep=keep)(v)
            )
    check_agreement({name: call() for name, call in found.items()})
    before = os.times()
    times = medians(found, repeats)
    user, system = (after - first for after, first in zip(os.times()[:2], before[:2], strict=True))
    row: dict[str, Any] = {
        n: {"ms": round(1e3 * times[n] / trials, 3), "mb": round(memory[n] / trials / 1e6, 1)} for n in found
    }
    row["system_share"] = round(system / (user + system), 3)
    return row


def check_agreement(products: dict[str, Any]) -> None:
    flat = {
        n: torch.cat([t.reshape(-1) for t in (p.values() if isinstance(p, dict) else p)]) for n, p in products.items()
    }
    first = next(iter(flat.values()))
    for name, other in flat.items():
        assert (other - first).norm() <= 1e-4 * first.norm(), name


def run_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def dense_products(trials: int, sizes: tuple[int, ...]) -> Callable[[], None]:
    """The matrix products that one product with the Hessian of a dense net needs, whatever the way it is formed.

    Of each layer W between a (inputs) and d (gradient of its outputs), with tangents V, a', d': a V' and a' W' of the
    forward tangent, d V and d' W of the backward one, d''a and d'a' of the gradient's; of the first layer, whose inputs
    are data, only a V' and d''a.
    """
    calls: list[Callable[[], object]] = []
    for layer, (i, o) in enumerate(pairwise(sizes)):
        a, a_dot = torch.randn(2, trials, EXAMPLES, i)
        d, d_dot = torch.randn(2, trials, EXAMPLES, o)
        W, V = torch.randn(2, trials, o, i)
        pairs = [(a, V.mT), (d_dot.mT, a)]
        if layer:
            pairs += [(a_dot, W.mT), (d, V), (d_dot, W), (d.mT, a_dot)]
        calls += [lambda left=left, right=right: torch.bmm(left, right) for left, right in pairs]
    return lambda: run_all(calls)


def convolution_products() -> Callable[[], None]:
    """The same for one CNN of :func:`cases.cnn`: convolutions and their two transposes, and the dense layers."""
    calls: list[Callable[[], object]] = []
    for layer, (channels, filters, side) in enumerate(((1, 16, 8), (16, 32, 4))):
        a, a_dot = torch.randn(2, EXAMPLES, channels, side, side)
        d, d_dot = torch.randn(2, EXAMPLES, filters, side, side)
        W, V = torch.randn(2, filters, channels, 3, 3)
        rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)

        def forward(x: Tensor, w: Tensor) -> Tensor:
            return torch.nn.functional.conv2d(x, w, padding=1)

        def backward(g: Tensor, x: Tensor, w: Tensor, mask: list[bool], rest: tuple[Any, ...] = rest) -> Any:
            return torch.ops.aten.convolution_backward(g, x, w, *rest, mask)

        calls += [lambda a=a, V=V: forward(a, V), lambda a=a, d=d_dot, W=W: backward(d, a, W, [False, True, False])]
        if layer:
            calls += [
                lambda a=a_dot, W=W: forward(a, W),
                lambda a=a, d=d, V=V: backward(d, a, V, [True, False, False]),
                lambda a=a, d=d_dot, W=W: backward(d, a, W, [True, False, False]),
                lambda a=a_dot, d=d, W=W: backward(d, a, W, [False, True, False]),
            ]
    dense = dense_products(1, (0, 128, 64, 10))  # an empty first layer: the inputs of the dense part are no data
    return lambda: run_all([*calls, dense])


def against_products_alone(of: Nets, alone: Callable[[], None], repeats: int) -> dict[str, float]:
    """Milliseconds per trial of the library's operator and of the matrix products alone, and their quotient."""
    hessian = hessian_of(of.engine, of.parameters, of.buffers, of.inputs, of.targets, EXAMPLES)
    v = torch.randn(hessian.shape)
    times = medians({"hvp": lambda: hessian @ v, "products_alone": alone}, repeats)
    rounded = {f"{name}_ms": round(1e3 * t / len(of.trials), 3) for name, t in times.items()}
    return rounded | {"quotient": round(times["hvp"] / times["products_alone"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer trials and repeats")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    figures: dict[str, Any] = prepare(options.threads)
    counts = (1, 4) if options.quick else TRIALS
    for name in ("mlp", "cnn"):
        everyone = nets(name, max(counts), 1, CPU)
        for trials in counts:
            of = everyone.take(slice(0, trials))
            repeats = 5 if options.quick else max(5, 200 // trials)
            row = figures[f"{name}_{trials}"] = {"ways": ways(of, repeats)}
            if name == "mlp":
                row["limit"] = against_products_alone(of, dense_products(trials, (64, 128, 128, 10)), repeats)
            elif trials == 1:
                row["limit"] = against_products_alone(of, convolution_products(), repeats)
            print(f"{name}_{trials}", json.dumps(row), flush=True)
    if options.save:
        save("products", figures)


if __name__ == "__main__":
    main()
