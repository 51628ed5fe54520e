"""Steps and trials per second: packs against a plain PyTorch loop, and against their matrix products alone.

    python benchmarks/training.py [--threads 1] [--device cuda] [--quick] [--save]

For every net, batch size and pack: the engine that the rules choose, its time per step and trial, how many times as
long a plain loop takes (one net at a time, written as usual), and for dense nets what share of the time its matrix
products alone take.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

import torch
from torch import Tensor, nn

from benchmarks.cases import medians, prepare, save
from orchestrator.sizes import size
from trainables.datasets import load_dataset
from trainables.engines import ENGINES, build
from trainables.registry import can_fuse, example_shape
from trainables.settings import Measure
from trainables.stacking import pays
from trainables.training import Training
from trainables.trial import Trial

IMAGES = '{"name":"teacher","shape":[3,32,32],"test_size":16,"train_size":512}'


@dataclass(frozen=True)
class Case:
    """A net on a data set, the batch sizes and packs to try, and how many steps make a timing."""

    name: str
    arch: str
    dataset: str
    batches: tuple[int, ...]
    packs: tuple[int, ...]
    steps: int


CASES = [
    Case("mlp", "mlp", "digits", (8, 32, 128), (1, 8, 64, 128), 40),
    Case("simple-cnn 8x8", "simple-cnn", "digits", (8, 32, 128), (1, 8, 32), 4),
    Case("resnet-8 8x8", '{"depth":8,"name":"resnet","width":8}', "digits", (8, 32, 128), (1, 8, 32), 4),
    Case("simple-cnn 32x32", "simple-cnn", IMAGES, (8, 32), (1, 8), 2),
    Case("resnet-20 32x32", '{"depth":20,"name":"resnet"}', IMAGES, (8, 32), (1, 4), 1),
]


def trials(case: Case, batch: int, pack: int) -> list[Trial]:
    fields = {"arch": case.arch, "dataset": case.dataset, "lr": 0.01, "batch_size": batch, "epochs": 1000}
    return [Trial.model_validate(fields | {"seed": seed}) for seed in range(pack)]


def engines(case: Case, batch: int, pack: int, device: torch.device) -> tuple[str, list[str]]:
    """The engine that the rules choose, and all that could be."""
    if can_fuse(case.arch, "cross_entropy"):
        return "fused", ["fused", "vmap", "loop"]
    shape = example_shape(case.dataset)
    assert shape is not None
    net = size(case.arch, *shape)
    assert net is not None
    on_gpu = device.type == "cuda"
    stacks = pays(net.multiply_adds * batch, convolves=net.convolves, on_gpu=on_gpu)
    return ("vmap" if stacks and (on_gpu or pack > 1) else "loop"), ["vmap", "loop"]


def packed(case: Case, batch: int, pack: int, engine: str, device: torch.device) -> Callable[[], None]:
    """Steps of a pack, gathering included."""
    measure = Measure(at=[], hessian=False, gradient_noise=False)
    stepper = Training(trials(case, batch, pack), engine, measure, device).stepper
    assert isinstance(stepper.engine, ENGINES[engine])
    return lambda: stepper.advance(0, case.steps)


def plain(case: Case, batch: int, device: torch.device) -> Callable[[], None]:
    """The same for one net, as one writes it: shuffle, index, forward, backward, torch.optim."""
    data = load_dataset(case.dataset)
    x, y = data.train_inputs.float().to(device), data.train_targets.to(device)
    net = build(trials(case, batch, 1)[0], data.input_shape, data.num_classes).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def steps() -> None:
        net.train()
        order = torch.randperm(len(x)).repeat(-(-batch * case.steps // len(x)))
        for chosen in order[: batch * case.steps].to(device).split(batch):
            loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def products(case: Case, batch: int, pack: int, device: torch.device) -> Callable[[], None]:
    """The batched matrix products of a dense net's step and nothing else: three for each layer, two for the first."""
    net = build(trials(case, batch, 1)[0], (64,), 10)
    shapes = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Linear)]
    inputs = [torch.randn(pack, batch, i, device=device) for _, i in shapes]
    deltas = [torch.randn(pack, batch, o, device=device) for o, _ in shapes]
    weights = [torch.randn(pack, o, i, device=device) * 1e-3 for o, i in shapes]

    def once(x: Tensor, d: Tensor, w: Tensor, *, first: bool) -> None:
        torch.bmm(x, w.mT)
        if not first:
            torch.bmm(d, w)
        w.baddbmm_(d.mT, x, alpha=-1e-12)

    def steps() -> None:
        for _ in range(case.steps):
            for k, layer in enumerate(zip(inputs, deltas, weights, strict=True)):
                once(*layer, first=k == 0)

    return steps


def measured(case: Case, batch: int, pack: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Microseconds per step and trial, and ratios, of one net, batch size and pack."""
    chosen, possible = engines(case, batch, pack, device)
    contestants = {name: packed(case, batch, pack, name, device) for name in possible}
    contestants["plain"] = plain(case, batch, device)
    if chosen == "fused":
        contestants["products"] = products(case, batch, pack, device)
    seconds = medians(contestants, repeats)
    each = {name: t / case.steps / (1 if name == "plain" else pack) for name, t in seconds.items()}
    row: dict[str, Any] = {"net": case.name, "batch": batch, "pack": pack, "engine": chosen}
    row |= {f"us_{name}": round(1e6 * t, 1) for name, t in each.items()}
    row["times_plain"] = round(each["plain"] / each[chosen], 2)
    if "products" in each:
        row["of_limit"] = round(each["products"] / each[chosen], 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="dense nets and small images only")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    arguments = parser.parse_args()
    device, about = torch.device(arguments.device), prepare(arguments.threads)
    rows = []
    for case in CASES[: 3 if arguments.quick else None]:
        for batch in case.batches:
            for pack in case.packs:
                rows.append(measured(case, batch, pack, device, 5))
                print(rows[-1], flush=True)
    if arguments.save:
        save("training" if device.type == "cpu" else "training-gpu", about | {"device": str(device), "rows": rows})


if __name__ == "__main__":
    main()
