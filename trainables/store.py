"""The store: where files lie, and how a pack is committed so that the first commit wins and nothing is half-written.

    STORE/<sweep>/sweep.yaml plan.parquet trials/ curves/ eigenvalues/ density/ profiles/ endpoints/ sums/ failures/
        splits/ provenance/ log/

Side tables and endpoints are written first, then the sums, and ``trials/<pack>.parquet`` is created exclusively last:
its existence is the commit. Correctness rests on that alone; the launch lock only saves work.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.schema import FORMAT

SWEEP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ENDPOINTS = "endpoints"  # beside the side tables, the one kind of file that is not Parquet
PLAN_ROW_GROUP = 16_384  # rows; small enough that a worker reads its own pack without the rest


class StoreError(Exception):
    """The store cannot do what is asked of it."""


class DamagedStoreError(StoreError):
    """A file of the store is damaged."""


class Store:
    """All sweeps below one directory."""

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if "://" in text and not text.startswith("file://"):
            raise StoreError(f"store {text!r}: a directory is expected (object stores are not supported yet)")
        self.root = Path(text.removeprefix("file://")).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store {self.root}: it is a file, a directory is expected")

    def sweep(self, name: str) -> SweepStore:
        """The sweep called ``name``, whether it exists or not."""
        if not SWEEP_NAME.fullmatch(name):
            raise StoreError(f"sweep name {name!r}: allowed is {SWEEP_NAME.pattern}")
        return SweepStore(self.root, name)

    def sweeps(self) -> list[str]:
        """Names of all sweeps that hold anything, sorted."""
        if not self.root.is_dir():
            return []
        found = (p for p in self.root.iterdir() if p.is_dir() and SWEEP_NAME.fullmatch(p.name))
        return sorted(p.name for p in found if (p / "plan.parquet").exists() or (p / "trials").is_dir())

    def existing(self, name: str) -> SweepStore:
        """Like :meth:`sweep`, for one that must exist.

        Raises:
            StoreError: naming the sweeps that do.
        """
        if name not in self.sweeps():
            known = ", ".join(self.sweeps()) or "none"
            raise StoreError(f"no sweep {name!r} in {self.root}: it holds {known}")
        return self.sweep(name)


class SweepStore:
    """The files of one sweep."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.path = root, name, root / name

    @property
    def plan_path(self) -> Path:
        """What is planned: one row per trial, see ``schema.PLAN``."""
        return self.path / "plan.parquet"

    @property
    def log_path(self) -> Path:
        """Directory of logs, the launch lock, its heartbeat and the request to stop."""
        return self.path / "log"

    @property
    def stop_path(self) -> Path:
        """Exists while a running launch is asked to stop."""
        return self.log_path / "stop"

    def sweep_file(self) -> Path | None:
        """The sweep file as launched, or None."""
        return next((p for p in (self.path / "sweep.yaml", self.path / "sweep.toml") if p.exists()), None)

    @property
    def lock_path(self) -> Path:
        """Held by the launch that runs."""
        return self.log_path / "launch.lock"

    @property
    def heartbeat_path(self) -> Path:
        """What the last launch said of itself."""
        return self.log_path / "launch.json"

    @property
    def launch_log_path(self) -> Path:
        """Lines of all launches."""
        return self.log_path / "launch.log"

    def rows_path(self, pack_id: str) -> Path:
        """The rows of a pack; the file's existence is the commit."""
        return self.path / "trials" / f"{pack_id}.parquet"

    def side_path(self, kind: str, pack_id: str, attempt: str) -> Path:
        """What goes with the rows of one attempt at a pack: a side table, or its endpoints."""
        return self.path / kind / f"{pack_id}.{attempt}.{'safetensors' if kind == ENDPOINTS else 'parquet'}"

    def files(self, table: str) -> list[Path]:
        """The files that hold a table, sorted."""
        if table == "plan":
            return [self.plan_path] if self.plan_path.exists() else []
        return sorted(p for p in (self.path / table).glob("*.parquet") if not p.name.startswith("."))

    def committed_packs(self) -> set[str]:
        """Ids of the packs that are committed."""
        return {p.stem for p in self.files("trials")}

    def write_plan(self, plan: pa.Table) -> None:
        """Replaces the plan, sorted by pack so that one pack can be read alone."""
        replace(self.plan_path, parquet_bytes(plan.sort_by([("pack_id", "ascending"), ("slot", "ascending")])))

    def read_pack(self, pack_id: str) -> pa.Table:
        """The plan's rows of one pack, in the order of their slots."""
        rows = pq.read_table(self.plan_path, filters=[("pack_id", "=", pack_id)])
        if rows.num_rows == 0:
            raise StoreError(f"{self.plan_path}: no pack {pack_id!r}")
        return rows.sort_by("slot")

    def commit(self, pack_id: str, attempt: str, trials: pa.Table, side: Mapping[str, pa.Table | bytes]) -> bool:
        """Makes the rows of one pack visible, all at once.

        Args:
            pack_id: of the pack.
            attempt: see :func:`new_attempt`.
            trials: its rows.
            side: what goes with them, by kind: side tables, or a whole file.

        Returns:
            False where another attempt was first; then nothing of this one stays.
        """
        data = parquet_bytes(trials)
        sums = {f"trials/{pack_id}.parquet": _sum(data)}
        paths = [self.side_path(kind, pack_id, attempt) for kind in side]
        for path, content in zip(paths, side.values(), strict=True):
            whole = content if isinstance(content, bytes) else parquet_bytes(content)
            create(path, whole)
            sums[str(path.relative_to(self.path))] = _sum(whole)
        sums_path = self.path / "sums" / f"{pack_id}.{attempt}.json"
        create(sums_path, json.dumps(sums, indent=1, sort_keys=True).encode())
        try:
            create(self.rows_path(pack_id), data)
        except FileExistsError:
            for path in (*paths, sums_path):
                path.unlink(missing_ok=True)
            return False
        return True

    def write_failures(self, pack_id: str, attempt: str, rows: pa.Table) -> None:
        """Records members of a pack that failed; they stay to be tried again."""
        create(self.path / "failures" / f"{pack_id}.{attempt}.parquet", parquet_bytes(rows))

    def write_split(self, pack_id: str, split: Mapping[str, int | None]) -> None:
        """Records how a pack was cut to fit memory, so that every further attempt is cut alike."""
        replace(self.path / "splits" / f"{pack_id}.json", json.dumps(split).encode())

    def read_split(self, pack_id: str) -> dict[str, int | None]:
        """How a pack was cut; empty where it was not."""
        path = self.path / "splits" / f"{pack_id}.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    def write_provenance(self, provenance_id: str, row: pa.Table) -> None:
        """Records where rows come from, once per distinct content."""
        path = self.path / "provenance" / f"{provenance_id}.parquet"
        if not path.exists():
            replace(path, parquet_bytes(row))


