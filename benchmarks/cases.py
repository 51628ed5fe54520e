"""Nets for the benchmarks of curvature, and how contestants are timed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from trainables.engine import Engine, Tensors
from trainables.engines import build, choose_engine
from trainables.settings import Measure
from trainables.study import Study
from trainables.training import Training
from trainables.trial import Trial

T = TypeVar("T")
CPU = torch.device("cpu")
EXAMPLES = 512
NETS = {"mlp": "mlp", "cnn": "benchmarks.cases:cnn"}


def cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two convolutions and two dense layers on 8 x 8 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, num_classes)),
    )


@dataclass(frozen=True)
class Nets:
    """Trials at one moment, and the examples on which their curvature is measured.

    Attributes:
        parameters: stacked, each of shape (trials, ...).
        inputs: shared by the trials, shape (trials, examples, 64).
        targets: shape (trials, examples).
    """

    engine: Engine
    trials: Sequence[Trial]
    parameters: Tensors
    buffers: Tensors
    inputs: Tensor
    targets: Tensor

    def take(self, part: slice) -> Nets:
        parameters, buffers = ({k: v[part] for k, v in t.items()} for t in (self.parameters, self.buffers))
        return Nets(self.engine, self.trials[part], parameters, buffers, self.inputs[part], self.targets[part])

    def module(self, i: int) -> nn.Module:
        """One trial as a plain module."""
        module = build(self.trials[i], (64,), 10).to(self.inputs)
        module.load_state_dict({k: v[i] for k, v in self.parameters.items()})
        return module.eval()


def nets(name: str, trials: int, epochs: int, device: torch.device) -> Nets:
    """Trials of different seeds on digits, after so many epochs of SGD (lr 0.05, batch 32)."""
    every = [Trial(arch=NETS[name], dataset="digits", lr=0.05, batch_size=32, seed=s) for s in range(trials)]
    settings = Measure(hessian={"examples": EXAMPLES})
    stepper = Training(every, choose_engine(every[0]), settings, device).stepper
    steps = stepper.timeline.step_at(epochs)
    stepper.advance(0, steps)
    of = Study(stepper.snapshot(steps), settings, EXAMPLES)
    return Nets(of.group.engine, every, of.group.parameters, of.group.buffers, of.inputs, of.targets)


def timed(function: Callable[[], T], device: torch.device = CPU) -> tuple[float, T]:
    """Wall time of one call, in seconds, and what it returned."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - began, result


def medians(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one call to warm up; contestants take turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for function in contestants.values():
        function()
    for _ in range(repeats):
        for name, function in contestants.items():
            times[name].append(timed(function)[0])
    return {name: median(t) for name, t in times.items()}


def prepare(threads: int) -> dict[str, object]:
    """The same threads and treatment of denormal numbers for all; returns what the figures depend on."""
    threadpool_limits(threads)  # scipy's BLAS too, whose threads would go on spinning beside the products
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return {"cores": len(os.sched_getaffinity(0)), "threads": threads, "torch": torch.__version__}


def save(name: str, figures: dict[str, object]) -> None:
    """Keeps the figures in benchmarks/results."""
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
