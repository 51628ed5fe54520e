"""Shared cases: small trials and ways to run them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.engines import ENGINES, Engine, Hyperparameters, build, load_loss
from trainables.settings import Measure
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


def endpoint(trials: Sequence[Trial], engine: str = "fused", settings: Measure = ENDPOINT_ONLY) -> dict[str, Tensor]:
    values = run(trials, engine, settings).moments[-1][2].values
    return {name: torch.from_numpy(value) for name, value in values.items()}


def engine_for(trials: Sequence[Trial], dataset: Dataset, name: str) -> Engine:
    dtype = getattr(torch, trials[0].precision)
    modules = [build(t, dataset.input_shape, dataset.num_classes).to(dtype) for t in trials]
    return ENGINES[name](modules, load_loss(trials[0].loss), Hyperparameters.of(trials, torch.zeros(1, dtype=dtype)))
