"""One trial again, alone, in this process: for looking into it."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainables.packs import Pack, run_through
from trainables.storage import StoreError
from trainables.store import Store


class TrialFailedError(RuntimeError):
    """A trial raises."""


def run_trial(sweep: str, trial_id: str, store: str | Path = "results") -> list[dict[str, Any]]:
    """Trains one planned trial again and returns what it measures; nothing is stored.

    Args:
        sweep: its name.
        trial_id: as in `trials`; its first digits suffice where no other trial has them.
        store: directory of the store.

    Returns:
        rows step, epoch, statistic, value, error; last one row with the status.

    Raises:
        StoreError: no such sweep or trial, or several.
        TrialFailedError: with the trial's own traceback.
    """
    there = Store(store).existing(sweep)
    plan = there.read_plan()
    if plan is None:
        raise StoreError(f"sweep {sweep!r} was imported: its trials cannot be run here")
    found = the_only(plan.filter(pc.starts_with(plan["trial_id"], trial_id)), trial_id, sweep, "plan")
    pack = Pack.of(found)
    name = pack.keys[0]["trial_id"]
    try:
        outcome = run_through(replace(pack, engine=_engine(pack)))
    except Exception as error:
        raise TrialFailedError(f"trial {name} fails:\n{traceback.format_exc()}") from error
    if outcome.failures:
        raise TrialFailedError(f"trial {name} fails:\n{outcome.failures[0]}")
    ended = outcome.trials[0]
    curves = [{k: row[k] for k in ("step", "epoch", "statistic", "value", "error")} for row in outcome.side["curves"]]
    last = {"step": ended.get("steps"), "epoch": ended["epochs_done"], "statistic": f"status: {ended['status']}"}
    return [*curves, last | {"value": None, "error": None}]


def the_only(rows: pa.Table, trial_id: str, sweep: str, table: str) -> pa.Table:
    """The row of the one trial whose trial_id begins so, of those rows of a table that do.

    Raises:
        StoreError: there is none, or several.
    """
    if rows.num_rows != 1:
        known = f"{rows.num_rows} trials begin so" if rows.num_rows else "there is none"
        raise StoreError(f"trial {trial_id!r} of {sweep!r}: {known}; SELECT trial_id FROM {table} shows all")
    return rows


def _engine(pack: Pack) -> str:
    """As planned; for rows that were copied, or whose plan was lost, as the rules say."""
    from trainables.engines import ENGINES, choose_engine

    return pack.engine if pack.engine in {*ENGINES, "call"} else choose_engine(pack.trials[0])
