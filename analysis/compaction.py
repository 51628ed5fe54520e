"""Merges the many small files of a sweep into few large ones, which queries read in a fraction of the time.

Merged files are written first, under names that no other compaction uses; then the next manifest, which is the one
switch: until it is there a reader takes the packs' own files, from then on the merged ones. What nobody reads any
longer goes later, see :mod:`analysis.discarding`. So a stop between any two steps leaves every row readable once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.commits import Digest, Sums, checked, in_threads
from analysis.database import select_sweeps
from analysis.discarding import GRACE, discard, superfluous
from trainables.lease import PATIENCE, Lease, heartbeat, latest
from trainables.manifest import MERGED, MERGED_TABLES, Batch, Manifest, read_manifest
from trainables.schema import TABLES
from trainables.storage import Storage, StoreError
from trainables.store import (
    ENDPOINTS,
    Store,
    SweepStore,
    conform,
    damaged,
    hashed,
    new_attempt,
    pack_of,
    parquet_bytes,
    rows_name,
)

BATCH_PACKS = 256
BATCH_BYTES = 16 << 20  # of the files to merge, which take ten times that, or more, in memory


@dataclass(frozen=True)
class Compacted:
    """What `compact` did to a sweep.

    Attributes:
        sweep: its name.
        packs: how many were merged.
        files_before: files that hold the rows, all of which a query of every table reads.
        files_after: likewise, afterwards.
        files_deleted: files that nobody reads any longer, of this compaction or an earlier one.
    """

    sweep: str
    packs: int
    files_before: int
    files_after: int
    files_deleted: int


def compact(
    store: str | Path | Store,
    sweep: str | None = None,
    *,
    grace: float = GRACE,
    take_over: bool = False,
    on_wait: Callable[[str], None] = lambda why: None,
) -> list[Compacted]:
    """Merges the committed packs of sweeps, at most 256 at a time, into one file per table.

    Every file is checked against its sums as it is read. Endpoints stay as they are. From then on packs that were
    merged together stand or fall together: damage to a merged file costs all of them, as far as their own files have
    been deleted, and `resume` runs them again. Where there is nothing to do, nothing is written.

    Args:
        store: directory or URL.
        sweep: only this one.
        grace: seconds for which the packs' own files stay, for those who have begun to read them; a later `compact`
            or launch deletes them. With 0 they go at once, and queries that run meanwhile may fail.
        take_over: replace a launch that holds a sweep, without waiting.
        on_wait: see :class:`trainables.lease.Lease`.

    Raises:
        StoreError: no such sweep, or another compaction was faster.
        LaunchHeldError: a launch holds a sweep.
        DamagedStoreError: a file is not what was committed.
    """
    patience = 0.0 if take_over else PATIENCE
    return [
        _compacted(each, grace, partial(Lease, patience=patience, on_wait=on_wait))
        for each in select_sweeps(store, sweep)
    ]


def _compacted(sweep: SweepStore, grace: float, lease_of: Callable[[SweepStore, str], Lease]) -> Compacted:
    before, packs, deleted = _row_files(sweep), 0, 0
    if _unmerged(sweep, read_manifest(sweep.storage)) or superfluous(sweep, grace):
        said = _last_word(sweep.storage)
        with lease_of(sweep, "compact") as lease:
            packs = _merge(sweep, lease)
            deleted = discard(sweep, grace)
            lease.beat(said)
    return Compacted(sweep.name, packs, before, _row_files(sweep) if packs else before, deleted)


def _row_files(sweep: SweepStore) -> int:
    return sum(map(len, sweep.listing(*MERGED_TABLES).tables.values()))


def _unmerged(sweep: SweepStore, manifest: Manifest) -> list[str]:
    """Packs whose rows are in files of their own, sorted."""
    listed = (f"trials/{name}" for name in sweep.storage.names("trials") if name.endswith(".parquet"))
    return sorted({pack_of(name) for name in listed} - manifest.packs.keys())


def _last_word(storage: Storage) -> str:
    """The state in which the last launch has left the sweep: a compaction does not change it."""
    holder = latest(storage)
    if holder is None:
        return "complete"
    state = heartbeat(storage, holder.number).get("state", "running")
    return "interrupted" if state == "running" else str(state)


# --- merging --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """What goes into a batch: a pack, or a small batch of an earlier compaction.

    Attributes:
        packs: pack_id -> attempt.
        files: table -> name of the file that holds its rows.
        sums: name -> size and sha256; merged files have it in their name instead.
        kept: of its endpoints, likewise.
        size: of its files together, in bytes.
        batch: the batch that it is.
    """

    packs: Mapping[str, str]
    files: Mapping[str, str]
    sums: Mapping[str, Mapping[str, Any]]
    kept: Mapping[str, Mapping[str, Any]]
    size: int
    batch: Batch | None = None

    @classmethod
    def of_pack(cls, sums: Sums) -> _Piece:
        files = {"trials": rows_name(sums.pack_id)} | sums.sides
        kept = {name: sums.files[name] for kind, name in files.items() if kind == ENDPOINTS}
        read = {kind: name for kind, name in files.items() if kind != ENDPOINTS}
        size = sum(sums.files[name]["size"] for name in read.values())
        return cls({sums.pack_id: sums.attempt}, read, sums.files, kept, size)

    @classmethod
    def of_batch(cls, batch: Batch) -> _Piece:
        return cls(batch.packs, batch.files, {}, batch.kept, batch.size, batch)


def _merge(sweep: SweepStore, lease: Lease) -> int:
    """Merges what is not merged yet; returns how many packs that was."""
    storage, manifest = sweep.storage, read_manifest(sweep.storage)
    packs = _unmerged(sweep, manifest)
    if not packs:
        return 0
    small = [b for b in manifest.batches if len(b.packs) <= BATCH_PACKS // 2 and b.size <= BATCH_BYTES // 2]
    batches = [batch for batch in manifest.batches if batch not in small]
    writer = BatchWriter(storage, manifest.number + 1)
    try:
        pieces = [*map(_Piece.of_batch, small), *map(_Piece.of_pack, _accepted(storage, packs))]
        for group in _groups(pieces):
            alone = group[0].batch if len(group) == 1 else None
            batches.append(alone or _merged(storage, writer, group))
        lease.check()
    except BaseException:
        writer.undo()
        raise
    try:
        manifest.successor(tuple(batches)).write(storage)
    except FileExistsError:
        writer.undo()
        raise StoreError(
            f"sweep {sweep.name!r}: another compaction was faster, or `isoratio verify` has changed what is merged; "
            "this one has changed nothing: compact again"
        ) from None
    return len(packs)


def _groups(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in their order, as many together as may be in a batch."""
    group: list[_Piece] = []
    packs = size = 0
    for piece in pieces:
        packs, size = packs + len(piece.packs), size + piece.size
        if group and (packs > BATCH_PACKS or size > BATCH_BYTES):
            yield group
            group, packs, size = [], len(piece.packs), piece.size
        group.append(piece)
    if group:
        yield group


def _accepted(storage: Storage, packs: Collection[str]) -> list[Sums]:
    """The sums of the attempt that was accepted, pack by pack."""
    names: dict[str, list[str]] = {pack: [] for pack in packs}
    for name in storage.names("sums"):
        if pack_of(name) in names:
            names[pack_of(name)].append(f"sums/{name}")

    def accepted(pack: str) -> Sums:
        found = [sums for name in names[pack] if (sums := _sums(storage, name))]
        if len(found) != 1:
            rows = Digest.of_data(storage.read_if_there(rows_name(pack)) or b"")
            found = [sums for sums in found if rows.problem(sums.rows) is None]
        if not found:
            raise damaged(storage.where(rows_name(pack)), "no sums say that this was committed")
        return found[0]

    return in_threads(accepted, packs)


def _sums(storage: Storage, name: str) -> Sums | None:
    """None where another attempt, which was not accepted, has deleted its own."""
    data = storage.read_if_there(name)
    try:
        return None if data is None else Sums.parse(name, data)
    except ValueError as error:
        raise damaged(storage.where(name), error) from error


def _merged(storage: Storage, writer: BatchWriter, group: Sequence[_Piece]) -> Batch:
    def read(piece: _Piece) -> dict[str, pa.Table]:
        for name, sums in piece.kept.items() if piece.batch is None else ():
            checked(storage, name, sums)  # whose sums go into the manifest
        return {table: _rows(storage, table, name, piece.sums.get(name)) for table, name in piece.files.items()}

    tables: defaultdict[str, list[pa.Table]] = defaultdict(list)
    for found in in_threads(read, group):
        for table, rows in found.items():
            tables[table].append(rows)
    packs = {pack: attempt for piece in group for pack, attempt in piece.packs.items()}
    kept = {name: sums for piece in group for name, sums in piece.kept.items()}
    return writer.write(packs, tables, kept)


def without(storage: Storage, writer: BatchWriter, batch: Batch, packs: Collection[str]) -> Batch | None:
    """A batch, written anew without some of its packs; None where that leaves nothing.

    Raises:
        DamagedStoreError: one of its files is not what was written.
    """
    rest = {pack: attempt for pack, attempt in batch.packs.items() if pack not in packs}
    if not rest:
        return None
    among = pa.array(rest, pa.string())
    tables = {table: _rows(storage, table, name, None) for table, name in batch.files.items()}
    left = {table: [rows.filter(pc.is_in(rows["pack_id"], among))] for table, rows in tables.items()}
    return writer.write(rest, left, {name: sums for name, sums in batch.kept.items() if pack_of(name) in rest})


def _rows(storage: Storage, table: str, name: str, sums: Mapping[str, Any] | None) -> pa.Table:
    """A file's rows, once it is known to be what was written: as its sums say, or its own name."""
    data = checked(storage, name, sums)
    try:
        rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return rows if table == "trials" else conform(rows, TABLES[table])
    except pa.ArrowException as error:
        raise damaged(storage.where(name), error) from error


class BatchWriter:
    """Writes merged files for one manifest to come.

    Their names hold its number, which tells when they are superfluous, and a word that no other compaction uses: equal
    files of two of them are still two files, so that one can delete its own.
    """

    def __init__(self, storage: Storage, number: int) -> None:
        self.storage = storage
        self.stem = f"{number:06d}-{new_attempt()}"
        self.names: list[str] = []

    def write(
        self, packs: Mapping[str, str], tables: Mapping[str, list[pa.Table]], kept: Mapping[str, Mapping[str, Any]]
    ) -> Batch:
        """One file per table that has rows; those of `trials` have every column that any of them has."""
        files: dict[str, str] = {}
        size = 0
        for table, found in tables.items():
            rows = pa.concat_tables([TABLES[table].empty_table(), *found], promote_options="permissive")
            if rows.num_rows:
                data = parquet_bytes(rows)
                files[table] = hashed(f"{MERGED}/{table}-{self.stem}", data, ".parquet")
                self.names.append(files[table])
                self.storage.create(files[table], data)
                size += len(data)
        return Batch(packs, files, kept, size)

    def undo(self) -> None:
        """Deletes the files, which no manifest names."""
        for name in self.names:
            with suppress(OSError):
                self.storage.delete(name)
