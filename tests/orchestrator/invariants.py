"""What must hold of a store, whatever happens to it (the numbers are used in the messages):

- I1: committed rows are never lost nor changed.
- I2: a trial has at most one row.
- I3: done, failed and pending trials add up to those planned.
- I4: a launch runs only what is missing.
- I5: values equal those of a launch without faults, bit for bit.
- I6: no process is left.
- I7: messages are clear, exit codes documented (see :meth:`forked.Command.ended`).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from faults import AtStep, Note
from forked import run
from sweeps_for_faults import WAIT

from analysis.database import connect
from orchestrator import status
from trainables.schema import SIDE_TABLES
from trainables.store import Store

OWN = {"attempt", "seconds", "provenance_id", "device", "pack_id", "slot", "together", "physical_batch_size"}
"""Columns that tell of the attempt at a trial, not of the trial."""

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """What a store shows of a sweep.

    Attributes:
        rows: trial_id -> its row, of trials that did not fail.
        sides: side table -> trial_id -> its rows, sorted.
        files: name -> content of the files with rows.
        state: what `isoratio status` tells.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    sides: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    state: Row | None = None

    @classmethod
    def of(cls, store: Path | str, sweep: str = "tiny") -> View:
        """Asks the store; asserts I2 and I3."""
        there = Store(store).sweep(sweep)
        if not there.holds_anything():
            return cls()
        listing = there.listing(*SIDE_TABLES, "trials")
        sides: dict[str, dict[str, list[str]]] = {table: defaultdict(list) for table in SIDE_TABLES}
        with connect(store, sweep) as connection:
            found = connection.sql("SELECT * FROM trials WHERE status <> 'failed'").to_arrow_table().to_pylist()
            for table in filter(listing.tables.get, SIDE_TABLES):
                for row in connection.sql(f"SELECT * FROM {table} ORDER BY ALL").to_arrow_table().to_pylist():
                    sides[table][row["trial_id"]].append(repr(row))
        rows = {row["trial_id"]: row for row in found}
        assert len(rows) == len(found), "I2: a trial has two rows"
        files = {name: there.storage.read(name) for name in listing.tables["trials"]}
        (state,) = status(store, sweep)
        ended = state["finished"] + state["diverged"] + state["failed"]
        assert ended + state["running"] + state["pending"] == state["planned"], f"I3: {state}"
        assert state["finished"] + state["diverged"] == len(rows), f"I3: {len(rows)} rows, {state}"
        return cls(rows, sides, files, state)

    def values(self) -> dict[str, Row]:
        """trial_id -> what does not tell of the attempt."""
        return {trial: {k: v for k, v in row.items() if k not in OWN} for trial, row in self.rows.items()}

    def is_whole(self) -> bool:
        """Whether nothing is left to run."""
        return self.state is not None and self.state["state"] == "complete"


def check_invariants(before: View, after: View, whole: View) -> None:
    """Whether all that was visible still is, as it was (I1), and has the values of a launch without faults (I5)."""
    assert before.rows.items() <= after.rows.items(), "I1: a committed row was lost or changed"
    lost = {name for name, data in before.files.items() if after.files.get(name) != data}
    assert not lost or any(name.startswith("merged/") for name in after.files), f"I1: {lost}"
    expected = whole.values()
    for trial, values in after.values().items():
        assert values == expected[trial], "I5"
    for table, found in after.sides.items():
        assert found.items() <= whole.sides[table].items(), f"I5: {table}"
        assert found.keys() == whole.sides[table].keys() & after.rows.keys(), f"I5: {table}"


def finish(work: Path, before: View, whole: View, *command: str, **options: Any) -> View:
    """Launches once more; asserts that only what was missing ran (I4) and that the end is as without faults (I5)."""
    store, *command_ = command or ("results", "launch", "sweep.yaml")
    code, said = run(work, *command_, "--executor", "inline", "--store", store, **options)
    assert code == 0, said
    assert ran(said) == (len(before.rows), len(whole.rows) - len(before.rows)), f"I4: {said}"
    after = View.of(work / store if "://" not in store else store, whole_name(whole))
    check_invariants(before, after, whole)
    assert after.is_whole()
    assert after.rows.keys() == whole.rows.keys()
    return after


def whole_name(whole: View) -> str:
    assert whole.state is not None
    name: str = whole.state["sweep"]
    return name


def ran(said: str) -> tuple[int, int]:
    """Trials that a launch found done, and that it ran, by its own words."""
    opened, closed = re.search(r"(\d+) done before", said), re.search(r"this launch ran (\d+) in", said)
    assert opened, said
    assert closed, said
    return int(opened[1]), int(closed[1])


@dataclass(frozen=True)
class Undisturbed:
    """A launch of a sweep file without faults.

    Attributes:
        view: what it ends with.
        changes: operations by its main thread that change the store; what the heartbeat does comes when it comes.
        operations: those that read, too.
    """

    view: View
    changes: int
    operations: int


@cache
def undisturbed(text: str) -> Undisturbed:
    """Launches a sweep file without faults, once."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "sweep.yaml").write_text(text)
        (work / "waiting.py").write_text(WAIT)
        faults = [AtStep(1, work / "results", Note(work / f"{c}"), c, times=sys.maxsize) for c in (True, False)]
        code, said = run(work, "launch", "sweep.yaml", "--executor", "inline", faults=faults)
        assert code == 0, said
        whole = View.of(work / "results", text.split()[1])
        assert whole.is_whole()
        return Undisturbed(whole, *((work / f"{c}").stat().st_size for c in (True, False)))


def uninterrupted(text: str) -> View:
    """What a launch of a sweep file without faults ends with."""
    return undisturbed(text).view


def left_running(home: Path) -> Iterator[tuple[int, str]]:
    """Processes that belong to a test, with their command lines: all that it starts inherit its HOME (I6)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name), (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
