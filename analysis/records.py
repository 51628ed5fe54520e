"""What is wrong with one file of a sweep, as far as it tells itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.discarding import MERGED_NAME
from trainables.lease import Holder
from trainables.manifest import FOLDER as MANIFEST
from trainables.manifest import MERGED
from trainables.same_data import FOLDER as DATASETS
from trainables.schema import FORMAT, SIDE_TABLES, TABLES
from trainables.sealed import is_whole
from trainables.storage import LocalStorage, Storage
from trainables.store import ENDPOINTS, parquet_bytes
from trainables.trial import canonical_json, content_id

_PARTS = {"pack": "[^.]+", "attempt": "[^.]+", "hash": "[0-9a-f]{16}", "number": r"\d{6,}"}
_FOLDERS = {
    "": r"format\.json|sweep\.(yaml|toml)|plan\.parquet",
    "trials": r"{pack}\.parquet",
    **dict.fromkeys(SIDE_TABLES, r"{pack}\.{attempt}\.parquet"),
    ENDPOINTS: r"{pack}\.{attempt}\.safetensors",
    "sums": r"{pack}\.{attempt}\.json",
    MERGED: MERGED_NAME.pattern.replace("{", "{{").replace("}", "}}"),
    "plan": r"{number}-\d{{4,}}\.{hash}\.parquet",
    "failures": r"{pack}\.{attempt}(\.{hash})?\.parquet",
    "checkpoints": r"{pack}\.\d{{4,}}-\d{{10,}}\.{hash}\.safetensors",
    "provenance": r"{pack}\.parquet",
    "splits": r"{pack}\.(\d+\.(\d+|whole)|json)",
    "lease": r"{number}\.json",
    "log": r"{number}\.(json|stop|({pack}\.)?log)|launch\.(json|log|lock)|stop",
    MANIFEST: r"{number}\.json(\.copy)?",
    DATASETS: r"{hash}\.json",
}
NAMES = {folder: re.compile(pattern.format(**_PARTS)) for folder, pattern in _FOLDERS.items()}
"""What files are called, by folder; the sweep's own is "". Format 1 had no hash in the names of plans and failures."""

HASHED = re.compile(r".*\.[0-9a-f]{16}\.[a-z]+")
"""Names that say what the SHA-256 of the file begins with."""

_KEYS = {"sweep", "trial_id", "pack_id", "attempt", "status", "provenance_id"}
"""Columns without which rows belong to nothing; any other one may be of a later version."""


def strays(storage: Storage) -> set[str]:
    """Links and folders where a store has files of its own only."""
    if not isinstance(storage, LocalStorage):
        return set()
    root = storage.root
    links = {folder for folder in NAMES if folder and (root / folder).is_symlink()}
    inside = {
        f"{f}/{e.name}" for f in {*NAMES} - {""} - links for e in _shown(root / f) if e.is_symlink() or e.is_dir()
    }
    return links | inside | {entry.name for entry in _shown(root) if entry.is_symlink()}


def _shown(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, if there is one; hidden entries, which nothing reads, are left out."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        return [entry for entry in found if not entry.name.startswith(".")]
    return []


def table_of(name: str) -> str:
    """The table that a Parquet file of a store holds rows of."""
    folder, _, file = name.rpartition("/")
    return file.partition("-")[0] if folder == MERGED else folder or "plan"


def table_problem(table: str, data: bytes) -> tuple[str | None, int]:
    """Why a file holds no such table, if so; and the format of the store that it was written for."""
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        written = int((schema.metadata or {}).get(b"isoratio_format", 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read: {str(error).strip().splitlines()[0]}", 1
    if written > FORMAT:
        return None, written
    expected = TABLES[table]
    if missing := sorted(_KEYS & {*expected.names} - {*schema.names}):
        return f"lacks the column {', '.join(missing)}", written
    for name in {*expected.names} & {*schema.names}:
        found, needed = schema.field(name).type, expected.field(name).type
        if found != needed and not (_is_number(found) and _is_number(needed)):
            return f"holds {found} in the column {name} instead of {needed}", written
    return None, written


def _is_number(kind: pa.DataType) -> bool:
    """Versions may differ in how they store a number."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def unreadable(data: bytes) -> str | None:
    """Why a Parquet file cannot be read to its end, if so."""
    try:
        pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read: {str(error).strip().splitlines()[0]}"
    return None


def record_problem(name: str, data: bytes) -> str | None:
    """What is wrong with a file that has neither sums nor a hash in its name, if anything; free text has no rules."""
    try:
        return _RECORDS[name.partition("/")[0]](name, data)
    except (ValueError, LookupError, TypeError, pa.ArrowException, OSError):
        return _CHANGED


_CHANGED = "differs from what was written"


def _format_problem(name: str, data: bytes) -> str | None:
    content = json.loads(data)
    return None if isinstance(content["format"], int) and isinstance(content["isoratio"], str) else _CHANGED


def _provenance_problem(name: str, data: bytes) -> str | None:
    """The id is the hash of the row; what else the file holds is compared where this version would write the same."""
    problem, written = table_problem("provenance", data)
    if problem:
        return problem
    file = pq.ParquetFile(pa.BufferReader(data))
    rows = file.read()
    (row,) = rows.to_pylist()
    given = row.pop("provenance_id")
    if not content_id(canonical_json(row))[:16] == given == Path(name).stem:
        return _CHANGED
    again = parquet_bytes(rows)
    writer = pq.read_metadata(pa.BufferReader(again)).created_by
    return _CHANGED if (written, file.metadata.created_by) == (FORMAT, writer) and again != data else None


def _split_problem(name: str, data: bytes) -> str | None:
    if name.endswith(".json"):
        return None if isinstance(json.loads(data), dict) else _CHANGED
    return "is not empty" if data else None


def _lease_problem(name: str, data: bytes) -> str | None:
    holder = Holder(**json.loads(data))
    same = json.dumps(asdict(holder)).encode() == data and holder.number == int(Path(name).stem)
    return None if same else _CHANGED


def _log_problem(name: str, data: bytes) -> str | None:
    if name.endswith(".json"):
        return None if isinstance(json.loads(data), dict) else _CHANGED
    return _CHANGED if name.endswith(".stop") and data not in {b"finish", b"checkpoint"} else None


def _sealed_problem(name: str, data: bytes) -> str | None:
    return None if is_whole(data) else _CHANGED


_RECORDS: dict[str, Callable[[str, bytes], str | None]] = {
    "format.json": _format_problem,
    "provenance": _provenance_problem,
    "splits": _split_problem,
    "lease": _lease_problem,
    "log": _log_problem,
    MANIFEST: _sealed_problem,
    DATASETS: _sealed_problem,
}
