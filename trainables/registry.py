"""Names in a sweep file: built-in architectures, data sets and losses, and plug-ins as "package.module:callable".

Imports torch only when something is built, so that `plan` stays light.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainables.trial import Trial, canonical_json

Kind = Literal["arch", "dataset", "loss", "call", "metric"]
Reference = str | Mapping[str, Any]
Positive = Annotated[int, Field(ge=1)]


class Parameters(BaseModel):
    """Parameters of a built-in; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MLP(Parameters):
    """Fully connected net with ``depth`` hidden layers of ``width`` units."""

    depth: Annotated[int, Field(ge=1, le=1000)] = 2
    width: Positive = 128
    activation: Literal["relu", "tanh", "gelu"] = "relu"


class Teacher(Parameters):
    """Gaussian inputs labelled by a random ReLU net with one hidden layer."""

    train_size: Positive = 4096
    test_size: Positive = 1024
    dimension: Positive = 64
    classes: Annotated[int, Field(ge=2)] = 10
    width: Positive = 32
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


BUILT_IN: dict[Kind, dict[str, tuple[str, type[Parameters]]]] = {
    "arch": {
        "linear": ("trainables.architectures:linear", Parameters),
        "mlp": ("trainables.architectures:mlp", MLP),
    },
    "dataset": {
        "digits": ("trainables.datasets:digits", Parameters),
        "teacher": ("trainables.datasets:teacher", Teacher),
    },
    "loss": {
        "cross_entropy": ("trainables.losses:cross_entropy", Parameters),
        "mse": ("trainables.losses:mse", Parameters),
    },
    "call": {},
    "metric": {},
}
"""Built-in name -> where it is defined and which parameters it takes."""

DIGITS_TRAIN_SIZE = 1437

_POSITIONAL: dict[Kind, int] = {"arch": 2, "dataset": 1, "loss": 2, "call": 1, "metric": 1}
"""How many arguments a plug-in gets before its parameters."""


class PluginError(ValueError):
    """A name that leads nowhere, or parameters that its target does not take."""


@dataclass(frozen=True)
class Resolved:
    """A reference with its parameters checked.

    Attributes:
        column: what tables show: the name, or canonical JSON when a parameter differs from its default.
        identity: name and every parameter, defaults included: what is hashed.
        target: "package.module:callable".
        parameters: the keyword arguments to call it with.
    """

    column: str
    identity: dict[str, Any]
    target: str
    parameters: dict[str, Any]


def resolve(kind: Kind, reference: Reference) -> Resolved:
    """Checks a reference: a name, a mapping ``{"name": ..., parameters}``, or its canonical JSON.

    Raises:
        PluginError: naming what was found and what is allowed.
    """
    name, given = _split(kind, reference)
    if name in BUILT_IN[kind]:
        target, model = BUILT_IN[kind][name]
        defaults, parameters = _built_in_parameters(kind, name, model, given)
    elif ":" in name:
        target = name
        defaults, parameters = _plugin_parameters(kind, name, given)
    else:
        raise PluginError(_unknown(kind, name))
    shown = {k: v for k, v in parameters.items() if k not in defaults or v != defaults[k]}
    column = canonical_json({"name": name, **shown}) if shown else name
    return Resolved(column, {**defaults, **parameters, "name": name}, target, parameters)


def load(target: str) -> Callable[..., Any]:
    """Imports "package.module:callable".

    Raises:
        PluginError: naming what was found instead.
    """
    module_name, _, attribute = target.partition(":")
    make_working_directory_importable()
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own may raise anything
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise PluginError(f"cannot import {module_name!r} for {target!r}: {what}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [n for n in dir(value) if not n.startswith("_")]
            hint = get_close_matches(part, public, 1)
            found = f"; did you mean {hint[0]!r}?" if hint else f"; it has {', '.join(public[:8]) or 'nothing'}"
            raise PluginError(f"module {module_name!r} has no {part!r}{found}")
        value = getattr(value, part)
    if not callable(value):
        raise PluginError(f"{target!r} is a {type(value).__name__}, not a callable")
    return value  # type: ignore[no-any-return]


def make_working_directory_importable() -> None:
    """Appends the working directory to the import path, last: a user's own ``analysis/`` must not shadow ours."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def source_sha256(target: str) -> str | None:
    """SHA-256 of the file that defines a plug-in, or None where there is no file."""
    module = sys.modules.get(target.partition(":")[0])
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


def can_fuse(arch: str, loss: str) -> bool:
    """Whether the fused step of dense nets covers an architecture with a loss."""
    return resolve("arch", arch).identity["name"] in {"linear", "mlp"} and loss in BUILT_IN["loss"]


def train_size(dataset: str) -> int | None:
    """Training-set size of a built-in data set, without loading it; None for a plug-in."""
    name, given = _split("dataset", dataset)
    if name == "digits":
        return DIGITS_TRAIN_SIZE
    return Teacher(**given).train_size if name == "teacher" else None


def _split(kind: Kind, reference: Reference) -> tuple[str, dict[str, Any]]:
    if isinstance(reference, str) and reference.startswith("{"):
        reference = json.loads(reference)
    if isinstance(reference, str):
        return reference, {}
    if not isinstance(reference, Mapping):
        raise PluginError(f"{kind} must be a name or a mapping with a name, not {reference!r}")
    parameters = dict(reference)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise PluginError(f"{kind} as a mapping needs a name: {{name: ..., parameters}}")
    return name, parameters


def _unknown(kind: Kind, name: str) -> str:
    known = sorted(BUILT_IN[kind])
    allowed = f"{', '.join(known)}, or package.module:callable" if known else "package.module:callable"
    hint = get_close_matches(name, known, 1)
    return f"unknown {kind} {name!r}: allowed are {allowed}" + (f"; did you mean {hint[0]!r}?" if hint else "")


def _built_in_parameters(
    kind: Kind, name: str, model: type[Parameters], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        parameters = model(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = sorted(model.model_fields)
        hint = get_close_matches(where, known, 1)
        raise PluginError(
            f"{kind} {name!r}: parameter {where!r}: {first['msg']}; it takes {', '.join(known) or 'none'}"
            + (f"; did you mean {hint[0]!r}?" if hint and where not in known else "")
        ) from error
    return model().model_dump(), parameters


@lru_cache(maxsize=256)
def _signature(kind: Kind, target: str) -> inspect.Signature:
    function = load(target)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{kind} {target!r}: its signature cannot be read: {error}") from error


def _plugin_parameters(kind: Kind, target: str, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    signature = _signature(kind, target)
    try:
        canonical_json(given)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{kind} {target!r}: parameters must be plain JSON values: {error}") from error
    if kind == "call" and (taken := sorted(given.keys() & Trial.model_fields.keys())):
        raise PluginError(
            f"call {target!r}: parameter {taken[0]!r} is a field of every trial: set it under train or grid"
        )
    if kind == "call":  # gets the whole configuration, its parameters within
        return {}, given
    try:
        signature.bind(*[None] * _POSITIONAL[kind], **given)
    except TypeError as error:
        raise PluginError(f"{kind} {target!r}: {error}; its signature is {signature}") from error
    parameters = list(signature.parameters.values())[_POSITIONAL[kind] :]
    return {p.name: p.default for p in parameters if _is_json(p.default)}, given


def _is_json(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, bool | int | str)
