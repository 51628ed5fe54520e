"""Training a pack: the loop over the example stream and the moments of measurement."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from trainables.data import Dataset
from trainables.datasets import load_dataset
from trainables.engines import ENGINES, Engine, Hyperparameters, Tensors, build, load_loss
from trainables.findings import Measurements
from trainables.measurement import Memory, measure
from trainables.settings import Hessian, Measure, step_of
from trainables.snapshot import PackData, Snapshot
from trainables.stepping import advance
from trainables.trial import Trial


@dataclass
class Run:
    """What training a pack gave.

    Attributes:
        moments: (step, epoch, measurements), in the order of training, the start and the endpoint included.
        diverged_at: step of divergence, -1 where there was none; one per trial.
        steps: steps of a trial that did not diverge.
        train_size: N.
        parameters: at the endpoint, by name, stacked; empty where endpoints are not kept.
        buffers: likewise.
    """

    moments: list[tuple[int, float, Measurements]] = field(default_factory=list)
    diverged_at: list[int] = field(default_factory=list)
    steps: int = 0
    train_size: int = 0
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)


def keep_memory() -> None:
    """Tells glibc to keep what is freed: handing pages to and fro took up to a sixth of the time of large packs."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """A fixed number of threads and deterministic kernels, so that the same pack gives the same bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    keep_memory()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa are too few for curvature
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
    done, memory = 0, Memory()
    for step, (epoch, due) in moments.items():
        for begin, end in _spans(done, step, max(1, dataset.train_size // first.batch_size)):
            advance(state, data, trials, begin, end)
            yield end / run.steps
        done = step
        found = measure(Snapshot.of(state, data, trials, step, epoch), due, memory)
        state.mark_diverged(torch.as_tensor(found.values["train_loss"], device=device), step)
        run.moments.append((step, epoch, found))
    run.diverged_at = state.diverged_at.tolist()
    if settings.endpoints:
        run.parameters, run.buffers = state.state()
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


def _spans(begin: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """Cuts [begin, end) into pieces of at most ``length``."""
    for start_ in range(begin, end, length):
        yield start_, min(start_ + length, end)
