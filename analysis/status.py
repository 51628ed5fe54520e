"""How far each sweep is, from any process that sees the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.database import Launch, fetch, open_views, select_sweeps
from trainables.schema import Status
from trainables.storage import StoreError
from trainables.store import Store, SweepStore

_REPORTED = (Status.FINISHED, Status.DIVERGED, Status.FAILED, Status.RUNNING, Status.PENDING)


def status(store: str | Path | Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """One row per sweep, by name.

    Columns: sweep, state, planned, finished, diverged, failed, running, pending (numbers of trials, the last five sum
    to planned), trials_per_second, eta_seconds (None when no launch lives). The state is

    - ``running``: a launch holds the sweep, and its heart beats;
    - ``complete``: nothing is left to run;
    - ``stopped``: the last launch was asked to stop, and did;
    - ``interrupted``: it ended without saying so.

    Raises:
        StoreError: for a sweep that does not exist, or a damaged file.
    """
    sweeps = select_sweeps(store, sweep)
    launches = {s.name: Launch.of(s, watch=True) for s in sweeps}
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(Status, 0) for name in launches}
    for row in _counts(sweeps, launches):
        if row["sweep"] not in counts:
            raise StoreError(f"rows of sweep {row['sweep']!r} lie in a directory of another name; rename it back")
        counts[row["sweep"]][row["status"]] = row["trials"]
    return [_row(name, counts[name], launch) for name, launch in launches.items()]


def _counts(sweeps: list[SweepStore], launches: dict[str, Launch]) -> Iterator[dict[str, Any]]:
    """Trials by sweep and status. A sweep without a plan was imported: what it holds is all there is."""
    listings = [s.listing() for s in sweeps]
    planned = [listing for listing in listings if listing.tables["plan"]]
    imported = [listing for listing in listings if not listing.tables["plan"]]
    for view, chosen in (("plan", planned), ("trials", imported)):
        with open_views(chosen, launches, []) as connection:
            query = f"SELECT sweep, status, count(*) AS trials FROM {view} GROUP BY ALL"
            yield from fetch(connection, query, [listing.sweep for listing in chosen]).to_pylist()


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
