"""Control trials that a sweep file asks for, beside its grid.

- ``noise_free``: gradient descent on the whole training set in place of the smallest batch size of every iso-ratio
  line, with the same learning rate and as many steps: the same training time, without any noise.
- ``a_a``: the same cells again with another order of examples: all that chance does.

Both are trials like all others; :mod:`analysis.controls` tells them apart and says what follows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from trainables.trial import AGAIN, FIELDS

Control = Literal["noise_free", "a_a"]

_LINE = ", ".join(f'"{field}"' for field in FIELDS if field not in {"lr", "batch_size"})

_FIRST = f"""
    SELECT * FROM kept WHERE sampler <> 'full' AND "call" IS NULL
    QUALIFY batch_size = min(batch_size) OVER (PARTITION BY {_LINE}, round(ln(ratio), 6))
    ORDER BY ALL"""

# What enters the identity of a trial is replaced as well: gradient_noise is left out of it while it is 0.
_CONTROLS: dict[str, str] = {
    "noise_free": f"""
    SELECT * REPLACE ('full' AS sampler, '"sampler":"full"' AS sampler_json,
        NULL::BIGINT AS order_seed, '"order_seed":null' AS order_seed_json,
        0.0 AS gradient_noise, NULL::VARCHAR AS gradient_noise_json)
    FROM ({_FIRST})""",
    "a_a": f"""
    SELECT * REPLACE (xor(seed, {AGAIN}) AS order_seed, '"order_seed":' || xor(seed, {AGAIN}) AS order_seed_json)
    FROM ({_FIRST}) WHERE order_seed IS NULL OR order_seed = seed""",
}


def with_controls(controls: Collection[Control]) -> str:
    """A query for the trials in ``kept`` (see :func:`orchestrator.grid.points`) and those that controls add."""
    return " UNION ALL BY NAME ".join(["FROM kept", *(_CONTROLS[control] for control in dict.fromkeys(controls))])
