"""When a trial stops before its last step: ``until: train_loss <= 0.1``. Imports neither torch nor ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite

_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?"
_CONDITION = re.compile(rf"\s*(\w+)\s*(<=|>=)\s*({_NUMBER})\s*(?:every\s+({_NUMBER})\s*)?")
_MEANS = {"train_loss": "<=", "train_accuracy": ">="}

GRAMMAR = "`train_loss <= x` or `train_accuracy >= x`, with `every e` after it where not every epoch is to be looked at"


LEAST_EVERY = 1e-3
"""Epochs between two looks, at least."""


@dataclass(frozen=True)
class Condition:
    """A trial ends at the first look at which it holds, or else at its last step.

    Attributes:
        statistic: train_loss or train_accuracy, over the whole training set with its noise, in evaluation mode.
        threshold: the loss at most, the accuracy at least.
        every: epochs between two looks.
    """

    statistic: str
    threshold: float
    every: float = 1.0

    def holds(self, value: float) -> bool:
        """Whether a trial with this value may stop."""
        return value <= self.threshold if self.statistic == "train_loss" else value >= self.threshold

    def __str__(self) -> str:
        text = f"{self.statistic} {_MEANS[self.statistic]} {self.threshold!r}"
        return text if self.every == 1 else f"{text} every {self.every!r}"


def parse(text: str) -> Condition:
    """Reads ``until``.

    Raises:
        ValueError: saying what is allowed.
    """
    found = _CONDITION.fullmatch(text)
    if not found or _MEANS.get(found[1]) != found[2]:
        raise ValueError(f"{text!r} is no condition to stop at: allowed is {GRAMMAR}")
    condition = Condition(found[1], float(found[3]), float(found[4] or 1))
    if condition.every < LEAST_EVERY:
        raise ValueError(f"{text!r}: a look every {condition.every:g} epochs is too often; {LEAST_EVERY} at least")
    if condition.statistic == "train_accuracy" and condition.threshold > 1:
        raise ValueError(f"{text!r}: an accuracy is a fraction, at most 1")
    if not isfinite(condition.threshold) or not isfinite(condition.every):
        raise ValueError(f"{text!r}: a number is too large")
    return condition


def canonical_condition(text: str) -> str:
    """The one way to write a condition, so that equal ones are one trial."""
    return str(parse(text))
