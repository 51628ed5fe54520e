"""Columns of every stored table, in the order in which users see them. Imports neither torch, ray nor duckdb."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from typing import Any, get_args

import pyarrow as pa

from trainables.statistics import COLUMNS as BUILT_IN
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.trial import FIELDS, Trial

FORMAT = 2
"""Version of the stored layout, written into every Parquet file."""


class Status(StrEnum):
    """How a trial ended, or where it stands in the plan."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"


_COLUMNS = (
    *("train_loss", "train_accuracy", "test_loss", "test_accuracy", "memorized", "lambda_max", "lambda_min"),
    *("hessian_trace", "hessian_frobenius", "gradient_norm", "gradient_covariance_trace", "noise_scale"),
)
STATISTICS: dict[str, str | None] = {name: ERROR_COLUMN[name] for name in _COLUMNS}
"""Built-in statistics that are columns of every `trials`, each with the column of its error, where there is one.

The others are columns where they were measured, like the metrics of plug-ins.
"""


def _arrow_type(field: str) -> pa.DataType:
    """Of a field of `Trial`, whose annotation may be nested: ``Annotated[int, ...] | None``."""

    def kinds(annotation: Any) -> Iterator[Any]:
        yield annotation
        for argument in get_args(annotation):
            yield from kinds(argument)

    found = set(filter(lambda kind: isinstance(kind, type), kinds(Trial.model_fields[field].annotation)))
    if float in found:
        return pa.float64()
    return pa.int64() if int in found else pa.string()


CONFIGURATION: list[pa.Field] = [pa.field(name, _arrow_type(name)) for name in FIELDS]

_MEASURED = [pa.field(c, pa.float64()) for pair in STATISTICS.items() for c in pair if c is not None]

