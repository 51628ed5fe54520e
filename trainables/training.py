"""Training a pack: the steps, the looks at whether a trial may stop, and the moments of measurement."""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from math import inf
from time import monotonic
from typing import Any

import torch

from trainables.data import Dataset
from trainables.datasets import dataset_of
from trainables.engine import Tensors
from trainables.engines import start
from trainables.findings import Measurements
from trainables.loop import MEMBER
from trainables.measurement import Memory, look, measure
from trainables.nudging import Nudge
from trainables.schedules import Timeline, timeline
from trainables.settings import Hessian, Measure
from trainables.snapshot import PackData
from trainables.stepping import Stepper
from trainables.stopping import Condition, parse
from trainables.trial import Trial

SPAN = 256
"""Steps between two reports of how far training is; more where they are less than a quarter of an epoch, whose order
has to be drawn for each, and fewer where they are more than an epoch, or would take longer than PATIENCE.
"""

PATIENCE = 5.0  # seconds after which training reports even so


@dataclass(frozen=True)
class Measured:
    """What was measured at one moment.

    Attributes:
        step: steps taken.
        epoch: examples seen, divided by the training-set size.
        slots: the trials that were measured, by their place in the pack.
        found: of each of them, in this order.
    """

    step: int
    epoch: float
    slots: list[int]
    found: Measurements


@dataclass
class Run:
    """What training a pack gave; lists have one entry per trial.

    Attributes:
        moments: in the order of training; of every trial the start, and the endpoint unless it diverged.
        diverged_at: step at which a loss was not finite, else -1.
        reached_at: step at which ``until`` held, else -1.
        timeline: the steps of trials that came to the end.
        endpoints: slot -> parameters and buffers at its end, by name, on the CPU; empty where endpoints are not kept.
    """

    timeline: Timeline
    moments: list[Measured] = field(default_factory=list)
    diverged_at: list[int] = field(default_factory=list)
    reached_at: list[int] = field(default_factory=list)
    endpoints: dict[int, tuple[Tensors, Tensors]] = field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """All but the timeline, which follows from the trials; nothing in it changes any more."""
        return {f.name: copy.copy(getattr(self, f.name)) for f in fields(self) if f.name != "timeline"}

    def steps(self, slot: int) -> int:
        """Steps that a trial took."""
        ends = [at for at in (self.diverged_at[slot], self.reached_at[slot]) if at >= 0]
        return ends[0] if ends else self.timeline.steps


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
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms(True), which takes a second to import
    torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa are too few for curvature
    torch.set_flush_denormal(True)  # tiny softmax gradients would otherwise slow the products many times over
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.set_flush_denormal(False)


