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
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from trainables.parameters import (
    CIFAR100,
    MLP,
    SGD,
    VGG11,
    Adam,
    AlexNetSmall,
    NudgedSGD,
    Parameters,
    ResNet,
    SimpleCNN,
    Teacher,
)
from trainables.published import PUBLISHED
from trainables.schedules import Schedule
from trainables.trial import Trial, canonical_json

Kind = Literal["arch", "dataset", "loss", "optimizer", "schedule", "call", "metric"]
Reference = str | Mapping[str, Any]


BUILT_IN: dict[Kind, dict[str, tuple[str, type[Parameters]]]] = {
    "arch": {
        "linear": ("trainables.architectures:linear", Parameters),
        "mlp": ("trainables.architectures:mlp", MLP),
        "simple-cnn": ("trainables.architectures:simple_cnn", SimpleCNN),
        "alexnet-small": ("trainables.architectures:alexnet_small", AlexNetSmall),
        "vgg11": ("trainables.architectures:vgg11", VGG11),
        "resnet": ("trainables.architectures:resnet", ResNet),
    },
    "dataset": {
        "digits": ("trainables.datasets:digits", Parameters),
        "mnist": ("trainables.datasets:mnist", Parameters),
        "fashion-mnist": ("trainables.datasets:fashion_mnist", Parameters),
        "cifar10": ("trainables.datasets:cifar10", Parameters),
        "cifar100": ("trainables.datasets:cifar100", CIFAR100),
        "teacher": ("trainables.datasets:teacher", Teacher),
    },
    "loss": {
        "cross_entropy": ("trainables.losses:cross_entropy", Parameters),
        "mse": ("trainables.losses:mse", Parameters),
    },
    "optimizer": {
        "sgd": ("trainables.optimizers:SGD", SGD),
        "adam": ("trainables.optimizers:Adam", Adam),
        "nudged_sgd": ("trainables.optimizers:SGD", NudgedSGD),
    },
    "schedule": {},
    "call": {},
    "metric": {},
}
"""Built-in name -> where it is defined and which parameters it takes."""

FUSED_ACTIVATIONS = {"relu", "tanh", "gelu", "shaped_relu", "tailored_relu"}
"""Those whose derivative the fused step of dense nets knows."""

DIGITS_TRAIN_SIZE = 1437

_POSITIONAL: dict[Kind, int] = {"arch": 2, "dataset": 1, "loss": 2, "call": 1, "metric": 1}
"""How many arguments a plug-in gets before its parameters."""


class PluginError(ValueError):
    """A name that leads nowhere, or parameters that its target does not take."""


@dataclass(frozen=True)
class Resolved:
    """A reference with its parameters checked.

    Attributes:
        name: of the built-in, or "package.module:callable".
        column: what tables show: the name, or canonical JSON when a parameter differs from its default.
        identity: name and every parameter, defaults included: what is hashed. Of an optimizer without parameters that
            matter it is the name alone; parameters that came later are left out while inert.
        target: "package.module:callable".
        parameters: the keyword arguments to call it with.
    """

    name: str
    column: str
    identity: Any
    target: str
    parameters: dict[str, Any]


def resolve(kind: Kind, reference: Reference) -> Resolved:
    """Checks a reference: a name, a mapping ``{"name": ..., parameters}``, or its canonical JSON.

    A schedule is ``constant`` or a mapping of its parts.

    Raises:
        PluginError: naming what was found and what is allowed.
    """
    if kind == "schedule":
        return _schedule(reference)
    name, given = _split(kind, reference)
    if name in BUILT_IN[kind]:
        target, model = BUILT_IN[kind][name]
        defaults, parameters = _built_in_parameters(kind, name, model, given)
    elif ":" in name and kind in _POSITIONAL:
        target = name
        defaults, parameters = _plugin_parameters(kind, name, given)
    else:
        raise PluginError(_unknown(kind, name))
    shown = {k: v for k, v in parameters.items() if k not in defaults or v != defaults[k]}
    column = canonical_json({"name": name, **shown}) if shown else name
    return Resolved(name, column, _identity(kind, name, defaults | parameters), target, parameters)


