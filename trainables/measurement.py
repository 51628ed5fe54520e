"""What is measured of every trial of a pack at one moment of training."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainables.critical import critical_samples
from trainables.curvature import spectrum
from trainables.differentiable import check
from trainables.findings import Finding, Measurements
from trainables.generalization import test_set, training_set
from trainables.gradient_noise import gradient_noise
from trainables.operators import chunk_and_group
from trainables.probe import Probe
from trainables.registry import load
from trainables.residual import branch_cosines
from trainables.schema import TAKEN, metric_values
from trainables.settings import Measure
from trainables.sgd_steps import next_steps, sgd_steps
from trainables.snapshot import Snapshot
from trainables.stepping import Stepper
from trainables.study import Study, Subspace
from trainables.trace import MOST_KEPT
from trainables.units import flat_units


@dataclass
class Memory:
    """What a measurement keeps for the next one of the same trials.

    Attributes:
        top: their top eigenvectors, once measured.
        slots: the places of these trials in the pack.
        checked: whether their loss is known to have curvature.
    """

    top: Subspace | None = None
    slots: list[int] = field(default_factory=list)
    checked: bool = False

    def before(self, slots: list[int]) -> Subspace | None:
        """What was measured before of the trials at these places."""
        return self.top.take([self.slots.index(slot) for slot in slots]) if self.top else None


def measure(snapshot: Snapshot, due: Measure, memory: Memory, stepper: Stepper) -> Measurements:
    """Measures every trial of a snapshot; they are taken in groups that fit memory, on which no number depends.

    Args:
        snapshot: some or all trials of the pack.
        due: what to measure.
        memory: of these very trials.
        stepper: takes the next steps, for statistics that compare them with the curvature.
    """
    chunk, size = chunk_and_group(snapshot.engine, snapshot.data.dataset.train_inputs, _vectors(due))
    measured, place = _distinct(snapshot, due)
    if (due.hessian or due.gradient_noise) and not memory.checked:
        check(Study(snapshot.take([0]), due, chunk))
        memory.checked = True
    steps = next_steps(stepper, snapshot.step, due.hessian.sgd_steps) if due.hessian else []
    result, tops = Measurements(len(measured)), []
    for start in range(0, len(measured), size):
        part = list(range(start, min(start + size, len(measured))))
        chosen = [measured[i] for i in part]
        group = snapshot.take(chosen)
        study = Study(group, due, chunk, memory.before(group.slots), [step[group.slots] for step in steps])
        for finding in _built_in(study):
            result.add(finding, part)
        tops += [study.top] if study.top else []
    result = result.spread(place)
    if tops:
        memory.top, memory.slots = Subspace.join(tops).take(place), snapshot.slots
    if due.metrics:
        _measure_plugins(result, snapshot, due.metrics)
    return result


@torch.no_grad()
def look(snapshot: Snapshot, statistic: str) -> Tensor:
    """``train_loss`` or ``train_accuracy`` of every trial, and nothing else; shape (trials,)."""
    chunk, size = chunk_and_group(snapshot.engine, snapshot.data.dataset.train_inputs, 1)
    found = []
    for start in range(0, len(snapshot.trials), size):
        group = snapshot.take(list(range(start, min(start + size, len(snapshot.trials)))))
        study = Study(group, Measure(), chunk)
        found.append(torch.cat([_seen(study, statistic, *batch) for batch in study.training_set()], 1).mean(1))
    return torch.cat(found)


def _seen(study: Study, statistic: str, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of each example, shape (trials, n), float64."""
    of = study.group
    outputs = of.engine.outputs(of.parameters, of.buffers, inputs)
    if statistic == "train_loss":
        return of.engine.losses(outputs, targets).double()
    return (outputs.argmax(-1) == targets).double()


def _built_in(study: Study) -> Iterator[Finding]:
    yield from training_set(study)
    yield from test_set(study)
    yield from flat_units(study)
    yield from branch_cosines(study)
    if study.settings.critical_samples:
        yield from critical_samples(study, study.settings.critical_samples)
    if study.settings.hessian:
        yield from spectrum(study, study.settings.hessian)
    if study.top and study.steps:
        yield from sgd_steps(study, study.top)
    if study.settings.gradient_noise:
        yield from gradient_noise(study, study.settings.gradient_noise)


def _vectors(due: Measure) -> int:
    """Vectors of the size of the parameters that measuring keeps of each trial."""
    if not due.hessian:
        return 10
    return 10 + 2 * due.hessian.max_iterations + due.hessian.sgd_steps + min(due.hessian.trace_probes, MOST_KEPT)


def _distinct(snapshot: Snapshot, due: Measure) -> tuple[list[int], list[int]]:
    """Positions of the trials to measure, and for every trial which of them stands for it.

    At the start trials of one seed and noise are the same net on the same data: one of them is measured. Their next
    steps differ, though.
    """
    if snapshot.step or (due.hessian and due.hessian.sgd_steps):
        everyone = list(range(len(snapshot.trials)))
        return everyone, everyone
    keys = [(t.seed, t.label_noise, t.input_noise) for t in snapshot.trials]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    measured = sorted(first.values())
    return measured, [measured.index(first[key]) for key in keys]


def _measure_plugins(result: Measurements, snapshot: Snapshot, metrics: tuple[str, ...]) -> None:
    for i in np.isfinite(result.values["train_loss"]).nonzero()[0].tolist():
        probe = Probe.of(snapshot.take([i]))
        try:
            found = [pair for m in metrics for pair in metric_values(f"metric {m}", load(m)(probe), TAKEN).items()]
        except Exception:  # a failing plug-in fails its trial, not the pack
            result.failures[i] = traceback.format_exc()
            continue
        for name, value in found:
            result.values.setdefault(name, np.full(result.trials, np.nan))[i] = value
            result.errors.setdefault(name, np.full(result.trials, np.nan))
