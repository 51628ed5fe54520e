"""Trials in and out: export a sweep's tables, import trials that were measured elsewhere."""

from __future__ import annotations

import csv
import math
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from analysis.database import COLUMNS, MEASURED, as_store, connect, fetch, naming_damage
from trainables.schema import DERIVED, RESERVED, TRIALS, Status
from trainables.storage import StoreError
from trainables.store import Store, SweepStore, new_attempt, table
from trainables.trial import FIELDS, Trial, canonical_json, content_id, round_lr

Row = dict[str, Any]

_SORTED = {
    "trials": "trial_id",
    "curves": "trial_id, step, statistic",
    "eigenvalues": 'trial_id, step, "index"',
    "density": "trial_id, step, probe, node",
    "profiles": "trial_id, step, profile, x",
    "plan": "pack_id, slot",
    "provenance": "provenance_id",
}
_OPTIONS = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}


# --- export ---------------------------------------------------------------------------------------------------------


def export(store: str | Path | Store, sweep: str, dest: str | Path) -> Path:
    """Writes a sweep's tables, whole or not at all; never replaces what is there.

    The name decides: ``x.parquet`` and ``x.csv`` hold `trials`; ``x.duckdb`` holds every view as a table; a name
    without a suffix becomes a directory with one Parquet file per view.

    Raises:
        ValueError: for another suffix, or a destination that exists or cannot be written.
        StoreError: for a sweep that does not exist, or a damaged file.
    """
    dest = Path(dest).expanduser()
    if dest.suffix not in {*_OPTIONS, ".duckdb", ""}:
        raise ValueError(f"{dest}: allowed are .parquet, .csv, .duckdb, or no suffix for a directory")
    if dest.exists() or dest.is_symlink():
        raise ValueError(f"{dest}: exists and is not replaced; remove it or choose another name")
    source = as_store(store).existing(sweep)
    try:
        with _whole(dest) as partial, connect(store, sweep) as connection, naming_damage([source]):
            _write(connection, dest.suffix, partial)
    except (duckdb.Error, OSError) as error:
        raise ValueError(f"{dest}: cannot be written: {error}") from error
    return dest


@contextmanager
def _whole(dest: Path) -> Iterator[Path]:
    partial = dest.with_name(f".{dest.name}.{secrets.token_hex(6)}.partial")
    try:
        yield partial
        partial.rename(dest)
    except BaseException:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def _write(connection: duckdb.DuckDBPyConnection, suffix: str, path: Path) -> None:
    if suffix in _OPTIONS:
        _copy(connection, "trials", path, _OPTIONS[suffix])
    elif suffix == ".duckdb":
        connection.execute(f"ATTACH {_literal(path)} AS exported")
        for view, order in _SORTED.items():
            connection.execute(f"CREATE TABLE exported.{view} AS FROM {view} ORDER BY {order}")
        connection.execute("DETACH exported")
    else:
        path.mkdir()
        for view in COLUMNS:
            _copy(connection, view, path / f"{view}.parquet", _OPTIONS[".parquet"])


def _copy(connection: duckdb.DuckDBPyConnection, view: str, path: Path, options: str) -> None:
    connection.execute(f"COPY (FROM {view} ORDER BY {_SORTED[view]}) TO {_literal(path)} ({options})")


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


# --- import ---------------------------------------------------------------------------------------------------------

_OUTCOME: dict[str, Any] = {
    "status": Literal["finished", "diverged", "failed"],
    "error": str,
    "steps": NonNegativeInt,
    "epochs_done": float,
    "reached": bool,
    "seconds": float,
    "device": str,
}
"""What a row may say about how its trial went."""

_GIVEN_ANEW = {
    *["sweep", "trial_id", "measure_id", "pack_id", "slot", "attempt", "engine", "provenance_id"],
    *["together", "physical_batch_size", *DERIVED],
}
"""Columns of an export that an import does not take."""

_IN_EVERY_ROW = ("lr", "batch_size", "seed")
_FRACTIONS = ("train_accuracy", "test_accuracy", "memorized")
_SHOWN = 20  # problems in one message


def _within_0_1(value: float) -> float:
    if value < 0 or value > 1:  # NaN passes: it is dealt with as in any metric
        raise ValueError("a fraction between 0 and 1 is expected, not a percentage")
    return value


