"""Training a pack: the loop over the example stream and the moments of measurement."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainables.data import Dataset
from trainables.datasets import load_dataset
from trainables.engines import ENGINES, Engine, Hyperparameters, build, load_loss
from trainables.findings import Measurements
from trainables.measurement import measure
from trainables.settings import Hessian, Measure, step_of
from trainables.snapshot import PackData, Snapshot
from trainables.streams import examples
from trainables.trial import Trial


@dataclass
class Run:
    """What training a pack gave.

    Attributes:
        moments: (step, epoch, measurements), in the order of training, the start and the endpoint included.
        diverged_at: step of divergence, -1 where there was none; one per trial.
        steps: steps of a trial that did not diverge.
        train_size: N.
    """

    moments: list[tuple[int, float, Measurements]] = field(default_factory=list)
    diverged_at: list[int] = field(default_factory=list)
    steps: int = 0
    train_size: int = 0


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """A fixed number of threads and deterministic kernels, so that the same pack gives the same bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_flush_denormal(True)  # tiny softmax gradients would otherwise slow the products many times over
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.set_flush_denormal(False)


def train(trials: Sequence[Trial], engine: str, settings: Measure, device: torch.device) -> Generator[float, None, Run]:
    """Trains trials that share all that shapes the computation; yields the fraction done, returns the run.

    Raises:
        ValueError: settings that this data set does not allow.
    """
    first = trials[0]
    dataset, dtype = load_dataset(first.dataset), getattr(torch, first.precision)
    _check(first, dataset)
    curvature_examples = (settings.hessian or Hessian()).examples
    data = PackData.of(dataset, trials, curvature_examples, dtype, device)
    state = start(trials, engine, data, dtype, device)
    moments = settings.moments(first.epochs, dataset.train_size, first.batch_size)
    run = Run(steps=step_of(first.epochs, dataset.train_size, first.batch_size), train_size=dataset.train_size)
    done = 0
    for step, (epoch, due) in moments.items():
        for begin, end in _spans(done, step, max(1, dataset.train_size // first.batch_size)):
            _advance(state, data, trials, begin, end)
            yield end / run.steps
        done = step
        found = measure(Snapshot.of(state, data, trials, step, epoch), due)
        state.mark_diverged(torch.as_tensor(found.values["train_loss"], device=device), step)
        run.moments.append((step, epoch, found))
    run.diverged_at = state.diverged_at.tolist()
    return run


def _check(trial: Trial, dataset: Dataset) -> None:
    n = dataset.train_size
    if trial.batch_size > n:
        raise ValueError(f"batch_size {trial.batch_size}: the training set has {n} examples")
    if step_of(trial.epochs, n, trial.batch_size) == 0:
        raise ValueError(f"epochs {trial.epochs:g}: not one step at batch size {trial.batch_size} of {n} examples")
    if trial.loss == "cross_entropy" and not dataset.is_classification:
        raise ValueError(f"loss cross_entropy: data set {trial.dataset} has real-valued targets; mse takes them")


def start(trials: Sequence[Trial], engine: str, data: PackData, dtype: torch.dtype, device: torch.device) -> Engine:
    """Freshly initialised trials."""
    modules = [build(t, data.dataset.input_shape, data.dataset.num_classes).to(device, dtype) for t in trials]
    hyper = Hyperparameters.of(trials, torch.zeros(1, dtype=dtype, device=device))
    return ENGINES[engine](modules, load_loss(trials[0].loss), hyper)


def _advance(engine: Engine, data: PackData, trials: Sequence[Trial], begin: int, end: int) -> None:
    """Takes the steps from ``begin`` to ``end``, each on the next ``batch_size`` examples of every trial's stream."""
    batch = trials[0].batch_size
    order = _minibatches(trials, begin, end, data.dataset.train_size).to(data.targets.device)
    inputs, rows = data.dataset.train_inputs, torch.arange(len(trials), device=order.device)[:, None]
    for step in range(begin, end):
        chosen = order[:, step - begin]
        x = inputs.index_select(0, chosen.reshape(-1)).view(len(trials), batch, *inputs.shape[1:])
        engine.step(x, data.targets[rows, chosen], step)


def _minibatches(trials: Sequence[Trial], begin: int, end: int, train_size: int) -> Tensor:
    """Example indices, shape (trials, end - begin, batch_size); drawn once per distinct order seed."""
    batch = trials[0].batch_size
    replacement = trials[0].sampler == "replacement"
    streams = {
        seed: examples(seed, begin * batch, end * batch, train_size, replacement=replacement)
        for seed in {t.order for t in trials}
    }
    return torch.from_numpy(np.stack([streams[t.order] for t in trials]).reshape(len(trials), end - begin, batch))


def _spans(begin: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """Cuts [begin, end) into pieces of at most ``length``."""
    for start_ in range(begin, end, length):
        yield start_, min(start_ + length, end)
