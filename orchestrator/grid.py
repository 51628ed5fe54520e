"""The points of a grid: every combination of its axes, each trial once, with its identity."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from orchestrator.axes import MAX_POINTS
from orchestrator.controls import Controls, with_controls
from orchestrator.explain import did_you_mean
from orchestrator.sizes import size as size_of
from trainables.registry import batch_statistics, example_shape, resolve, train_size
from trainables.schedules import step_of
from trainables.schema import CONFIGURATION
from trainables.trial import FIELDS, REFERENCES, SEMANTICS, canonical_json, identity_fields, round_lr

if TYPE_CHECKING:
    from orchestrator.sweepfile import SweepFile

Axes = Mapping[str, Sequence[Any]]
"""Field -> its values, for every field of a trial; of lr, batch_size and ratio any two."""

RATES = ("lr", "batch_size", "ratio")
"""ratio = lr / batch_size: any two of these fix the third."""

COLUMNS = (*FIELDS, "ratio")
"""What a ``where`` condition may mention."""

WHOLE = 1e-6
"""How far, relatively, lr / ratio may lie from a whole batch size."""

_TYPES = {f.name: f.type for f in CONFIGURATION} | {"ratio": pa.float64()}
_SANDBOX: dict[str, Any] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def expand(sweep: SweepFile) -> pa.Table:
    """Every trial of a sweep once: trial_id, measure_id and the configuration.

    The order is that of ``FIELDS`` and of the values, the last axis varying fastest.
    """
    parts = {field: f"{field}_json" for field in FIELDS}
    parts["order_seed"] = "CASE WHEN order_seed = seed THEN '\"order_seed\":null' ELSE order_seed_json END"
    parts["semantics"] = f"'{canonical_json({'semantics': SEMANTICS})[1:-1]}'"
    joined = ", ".join(parts[key] for key in sorted(parts))
    identity = f"sha256('{{' || concat_ws(',', {joined}) || '}}')[:32] AS trial_id"
    measure, axes = f"'{sweep.measure.measure_id}' AS measure_id", sweep.axes
    what = f"{identity}, {measure}, {', '.join(FIELDS)}"
    trials = _select(points(axes, identities=True), what, sweep.where, with_controls(sweep.controls))
    if axes["order_seed"] == [None] and sweep.controls == Controls():
        return trials
    _, first = np.unique(trials["trial_id"].to_numpy(), return_index=True)  # an order seed may be the seed itself
    return trials.take(np.sort(first))  # and a control may be in the grid already


def size(axes: Axes) -> int:
    """Number of combinations, those that coincide counted apart."""
    return math.prod(len(values) for values in axes.values())


def distinct_size(axes: Axes) -> int:
    """Number of distinct points."""
    return math.prod(len(axis.rows) for axis in _independent(axes))


def points(axes: Axes, *, identities: bool = False) -> pa.Table:
    """One row per distinct point: ``COLUMNS``; with identities also each field's part of them, as ``<field>_json``."""
    independent = list(_independent(axes))
    columns = {}
    before, after = 1, math.prod(len(axis.rows) for axis in independent)
    for axis in independent:
        n = len(axis.rows)
        after //= n
        indices = pa.array(np.tile(np.repeat(np.arange(n, dtype=np.int32), after), before))
        before *= n
        for field, values in zip(axis.fields, zip(*axis.rows, strict=True), strict=True):
            columns[field] = pa.DictionaryArray.from_arrays(indices, pa.array(values, _TYPES[field]))
            if identities and field in FIELDS:
                parts = pa.array(_identity_parts(field, values), pa.string())
                columns[f"{field}_json"] = pa.DictionaryArray.from_arrays(indices, parts)
    return pa.table(columns)