def _identity(kind: Kind, name: str, parameters: dict[str, Any]) -> Any:
    later = BUILT_IN[kind][name][1].LATER if name in BUILT_IN[kind] else {}
    entering = {k: v for k, v in parameters.items() if not (k in later and v == later[k])}
    return name if kind == "optimizer" and not entering else {**entering, "name": name}


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
    net = resolve("arch", arch)
    of = net.parameters
    plain = net.name == "linear" or (
        net.name == "mlp" and of["norm"] == "none" and not of["dropout"] and of["activation"] in FUSED_ACTIVATIONS
    )
    return plain and loss in BUILT_IN["loss"]


def is_plugin(kind: Kind, reference: str) -> bool:
    """Whether a reference names something of the user's own."""
    return resolve(kind, reference).name not in BUILT_IN[kind]


def batch_statistics(arch: str) -> int | None:
    """Examples of a minibatch that a built-in net normalizes together: 1, a ghost batch, or None for all of them."""
    given = resolve("arch", arch).parameters
    if given.get("norm") != "batch":
        return 1
    size: int | None = given.get("ghost_batch")
    return size


def train_size(dataset: str) -> int | None:
    """Training-set size of a built-in data set, without loading it; None for a plug-in."""
    name, given = _split("dataset", dataset)
    if name == "digits":
        return DIGITS_TRAIN_SIZE
    if name == "teacher":
        return Teacher(**given).train_size
    return PUBLISHED[name].train_size if name in PUBLISHED else None


def example_shape(dataset: str) -> tuple[tuple[int, ...], int] | None:
    """Shape of one example and number of classes of a built-in data set, without loading it; None for a plug-in."""
    name, given = _split("dataset", dataset)
    if name == "digits":
        return (64,), 10
    if name == "teacher":
        teacher = Teacher(**given)
        return teacher.input_shape, teacher.classes
    if name not in PUBLISHED:
        return None
    published = PUBLISHED[name]
    return published.shape, published.classes[CIFAR100(**given).labels if name == "cifar100" else "class"]


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
    allowed = ", ".join([*known, "or package.module:callable"] if kind in _POSITIONAL and known else known)
    allowed = allowed or "package.module:callable"
    hint = get_close_matches(name, known, 1)
    return f"unknown {kind} {name!r}: allowed are {allowed}" + (f"; did you mean {hint[0]!r}?" if hint else "")


def _built_in_parameters(
    kind: Kind, name: str, model: type[Parameters], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        parameters = model(**given).model_dump()
    except ValidationError as error:
        raise PluginError(f"{kind} {name!r}: {_complaint(error, model)}") from error
    return model().model_dump(), parameters


def _schedule(reference: Reference) -> Resolved:
    target = "trainables.schedules:timeline"
    if reference == "constant":
        return Resolved("constant", "constant", "constant", target, {})
    given = json.loads(reference) if isinstance(reference, str) and reference.startswith("{") else reference
    if not isinstance(given, Mapping):
        parts = ", ".join(sorted(Schedule.model_fields))
        raise PluginError(f"unknown schedule {given!r}: allowed are constant, or a mapping of {parts}")
    try:
        schedule = Schedule.model_validate(dict(given))
    except ValidationError as error:
        raise PluginError(f"schedule: {_complaint(error, Schedule)}") from error
    shown = schedule.model_dump(mode="json", exclude_defaults=True)
    identity = schedule.model_dump(mode="json", exclude_none=True)
    return Resolved("schedule", canonical_json(shown), identity, target, shown)


def _complaint(error: ValidationError, model: type[Parameters]) -> str:
    """What is wrong with parameters, and which there are."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt one is missing, too
    text = first["msg"].removeprefix("Value error, ").replace("tuple", "list")
    if not first["loc"]:
        return text
    *outer, where = map(str, first["loc"])
    for name in outer:
        nested = get_args(model.model_fields[name].annotation) if name in model.model_fields else ()
        model = next((m for m in nested if isinstance(m, type) and issubclass(m, Parameters)), model)
    known = sorted(model.model_fields)
    hint = get_close_matches(where, known, 1)
    text = f"parameter {'.'.join([*outer, where])!r}: {text}; it takes {', '.join(known) or 'none'}"
    return text + (f"; did you mean {hint[0]!r}?" if hint and where not in known else "")


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
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return False
    return True
