"""Steps of a trial over its example stream: learning rate and batch size as functions of the examples seen.

A schedule is a factor f of lr / batch_size. With ``of: lr`` the learning rate is multiplied by it, with ``of:
batch_size`` the batch size is divided by it: "don't decay the learning rate, increase the batch size" (Smith et al.
2018, arXiv:1711.00489). Either way every example is seen at exactly the same lr / batch_size, because f is held over
blocks that whole minibatches of both kinds fill. Imports neither torch nor ray.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from trainables.parameters import Fraction, Parameters

Epochs = Annotated[float, Field(gt=0)]
Scale = Annotated[float, Field(gt=0, le=1000)]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MINIBATCHES = 10
"""Most minibatches that a block has, counted in the larger of the sizes B and B / f."""

TOLERANCE = 0.5 / MINIBATCHES
"""How far, relatively, rounding to whole minibatches moves the learning rate of a block with ``of: batch_size``."""


MAX_STEPS = 20_000_000
"""Most steps of a run that is not constant: each takes some hundred bytes while blocks are made."""


class Part(Parameters):
    """One of the factors of a schedule."""

    @property
    def has_jumps(self) -> bool:
        """Whether it is constant between jumps."""
        return False

    @abstractmethod
    def scale(self, epoch: Floats, end: float) -> Floats:
        """The factor at each of these epochs of a run of ``end`` epochs; same shape."""


class Warmup(Part):
    """Linear from ``start`` to 1 over the first ``epochs`` epochs (Goyal et al. 2017, arXiv:1706.02677)."""

    epochs: Epochs
    start: Fraction = 0.1

    def scale(self, epoch: Floats, end: float) -> Floats:
        """``start + (1 - start) min(epoch / epochs, 1)``."""
        return self.start + (1 - self.start) * np.minimum(epoch / self.epochs, 1)


class StepDecay(Part):
    """``factor`` to the power of how many of the epochs ``at`` have passed."""

    at: Annotated[tuple[Epochs, ...], Field(min_length=1, max_length=50)]
    factor: Scale = 0.1

    @property
    def has_jumps(self) -> bool:
        """Always."""
        return True

    @field_validator("at")
    @classmethod
    def _ascend(cls, at: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(at)):
            raise ValueError("epochs must ascend")
        return at

    @field_validator("factor")
    @classmethod
    def _changes(cls, factor: float) -> float:
        if factor == 1:
            raise ValueError("1 changes nothing")
        return factor

    def scale(self, epoch: Floats, end: float) -> Floats:
        """``factor ** #{a in at: a <= epoch}``."""
        powers = np.power(self.factor, np.arange(len(self.at) + 1))
        return powers[np.searchsorted(self.at, epoch, side="right")]


