"""What a sweep file expects of its trials; :mod:`analysis.reproduction` holds it against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.trial import FIELDS

TRENDS = ("increasing", "decreasing")
MARGINS = ("invariant", "varies")
RATES = ("holds_to", "broken_from")
NUMBERS = (
    *("label_noise", "input_noise", "gradient_noise", "train_size", "momentum", "weight_decay", "epochs", "max_steps"),
)
ALONG = ("ratio", "batch_size", *NUMBERS)
"""What a metric may increase or decrease with: the ratio at equal batch size, the batch size at equal ratio, ..."""

KINDS = (*MARGINS, *RATES, "exponent", *ALONG)


@dataclass(frozen=True)
class Claim:
    """One thing that is expected.

    Attributes:
        metric: a column of `trials`.
        kind: ``invariant`` or ``varies`` (a margin, as for `isoratio invariance`), ``holds_to`` or ``broken_from`` (a
            learning rate: the frontier), ``exponent`` (an interval), or what the metric goes along with.
        value: the margin, learning rate, interval or trend.
        where: field -> value of the trials that it is about.
    """

    metric: str
    kind: str
    value: Any
    where: Mapping[str, Any]

    def __str__(self) -> str:
        about = "".join(f", {field} {value}" for field, value in self.where.items())
        if self.value in TRENDS:
            return f"{self.metric} {self.value} with {self.kind}{about}"
        return f"{self.metric} {self.kind} {self.value}{about}"


def claims_of(expected: Mapping[str, Any]) -> list[Claim]:
    """The claims of one entry of ``expect`` in a sweep file.

    Raises:
        ValueError: saying what is allowed.
    """
    metric, where = expected.get("metric"), expected.get("where", {})
    if not isinstance(metric, str):
        raise ValueError("metric is required: a column of trials, such as lambda_max")
    if not isinstance(where, dict) or where.keys() - {*FIELDS} or not all(map(_is_plain, where.values())):
        raise ValueError(f"where: should be a mapping of {', '.join(FIELDS)}, each to one value")
    kinds = {kind: value for kind, value in expected.items() if kind not in {"metric", "where"}}
    if unknown := kinds.keys() - {*KINDS}:
        raise ValueError(f"unknown key {min(unknown)!r}: allowed are metric, where, {', '.join(KINDS)}")
    if not kinds:
        raise ValueError(f"nothing is expected of {metric}: give one of {', '.join(KINDS)}")
    for kind, value in kinds.items():
        _check_value(kind, value)
    return [Claim(metric, kind, value, where) for kind, value in kinds.items()]


def _check_value(kind: str, value: Any) -> None:
    if kind in ALONG:
        if value not in TRENDS:
            raise ValueError(f"{kind}: {value!r} should be increasing or decreasing")
    elif kind == "exponent":
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]):
            raise ValueError(f"exponent: {value!r} should be an interval, such as [0.9, 1.1]")
    elif not (_is_number(value) and value > 0):
        raise ValueError(f"{kind}: {value!r} should be a positive number")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