class Training:
    """A pack of trials that share all that shapes the computation, on its way to their endpoints.

    Args:
        trials: the pack.
        engine: loop, vmap or fused.
        settings: what is measured, and when.
        device: where.
        physical: most examples of a trial in one forward pass of a step; None: the whole minibatch.

    Raises:
        ValueError: settings that this data set does not allow.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        engine: str,
        settings: Measure,
        device: torch.device,
        physical: int | None = None,
    ) -> None:
        first = trials[0]
        dataset, dtype = dataset_of(first), getattr(torch, first.precision)
        _check(first, dataset)
        time = timeline_of(first)
        data = PackData.of(dataset, trials, (settings.hessian or Hessian()).examples, dtype, device)
        shape, like = (dataset.input_shape, dataset.num_classes), torch.zeros(1, dtype=dtype, device=device)
        state = start(trials, engine, *shape, like, physical)
        self.settings = settings
        self.stepper = Stepper(state, data, trials, time, Nudge.of(trials))
        self.until = parse(first.until) if first.until else None
        self.looks, self.moments = frozenset(_looks(self.until, time)), settings.moments(time)
        self.done, self.settled, self.memory = 0, -1, Memory()
        self.pace = inf  # seconds per epoch
        self.run = Run(time, reached_at=[-1] * len(trials))

    def go(self) -> Generator[float, None, Run]:
        """Trains to the end; yields the fraction done, often, and returns what was measured, ``run``."""
        time = self.stepper.timeline
        for step in sorted({*self.moments, *self.looks}):
            if step <= self.settled:
                continue
            while self.done < step:
                self._advance(min(step, self._next_report()))
                yield self.done / time.steps
            if step in self.looks:
                self._stop(step)
            if step in self.moments:
                epoch, due = self.moments[step]
                self._measure(self._active(), step, epoch, due, self.memory)
            self.settled = step
            if not self._active():
                break
        self._keep_endpoints(self._active())
        self.run.diverged_at = self.stepper.engine.diverged_at.tolist()
        return self.run

    def saved(self) -> dict[str, Any]:
        """Where the pack stands: enough to go on as if never interrupted; nothing in it changes any more."""
        nudge, engine = self.stepper.nudge, self.stepper.engine
        return {
            "done": self.done,
            "settled": self.settled,
            "memory": replace(self.memory),
            "run": self.run.saved(),
            "nudge": nudge and nudge.vectors,
            "engine": engine.saved(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from what :meth:`saved` returned, bit for bit."""
        self.done, self.settled, self.memory = saved["done"], saved["settled"], replace(saved["memory"])
        self.run = Run(self.stepper.timeline, **{name: copy.copy(value) for name, value in saved["run"].items()})
        if self.stepper.nudge is not None:
            self.stepper.nudge.vectors = saved["nudge"]
        self.stepper.engine.restore(saved["engine"])

    def _next_report(self) -> int:
        time, epoch = self.stepper.timeline, self.stepper.timeline.epoch(self.done)
        quarter, whole, soon = (time.step_at(epoch + part) for part in (0.25, 1, PATIENCE / self.pace))
        return max(self.done + 1, min(soon, max(quarter, min(self.done + SPAN, whole))))

    def _advance(self, end: int) -> None:
        began, epoch = monotonic(), self.stepper.timeline.epoch(self.done)
        self.stepper.advance(self.done, end)
        self.done = end
        self.pace = max(1e-9, monotonic() - began) / (self.stepper.timeline.epoch(end) - epoch)

    def _active(self) -> list[int]:
        active: list[int] = self.stepper.engine.active.nonzero()[:, 0].tolist()
        return active

    def _stop(self, step: int) -> None:
        """Measures and stops the trials whose condition holds."""
        active = self._active()
        if self.until is None or not active:
            return
        values = look(self.stepper.snapshot(step).take(active), self.until.statistic).tolist()
        slots = [slot for slot, value in zip(active, values, strict=True) if self.until.holds(value)]
        if slots:
            self._measure(slots, step, self.stepper.timeline.epoch(step), self.settings, replace(self.memory))
            slots = [slot for slot in slots if self.stepper.engine.diverged_at[slot] < 0]
            for slot in slots:
                self.run.reached_at[slot] = step
            self.stepper.engine.stopped[slots] = True
            self._keep_endpoints(slots)

    def _measure(self, slots: list[int], step: int, epoch: float, due: Measure, memory: Memory) -> None:
        if not slots:
            return
        found = measure(self.stepper.snapshot(step, epoch).take(slots), due, memory, self.stepper)
        losses = torch.as_tensor(found.values["train_loss"], device=self.stepper.data.targets.device)
        everyone = torch.zeros(len(self.stepper.trials), dtype=losses.dtype, device=losses.device)
        everyone[slots] = losses
        self.stepper.engine.mark_diverged(everyone, step)
        self.run.moments.append(Measured(step, epoch, slots, found))

    def _keep_endpoints(self, slots: list[int]) -> None:
        if not self.settings.endpoints:
            return
        parameters, buffers = self.stepper.engine.state()
        buffers = {name: tensor for name, tensor in buffers.items() if name != MEMBER}
        for slot in slots:
            kept = [{k: v[slot].to("cpu", copy=True) for k, v in tensors.items()} for tensors in (parameters, buffers)]
            self.run.endpoints[slot] = kept[0], kept[1]


def timeline_of(trial: Trial) -> Timeline:
    """The steps of a trial."""
    n = dataset_of(trial).train_size
    return timeline(trial.schedule, trial.batch_size, n, trial.epochs, trial.max_steps)


def _looks(until: Condition | None, time: Timeline) -> Iterator[int]:
    """Steps after which a condition is looked at, the last step among them."""
    if until is not None:
        end = time.epoch(time.steps)
        epochs = (k * until.every for k in range(1, int(end / until.every) + 1))
        yield from (step for step in map(time.step_at, epochs) if step)
        yield time.steps


def _check(trial: Trial, dataset: Dataset) -> None:
    if trial.loss == "cross_entropy" and not dataset.is_classification:
        raise ValueError(f"loss cross_entropy: data set {trial.dataset} has real-valued targets; mse takes them")
    if trial.until and parse(trial.until).statistic == "train_accuracy" and not dataset.is_classification:
        raise ValueError(f"until {trial.until}: data set {trial.dataset} has real-valued targets, no accuracy")
