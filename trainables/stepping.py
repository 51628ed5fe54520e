"""SGD steps of a pack along the example streams of its trials."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainables.counters import bits, keys
from trainables.engine import Engine, Minibatch
from trainables.nudging import Nudge
from trainables.schedules import Timeline
from trainables.snapshot import PackData, Snapshot
from trainables.streams import Purpose, examples
from trainables.trial import Trial


@dataclass
class Stepper:
    """A pack on its way.

    Attributes:
        engine: its state.
        data: what it trains on.
        trials: their configurations; they share ``timeline``, sampler and all that shapes the computation.
        timeline: which step sees how many examples, at what share of the learning rate.
        nudge: what nudged SGD adds to a step.
    """

    engine: Engine
    data: PackData
    trials: Sequence[Trial]
    timeline: Timeline
    nudge: Nudge | None

    def snapshot(self, step: int, epoch: float | None = None) -> Snapshot:
        """The trials after ``step`` steps."""
        return Snapshot.of(
            self.engine, self.data, self.trials, step, self.timeline.epoch(step) if epoch is None else epoch
        )

    def advance(self, begin: int, end: int) -> None:
        """Takes the steps from ``begin`` to ``end``."""
        for step, batch in zip(range(begin, end), self._minibatches(begin, end), strict=True):
            if self.nudge is None:
                self.engine.step(batch, step, self.timeline.factor(step))
                continue
            if self.nudge.is_due(step):
                self.nudge.measure(self.snapshot(step))
            with self.nudge.applied(self.engine):
                self.engine.step(batch, step, self.timeline.factor(step))

    def copy(self) -> Stepper:
        """Another one that goes its own way from here, on the same data."""
        return replace(self, engine=copy.deepcopy(self.engine), nudge=copy.copy(self.nudge))

    def _minibatches(self, begin: int, end: int) -> Iterator[Minibatch]:
        """Those of the steps from ``begin`` to ``end``."""
        full = self.trials[0].sampler == "full"
        order = None if full else self._order(begin, end)
        word_keys = self._word_keys()
        needs_positions = word_keys is not None or self.trials[0].augment != "none"
        first = self.timeline.examples(begin)
        for step in range(begin, end):
            size, start = self.timeline.batch(step), self.timeline.examples(step)
            chosen = slice(None) if order is None else order[:, start - first : start - first + size]
            targets = self._targets(chosen)
            positions = words = None
            if needs_positions:
                start = step * targets.shape[1] if full else start
                positions = torch.arange(start, start + targets.shape[1], device=targets.device)
            if word_keys is not None and positions is not None:
                words = bits(word_keys[:, None], positions)
            yield Minibatch(self.data.inputs.minibatch(chosen, positions), targets, words, size)

    def _targets(self, chosen: Tensor | slice) -> Tensor:
        if isinstance(chosen, slice):
            return self.data.targets[:, chosen]
        if self.data.targets.ndim == 2:
            return self.data.targets.gather(1, chosen)
        return self.data.targets[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]

    def _order(self, begin: int, end: int) -> Tensor:
        """Example indices of these steps, shape (trials, examples); drawn once per distinct order seed."""
        first, last = self.timeline.examples(begin), self.timeline.examples(end)
        n, replacement = self.data.dataset.train_size, self.trials[0].sampler == "replacement"
        orders = [t.order for t in self.trials]
        streams = {seed: examples(seed, first, last, n, replacement=replacement) for seed in set(orders)}
        drawn = torch.from_numpy(np.stack([streams[seed] for seed in orders]))
        return drawn.to(self.data.targets.device)

    def _word_keys(self) -> Tensor | None:
        if not self.engine.needs_words:
            return None
        return keys([t.seed for t in self.trials], Purpose.DROPOUT, self.data.targets.device)
