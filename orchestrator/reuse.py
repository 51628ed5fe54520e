"""Trials of other sweeps in the same store that need not run again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.parquet import select
from trainables.endpoints import Endpoint, as_file, read
from trainables.same_data import same_data_as
from trainables.schema import SIDE_TABLES, Status
from trainables.storage import StoreError
from trainables.store import ENDPOINTS, REUSED, Store, SweepStore, new_attempt, side_name

DONE = "status IN ('finished', 'diverged')"
"""Committed rows that count: what failed is tried again."""

_THERE = """
    SELECT DISTINCT trial_id FROM rows SEMI JOIN wanted USING (trial_id)
    WHERE measure_id = '{measure_id}' AND {where}"""
_ROWS = f"""
    SELECT * FROM rows SEMI JOIN wanted USING (trial_id) WHERE measure_id = '{{measure_id}}' AND {DONE}
    QUALIFY row_number() OVER (PARTITION BY trial_id ORDER BY pack_id) = 1 ORDER BY trial_id"""
_SIDE = "SELECT * FROM rows SEMI JOIN kept USING (trial_id, pack_id, attempt) ORDER BY ALL"


@dataclass(frozen=True)
class Reuse:
    """Trials to copy from another sweep.

    Attributes:
        sweep: where they are.
        trial_ids: which, sorted.
        measure_id: how they were measured.
        round: of the pack of copies in the plan.
    """

    sweep: str
    trial_ids: tuple[str, ...]
    measure_id: str
    round: int

    @property
    def pack_id(self) -> str:
        """Of the pack of copies."""
        content = ",".join([*self.trial_ids, self.measure_id, str(self.round)])
        return REUSED + hashlib.sha256(content.encode()).hexdigest()[:16]

    def commit(self, store: Store, into: SweepStore) -> bool:
        """Commits copies of the trials, with their side tables, endpoints and provenance, as one pack.

        Returns:
            False where that pack was there already.

        Raises:
            StoreError: some of the trials are no longer there.
            ChangedDataError: they were trained on other data than this sweep's own.
            DamagedStoreError: a file cannot be read.
        """
        origin, attempt = store.sweep(self.sweep), new_attempt()
        listing = origin.listing("trials", *SIDE_TABLES)
        with duckdb.connect() as connection:
            connection.register("wanted", pa.table({"trial_id": list(self.trial_ids)}))
            query = _ROWS.format(measure_id=self.measure_id)
            trials = select(connection, query, listing, "trials", widest=True)
            connection.register("kept", trials)
            side = {name: select(connection, _SIDE, listing, name) for name in SIDE_TABLES}
        if trials.num_rows < len(self.trial_ids):
            raise StoreError(f"sweep {self.sweep!r}: trials that were to be reused are gone; launch again")
        same_data_as(origin.storage, into.storage)
        for provenance_id in set(trials["provenance_id"].to_pylist()) - {None}:
            row = origin.read_table(f"provenance/{provenance_id}.parquet")
            into.write_provenance(provenance_id, row)
        marks = {"sweep": into.name, "pack_id": self.pack_id, "attempt": attempt}
        slots = pa.array(range(trials.num_rows), pa.int64())
        copies: dict[str, pa.Table | bytes] = {n: _mark(rows, marks) for n, rows in side.items() if rows.num_rows}
        if endpoints := _endpoints(origin, trials):
            copies[ENDPOINTS] = as_file(endpoints)
        return into.commit(self.pack_id, attempt, _mark(trials, marks | {"slot": slots}), copies)


def find_reusable(
    unplaced: duckdb.DuckDBPyRelation, store: Store, into: str, measure_id: str, round_: int
) -> list[Reuse]:
    """Trials that another sweep of the store finished, or that diverged there, measured in the same way.

    Imported trials have no ``measure_id`` and are never found.

    Args:
        unplaced: trial_id of the trials that are wanted.
        store: all sweeps.
        into: the sweep that wants them.
        measure_id: see ``Measure``.
        round_: of the packs of copies.
    """
    others = [store.sweep(name) for name in store.sweeps() if name != into]
    if not others:
        return []
    found: list[Reuse] = []
    wanted = unplaced.to_arrow_table()
    with duckdb.connect() as connection:
        for other in others:
            there, listing = wanted, other.listing("plan", "trials")
            for table, where in (("plan", "true"), ("trials", DONE)):  # the plan is one file: it is asked first
                if there.num_rows:
                    connection.register("wanted", there)
                    query = _THERE.format(measure_id=measure_id, where=where)
                    there = select(connection, query, listing, table)
            if there.num_rows:
                found.append(Reuse(other.name, tuple(sorted(there["trial_id"].to_pylist())), measure_id, round_))
                wanted = wanted.filter(pc.invert(pc.is_in(wanted["trial_id"], there["trial_id"])))
    return found


def _endpoints(origin: SweepStore, trials: pa.Table) -> dict[str, Endpoint]:
    """The endpoints of these trials by trial_id: of all that have any, or none where the sweep keeps none."""
    if not origin.storage.names(ENDPOINTS):
        return {}
    packs: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in trials.select(["trial_id", "status", "call", "pack_id", "attempt"]).to_pylist():
        if row["status"] == Status.FINISHED and row["call"] is None:
            packs[row["pack_id"], row["attempt"]].append(row["trial_id"])
    found: dict[str, Endpoint] = {}
    for pack, trial_ids in packs.items():
        found |= read(origin.storage, side_name(ENDPOINTS, *pack), trial_ids)
    return dict(sorted(found.items()))


def _mark(rows: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """Rows with some columns replaced: by an array, or by one value for all."""
    for name, value in columns.items():
        values = pa.repeat(pa.scalar(value), rows.num_rows) if isinstance(value, str) else value
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows
