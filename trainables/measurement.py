"""What is measured of every trial of a pack at one moment of training."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.hessian import Hessian, chunk_and_group, gradient_and_outputs
from trainables.lanczos import lanczos
from trainables.probe import Probe
from trainables.registry import load
from trainables.schema import RESERVED, metric_values
from trainables.settings import Hessian as HessianSettings
from trainables.settings import Measure
from trainables.snapshot import Snapshot
from trainables.streams import Purpose, rademacher
from trainables.trace import hutchinson

Numbers = NDArray[np.float64]
Statistic = tuple[str, Tensor, Tensor | float]
"""Name, value per trial, and its error: 0 where exact."""


@dataclass
class Measurements:
    """Statistics of all trials at one moment; NaN where not measured or not known.

    Attributes:
        values: statistic -> one number per trial; shape (trials,).
        errors: the statistic's error.
        eigenvalues: the largest, descending, each with its residual bound; shape (trials, top, 2). None where curvature
            is not measured.
        failures: trial's position -> traceback of the plug-in metric that failed.
    """

    values: dict[str, Numbers] = field(default_factory=dict)
    errors: dict[str, Numbers] = field(default_factory=dict)
    eigenvalues: Numbers | None = None
    failures: dict[int, str] = field(default_factory=dict)


def measure(snapshot: Snapshot, settings: Measure) -> Measurements:
    """Measures every trial; trials are taken in groups that fit memory, and no number depends on the grouping."""
    chunk, size = chunk_and_group(snapshot.engine, snapshot.data.dataset.train_inputs)
    measured, place = _distinct(snapshot)
    result = Measurements()
    if settings.hessian:
        result.eigenvalues = np.full((len(measured), settings.hessian.top, 2), np.nan)
    for start in range(0, len(measured), size):
        part = slice(start, start + size)
        for name, value, error in _built_in(snapshot.take(measured[part]), settings, chunk, result.eigenvalues, part):
            for table, numbers in ((result.values, value), (result.errors, error)):
                table.setdefault(name, np.full(len(measured), np.nan))[part] = _numpy(numbers)
    for table in (result.values, result.errors):
        table.update({name: numbers[place] for name, numbers in table.items()})
    if result.eigenvalues is not None:
        result.eigenvalues = result.eigenvalues[place]
    if settings.metrics:
        alive = snapshot.alive.cpu().numpy() & np.isfinite(result.values["train_loss"])
        _measure_plugins(result, snapshot, settings.metrics, alive.nonzero()[0].tolist())
    return result


def _distinct(snapshot: Snapshot) -> tuple[list[int], list[int]]:
    """Positions of the trials to measure, and for every trial which of them stands for it.

    At the start trials of one seed and noise are the same net on the same data: one of them is measured.
    """
    if snapshot.step:
        everyone = list(range(len(snapshot.trials)))
        return everyone, everyone
    keys = [(t.seed, t.label_noise) for t in snapshot.trials]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    measured = sorted(first.values())
    return measured, [measured.index(first[key]) for key in keys]


def _built_in(
    group: Snapshot, settings: Measure, chunk: int, eigenvalues: Numbers | None, part: slice
) -> Iterator[Statistic]:
    yield from _training_set(group, chunk)
    yield from _test_set(group, chunk)
    if settings.hessian and eigenvalues is not None:
        yield from _curvature(group, settings.hessian, chunk, eigenvalues[part])


def _training_set(group: Snapshot, chunk: int) -> Iterator[Statistic]:
    """Loss, accuracy, memorized fraction and gradient norm, all in one pass over the whole training set."""
    gradient, outputs = gradient_and_outputs(
        group.engine, group.parameters, group.buffers, group.data.dataset.train_inputs, group.targets, chunk
    )
    yield "train_loss", group.engine.losses(outputs, group.targets).double().mean(1), 0.0
    if group.data.dataset.is_classification:
        right = (outputs.argmax(-1) == group.targets).double()
        yield "train_accuracy", right.mean(1), 0.0
        count = group.changed.sum(1)
        yield "memorized", torch.where(count > 0, (right * group.changed).sum(1) / count, torch.nan), 0.0
    yield "gradient_norm", gradient.double().norm(dim=1), 0.0


@torch.no_grad()
def _test_set(group: Snapshot, chunk: int) -> Iterator[Statistic]:
    dataset = group.data.dataset
    chunks = dataset.test_inputs.split(chunk)
    outputs = torch.cat([group.engine.outputs(group.parameters, group.buffers, c) for c in chunks], 1)
    targets = dataset.test_targets.expand(len(group.trials), *dataset.test_targets.shape)
    yield "test_loss", group.engine.losses(outputs, targets).double().mean(1), 0.0
    if dataset.is_classification:
        yield "test_accuracy", (outputs.argmax(-1) == targets).double().mean(1), 0.0


def _curvature(group: Snapshot, wanted: HessianSettings, chunk: int, eigenvalues: Numbers) -> Iterator[Statistic]:
    """Extreme eigenvalues, trace and Frobenius norm; writes the largest eigenvalues into ``eigenvalues``."""
    examples = group.data.curvature_examples
    inputs, targets = group.data.dataset.train_inputs[examples], group.targets[:, examples]
    hessian = Hessian(group.engine, group.parameters, group.buffers, inputs, targets, chunk)
    dimension = hessian.shape[1]
    spectrum = lanczos(
        hessian,
        _signs(group, Purpose.LANCZOS, dimension, 0).to(inputs),
        lambda j: _signs(group, Purpose.LANCZOS, dimension, j + 1).to(inputs),
        top=wanted.top,
        tolerance=wanted.tolerance,
        max_iterations=wanted.max_iterations,
    )
    eigenvalues[:] = np.stack([_numpy(spectrum.top), _numpy(spectrum.top_residual)], -1)
    yield "lambda_max", spectrum.top[:, 0], spectrum.top_residual[:, 0]
    yield "lambda_min", spectrum.bottom, spectrum.bottom_residual
    traces = hutchinson(hessian, lambda k: _signs(group, Purpose.TRACE, dimension, k).to(inputs), wanted.trace_probes)
    yield "hessian_trace", traces.trace, traces.trace_se
    yield "hessian_frobenius", traces.frobenius, traces.frobenius_se


def _signs(group: Snapshot, purpose: Purpose, dimension: int, index: int) -> Tensor:
    """Random signs, shape (trials, dimension); keyed by epoch, so that iso-ratio trials of a seed share them."""
    block = round(group.epoch * 2**20)
    return torch.from_numpy(np.stack([rademacher(t.seed, purpose, dimension, block, index) for t in group.trials]))


def _measure_plugins(result: Measurements, snapshot: Snapshot, metrics: tuple[str, ...], alive: list[int]) -> None:
    trials = len(snapshot.trials)
    for i in alive:
        probe = Probe.of(snapshot.take([i]))
        try:
            found = [pair for m in metrics for pair in metric_values(f"metric {m}", load(m)(probe), RESERVED).items()]
        except Exception:  # a failing plug-in fails its trial, not the pack
            result.failures[i] = traceback.format_exc()
            continue
        for name, value in found:
            result.values.setdefault(name, np.full(trials, np.nan))[i] = value
            result.errors.setdefault(name, np.full(trials, np.nan))


def _numpy(numbers: Tensor | float) -> Numbers | float:
    return numbers if isinstance(numbers, float) else numbers.detach().double().cpu().numpy()
