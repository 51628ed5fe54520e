"""Shared cases: small trials and ways to run them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.engine import Engine, Minibatch
from trainables.engines import start
from trainables.findings import Finding, Value
from trainables.packs import Outcome, Pack
from trainables.results import train_pack
from trainables.settings import Measure
from trainables.stepping import Stepper
from trainables.study import Study
from trainables.training import Run, Training, reproducible
from trainables.trial import Trial

T = TypeVar("T")
ENDPOINT_ONLY = Measure(at=[], hessian=False)
SMALL_TEACHER = '{"dimension":6,"name":"teacher","test_size":16,"train_size":50}'
CPU = torch.device("cpu")


def trial(**changes: object) -> Trial:
    fields: dict[str, object] = {
        "dataset": SMALL_TEACHER,
        "arch": '{"depth":2,"name":"mlp","width":8}',
        "lr": 0.05,
        "batch_size": 8,
        "epochs": 2,
        "precision": "float64",
    }
    return Trial.model_validate(fields | changes)


def drive(training: Generator[float, None, T]) -> T:
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def run(trials: Sequence[Trial], engine: str = "fused", settings: Measure = ENDPOINT_ONLY, **how: int) -> Run:
    with reproducible(1):
        return drive(Training(trials, engine, settings, CPU, **how).go())


def outcome(trials: Sequence[Trial], engine: str, settings: Measure, **cut: int) -> Outcome:
    keys = tuple({"sweep": "s", "trial_id": f"t{i}", "measure_id": "m"} for i in range(len(trials)))
    pack = Pack("p", engine, settings, (0,) * len(trials), keys, tuple(trials), **cut)
    return drive(train_pack(pack, 1, gpu=False))


def endpoint(
    trials: Sequence[Trial], engine: str = "fused", settings: Measure = ENDPOINT_ONLY, **how: int
) -> dict[str, Tensor]:
    values = run(trials, engine, settings, **how).moments[-1].found.values
    return {name: torch.from_numpy(value) for name, value in values.items()}


def engine_for(trials: Sequence[Trial], dataset: Dataset, name: str) -> Engine:
    like = torch.zeros(1, dtype=getattr(torch, trials[0].precision))
    return start(trials, name, dataset.input_shape, dataset.num_classes, like)


def minibatch(inputs: Tensor, targets: Tensor) -> Minibatch:
    """Of shape (trials, n, ...), without random layers."""
    return Minibatch(inputs, targets, None, targets.shape[1])


def stepper(trials: Sequence[Trial], engine: str = "loop", *, examples: int = 1000) -> Stepper:
    """Trials as they start out."""
    training = Training(trials, engine, Measure(at=[], hessian={"examples": examples}), CPU)
    return training.stepper


def study(
    trials: Sequence[Trial], engine: str = "loop", *, examples: int = 1000, chunk: int = 1000, epoch: float = 0
) -> Study:
    """Trials as they start out, as their statistics see them."""
    return study_of(stepper(trials, engine, examples=examples), 0, epoch=epoch, chunk=chunk)


def study_of(stepper: Stepper, step: int, *, epoch: float | None = None, chunk: int = 1000) -> Study:
    """The trials after so many steps, as their statistics see them."""
    return Study(stepper.snapshot(step, epoch), ENDPOINT_ONLY, chunk)


def values(findings: Iterable[Finding]) -> dict[str, Tensor]:
    """The statistics among findings."""
    return {f.name: f.value for f in findings if isinstance(f, Value)}