_Fraction = Annotated[float, AfterValidator(_within_0_1)]


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        sweep: where the trials are.
        added: trials that are new.
        known: trials that were there already, with the same values.
        diverged: those of the file that count as diverged.
        metrics: columns taken as metrics, with a value somewhere.
        ignored: columns that were not taken: identities and derived columns are given anew.
    """

    sweep: str
    added: int
    known: int
    diverged: int
    metrics: tuple[str, ...]
    ignored: tuple[str, ...]


def import_trials(store: str | Path | Store, file: str | Path, sweep: str) -> Imported:
    """Adds trials measured elsewhere, from Parquet or CSV, to a sweep of imported trials.

    - Needed: ``lr``, ``batch_size`` and a metric. Every column that `trials` does not know is a metric, a number.
    - Configuration that is not given is NULL: nothing is assumed. ``arch``, ``optimizer`` and the like may be any text.
    - Without a ``seed`` column, rows of one configuration count as seeds 0, 1, ... in the order of the file; such seeds
      name repetitions, and pairing them across configurations brings nothing.
    - An empty field was not measured. A metric that is NaN or infinite is stored as NULL, and its trial counts as
      diverged unless a ``status`` column says otherwise. A row without any metric needs a status that says why.
    - A trial's identity is its configuration and seed: the same file again adds nothing; other values for a trial that
      is there are refused. Imported trials never satisfy a launch.
    - ``trial_id``, ``ratio`` and other columns of an export that are identities or follow from others are given anew.

    Raises:
        ValueError: naming every bad value by row (the first below the header is 1) and column; nothing is written then.
        StoreError: for a sweep that was launched, or a bad name.
    """
    target, file = as_store(store).sweep(sweep), Path(file).expanduser()
    if target.plan_name() is not None:
        raise StoreError(
            f"sweep {sweep!r} was launched: imported trials need a sweep of their own; choose another name"
        )
    given = _read(file)
    metrics = _metrics(list(given[0]), file)
    rows = _checked(given, metrics, file)
    new = _unknown(rows, metrics, as_store(store), target, file)
    added = len(new) if _commit(new, target) else 0
    diverged = sum(row["status"] == Status.DIVERGED for row in rows)
    measured = tuple(name for name in metrics if any(row[name] is not None for row in rows))
    return Imported(sweep, added, len(rows) - added, diverged, measured, tuple(sorted(_GIVEN_ANEW & {*given[0]})))


def _read(file: Path) -> list[Row]:
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    if file.suffix not in readers:
        raise ValueError(f"{file}: a .parquet or .csv file is expected")
    try:
        names, rows = readers[file.suffix](file)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    names = [name.strip() for name in names]
    names = [name.lower() if name.lower() in COLUMNS["trials"] else name for name in names]
    if repeated := [name for name, count in Counter(map(str.lower, names)).items() if count > 1]:
        raise ValueError(f"{file}: more than one column is called {', '.join(map(repr, repeated))}")
    if not rows:
        raise ValueError(f"{file}: it has no rows")
    if ragged := [number for number, row in enumerate(rows, 1) if len(row) != len(names)]:
        raise ValueError(f"{file}: row {ragged[0]}: {len(names)} values are expected, one per column")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _read_parquet(file: Path) -> tuple[list[str], list[list[Any]]]:
    rows = pq.read_table(file)
    return rows.column_names, [list(row) for row in zip(*(c.to_pylist() for c in rows.columns), strict=True)]


def _read_csv(file: Path) -> tuple[list[str], list[list[Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        names, *lines = [*csv.reader(stream, strict=True)] or [[]]
    return names, [[value.strip() or None for value in line] for line in lines if line]


def _metrics(names: list[str], file: Path) -> list[str]:
    for needed in ("lr", "batch_size"):
        if needed not in names:
            hint = get_close_matches(needed, names, 1)
            found = f"did you mean {hint[0]!r}?" if hint else f"it has {', '.join(names)}"
            raise ValueError(f"{file}: column {needed!r} is missing; {found}")
    metrics = [name for name in names if name not in {*FIELDS, *_OUTCOME, *_GIVEN_ANEW}]
    if taken := sorted({name for name in metrics if name.lower() in RESERVED} - {*MEASURED}):
        raise ValueError(f"{file}: no metric may be called {', '.join(map(repr, taken))}; rename the column")
    if not metrics:
        raise ValueError(f"{file}: a metric is needed, such as test_accuracy or lambda_max; it has {', '.join(names)}")
    return metrics


def _checked(given: list[Row], metrics: list[str], file: Path) -> list[Row]:
    """The rows in the types of their columns, with status, seed and identity."""
    types = {name: _type(name) for name in given[0] if name not in _GIVEN_ANEW}
    shape: Any = GenericAlias(list, (cast(Any, TypedDict)("shape", types),))
    try:
        rows = TypeAdapter[list[Row]](shape).validate_python([{name: row[name] for name in types} for row in given])
    except ValidationError as error:
        raise _refusal(file, [_problem(**found) for found in error.errors(include_url=False)]) from error
    problems = [problem for number, row in enumerate(rows, 1) if (problem := _settle(row, metrics, number))]
    problems += _identify(rows)
    if problems:
        raise _refusal(file, problems)
    return rows


def _problem(loc: tuple[Any, ...], input: Any, msg: str, **_: Any) -> str:  # noqa: A002  (pydantic's name)
    found = "nothing" if input is None else repr(input)
    return f"row {loc[0] + 1}, column {loc[1]!r}: {found}: {msg.removeprefix('Value error, ')}"


def _refusal(file: Path, problems: list[str]) -> ValueError:
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return ValueError("\n".join([f"{file}: {problem}" for problem in problems[:_SHOWN]] + more))


def _type(name: str) -> Any:
    """What a column may hold: numbers within the bounds of their field, any text where a sweep file names things."""
    if name in _OUTCOME:
        return _OUTCOME[name] | None
    if name not in FIELDS:
        return (_Fraction if name in _FRACTIONS else float) | None
    if TRIALS.field(name).type == pa.string():
        return str | None
    info = Trial.model_fields[name]
    number: Any = Annotated[info.annotation, Field(allow_inf_nan=False), *info.metadata]
    return number if name in _IN_EVERY_ROW else number | None


def _settle(row: Row, metrics: list[str], number: int) -> str | None:
    """Completes a row; returns what is wrong with it, if anything."""
    row["lr"] = round_lr(row["lr"])
    bad = [name for name in metrics if row[name] is not None and not math.isfinite(row[name])]
    row.update(dict.fromkeys(bad))
    if bad and row.get("status") is None:
        row |= {"status": Status.DIVERGED, "error": row.get("error") or f"not finite: {', '.join(bad)}"}
    elif row.get("status") is None:
        row["status"] = Status.FINISHED
    if row["status"] == Status.FINISHED and all(row[name] is None for name in metrics):
        return f"row {number}: no metric has a value; a status column must say why (diverged or failed)"
    return None


def _identify(rows: list[Row]) -> list[str]:
    """Gives every row its seed and trial_id; returns the repetitions."""
    seeds: Counter[str] = Counter()
    first: dict[str, int] = {}
    problems = []
    for number, row in enumerate(rows, 1):
        configuration = {name: row[name] for name in FIELDS if row.get(name) is not None}
        if "seed" not in row:
            key = canonical_json(configuration)
            row["seed"] = configuration["seed"] = seeds[key]
            seeds[key] += 1
        row["trial_id"] = content_id(canonical_json({"imported": configuration}))
        if first.setdefault(row["trial_id"], number) != number:
            problems.append(f"row {number}: the same configuration and seed as row {first[row['trial_id']]}")
    return problems


def _unknown(rows: list[Row], metrics: list[str], store: Store, target: SweepStore, file: Path) -> list[Row]:
    """The rows whose trials the sweep lacks."""
    if not target.holds_anything():
        return rows
    with connect(store, target.name) as connection:
        found = fetch(connection, "FROM trials", [target])
    stored = {row["trial_id"]: row for row in found.to_pylist()}
    compared = ("status", *metrics)
    problems = [
        f"row {number}, column {name!r}: {row[name]!r}, but this trial is in sweep {target.name!r} with {there!r}; "
        "add a seed column if it is a repetition, or import into another sweep"
        for number, row in enumerate(rows, 1)
        if row["trial_id"] in stored
        for name in compared
        if row[name] != (there := stored[row["trial_id"]].get(name))
    ]
    if problems:
        raise _refusal(file, problems)
    return [row for row in rows if row["trial_id"] not in stored]


def _commit(rows: list[Row], target: SweepStore) -> bool:
    if not rows:
        return False
    target.mark_format()
    pack_id = "import-" + content_id(canonical_json(sorted(row["trial_id"] for row in rows)))[:16]
    attempt = new_attempt()
    common = {"sweep": target.name, "pack_id": pack_id, "attempt": attempt, "engine": "import"}
    rows = [row | common | {"slot": slot} for slot, row in enumerate(rows)]
    return target.commit(pack_id, attempt, table(rows, TRIALS), {})