def new_attempt() -> str:
    """A fresh name for one attempt at a pack."""
    return secrets.token_hex(6)


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of ``schema``, plus one DOUBLE column for each key that the schema lacks (plug-in metrics)."""
    extra = sorted({k for row in rows for k in row} - set(schema.names))
    return pa.Table.from_pylist(rows, schema=pa.schema([*schema, *(pa.field(k, pa.float64()) for k in extra)]))


def parquet_bytes(rows: pa.Table) -> bytes:
    """A whole Parquet file in memory, zstd-compressed, marked with the store's format."""
    marked = rows.replace_schema_metadata({**(rows.schema.metadata or {}), b"isoratio_format": str(FORMAT).encode()})
    sink = io.BytesIO()
    pq.write_table(
        marked,
        sink,
        compression="zstd",
        row_group_size=PLAN_ROW_GROUP if "round" in rows.column_names else None,
    )
    return sink.getvalue()


def _sum(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def create(path: Path, data: bytes) -> None:
    """Creates a file whole and durable; never replaces one.

    Raises:
        FileExistsError: where ``path`` exists.
        StoreError: on a file system without hard links.
    """
    partial = _write_partial(path, data)
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
            raise StoreError(f"{path.parent}: the file system has no hard links, which commits rest on") from error
        raise
    finally:
        partial.unlink(missing_ok=True)
    _fsync_directory(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole and durable, in place of the one there, if any."""
    os.replace(_write_partial(path, data), path)
    _fsync_directory(path.parent)


def _write_partial(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.partial")  # outside every glob
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; nothing of it was kept", str(path)) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