class Cosine(Part):
    """Half a cosine from 1 at the start to ``to`` at the end (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    to: Fraction = 0.0

    def scale(self, epoch: Floats, end: float) -> Floats:
        """``to + (1 - to) (1 + cos(pi epoch / end)) / 2``."""
        return self.to + (1 - self.to) * (1 + np.cos(np.pi * epoch / end)) / 2


class Cyclic(Part):
    """From ``low`` to ``high`` and back in every ``period`` epochs.

    Discrete: low in the first half of a period, high in the second (Jastrzębski et al. 2017, arXiv:1711.04623).
    Triangular: a straight line up and one down (Smith 2017, arXiv:1506.01186).
    """

    low: Scale = 0.2
    high: Scale = 1.0
    period: Annotated[float, Field(ge=1e-3)]  # epochs
    shape: Literal["discrete", "triangular"] = "discrete"

    @property
    def has_jumps(self) -> bool:
        """Where it is discrete."""
        return self.shape == "discrete"

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be less than high {self.high:g}")
        return self

    def scale(self, epoch: Floats, end: float) -> Floats:
        """Discrete: ``high`` where ``epoch mod period >= period / 2``; triangular: ``high`` at ``period / 2``."""
        phase = epoch / self.period % 1
        if self.shape == "discrete":
            return np.where(phase >= 0.5, self.high, self.low)
        return self.high - (self.high - self.low) * np.abs(2 * phase - 1)


class Schedule(Parameters):
    """The product of its parts, as a factor of the learning rate or, inverted, of the batch size."""

    warmup: Warmup | None = None
    step: StepDecay | None = None
    cosine: Cosine | None = None
    cyclic: Cyclic | None = None
    of: Literal["lr", "batch_size"] = "lr"

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if not self.parts:
            raise ValueError("at least one of warmup, step, cosine and cyclic is needed; constant is the one without")
        return self

    @property
    def parts(self) -> list[Part]:
        """Those that are given."""
        return [part for part in (self.warmup, self.step, self.cosine, self.cyclic) if part is not None]

    def scale(self, epoch: Floats, end: float) -> Floats:
        """The value of f at each of these epochs of a run of ``end`` epochs; same shape."""
        return np.asarray(np.prod([part.scale(epoch, end) for part in self.parts], axis=0))

    def jumps(self, epoch: Floats, end: float) -> Integers:
        """Which of these ascending epochs are the first after a jump."""
        scales = np.reshape([part.scale(epoch, end) for part in self.parts if part.has_jumps], (-1, len(epoch)))
        return np.flatnonzero(np.diff(scales).any(axis=0)) + 1


@dataclass(frozen=True)
class Timeline:
    """The steps of a trial.

    Attributes:
        train_size: N; an epoch is N examples.
        end: epochs asked for; those of the last step may differ by half a minibatch.
        ends: examples seen after each step, ascending.
        factors: what each step multiplies the learning rate by; empty where that is 1 throughout.
    """

    train_size: int
    end: float
    ends: Sequence[int]
    factors: Sequence[float] = ()

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.ends)

    def examples(self, step: int) -> int:
        """Examples seen before ``step``."""
        if step > self.steps:  # whoever asks what would come next: more of the same
            return self.ends[-1] + (step - self.steps) * self.batch(self.steps - 1)
        return self.ends[step - 1] if step else 0

    def epoch(self, step: int) -> float:
        """Epochs seen before ``step``."""
        return self.examples(step) / self.train_size

    def batch(self, step: int) -> int:
        """Examples of ``step``."""
        return self.examples(step + 1) - self.examples(step)

    @property
    def largest_batch(self) -> int:
        """Examples of the largest step."""
        return self.ends.step if isinstance(self.ends, range) else int(np.diff(self.ends, prepend=0).max())

    def factor(self, step: int) -> float:
        """What ``step`` multiplies the learning rate by."""
        return self.factors[min(step, self.steps - 1)] if self.factors else 1.0

    def step_at(self, epoch: float) -> int:
        """The step before which the number of epochs seen is nearest to ``epoch``; of two the even one."""
        seen = epoch * self.train_size
        if isinstance(self.ends, range):
            return min(round(seen / self.ends.step), self.steps)
        after = bisect_left(self.ends, seen) + 1
        candidates = range(after - 1, min(after, self.steps) + 1)
        return min(candidates, key=lambda step: (abs(self.examples(step) - seen), step % 2))


def step_of(epoch: float, examples: int, batch_size: int) -> int:
    """The step of a constant batch size at which ``epoch`` epochs of ``examples`` examples have been seen."""
    return round(epoch * examples / batch_size)


def timeline(schedule: str, batch_size: int, train_size: int, epochs: float | None, max_steps: int | None) -> Timeline:
    """The steps of a trial, which sees ``batch_size`` times ``steps`` examples whatever its schedule.

    Args:
        schedule: ``constant`` or the JSON of a :class:`Schedule`.
        batch_size: B, the trial's own.
        train_size: N.
        epochs: length of the run, rounded to whole minibatches of B.
        max_steps: length of the run in minibatches of B; one of the two is given.

    Raises:
        ValueError: a minibatch larger than the training set, less than one step, or, where the schedule is not
            constant, more than MAX_STEPS.
    """
    if batch_size > train_size:
        raise ValueError(f"batch_size {batch_size}: the training set has {train_size} examples")
    if epochs is not None:
        steps, end = step_of(epochs, train_size, batch_size), epochs
    else:
        steps = max_steps or 0
        end = steps * batch_size / train_size
    if steps == 0:
        raise ValueError(f"epochs {end:g}: not one step at batch size {batch_size} of {train_size} examples")
    whole = range(batch_size, steps * batch_size + 1, batch_size)
    if schedule == "constant":
        return Timeline(train_size, end, whole)
    _check_length(steps, batch_size)
    parsed = Schedule.model_validate_json(schedule)
    blocks = _Blocks.of(parsed, batch_size, train_size, steps)
    if parsed.of == "lr":
        return Timeline(train_size, end, whole, _doubles(np.repeat(blocks.held, blocks.lengths)))
    ends, factors = blocks.in_large_minibatches(batch_size)
    return Timeline(train_size, end, array("q", ends.tobytes()), _doubles(factors))


def _check_length(steps: int, batch_size: int) -> None:
    if steps > MAX_STEPS:
        text = f"{steps:,} steps at batch_size {batch_size}: at most {MAX_STEPS:,} are allowed with a schedule"
        raise ValueError(f"{text}; take a larger batch_size, fewer epochs, or schedule constant")


def _doubles(values: Floats) -> array[float]:
    """Compact, and its items are numbers of Python's own."""
    return array("d", values.tobytes())


