"""Shared cases: small trials and ways to run them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.datasets import load_dataset
from trainables.engines import ENGINES, Engine, Hyperparameters, build, load_loss
from trainables.findings import Finding, Value
from trainables.packs import Outcome, Pack
from trainables.results import train_pack
from trainables.settings import Measure
from trainables.snapshot import PackData, Snapshot
from trainables.study import Study
from trainables.training import Run, reproducible, train
from trainables.trial import Trial

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


def run(trials: Sequence[Trial], engine: str = "fused", settings: Measure = ENDPOINT_ONLY) -> Run:
    with reproducible(1):
        training = train(trials, engine, settings, CPU)
        while True:
            try:
                next(training)
            except StopIteration as end:
                return end.value


def outcome(trials: Sequence[Trial], engine: str, settings: Measure) -> Outcome:
    keys = tuple({"sweep": "s", "trial_id": f"t{i}", "measure_id": "m"} for i in range(len(trials)))
    training = train_pack(Pack("p", engine, settings, (0,) * len(trials), keys, tuple(trials)), 1, gpu=False)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def endpoint(trials: Sequence[Trial], engine: str = "fused", settings: Measure = ENDPOINT_ONLY) -> dict[str, Tensor]:
    values = run(trials, engine, settings).moments[-1][2].values
    return {name: torch.from_numpy(value) for name, value in values.items()}


def engine_for(trials: Sequence[Trial], dataset: Dataset, name: str) -> Engine:
    dtype = getattr(torch, trials[0].precision)
    modules = [build(t, dataset.input_shape, dataset.num_classes).to(dtype) for t in trials]
    return ENGINES[name](modules, load_loss(trials[0].loss), Hyperparameters.of(trials, torch.zeros(1, dtype=dtype)))


def study(
    trials: Sequence[Trial], engine: str = "loop", *, examples: int = 1000, chunk: int = 1000, epoch: float = 0
) -> Study:
    """Trials as they start out, as their statistics see them."""
    dataset, dtype = load_dataset(trials[0].dataset), getattr(torch, trials[0].precision)
    data = PackData.of(dataset, trials, examples, dtype, CPU)
    state = engine_for(trials, dataset, engine)
    return Study(Snapshot.of(state, data, trials, 0, epoch), ENDPOINT_ONLY, chunk)


def values(findings: Iterable[Finding]) -> dict[str, Tensor]:
    """The statistics among findings."""
    return {f.name: f.value for f in findings if isinstance(f, Value)}
