"""Control trials that a sweep file asks for, beside its grid.

- ``noise_free``: gradient descent on the whole training set in place of the smallest batch size of every iso-ratio
  line, with the same learning rate and as many steps: the same training time, without any noise. With a larger batch
  size it takes fewer, longer steps.
- ``a_a``: the smallest batch sizes again with another order of examples: all that chance does.

Both are trials like all others; :mod:`analysis.controls` tells them apart and says what follows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from trainables.settings import STRICT, Switch
from trainables.trial import AGAIN, FIELDS


class NoiseFree(BaseModel):
    """In place of which minibatches the whole training set is taken."""

    model_config = STRICT
    batch_size: Annotated[int, Field(ge=1)] | None = None  # the largest on the line up to this one; null: the smallest


class Controls(BaseModel):
    """Which controls are added; a list of names is a mapping of those to true."""

    model_config = STRICT
    noise_free: Annotated[NoiseFree | Literal[False], Switch] = False
    a_a: bool = False

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return (
            dict.fromkeys(given, True) if isinstance(given, list) and all(isinstance(n, str) for n in given) else given
        )


_LINE = ", ".join(f'"{field}"' for field in FIELDS if field not in {"lr", "batch_size"})

_ONE_OF_EACH_LINE = f"""
    SELECT * FROM kept WHERE sampler <> 'full' AND "call" IS NULL
    WINDOW line AS (PARTITION BY {_LINE}, round(ln(ratio), 6))
    QUALIFY batch_size = coalesce(
        max(batch_size) FILTER (WHERE batch_size <= {{largest}}) OVER line, min(batch_size) OVER line)
    ORDER BY ALL"""

# What enters the identity of a trial is replaced as well: gradient_noise is left out of it while it is 0.
_NOISE_FREE = """
    SELECT * REPLACE ('full' AS sampler, '"sampler":"full"' AS sampler_json,
        NULL::BIGINT AS order_seed, '"order_seed":null' AS order_seed_json,
        0.0 AS gradient_noise, NULL::VARCHAR AS gradient_noise_json)
    FROM ({chosen})"""

_A_A = f"""
    SELECT * REPLACE (xor(seed, {AGAIN}) AS order_seed, '"order_seed":' || xor(seed, {AGAIN}) AS order_seed_json)
    FROM ({{chosen}}) WHERE order_seed IS NULL OR order_seed = seed"""


def with_controls(controls: Controls) -> str:
    """A query for the trials in ``kept`` (see :func:`orchestrator.grid.points`) and those that controls add."""
    parts = ["FROM kept"]
    if controls.noise_free:
        largest = controls.noise_free.batch_size or 0
        parts.append(_NOISE_FREE.format(chosen=_ONE_OF_EACH_LINE.format(largest=largest)))
    if controls.a_a:
        parts.append(_A_A.format(chosen=_ONE_OF_EACH_LINE.format(largest=0)))
    return " UNION ALL BY NAME ".join(parts)