@dataclass(frozen=True)
class _Blocks:
    """Stretches of a run over which f is held; each array has shape (blocks,).

    Attributes:
        starts: first step of each, in steps of B examples.
        lengths: steps in each.
        held: f, its mean over the steps of each.
    """

    starts: Integers
    lengths: Integers
    held: Floats

    @classmethod
    def of(cls, schedule: Schedule, batch_size: int, train_size: int, steps: int) -> Self:
        """Blocks that end at the latest at jumps, after an epoch and with the run."""
        middle, end = (np.arange(steps) + 0.5) * batch_size / train_size, steps * batch_size / train_size
        f, stops = schedule.scale(middle, end), np.append(schedule.jumps(middle, end), steps)
        starts = _starts(f, stops, train_size // batch_size)
        lengths = np.diff(starts, append=steps)
        first = f[starts]  # taken out before the mean, which is then exact where f is constant
        mean = first + np.add.reduceat(f - np.repeat(first, lengths), starts) / lengths
        return cls(starts, lengths, mean)

    def in_large_minibatches(self, batch_size: int) -> tuple[Integers, Floats]:
        """The same examples in minibatches of nearly equal whole sizes, near B / f.

        Returns:
            Examples seen after each step, and what each multiplies the learning rate by: near 1; both shape (steps,).
        """
        examples = self.lengths * batch_size
        counts = np.clip(np.rint(self.lengths * self.held), 1, examples).astype(np.int64)
        _check_length(int(counts.sum()), batch_size)
        block = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(1, len(block) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = self.starts[block] * batch_size + examples[block] * place // counts[block]
        return ends, self.held[block] * np.diff(ends, prepend=0) / batch_size


def _starts(f: Floats, stops: Integers, longest: int) -> Integers:
    """First steps of the blocks.

    A block has about i times as many examples as the larger of the minibatches B and B / f. Of i = 1 to MINIBATCHES the
    first is taken whose error is within TOLERANCE, or else the best. The error is the larger of two: how far its sum of
    f is from a whole number of minibatches, relatively, and how far f is from what is held, as a part of max(f, 1).

    Args:
        f: of each step; shape (steps,).
        stops: steps at which a block must end, ascending, the last one ``steps``.
        longest: most steps in a block.
    """
    sums = np.append(0, np.cumsum(np.round(f, 12)))  # rounded: the blocks must not depend on a platform's cosine
    steps = np.arange(len(f))
    limits = np.minimum(stops[np.searchsorted(stops, steps, side="right")], steps + longest)
    ends, errors = steps + 1, np.full(len(f), np.inf)
    for i in range(1, MINIBATCHES + 1):
        left = np.flatnonzero(errors > TOLERANCE)
        scale = np.maximum(f[left], 1)
        nearest = sums[left] + i * scale - f[left] / 2
        tried = np.clip(np.searchsorted(sums, nearest), left + 1, limits[left])
        total = sums[tried] - sums[left]
        rounding = np.abs(total / np.maximum(np.rint(total), 1) - 1)
        error = np.maximum(rounding, np.abs(f[tried - 1] - f[left]) / (2 * scale))
        better = error < errors[left]
        ends[left[better]], errors[left[better]] = tried[better], error[better]
    return np.fromiter(_chain(ends.tolist()), np.int64)


def _chain(successors: Sequence[int]) -> Iterator[int]:
    """0, its successor, the successor of that, ... while there is one."""
    at = 0
    while at < len(successors):
        yield at
        at = successors[at]
