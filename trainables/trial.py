"""What a trial is: its configuration and the identity that follows from it. Imports neither torch nor ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SEMANTICS = 1
"""Raised when training itself changes meaning, so that older rows no longer satisfy a launch."""

LATER_FIELDS: dict[str, Any] = {}
"""Fields added after the first release, each with its inert value: left out of the identity while they hold it."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Trial(BaseModel):
    """One point of a sweep: every field that shapes training, defaults resolved.

    ``arch``, ``dataset``, ``loss`` and ``call`` hold a name, or canonical JSON ``{"name": ..., parameters}``
    (see :mod:`trainables.registry`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: str = "mlp"
    dataset: str
    lr: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=1)]
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Seed = 0
    order_seed: Seed | None = None  # None: the order follows `seed`
    epochs: Annotated[float, Field(gt=0)] = 20.0
    loss: str = "cross_entropy"
    optimizer: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    sampler: Literal["stream", "replacement"] = "stream"
    precision: Literal["float32", "float64"] = "float32"
    call: str | None = None  # a whole trial of the user's own

    @property
    def order(self) -> int:
        """The seed of the example stream."""
        return self.seed if self.order_seed is None else self.order_seed


FIELDS: tuple[str, ...] = tuple(Trial.model_fields)
"""The scientific fields, in the order in which tables show them."""

REFERENCES: tuple[str, ...] = ("arch", "dataset", "loss", "call")
"""The fields that name a built-in or a plug-in."""

WITHIN_PACK: tuple[str, ...] = ("lr", "label_noise", "seed", "order_seed", "momentum", "weight_decay")
"""Fields in which the trials of one pack may differ; all others shape the computation."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no white space; floats in Python's shortest form that reads back the same."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(text: str) -> str:
    """The first 128 bits of SHA-256 of ``text``, as 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def identity_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that enter the identity: all of them, but later ones only when they are not inert."""
    return {k: v for k, v in values.items() if not (k in LATER_FIELDS and v == LATER_FIELDS[k])}


def trial_id(resolved: Mapping[str, Any]) -> str:
    """Identity of a trial whose references are already resolved to ``{"name": ..., **parameters}``.

    An order seed that is the seed itself counts as none.

    Args:
        resolved: every field of :data:`FIELDS`.
    """
    fields = identity_fields(resolved) | {"semantics": SEMANTICS}
    if fields.get("order_seed") == fields.get("seed") and "order_seed" in fields:
        fields["order_seed"] = None
    return content_id(canonical_json(fields))


@lru_cache(maxsize=64)
def field_adapter(field: str) -> TypeAdapter[Any]:
    """Validates one value of one field, in the words of the field's own type and bounds."""
    info = Trial.model_fields[field]
    annotation: Any = info.annotation
    for bound in info.metadata:
        annotation = Annotated[annotation, bound]
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def round_lr(lr: float) -> float:
    """``lr`` to 12 significant digits, so that 32 * 5e-4 and a typed 0.016 are one trial."""
    return float(f"{lr:.12g}")