TRIALS = pa.schema(
    [
        pa.field("sweep", pa.string()),
        pa.field("trial_id", pa.string()),
        pa.field("measure_id", pa.string()),
        *CONFIGURATION,
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("steps", pa.int64()),  # optimizer steps taken
        pa.field("epochs_done", pa.float64()),
        pa.field("reached", pa.bool_()),  # whether `until` held; NULL without one
        *_MEASURED,
        pa.field("pack_id", pa.string()),
        pa.field("slot", pa.int64()),
        pa.field("attempt", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("together", pa.int64()),  # most trials of the pack that were trained at once
        pa.field("physical_batch_size", pa.int64()),  # most examples in one forward pass; NULL: the whole minibatch
        pa.field("seconds", pa.float64()),  # wall time of the pack, divided by its trials
        pa.field("device", pa.string()),
        pa.field("provenance_id", pa.string()),
    ]
)

_POINT = [
    pa.field("sweep", pa.string()),
    pa.field("trial_id", pa.string()),
    pa.field("step", pa.int64()),
    pa.field("epoch", pa.float64()),
]
_ATTEMPT = [pa.field("pack_id", pa.string()), pa.field("attempt", pa.string())]

CURVES = pa.schema(
    [
        *_POINT,
        pa.field("statistic", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("error", pa.float64()),
        *_ATTEMPT,
    ]
)

EIGENVALUES = pa.schema(
    [
        *_POINT,
        pa.field("index", pa.int64()),  # 0 = largest, 1, ...; -1 = smallest, -2, ...
        pa.field("eigenvalue", pa.float64()),
        pa.field("residual", pa.float64()),
        pa.field("products", pa.int64()),  # Hessian products after which it was final
        *_ATTEMPT,
    ]
)

DENSITY = pa.schema(
    [
        *_POINT,
        pa.field("probe", pa.int64()),  # each probe is a quadrature rule of its own: its weights add up to 1
        pa.field("node", pa.float64()),
        pa.field("weight", pa.float64()),
        *_ATTEMPT,
    ]
)

PROFILES = pa.schema(
    [
        *_POINT,
        pa.field("profile", pa.string()),  # which function
        pa.field("x", pa.float64()),
        pa.field("value", pa.float64()),
        pa.field("error", pa.float64()),
        *_ATTEMPT,
    ]
)

PLAN = pa.schema(
    [
        pa.field("sweep", pa.string()),
        pa.field("trial_id", pa.string()),
        pa.field("measure_id", pa.string()),
        pa.field("pack_id", pa.string()),
        pa.field("slot", pa.int64()),
        pa.field("round", pa.int64()),  # how often this trial was tried before
        pa.field("engine", pa.string()),
        pa.field("physical_batch_size", pa.int64()),
        pa.field("cost", pa.float64()),  # relative; packs run longest first
        *CONFIGURATION,
    ]
)

FAILURES = pa.schema(
    [
        pa.field("sweep", pa.string()),
        pa.field("trial_id", pa.string()),
        pa.field("measure_id", pa.string()),
        *CONFIGURATION,
        pa.field("round", pa.int64()),
        pa.field("cause", pa.string()),  # exception, crash, memory or preemption: see orchestrator/attempts.py
        pa.field("error", pa.string()),
        *_ATTEMPT,
        pa.field("seconds", pa.float64()),
        pa.field("device", pa.string()),
    ]
)

PROVENANCE = pa.schema(
    [
        pa.field("provenance_id", pa.string()),
        pa.field("revision", pa.string()),  # of the code; "+dirty" when it had changes
        pa.field("remote", pa.string()),  # where the checkout comes from, without credentials
        pa.field("source_sha256", pa.string()),
        *(pa.field(name, pa.string()) for name in ("python", "isoratio", "torch", "ray", "pyarrow", "numpy", "duckdb")),
        pa.field("cuda", pa.string()),  # torch's; NULL where it has none
        pa.field("cudnn", pa.string()),
        pa.field("os", pa.string()),  # kernel and C library
        pa.field("machine", pa.string()),  # x86_64, aarch64, ...
        pa.field("cpu", pa.string()),
        pa.field("cpu_capability", pa.string()),  # the instructions that torch's kernels use
        pa.field("cores", pa.int64()),  # that the process may use
        pa.field("memory_bytes", pa.int64()),  # to a whole GiB
        pa.field("device", pa.string()),  # name of the GPU, or cpu
        pa.field("gpu_memory_bytes", pa.int64()),
        pa.field("gpu_driver", pa.string()),
        pa.field("threads", pa.int64()),
        pa.field("deterministic", pa.bool_()),
        pa.field("determinism", pa.string()),  # JSON: setting -> value
        pa.field("dataset_sha256", pa.string()),
        pa.field("plugins", pa.string()),  # JSON: target -> SHA-256 of its file
        pa.field("environment", pa.string()),  # JSON: variable -> value, of a closed list
    ]
)

DERIVED = {
    "ratio": "format('{:.9g}', lr / batch_size)::DOUBLE",
    "loss_gap": "test_loss - train_loss",
    "accuracy_gap": "train_accuracy - test_accuracy",
    "stability": "CASE WHEN coalesce(optimizer, '') NOT LIKE '%adam%' AND coalesce(schedule, 'constant') = 'constant' "
    "THEN lr * lambda_max / (2 * (1 + momentum)) END",
}
"""Columns of the views that follow from stored ones, as SQL.

``ratio`` is lr / batch_size to 9 significant digits: in binary .35 / 5 and .14 / 2 differ, and ``GROUP BY ratio`` must
not tear a line of equal ratio apart. At ``stability`` 1, gradient descent, with heavy-ball momentum or without, on a
quadratic of curvature lambda_max stops converging. Adam has no such number, and a schedule no one learning rate.
"""

MEASURED = frozenset({*BUILT_IN, *OF_ENDPOINT})
"""Columns of `trials` that hold a built-in statistic or its error; a trial of the user's own may fill them."""

RESERVED = frozenset({*TRIALS.names, *FAILURES.names, *DERIVED, "planned"})
"""Columns, in any case, that are no metric of a plug-in."""

TAKEN = RESERVED | MEASURED
"""Names, in any case, that a metric of the user's own cannot have."""


def metric_values(what: str, returned: object, taken: Collection[str]) -> dict[str, float]:
    """What a function of the user's own returned, as numbers by name.

    Raises:
        TypeError: it is no dictionary of numbers.
        ValueError: see :func:`check_metric_names`.
    """
    if not isinstance(returned, dict):
        raise TypeError(f"{what}: returned {type(returned).__name__}; dict[str, float] is needed")
    check_metric_names(what, returned, taken)
    return {name: float(value) for name, value in returned.items()}


def check_metric_names(what: str, names: Iterable[Any], taken: Collection[str]) -> None:
    """Refuses names that cannot be columns of `trials`; SQL does not tell names apart by case.

    Raises:
        ValueError: saying that ``what`` returned them.
    """
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{what}: returned the name {name!r}; a name is text that is not empty")
        if name.lower() in taken or (name.lower() in MEASURED and name not in MEASURED):
            raise ValueError(f"{what}: returned {name}: taken by a column of `trials`; choose another name")
        if name.lower() in seen:
            raise ValueError(f"{what}: returned {name} twice: case does not tell names apart")
        seen.add(name.lower())


TABLES: dict[str, pa.Schema] = {
    "trials": TRIALS,
    "curves": CURVES,
    "eigenvalues": EIGENVALUES,
    "density": DENSITY,
    "profiles": PROFILES,
    "plan": PLAN,
    "failures": FAILURES,
    "provenance": PROVENANCE,
}

SIDE_TABLES = ("curves", "eigenvalues", "density", "profiles")
"""Tables with any number of rows for a trial, which its row in `trials` makes visible."""
