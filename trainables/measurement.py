"""What is measured of every trial of a pack at one moment of training."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import numpy as np

from trainables.curvature import spectrum
from trainables.findings import Finding, Measurements
from trainables.generalization import test_set, training_set
from trainables.hessian import chunk_and_group
from trainables.probe import Probe
from trainables.registry import load
from trainables.schema import TAKEN, metric_values
from trainables.settings import Measure
from trainables.snapshot import Snapshot
from trainables.study import Study


def measure(snapshot: Snapshot, due: Measure) -> Measurements:
    """Measures every trial; trials are taken in groups that fit memory, and no number depends on the grouping."""
    chunk, size = chunk_and_group(snapshot.engine, snapshot.data.dataset.train_inputs)
    measured, place = _distinct(snapshot)
    result = Measurements(len(measured))
    for start in range(0, len(measured), size):
        part = list(range(start, min(start + size, len(measured))))
        study = Study(snapshot.take([measured[i] for i in part]), due, chunk)
        for finding in _built_in(study):
            result.add(finding, part)
    result = result.spread(place)
    if due.metrics:
        alive = snapshot.alive.cpu().numpy() & np.isfinite(result.values["train_loss"])
        _measure_plugins(result, snapshot, due.metrics, alive.nonzero()[0].tolist())
    return result


def _built_in(study: Study) -> Iterator[Finding]:
    yield from training_set(study)
    yield from test_set(study)
    if study.settings.hessian:
        yield from spectrum(study, study.settings.hessian)


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


def _measure_plugins(result: Measurements, snapshot: Snapshot, metrics: tuple[str, ...], alive: list[int]) -> None:
    for i in alive:
        probe = Probe.of(snapshot.take([i]))
        try:
            found = [pair for m in metrics for pair in metric_values(f"metric {m}", load(m)(probe), TAKEN).items()]
        except Exception:  # a failing plug-in fails its trial, not the pack
            result.failures[i] = traceback.format_exc()
            continue
        for name, value in found:
            result.values.setdefault(name, np.full(result.trials, np.nan))[i] = value
            result.errors.setdefault(name, np.full(result.trials, np.nan))