def findings(axes: Axes, where: str | None) -> Iterator[Finding]:
    """What is wrong with a grid whose values are each right by themselves."""
    if size(axes) > MAX_POINTS:
        yield Finding("grid", None, f"the grid has {size(axes):,} points: at most {MAX_POINTS:,} are allowed")
        return
    if broken := list(_broken_rates(axes)):
        yield from broken
        return
    if where is not None and (text := _condition_error(where)):
        yield Finding("where", None, text)
        return
    yield from _empty_or_oversized(axes, where)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a grid.

    Attributes:
        field: what it is about: a field, ``grid`` or ``where``.
        value: which of the field's values; None for all of them.
        text: what is wrong and what is allowed.
    """

    field: str
    value: Any
    text: str


@dataclass(frozen=True)
class _Axis:
    """Fields that vary together, one row per value."""

    fields: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def _independent(axes: Axes) -> Iterator[_Axis]:
    """The axes with every value once: lr, batch_size and ratio as one of them, all fixed fields as another."""
    distinct = {f: [(v,) for v in dict.fromkeys(axes[f])] for f in FIELDS if f not in {"lr", "batch_size"}}
    fixed = {field: rows[0][0] for field, rows in distinct.items() if len(rows) == 1}
    yield _Axis(tuple(fixed), [tuple(fixed.values())])
    rates = dict.fromkeys((lr, batch_size, round_lr(lr / batch_size)) for lr, batch_size in _rates(axes))
    for field in FIELDS:
        if field == "lr":
            yield _Axis(RATES, list(rates))
        elif field in distinct and field not in fixed:
            yield _Axis((field,), distinct[field])


def _rates(axes: Axes) -> Iterator[tuple[float, int]]:
    """All pairs of learning rate and batch size."""
    if "ratio" not in axes:
        return ((round_lr(lr), batch_size) for lr, batch_size in product(axes["lr"], axes["batch_size"]))
    if "lr" not in axes:
        return ((round_lr(ratio * b), b) for ratio, b in product(axes["ratio"], axes["batch_size"]))
    return ((round_lr(lr), round(lr / ratio)) for lr, ratio in product(axes["lr"], axes["ratio"]))


def _broken_rates(axes: Axes) -> Iterator[Finding]:
    """Pairs that give no batch size, one finding per learning rate."""
    if "batch_size" in axes:
        return
    for lr in axes["lr"]:
        for ratio in axes["ratio"]:
            batch_size = lr / ratio
            if not 0.5 <= batch_size < 2**63 or abs(batch_size - round(batch_size)) > WHOLE * batch_size:
                text = f"lr {lr} / ratio {ratio} gives batch size {batch_size:.6g}: it must be a whole number >= 1"
                yield Finding("lr", lr, f"{text}; give batch_size and one of the two instead")
                break


def _empty_or_oversized(axes: Axes, where: str | None) -> Iterator[Finding]:
    rows = points(axes)
    try:
        distinct = [_select(rows, f"DISTINCT {', '.join(fields)}", where).to_pylist() for fields, _ in _CHECKS]
    except duckdb.Error as error:
        yield Finding("where", None, f"the condition cannot be evaluated: {_first_line(error)}")
        return
    if not distinct[0]:
        yield Finding("where", None, f"no point is left: the condition holds for none of {size(axes):,}")
    for combinations, (_, check) in zip(distinct, _CHECKS, strict=True):
        for settings in combinations:
            if settings["call"] is None:  # a trial of the user's own has its own rules
                yield from check(settings)


def _length_findings(run: Mapping[str, Any]) -> Iterator[Finding]:
    """What does not go with the size of the training set, where that is known."""
    whole, part, batch_size = train_size(run["dataset"]), run["train_size"], run["batch_size"]
    if whole is not None and part is not None and part > whole:
        yield Finding("train_size", part, f"train_size {part}: {run['dataset']} has {whole} training examples")
        return
    n = whole if part is None else part
    if n is None:
        return
    if batch_size > n:
        text = f"batch size {batch_size} exceeds the training set of {run['dataset']}: at most {n} is allowed"
        yield Finding("batch_size", batch_size, text)
    elif run["epochs"] is not None and step_of(run["epochs"], n, batch_size) == 0:
        text = f"{run['epochs']:g} epochs of {n} examples are not one step at batch size {batch_size}"
        yield Finding("epochs", run["epochs"], f"{text}: more than {0.5 * batch_size / n:.2g} are needed")


def _kind_findings(kind: Mapping[str, Any]) -> Iterator[Finding]:
    """Settings that do not go together."""
    if resolve("optimizer", kind["optimizer"]).name == "adam" and kind["momentum"]:
        yield Finding("momentum", kind["momentum"], f"momentum {kind['momentum']:g}: adam has beta1 instead; set 0")
    example = example_shape(kind["dataset"])
    if example is None:
        return
    try:
        size_of(kind["arch"], *example)
    except ValueError as error:
        yield Finding("arch", kind["arch"], f"arch {kind['arch']} cannot take data set {kind['dataset']}: {error}")
    if kind["augment"] != "none" and len(example[0]) != 3:
        text = f"augment {kind['augment']} needs images (channels, height, width); an example of {kind['dataset']}"
        yield Finding("augment", kind["augment"], f"{text} has shape {example[0]}")


def _batch_findings(kind: Mapping[str, Any]) -> Iterator[Finding]:
    """Batch norm over one number, which has no variance."""
    arch, batch_size = kind["arch"], kind["batch_size"]
    example, together = example_shape(kind["dataset"]), batch_statistics(arch)
    changes = resolve("schedule", kind["schedule"]).parameters.get("of") == "batch_size"
    if together == 1 or example is None or changes or kind["sampler"] == "full":
        return
    if batch_size == 1 or (together is not None and batch_size % together == 1):
        try:
            net = size_of(arch, *example)
        except ValueError:
            return  # found already
        if net is not None and net.normalizes_numbers:
            text = f"batch size {batch_size}: arch {arch} normalizes each unit over the examples of a minibatch"
            text += f", in ghost batches of {together}, of which the last would have one" if batch_size > 1 else ""
            yield Finding("batch_size", batch_size, f"{text}; at least 2 are needed")


def _order_findings(point: Mapping[str, Any]) -> Iterator[Finding]:
    """Orders of examples that are all seen at once."""
    if point["reorders"] and point["sampler"] == "full":
        text = f"order_seed {point['order_seed']}: with sampler full every step takes the whole training set"
        yield Finding("order_seed", point["order_seed"], f"{text}, so the order changes nothing; leave it out")


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Iterator[Finding]]], ...] = (
    (("dataset", "train_size", "batch_size", "epochs", "max_steps", "call"), _length_findings),
    (("arch", "dataset", "augment", "optimizer", "momentum", "call"), _kind_findings),
    (("arch", "dataset", "batch_size", "schedule", "sampler", "call"), _batch_findings),
    (("order_seed", "sampler", "order_seed <> seed AS reorders", "call"), _order_findings),
)
"""What settings are checked together, and how."""


def _condition_error(where: str) -> str | None:
    """What is wrong with a condition, before it is evaluated."""
    nothing = pa.schema([(name, _TYPES[name]) for name in COLUMNS]).empty_table()
    with duckdb.connect(config=_SANDBOX) as connection:
        rows = connection.from_arrow(nothing)
        try:
            kinds = rows.select(duckdb.SQLExpression(where)).types
            rows.filter(duckdb.SQLExpression(where)).fetchall()
        except duckdb.Error as error:
            unknown = re.search(r'Referenced column "(.+?)" not found', str(error))
            if unknown:
                hint = did_you_mean(unknown[1], COLUMNS)
                return f"unknown column {unknown[1]!r}: columns are {', '.join(COLUMNS)}{hint}"
            return f"not a condition in SQL: {_first_line(error)}"
        changing = {n for (n,) in connection.sql(_CHANGING).fetchall()} & set(re.findall(r"(\w+)\s*\(", where.lower()))
    if changing:
        return f"{changing.pop()}() gives something else each time: the points of a grid must not change"
    if kinds != ["BOOLEAN"]:
        return f"should be one condition, true or false; this is {', '.join(map(str, kinds))}"
    return None


_CHANGING = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _identity_parts(field: str, values: Sequence[Any]) -> list[str | None]:
    """Each value's part of the canonical JSON behind ``trial_id``; None where it does not enter."""
    if field in REFERENCES:
        texts = [canonical_json(v if v is None else resolve(field, v).identity) for v in values]  # type: ignore[arg-type]
    else:
        texts = canonical_json(values)[1:-1].split(",")  # numbers and names: none has a comma
    return [f'"{field}":{t}' if identity_fields({field: v}) else None for v, t in zip(values, texts, strict=True)]


def _select(rows: pa.Table, what: str, where: str | None, source: str = "FROM kept") -> pa.Table:
    """Some columns of the rows for which a condition of the user's holds, without access to anything else.

    Args:
        rows: of the grid.
        what: the columns, in SQL.
        where: the condition.
        source: what to do with the rows in ``kept`` before.
    """
    with duckdb.connect(config=_SANDBOX) as connection:
        connection.register("points", rows)
        kept = connection.sql("FROM points")
        if where is not None:
            kept = kept.filter(duckdb.SQLExpression(where))
        selected = kept.query("kept", f"SELECT {what} FROM ({source})")
        assert selected is not None
        return selected.to_arrow_table()
