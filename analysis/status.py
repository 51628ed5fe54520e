"""How far each sweep is, from any process that sees the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from analysis.database import Launch, fetch, open_views, query_files, select_sweeps
from analysis.stated import stated_in
from trainables.resources import of_sweep_file, usage
from trainables.schema import TABLES, Status
from trainables.storage import StoreError
from trainables.store import REUSED, Listing, Store, conform

_REPORTED = (Status.FINISHED, Status.DIVERGED, Status.FAILED, Status.RUNNING, Status.PENDING)

Stored = dict[str, pa.Table]
"""Rows by table: trials and failures."""


def status(store: str | Path | Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """One row per sweep, by name.

    Columns: sweep, state, planned, finished, diverged, failed, running, pending (numbers of trials, the last five sum
    to planned), trials_per_second, eta_seconds (None when no launch lives), gpu_hours, cpu_hours, cost. The state is

    - ``running``: a launch holds the sweep, and its heart beats;
    - ``complete``: nothing is left to run;
    - ``stopped``: the last launch was asked to stop, and did;
    - ``interrupted``: it ended without saying so.

    The hours are those of the packs whose rows or failures are stored, times what the sweep file sets aside for a pack
    now; the cost is at its prices, None where one is missing. What left no rows is not in them: attempts whose process
    died or that were stopped, which counts from the last start of a pack only, and time in which processes waited. They
    are None for trials that were imported. Trials reused from another sweep count there.

    Raises:
        StoreError: for a sweep that does not exist, or a damaged file.
    """
    sweeps = select_sweeps(store, sweep)
    launches = {s.name: Launch.of(s, watch=True) for s in sweeps}
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(Status, 0) for name in launches}
    listings = {s.name: s.listing() for s in sweeps}
    stored = {name: _stored(listing) for name, listing in listings.items() if listing.tables["plan"]}
    for row in _counts(listings, stored, launches):
        if row["sweep"] not in counts:
            raise StoreError(f"rows of sweep {row['sweep']!r} lie in a directory of another name; rename it back")
        counts[row["sweep"]][row["status"]] = row["trials"]
    return [
        _row(name, counts[name], launch) | _used(listings[name], stored.get(name)) for name, launch in launches.items()
    ]


def _stored(listing: Listing) -> Stored:
    """What status asks of stored rows, read once."""
    keys = ["sweep", "trial_id", "measure_id", "pack_id", "seconds", "device"]
    return {"trials": _read(listing, "trials", [*keys, "status"]), "failures": _read(listing, "failures", keys)}


def _read(listing: Listing, table: str, columns: list[str]) -> pa.Table:
    with duckdb.connect() as connection:
        rows = query_files(connection, listing, table, columns, "FROM rows")
    return conform(rows, pa.schema([TABLES[table].field(name) for name in columns]))


def _counts(
    listings: dict[str, Listing], stored: dict[str, Stored], launches: dict[str, Launch]
) -> Iterator[dict[str, Any]]:
    """Trials by sweep and status. A sweep without a plan was imported: what it holds is all there is."""
    planned = [listing for name, listing in listings.items() if name in stored]
    imported = [listing for name, listing in listings.items() if name not in stored]
    for view, chosen in (("plan", planned), ("trials", imported)):
        with open_views(chosen, launches, []) as connection:
            for table in ("trials", "failures") if chosen is planned and planned else ():
                connection.register(f"stored_{table}", pa.concat_tables([rows[table] for rows in stored.values()]))
            query = f"SELECT sweep, status, count(*) AS trials FROM {view} GROUP BY ALL"
            yield from fetch(connection, query, [listing.sweep for listing in chosen]).to_pylist()


def _used(listing: Listing, stored: Stored | None) -> dict[str, float | None]:
    """Hours and cost of a sweep; None where it was imported."""
    stated = stated_in(listing.sweep)
    if stated is None or stored is None:
        return dict.fromkeys(("gpu_hours", "cpu_hours", "cost"))
    seconds: defaultdict[str, float] = defaultdict(float)
    for rows in stored.values():
        ran = rows.filter(pc.invert(pc.starts_with(rows["pack_id"], REUSED)))
        for row in ran.group_by("device").aggregate([("seconds", "sum")]).to_pylist():
            seconds[row["device"] or "cpu"] += row["seconds_sum"] or 0.0
    return asdict(usage(seconds, *of_sweep_file(stated)))


def _row(sweep: str, trials: dict[str, int], launch: Launch) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "state": _state(trials, launch),
        "planned": sum(trials.values()),
        **{s.value: trials[s] for s in _REPORTED},
        "trials_per_second": launch.trials_per_second,
        "eta_seconds": launch.eta_seconds,
    }


def _state(trials: dict[str, int], launch: Launch) -> str:
    if launch.alive:
        return "running"
    if trials[Status.RUNNING] + trials[Status.PENDING] == 0:
        return "complete"
    return "stopped" if launch.state == "stopped" else "interrupted"
