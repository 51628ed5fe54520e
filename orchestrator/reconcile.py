"""What a sweep file asks for against what the store holds: the one mechanism of launch, resume and extension."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.database import query_files
from orchestrator.controls import Controls
from orchestrator.grid import expand
from orchestrator.packs import SHARED, form_packs
from orchestrator.reuse import DONE, Reuse, find_reusable
from orchestrator.sweepfile import SweepFile, load
from trainables.schema import PLAN
from trainables.store import REUSED, Store, SweepStore


class SweepChangedError(ValueError):
    """A sweep of this name was launched with another meaning."""


@dataclass(frozen=True)
class Reconciliation:
    """What is done and what is to do.

    Attributes:
        files: the sweep in the store.
        grid: every trial once, see :func:`orchestrator.grid.expand`.
        packs: those to run, longest first: pack_id, round, trials, engine, cost, and the settings that they share.
        overview: the pack of every trial, likewise, with done and failed (how many of them are) and to_run.
        reuse: trials to copy from other sweeps before anything runs.
        ended: number of trials that finished, and that diverged.
        failed: trial_ids of those that have failed as often as they may.
        placed: trials that the plan lacks or has in another pack: row (of the grid), slot, pack_id.
        given_up: packs that trials leave for another one and that were never committed, to be closed before.
        dropped: trial_ids of controls that the sweep file no longer asks for and that were never run: they leave the
            plan. Those that were run stay in it.
    """

    files: SweepStore
    grid: pa.Table
    packs: pa.Table
    overview: pa.Table
    reuse: list[Reuse]
    ended: Mapping[str, int]
    failed: list[str]
    placed: pa.Table
    given_up: list[str]
    dropped: list[str]

    @property
    def done(self) -> int:
        """Number of trials that finished or diverged."""
        return sum(self.ended.values())

    @property
    def to_run(self) -> list[str]:
        """Ids of the packs to run, longest first."""
        return self.packs["pack_id"].to_pylist()  # type: ignore[no-any-return]

    def plan(self) -> pa.Table:
        """The plan to write before anything runs, one row per trial: new packs beside those that stay as they were."""
        packs = self.overview.take(pc.index_in(self.placed["pack_id"], self.overview["pack_id"]))
        trials = self.grid.take(self.placed["row"])
        columns = {name: trials[name] for name in trials.column_names}
        columns |= {name: packs[name] for name in ("pack_id", "round", "engine", "physical_batch_size", "cost")}
        columns |= {"slot": self.placed["slot"], "sweep": pa.repeat(pa.scalar(self.files.name), len(packs))}
        planned = pa.table(columns).select(PLAN.names).cast(PLAN)
        earlier = self.files.read_plan()
        if earlier is None:
            return planned
        leave = pa.concat_arrays([*planned["trial_id"].chunks, pa.array(self.dropped, pa.string())])
        stay = pc.invert(pc.is_in(earlier["trial_id"], leave))
        return pa.concat_tables([earlier.filter(stay), planned])


def reconcile(
    sweep: SweepFile,
    store: Store,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    settle_engines: bool = True,
) -> Reconciliation:
    """Compares a sweep file with the store; writes nothing.

    Trials that are planned stay in their packs. New points of the grid form new packs. A trial that is recorded as
    failed gets a new pack, alone, whatever the cause. It is failed for good once it was tried ``1 + retries`` times,
    until a new launch tries it again. Controls follow the grid: one that is no longer asked for is not run.

    Args:
        sweep: the sweep file.
        store: all sweeps; trials that another one has are reused.
        limit: run packs until they hold this many trials; None: all.
        retry_failed: as when a launch begins: trials that are failed for good get another ``1 + retries`` tries.
        settle_engines: decide the engine of every new pack, which imports torch where plug-ins are to be tried out.

    Raises:
        SweepChangedError: earlier trials of this sweep are not in the grid, or were to be measured in another way.
        DamagedStoreError: a file of the store cannot be read.
    """
    files, measure_id = store.sweep(sweep.name), sweep.measure.measure_id
    grid = expand(sweep)
    with duckdb.connect(config=_LEAN) as connection:
        connection.register("grid", grid.append_column("row", pa.array(np.arange(grid.num_rows))))
        listing = files.listing(*_STORED)
        for table, (columns, query) in _STORED.items():
            stored = query_files(connection, listing, table, columns, query.format(measure_id=measure_id))
            connection.register(table, stored)
        connection.register("packs_there", pa.table({"pack_id": pa.array(listing.packs(), pa.string())}))
        connection.execute(_CLOSED)
        _find_former_controls(connection, files)
        _refuse_changed(connection, sweep, files)
        tries = {"tries": 1 + sweep.retries}
        connection.execute(_STANDING, {**tries, "retry_failed": retry_failed})
        ((round_,),) = connection.execute(_ROUND, tries).fetchall()
        reuse = find_reusable(connection.sql(_UNPLACED), store, sweep.name, measure_id, round_)
        connection.register("copies", _copies(reuse))
        connection.execute(_COPIED)
        connection.execute(_MEMBERS, tries)
        form_packs(connection, sweep, settle_engines=settle_engines)
        overview, placed = (connection.sql(query).to_arrow_table() for query in (_OVERVIEW, _PLACED))
        ended = dict(connection.sql(_ENDED).fetchall())
        failed, given_up, dropped = (
            [each for (each,) in connection.sql(query).fetchall()] for query in (_FAILED, _GIVEN_UP, _DROPPED)
        )
    packs = _first(overview.filter(overview["to_run"]).drop_columns(["done", "failed", "to_run"]), limit)
    return Reconciliation(files, grid, packs, overview, reuse, ended, failed, placed, given_up, dropped)


def _first(packs: pa.Table, limit: int | None) -> pa.Table:
    """The first packs, as many as are needed to hold ``limit`` trials."""
    before = pc.subtract(pc.cumulative_sum(packs["trials"]), packs["trials"])
    return packs if limit is None else packs.filter(pc.less(before, limit))


def _copies(reuse: list[Reuse]) -> pa.Table:
    rows = [{"pack_id": r.pack_id, "trial_id": t, "round": r.round} for r in reuse for t in r.trial_ids]
    return pa.Table.from_pylist(rows, pa.schema([PLAN.field(name) for name in ("pack_id", "trial_id", "round")]))


def _find_former_controls(connection: duckdb.DuckDBPyConnection, files: SweepStore) -> None:
    """Makes the table ``former``: planned controls that the sweep file no longer asks for, as its grid has grown.

    A grid only grows, so what is planned and was not swept by the sweep file before this one was never swept.
    """
    connection.execute(_GONE)
    ((gone,),) = connection.sql("SELECT count(*) FROM gone").fetchall()
    connection.register("swept", _swept(files) if gone else _NOTHING)
    connection.execute(_FORMER)


def _swept(files: SweepStore) -> pa.Table:
    """The trials of the grid that was launched last, without controls; none where that cannot be told."""
    suffix, text = files.sweep_file() or ("", "")
    try:
        before = load(files.storage.where(f"sweep{suffix}"), text=text)
    except ValueError:  # it names a plug-in that is gone, say
        return _NOTHING
    return expand(before.model_copy(update={"controls": Controls()})).select(["trial_id"])


def _refuse_changed(connection: duckdb.DuckDBPyConnection, sweep: SweepFile, files: SweepStore) -> None:
    ((planned, gone, differ),) = connection.sql(_CHANGED).fetchall()
    what = [f"{gone} of its {planned} trials are not in this grid"] if gone else []
    what += ["what is measured, or when, is not the same"] if differ else []
    if what:
        raise SweepChangedError(
            f"sweep {sweep.name!r} in {files.store_url} was launched with another meaning: {', and '.join(what)}.\n"
            f"{_difference(files, sweep)}\n"
            "Give the sweep file another name (equal trials are reused, not run again), or delete the earlier sweep "
            f"with `isoratio rm {sweep.name}`."
        )


def _difference(files: SweepStore, sweep: SweepFile) -> str:
    """What changed in the sweep file, as a unified diff."""
    _, before = files.sweep_file() or ("", "")
    names = (f"{files.name} as launched", "this sweep file")
    lines = unified_diff(before.splitlines(), sweep.text.splitlines(), *names, lineterm="", n=1)
    return "\n".join(lines) or "The files are the same: a plug-in's defaults, or the meaning of training, have changed."


# A million points take a second or two as it is; more threads and a kept order would take memory instead.
_LEAN: dict[str, Any] = {"threads": min(4, os.cpu_count() or 1), "preserve_insertion_order": False}

_STORED = {
    "plan": (
        ["trial_id", "pack_id", "round", "engine", "physical_batch_size", "cost", "measure_id"],
        "SELECT * EXCLUDE (measure_id), measure_id <> '{measure_id}' AS differs FROM rows",
    ),
    "trials": (
        ["trial_id", "pack_id", "slot", "status", "measure_id"],
        f"SELECT * EXCLUDE (measure_id), measure_id = '{{measure_id}}' AND {DONE} AS done FROM rows",
    ),
    "failures": (
        ["trial_id", "pack_id", "measure_id"],
        "SELECT trial_id, pack_id FROM rows WHERE measure_id = '{measure_id}'",
    ),
}

_NOTHING = pa.table({"trial_id": pa.array([], pa.string())})

_GONE = "CREATE TABLE gone AS SELECT trial_id, pack_id FROM plan ANTI JOIN grid USING (trial_id)"

# All that was swept is planned; where it is not, identities have changed, and nothing can be told.
_FORMER = """
    CREATE TABLE former AS
    FROM gone ANTI JOIN swept USING (trial_id)
    WHERE EXISTS (FROM swept) AND NOT EXISTS (FROM swept ANTI JOIN plan USING (trial_id))"""

_CHANGED = """
    SELECT count(*), (SELECT count(*) FROM gone ANTI JOIN former USING (trial_id)), count(*) FILTER (differs)
    FROM plan"""

_DROPPED = "SELECT trial_id FROM former ANTI JOIN (FROM trials WHERE done) USING (trial_id) ORDER BY ALL"

_CLOSED = "CREATE TABLE closed AS SELECT pack_id FROM packs_there ANTI JOIN trials USING (pack_id)"

# A pack is open when it is still to run as planned: not committed, and not all of its trials failed. Copies never are.
# One that has shrunk, by controls that are dropped, is replaced as well: its checkpoints are those of all its trials.
_STANDING = f"""
    CREATE TABLE standing AS
    WITH done AS (
        SELECT trial_id, min(pack_id) AS pack_id, arg_min(slot, pack_id) AS slot, arg_min(status, pack_id) AS status
        FROM trials WHERE done GROUP BY trial_id),
    failed AS (SELECT trial_id, list(pack_id) AS pack_ids FROM failures GROUP BY trial_id),
    open AS (
        SELECT plan.pack_id FROM plan LEFT JOIN done USING (trial_id) LEFT JOIN failed USING (trial_id)
        WHERE NOT starts_with(plan.pack_id, '{REUSED}')
            AND plan.pack_id NOT IN (FROM packs_there)
        GROUP BY plan.pack_id
        HAVING count(done.trial_id) = 0 AND NOT bool_and(coalesce(list_contains(pack_ids, plan.pack_id), false))),
    shrunk AS (SELECT pack_id FROM former SEMI JOIN open USING (pack_id))
    SELECT row, coalesce(plan.pack_id, done.pack_id) AS pack_id, slot, round, status,
        CASE WHEN done.trial_id IS NOT NULL THEN 'done'
            WHEN plan.trial_id IS NULL OR starts_with(plan.pack_id, '{REUSED}') THEN 'new'
            WHEN plan.pack_id IN (FROM shrunk) THEN 'new'
            WHEN plan.pack_id IN (FROM open) THEN 'pending'
            WHEN $retry_failed OR (round + 1) % $tries <> 0 THEN 'retry'
            ELSE 'failed' END AS state
    FROM grid LEFT JOIN done USING (trial_id) LEFT JOIN plan USING (trial_id)"""

_UNPLACED = "SELECT trial_id FROM standing JOIN grid USING (row) WHERE state IN ('new', 'retry', 'failed')"

# After a plan was lost, packs begin again; not under the ids of those that were closed, of which each took one try.
_FIRST = "(SELECT count(*) * $tries FROM closed)"
_ROUND = f"SELECT coalesce(max(round) + 1, {_FIRST}) FROM plan"

_COPIED = "CREATE TABLE copied AS SELECT row, pack_id, round FROM copies JOIN grid USING (trial_id)"

_MEMBERS = f"""
    CREATE TABLE members AS
    SELECT row, coalesce(round + 1, {_FIRST}) AS round,
        CASE WHEN state = 'new' THEN '' ELSE row::VARCHAR END AS origin
    FROM standing ANTI JOIN copied USING (row) WHERE state IN ('new', 'retry')"""

_SHARED = ", ".join(f"any_value({f}) AS {f}" for f in SHARED)

_OVERVIEW = f"""
    SELECT pack_id, coalesce(any_value(standing.round), 0) AS round, count(*) AS trials,
        count(*) FILTER (state = 'done') AS done, count(*) FILTER (state = 'failed') AS failed,
        bool_or(state = 'pending') AS to_run, coalesce(any_value(engine), 'unknown') AS engine,
        any_value(physical_batch_size) AS physical_batch_size, coalesce(any_value(cost), 0.0) AS cost, {_SHARED}
    FROM standing ANTI JOIN copied USING (row) JOIN grid USING (row)
        LEFT JOIN (SELECT DISTINCT pack_id, engine, physical_batch_size, cost FROM plan) USING (pack_id)
    WHERE state IN ('done', 'pending', 'failed') GROUP BY pack_id
    UNION ALL BY NAME SELECT *, 0 AS done, 0 AS failed, true AS to_run FROM formed
    UNION ALL BY NAME
    SELECT pack_id, any_value(round) AS round, count(*) AS trials, 0 AS done, 0 AS failed, false AS to_run,
        'reuse' AS engine, NULL::BIGINT AS physical_batch_size, 0.0 AS cost, {_SHARED}
    FROM copied JOIN grid USING (row) GROUP BY pack_id
    ORDER BY cost DESC, pack_id"""

# Last come trials that are done, but whose plan is lost.
_PLACED = """
    SELECT row, slot, pack_id FROM placed
    UNION ALL
    SELECT row, row_number() OVER (PARTITION BY pack_id ORDER BY row) - 1, pack_id FROM copied
    UNION ALL
    SELECT row, slot, pack_id FROM standing WHERE state = 'done' AND round IS NULL"""

_ENDED = "SELECT status, count(*) FROM standing WHERE state = 'done' GROUP BY status"

_GIVEN_UP = """
    SELECT DISTINCT standing.pack_id FROM standing JOIN (FROM placed UNION ALL BY NAME FROM copied) AS moved USING (row)
    WHERE standing.pack_id <> moved.pack_id AND standing.pack_id NOT IN (FROM packs_there)
    UNION
    SELECT pack_id FROM former ANTI JOIN (FROM trials WHERE done) USING (trial_id)
    WHERE pack_id NOT IN (FROM packs_there) ORDER BY ALL"""

_FAILED = """
    SELECT trial_id FROM standing ANTI JOIN copied USING (row) JOIN grid USING (row)
    WHERE state = 'failed' ORDER BY row"""
