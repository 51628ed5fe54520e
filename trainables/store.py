"""The store: what lies where, and how a pack is committed so that the first commit wins and nothing is half-written.

    STORE/<sweep>/format.json sweep.yaml plan/ lease/ log/
        trials/ curves/ eigenvalues/ density/ profiles/ endpoints/ sums/ failures/ splits/ provenance/ checkpoints/
        datasets/ manifest/ merged/ quarantine/

Side tables and endpoints are written first, then the sums, and ``trials/<pack>.parquet`` is created exclusively last:
its existence is the commit. Correctness rests on that alone; the lease (see :mod:`trainables.lease`) only saves work.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from trainables.manifest import MERGED, MERGED_TABLES, Manifest, read_manifest
from trainables.schema import FORMAT, PLAN, TABLES, TRIALS
from trainables.storage import DamagedStoreError, Storage, StoreError, contained, is_damage, open_storage

SWEEP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ENDPOINTS = "endpoints"  # beside the side tables, the one kind of file that is not Parquet
PLAN_ROW_GROUP = 16_384  # rows; small enough that a worker reads its own pack without the rest
PLAN_NAME = re.compile(r"\d{6,}-\d{4,}\.[0-9a-f]{16}\.parquet")
FIRST_PLAN = "plan.parquet"  # where format 1 had it
FEW_FILES = 64  # that are read together
REUSED = "reuse-"  # begins the id of a pack of rows that were copied from another sweep
CLOSED = "closed"
"""How the attempt is called by which a pack is given up; see :meth:`SweepStore.close`."""


class Store:
    """All sweeps below one directory, or one prefix of an object store."""

    def __init__(self, root: str | Path, patience: float | None = None) -> None:
        self.storage = open_storage(root, patience)

    @property
    def url(self) -> str:
        """Its directory or URL."""
        return self.storage.url

    def sweep(self, name: str) -> SweepStore:
        """The sweep called ``name``, whether it exists or not."""
        if not SWEEP_NAME.fullmatch(name):
            raise StoreError(f"sweep name {name!r}: allowed is {SWEEP_NAME.pattern}")
        return SweepStore(self.storage, name)

    def sweeps(self) -> list[str]:
        """Names of all sweeps that hold anything, sorted."""
        found = filter(SWEEP_NAME.fullmatch, self.storage.folders())
        return [name for name in found if self.sweep(name).holds_anything()]

    def existing(self, name: str) -> SweepStore:
        """Like :meth:`sweep`, for one that must exist.

        Raises:
            StoreError: naming the sweeps that do.
        """
        there = self.sweep(name)
        if not there.holds_anything():
            known = ", ".join(self.sweeps()) or "none"
            raise StoreError(f"no sweep {name!r} in {self.url}: it holds {known}")
        return there


@dataclass(frozen=True)
class Listing:
    """Which files hold a sweep's tables at one moment.

    Attributes:
        sweep: whose.
        manifest: what was merged then.
        tables: table -> names of its files, merged ones included, each pack's rows in exactly one of them.
    """

    sweep: SweepStore
    manifest: Manifest
    tables: Mapping[str, list[str]]

    def packs(self) -> set[str]:
        """Ids of all committed packs, of those too that were closed; `trials` must be listed."""
        single = (name for name in self.tables["trials"] if name.startswith("trials/"))
        return {*self.manifest.packs, *map(pack_of, single)}

    def dataset(self, table: str, schema: pa.Schema | None = None) -> ds.Dataset:
        """A table's rows, read when they are asked for; columns that a file lacks are NULL.

        Args:
            table: one of those listed.
            schema: its columns; None: those of this version.
        """
        return dataset(self.sweep.storage, self.tables[table], schema or TABLES[table])

    def local_paths(self, table: str) -> list[str]:
        """Where a table's files lie on this machine; none for an object store, and where a path reads as a pattern."""
        storage = self.sweep.storage
        if storage.is_remote or any(character in storage.url for character in "*?[{"):
            return []
        return [storage.where(contained(name)) for name in self.tables[table]]

    def read(self, table: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a table, file after file: of many small ones a data set takes twice the time and keeps all.

        Raises:
            DamagedStoreError: a file cannot be read.
        """
        storage, schema = self.sweep.storage, pa.schema([TABLES[table].field(name) for name in columns])

        def rows(name: str) -> pa.Table:
            where = storage.where(name)
            if (data := storage.read_if_there(name)) is None:
                raise damaged(where, "it is gone")
            with _naming_damage(where):
                found = pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
            found = found.replace_schema_metadata()
            return found if found.schema == schema else conform(found, schema)

        names = self.tables[table]
        if len(names) <= FEW_FILES:  # maybe large, which all cores read; where one is damaged, what follows says which
            with suppress(pa.ArrowException, OSError, ValueError):
                return dataset(storage, names, schema).to_table()
        if not storage.is_remote:
            return pa.concat_tables([schema.empty_table(), *map(rows, names)])
        with ThreadPoolExecutor(16) as pool:  # each has to wait for its answer
            return pa.concat_tables([schema.empty_table(), *pool.map(rows, names)])


def dataset(storage: Storage, names: list[str], schema: pa.Schema) -> ds.Dataset:
    """Rows of some Parquet files.

    Raises:
        DamagedStoreError: one of them is gone.
    """
    names = [contained(name) for name in names]  # a manifest that came from elsewhere may say anything
    try:
        return ds.dataset(names, schema=schema, format="parquet", filesystem=storage.filesystem())
    except FileNotFoundError as error:
        gone = next((name for name in names if name in str(error)), names[0])
        raise damaged(storage.where(gone), "it is gone") from error


class SweepStore:
    """The files of one sweep."""

    def __init__(self, store: Storage, name: str) -> None:
        self.name, self.store_url, self.storage = name, store.url, store.below(name)

    def __repr__(self) -> str:
        return f"SweepStore({self.storage.url})"

    def holds_anything(self) -> bool:
        """Whether it was launched or imported."""
        return self.plan_name() is not None or self._has_rows()

    def is_imported(self) -> bool:
        """Whether its trials were measured elsewhere: it has rows, and neither plan nor launch."""
        rows = (name for name in self.listing("trials").tables["trials"] if name.startswith(("trials/import", MERGED)))
        return any(rows) and self.plan_name() is None and self.sweep_file() is None  # a launch writes its plan first

    def _has_rows(self) -> bool:
        return not {"trials", MERGED}.isdisjoint(self.storage.folders())

    # --- reading ----------------------------------------------------------------------------------------------------

    def listing(self, *tables: str) -> Listing:
        """Which files hold these tables, or all.

        Raises:
            StoreError: a newer version of Isoratio wrote them.
            DamagedStoreError: what was merged cannot be told.
        """
        self.check_format()
        chosen = tables or tuple(TABLES)
        found = {table: self._names(table) for table in chosen}
        manifest = read_manifest(self.storage)  # last: what was merged since is left out of the names above
        merged = manifest.packs
        for table in set(chosen) & {*MERGED_TABLES}:
            single = [name for name in found[table] if pack_of(name) not in merged]
            found[table] = [*manifest.files(table), *single]
        return Listing(self, manifest, found)

    def _names(self, table: str) -> list[str]:
        if table == "plan":
            plan = self.plan_name()
            return [plan] if plan else []
        return [f"{table}/{name}" for name in self.storage.names(table) if name.endswith(".parquet")]

    def plan_name(self) -> str | None:
        """The file that holds what is planned, one row per trial; the highest number counts."""
        if names := [name for name in self.storage.names("plan") if PLAN_NAME.fullmatch(name)]:
            return f"plan/{names[-1]}"
        return FIRST_PLAN if self.storage.exists(FIRST_PLAN) else None

    def read_plan(self) -> pa.Table | None:
        """What is planned, with the settings of measurement and the sweep file in its metadata; None without a plan.

        Raises:
            DamagedStoreError: it cannot be read.
        """
        name = self.plan_name()
        return self.read_table(name, PLAN) if name else None

    def read_pack(self, plan: str, pack_id: str) -> pa.Table:
        """Rows of one pack in that plan, in the order of their slots.

        Raises:
            StoreError: there is no such pack.
            DamagedStoreError: the plan cannot be read.
            FileNotFoundError: it has been replaced.
        """
        with self.storage.filesystem().open_input_file(plan) as file, _naming_damage(self.storage.where(plan)):
            rows = pq.read_table(file, filters=[("pack_id", "=", pack_id)])
        if rows.num_rows == 0:
            raise StoreError(f"{self.storage.where(plan)}: no pack {pack_id!r}")
        return rows.sort_by("slot")

    def read_table(self, name: str, schema: pa.Schema | None = None) -> pa.Table:
        """A whole Parquet file, with its metadata.

        Raises:
            DamagedStoreError: it cannot be read.
        """
        data = self.storage.read(name)
        with _naming_damage(self.storage.where(name)):
            table = pq.read_table(pa.BufferReader(data))
            return table if schema is None else conform(table, schema)

    def is_committed(self, pack_id: str) -> bool:
        """Whether a pack has its rows."""
        return self.storage.exists(rows_name(pack_id)) or pack_id in read_manifest(self.storage).packs

    def sweep_file(self) -> tuple[str, str] | None:
        """Suffix and text of the sweep file as last launched; None for what was imported.

        Raises:
            DamagedStoreError: the plan cannot be read, which holds it.
        """
        plan = self.plan_name()
        if plan is not None:
            with self.storage.filesystem().open_input_file(plan) as file, _naming_damage(self.storage.where(plan)):
                metadata = pq.read_schema(file).metadata or {}
                if b"sweep_file" in metadata:
                    suffix, text = json.loads(metadata[b"sweep_file"])
                    return suffix, text
        for suffix in (".yaml", ".toml"):  # its copy, where the plan is lost or of format 1
            if (data := self.storage.read_if_there(f"sweep{suffix}")) is not None:
                return suffix, data.decode()
        return None

    def check_format(self) -> None:
        """Refuses what a newer version wrote.

        Raises:
            StoreError: saying which.
        """
        marked: Any = {}
        with suppress(ValueError):  # damaged: the next launch writes it anew
            marked = json.loads(self.storage.read_if_there("format.json") or "{}")
        if isinstance(marked, dict) and marked.get("format", 1) > FORMAT:
            raise StoreError(
                f"{self.storage.url}: written by Isoratio {marked.get('isoratio')} in format {marked['format']}; this "
                f"is version {version('isoratio')}, which reads up to format {FORMAT}: install a newer one"
            )

    # --- writing ----------------------------------------------------------------------------------------------------

    def mark_format(self) -> None:
        """Says which version writes here."""
        self.check_format()
        content = json.dumps({"format": FORMAT, "isoratio": version("isoratio")}).encode()
        if self.storage.read_if_there("format.json") != content:
            self.storage.replace("format.json", content)

    def write_plan(self, plan: pa.Table, launch: int, number: int) -> str:
        """Writes what is planned, sorted by pack so that one pack can be read alone; returns the file's name.

        Args:
            plan: its schema's metadata holds the settings of measurement and the sweep file.
            launch: number of the lease: whoever holds a later one plans anew, so that its plans count.
            number: of the plan, of those of this launch.
        """
        data = parquet_bytes(plan.sort_by([("pack_id", "ascending"), ("slot", "ascending")]))
        name = hashed(f"plan/{launch:06d}-{number:04d}", data, ".parquet")
        self.storage.create(name, data)
        return name

    def commit(self, pack_id: str, attempt: str, trials: pa.Table, side: Mapping[str, pa.Table | bytes]) -> bool:
        """Makes the rows of one pack visible, all at once.

        Args:
            pack_id: of the pack.
            attempt: see :func:`new_attempt`.
            trials: its rows.
            side: what goes with them, by kind: side tables, or a whole file.

        Returns:
            False where another attempt was first. What this one has written stays until `compact`, unseen: a reader
            may have listed it.
        """
        data = parquet_bytes(trials)
        sums = {rows_name(pack_id): checksum(data)}
        for kind, content in side.items():
            name = side_name(kind, pack_id, attempt)
            whole = content if isinstance(content, bytes) else parquet_bytes(content)
            self.storage.create(name, whole)
            sums[name] = checksum(whole)
        self.storage.create(sums_name(pack_id, attempt), json.dumps(sums, indent=1, sort_keys=True).encode())
        try:
            self.storage.create(rows_name(pack_id), data)
        except FileExistsError:
            return False
        return True

    def close(self, pack_id: str) -> bool:
        """Gives up a pack before its trials move to another one: committed without rows, no attempt at it can win.

        Returns:
            False where one has won.
        """
        if self.commit(pack_id, CLOSED + secrets.token_hex(3), TRIALS.empty_table(), {}):
            return True
        with suppress(FileNotFoundError):  # it is merged, or was damaged
            return not self.read_table(rows_name(pack_id))
        return False

    def write_failures(self, pack_id: str, attempt: str, rows: pa.Table) -> None:
        """Records members of a pack that failed; they stay to be tried again."""
        data = parquet_bytes(rows)
        self.storage.create(hashed(f"failures/{pack_id}.{attempt}", data, ".parquet"), data)

    def write_split(self, pack_id: str, together: int, physical_batch_size: int | None) -> None:
        """Records how a pack was cut to fit memory, so that every further attempt is cut alike."""
        self.storage.create(f"splits/{pack_id}.{together}.{physical_batch_size or 'whole'}", b"")

    def read_split(self, pack_id: str) -> tuple[int, int | None] | None:
        """How a pack was cut the last time, and that is finest; None where it was not."""
        names = (name for name in self.storage.names("splits") if name.startswith(f"{pack_id}."))
        found = [name.split(".")[1:] for name in names if name.count(".") == 2]
        cuts = [(int(together), None if size == "whole" else int(size)) for together, size in found]
        return min(cuts, key=lambda cut: (cut[0], cut[1] or 2**31), default=None)

    def write_provenance(self, provenance_id: str, row: pa.Table) -> None:
        """Records where rows come from, once per distinct content."""
        name = f"provenance/{provenance_id}.parquet"
        if not self.storage.exists(name):
            self.storage.replace(name, parquet_bytes(row))


def pack_of(name: str) -> str:
    """The pack that a file belongs to: what its name begins with."""
    return name.rpartition("/")[2].partition(".")[0]


def rows_name(pack_id: str) -> str:
    """The rows of a pack; the file's existence is the commit."""
    return f"trials/{pack_id}.parquet"


def side_name(kind: str, pack_id: str, attempt: str) -> str:
    """What goes with the rows of one attempt at a pack: a side table, or its endpoints."""
    return f"{kind}/{pack_id}.{attempt}.{'safetensors' if kind == ENDPOINTS else 'parquet'}"


def sums_name(pack_id: str, attempt: str) -> str:
    """Sizes and SHA-256 of all files of an attempt."""
    return f"sums/{pack_id}.{attempt}.json"


def new_attempt() -> str:
    """A fresh name for one attempt at a pack."""
    return secrets.token_hex(6)


def checksum(data: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def hashed(stem: str, data: bytes, suffix: str) -> str:
    """A name that tells whether the file still is what was written: with the first 16 digits of its SHA-256."""
    return f"{stem}.{hashlib.sha256(data).hexdigest()[:16]}{suffix}"


@contextmanager
def _naming_damage(where: str) -> Iterator[None]:
    """Around parsing a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if not is_damage(error):
            raise
        raise damaged(where, error) from error


def damaged(where: str, error: object) -> DamagedStoreError:
    """What to say of a file that cannot be read."""
    return DamagedStoreError(
        f"{where}: cannot be read: {str(error).strip().splitlines()[0]}. `isoratio verify` moves damaged files to "
        "quarantine; then `isoratio resume` of its sweep runs again what is gone"
    )


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of ``schema``, plus one DOUBLE column for each key that the schema lacks (plug-in metrics)."""
    extra = sorted({k for row in rows for k in row} - set(schema.names))
    return pa.Table.from_pylist(rows, schema=pa.schema([*schema, *(pa.field(k, pa.float64()) for k in extra)]))


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema: those that are missing are NULL. The metadata stays."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema.with_metadata(rows.schema.metadata))


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
