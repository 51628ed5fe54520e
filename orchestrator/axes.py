"""The axes of a grid, a list of values or a rule that makes one, and the check of each value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from orchestrator.explain import describe, did_you_mean, short
from trainables.registry import resolve
from trainables.trial import REFERENCES, field_adapter, round_lr

MAX_POINTS = 10_000_000
"""Most values of one axis, and most points of one grid."""

GRAMMAR = "a list, {range: n | [start, stop] | [start, stop, step]}, {linspace: [a, b, n]} or {logspace: [a, b, n]}"


def expand_axis(axis: object) -> list[Any]:
    """The values of an axis, in its order.

    ``range`` counts like Python's: integers, ``stop`` left out. ``linspace`` and ``logspace`` give n points from a to
    b, equally spaced in x and in log x; the ends are exact and what lies between is rounded to 12 significant digits,
    so that a typed 0.001 and one computed here are the same value.

    Raises:
        ValueError: saying what is allowed.
    """
    if isinstance(axis, list):
        if not axis:
            raise ValueError("the axis has no values; leave it out, or list at least one")
        return axis
    if isinstance(axis, dict) and len(axis) == 1:
        ((rule, argument),) = axis.items()
        if rule in RULES:
            return RULES[rule](argument)
        if hint := did_you_mean(rule, RULES):
            raise ValueError(f"unknown rule {rule!r}: an axis is {GRAMMAR}{hint}")
    raise ValueError(f"{short(axis)} is no axis: an axis is {GRAMMAR}; a single value stands in a list, or under train")


def check_value(field: str, value: object) -> Any:
    """One value of a field of ``Trial``, or of ``ratio``, in the form in which tables show it.

    Whole floats pass for integers (1e2 is a batch size), text and truth values never pass for numbers.

    Raises:
        ValueError: saying what is allowed.
    """
    if field in REFERENCES and value is not None:
        return resolve(field, value).column  # type: ignore[arg-type]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        checked = field_adapter("lr" if field == "ratio" else field).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(describe(error.errors()[0])) from error
    if isinstance(checked, int) and checked >= 2**63:
        raise ValueError(f"{checked} should be less than 2^63")
    return checked


def _range(argument: object) -> list[int]:
    numbers = argument if isinstance(argument, list) else [argument]
    if not 1 <= len(numbers) <= 3 or not all(_is_integer(n) for n in numbers):
        raise ValueError(f"range takes n, [start, stop] or [start, stop, step], all integers, not {argument!r}")
    if len(numbers) == 3 and numbers[2] == 0:
        raise ValueError(f"range {argument!r}: the step must not be 0")
    values = range(*numbers)
    length = max(0, -((values.start - values.stop) // values.step))  # len() gives up on huge ones
    _check_length(length, f"range {argument!r}")
    return list(values)


def _linspace(argument: object) -> list[float]:
    a, b, n = _span("linspace", argument)
    return _between(a, b, n, lambda t: a * (1 - t) + b * t)


def _logspace(argument: object) -> list[float]:
    a, b, n = _span("logspace", argument)
    if a <= 0 or b <= 0:
        raise ValueError(f"logspace {argument!r}: both ends must be greater than 0 (they are values, not exponents)")
    low, high = math.log(a), math.log(b)
    return _between(a, b, n, lambda t: math.exp(low * (1 - t) + high * t))


RULES: dict[str, Callable[[object], list[Any]]] = {"range": _range, "linspace": _linspace, "logspace": _logspace}


def _span(rule: str, argument: object) -> tuple[float, float, int]:
    if (
        not isinstance(argument, list)
        or len(argument) != 3
        or not all(_is_number(x) for x in argument)
        or not _is_integer(argument[2])
        or argument[2] < 2
    ):
        raise ValueError(f"{rule} takes [a, b, n]: from a to b in n >= 2 points, not {argument!r}")
    _check_length(argument[2], f"{rule} {argument!r}")
    return argument[0], argument[1], argument[2]


def _between(a: float, b: float, n: int, value: Callable[[float], float]) -> list[float]:
    return [a, *(round_lr(value(k / (n - 1))) for k in range(1, n - 1)), b]


def _check_length(n: int, what: str) -> None:
    if n == 0:
        raise ValueError(f"{what} has no values")
    if n > MAX_POINTS:
        raise ValueError(f"{what} has {n:,} values: at most {MAX_POINTS:,} are allowed")


def _is_integer(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: object) -> bool:
    return _is_integer(x) or (isinstance(x, float) and math.isfinite(x))
