"""What a trial is: its configuration and the identity that follows from it. Imports neither torch nor ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from trainables.stopping import canonical_condition

SEMANTICS = 1
"""Raised when training itself changes meaning, so that older rows no longer satisfy a launch."""

LATER_FIELDS: dict[str, Any] = {
    "input_noise": 0.0,
    "gradient_noise": 0.0,
    "pixel_shuffle": "none",
    "augment": "none",
    "train_size": None,
    "schedule": "constant",
    "max_steps": None,
    "until": None,
}
"""Fields added after the first release, each with its inert value: left out of the identity while they hold it."""

AGAIN = 2**32
"""The order seed of a trial that is run again to see what chance does is its seed with this bit flipped."""

Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Trial(BaseModel):
    """One point of a sweep: every field that shapes training, defaults resolved.

    ``arch``, ``dataset``, ``loss``, ``optimizer`` and ``call`` hold a name, or canonical JSON ``{"name": ...,
    parameters}``; ``schedule`` holds ``constant`` or canonical JSON (see :mod:`trainables.registry`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: str = "mlp"
    dataset: str
    lr: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=1)]
    label_noise: Probability = 0.0  # each training label redrawn
    input_noise: Probability = 0.0  # each training input replaced by Gaussian noise
    gradient_noise: Annotated[float, Field(ge=0)] = 0.0  # sigma of isotropic noise added to each example's gradient
    pixel_shuffle: Literal["none", "fixed", "per_image"] = "none"
    augment: Literal["none", "flip", "crop", "crop_flip"] = "none"
    train_size: Annotated[int, Field(ge=1)] | None = None  # None: the whole training set
    seed: Seed = 0
    order_seed: Seed | None = None  # None: the order follows `seed`
    epochs: Annotated[float, Field(gt=0)] | None = 20.0  # None where max_steps says how long
    max_steps: Annotated[int, Field(ge=1)] | None = None
    until: Annotated[str, AfterValidator(canonical_condition)] | None = None
    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: str = "constant"
    sampler: Literal["stream", "replacement", "full"] = "stream"
    precision: Literal["float32", "float64"] = "float32"
    call: str | None = None  # a whole trial of the user's own

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("one of epochs and max_steps is needed")
        return self

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """From a row of a table; one of an earlier version lacks later fields."""
        given = {name: row.get(name) for name in cls.model_fields}
        return cls(**{name: v for name, v in given.items() if v is not None or name == "epochs"})

    @property
    def order(self) -> int:
        """The seed of the example stream."""
        return self.seed if self.order_seed is None else self.order_seed


FIELDS: tuple[str, ...] = tuple(Trial.model_fields)
"""The scientific fields, in the order in which tables show them."""

REFERENCES: tuple[str, ...] = ("arch", "dataset", "loss", "optimizer", "schedule", "call")
"""The fields that name a built-in or a plug-in."""

WITHIN_PACK: tuple[str, ...] = (
    *("lr", "label_noise", "input_noise", "gradient_noise", "seed", "order_seed", "momentum", "weight_decay"),
)
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
