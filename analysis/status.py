"""How far each sweep is, from any process that sees the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.database import Launch, fetch, open_views, select_sweeps
from trainables.schema import Status
from trainables.store import Store, StoreError

# A sweep without a plan was imported; then what it holds is all there is.
_COUNTS = """
SELECT sweep, status, count(*) AS trials FROM plan GROUP BY ALL
UNION ALL
SELECT sweep, status, count(*) FROM trials ANTI JOIN plan USING (sweep) GROUP BY ALL"""

_ORDER = (Status.FINISHED, Status.DIVERGED, Status.FAILED, Status.RUNNING, Status.PENDING)


def status(store: str | Path | Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """One row per sweep, by name.

    Columns: sweep, state, planned, finished, diverged, failed, running, pending (numbers of trials, the last five sum
    to planned), trials_per_second, eta_seconds (None when no launch lives). The state is

    - ``running``: a launch holds the sweep's lock (on another host: its heartbeat is younger than 30 s);
    - ``complete``: nothing is left to run;
    - ``stopped``: the last launch was asked to stop, and did;
    - ``interrupted``: it ended without saying so.

    Raises:
        StoreError: for a sweep that does not exist, or a damaged file.
    """
    sweeps = select_sweeps(store, sweep)
    launches = {s.name: Launch.of(s) for s in sweeps}
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(Status, 0) for name in launches}
    for row in fetch(open_views(sweeps, launches), _COUNTS, sweeps).to_pylist():
        if row["sweep"] not in counts:
            raise StoreError(f"rows of sweep {row['sweep']!r} lie in a directory of another name; rename it back")
        counts[row["sweep"]][row["status"]] = row["trials"]
    return [_row(name, counts[name], launch) for name, launch in launches.items()]


def _row(sweep: str, trials: dict[str, int], launch: Launch) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "state": _state(trials, launch),
        "planned": sum(trials.values()),
        **{s.value: trials[s] for s in _ORDER},
        "trials_per_second": launch.trials_per_second,
        "eta_seconds": launch.eta_seconds,
    }


def _state(trials: dict[str, int], launch: Launch) -> str:
    if launch.alive:
        return "running"
    if trials[Status.RUNNING] + trials[Status.PENDING] == 0:
        return "complete"
    return "stopped" if launch.state == "stopped" else "interrupted"
