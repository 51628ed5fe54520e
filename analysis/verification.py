"""Is every stored file what was written? What is not goes to quarantine, so that the rest can be asked and resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.database import select_sweeps
from trainables.schema import SIDE_TABLES
from trainables.store import ENDPOINTS, Store, SweepStore


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        sweep: name.
        file: its path below the sweep's directory.
        problem: what is wrong with it.
    """

    sweep: str
    file: str
    problem: str


def verify(store: str | Path | Store, sweep: str | None = None) -> list[Damage]:
    """Checks every file against the size and SHA-256 that its commit recorded, and moves damaged packs to quarantine.

    A pack goes as a whole: its rows of all tables, its endpoints and its sums. ``isoratio resume`` then runs its trials
    again.

    Args:
        store: its directory.
        sweep: only this one.

    Raises:
        StoreError: no such sweep.
    """
    return [damage for each in select_sweeps(store, sweep) for damage in (*_packs(each), *_others(each))]


def _packs(sweep: SweepStore) -> Iterator[Damage]:
    for pack_id in sorted(sweep.committed_packs()):
        damaged = list(_pack(sweep, pack_id))
        yield from damaged
        if damaged:
            found = [sweep.rows_path(pack_id)]
            for table in (*SIDE_TABLES, ENDPOINTS, "sums"):
                found += (sweep.path / table).glob(f"{pack_id}.*")
            _quarantine(sweep, found)


def _pack(sweep: SweepStore, pack_id: str) -> Iterator[Damage]:
    """What is wrong with the files of the attempt that was accepted: the one whose sums fit the pack's rows."""
    rows = f"trials/{pack_id}.parquet"
    actual = hashlib.sha256((sweep.path / rows).read_bytes()).hexdigest()
    for path in (sweep.path / "sums").glob(f"{pack_id}.*.json"):
        try:
            sums = json.loads(path.read_bytes())
            fits = sums[rows]["sha256"] == actual
        except (ValueError, KeyError, TypeError):
            yield Damage(sweep.name, str(path.relative_to(sweep.path)), "not the sums of a commit")
            return
        if fits:
            for name, expected in sums.items():
                problem = _problem(sweep.path / name, expected)
                if problem:
                    yield Damage(sweep.name, name, problem)
            return
    yield Damage(sweep.name, rows, "differs from what was committed")


def _problem(path: Path, expected: dict[str, object]) -> str | None:
    if not path.exists():
        return "missing"
    data = path.read_bytes()
    if len(data) != expected["size"]:
        return f"has {len(data)} bytes instead of {expected['size']}"
    return None if hashlib.sha256(data).hexdigest() == expected["sha256"] else "differs from what was committed"


def _others(sweep: SweepStore) -> Iterator[Damage]:
    """Files without sums need at least be readable; they tell of failures and origins, or can be made again."""
    for path in (path for table in ("plan", "failures", "provenance") for path in sweep.files(table)):
        try:
            pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            yield Damage(sweep.name, str(path.relative_to(sweep.path)), f"cannot be read: {str(error).splitlines()[0]}")
            _quarantine(sweep, [path])


def _quarantine(sweep: SweepStore, paths: list[Path]) -> None:
    for path in paths:
        target = sweep.path / "quarantine" / path.relative_to(sweep.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
