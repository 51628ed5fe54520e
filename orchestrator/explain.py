"""What is wrong, what is allowed, did you mean: the words of errors in a sweep file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.source import Place, Problem, Source

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60

_OTHER_SHAPE = {"list_type", "model_type", "literal_error"}
"""Errors which say that a value was meant as another member of a union."""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no known word is close."""
    close = get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_key(key: str, known: Sequence[str]) -> str:
    """A key that a section does not have."""
    return f"unknown key {key!r}: allowed are {', '.join(known)}{did_you_mean(key, known)}"


def describe(error: ErrorDetails) -> str:
    """One finding of pydantic's, beginning with the value."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    text = re.sub(r"^(Input|String|Value) | or instance of \w+$", "", error["msg"]).replace("dictionary", "mapping")
    options = re.findall(r"'([^']*)'", text) if error["type"] == "literal_error" else []
    return f"{_SHORT.repr(error['input'])} {text}{did_you_mean(str(error['input']), options)}"


def explain(
    error: ValidationError, source: Source, sections: Mapping[Place, Sequence[str]], unions: Mapping[Place, str]
) -> Iterator[Problem]:
    """Pydantic's findings, each at its place in the file.

    Args:
        error: of validating the data of ``source``.
        source: the file.
        sections: the keys allowed at each place that holds a mapping.
        unions: what is allowed at each place where values of several shapes are.
    """
    for place, finding in _of_meant_members(error.errors(), unions):
        name = ".".join(map(str, place))
        if finding is None:
            yield source.problem(place, f"{name}: should be {unions[place]}")
        elif finding["type"] == "extra_forbidden":
            section, text = ".".join(map(str, place[:-1])), unknown_key(str(place[-1]), sections[place[:-1]])
            yield source.problem(place, f"{section}: {text}" if section else text, on_key=True)
        elif finding["type"] == "missing":
            yield source.problem(place[:-1], f"{name} is required")
        else:
            yield source.problem(place, f"{name}: {describe(finding)}")


def _of_meant_members(errors: list[ErrorDetails], unions: Collection[Place]) -> list[tuple[Place, ErrorDetails | None]]:
    """Findings with their places; of a union those of the member that was meant, None where none was.

    Pydantic puts the name of the member into the place of each of its findings. It is taken out, outer unions first.
    """
    found = [(error["loc"], error) for error in errors]
    unclear = []
    for union in sorted(unions, key=len):
        depth = len(union)
        inside = [(place, e) for place, e in found if place[:depth] == union and len(place) > depth]
        others = {place[depth] for place, e in inside if len(place) == depth + 1 and e["type"] in _OTHER_SHAPE}
        meant = [((*union, *place[depth + 1 :]), e) for place, e in inside if place[depth] not in others]
        found = [(place, e) for place, e in found if place[:depth] != union or len(place) <= depth] + meant
        unclear += [union] if inside and not meant else []
    return [*found, *((union, None) for union in unclear)]


def short(value: Any) -> str:
    """``repr`` of a value, cut where it is long."""
    return _SHORT.repr(value)
