"""Rows of `isoratio status`: numbers that sum to what is planned, and the state."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.status import status
from trainables.store import StoreError

COUNTS = ("finished", "diverged", "failed", "running", "pending")
COLUMNS = ["sweep", "state", "planned", *COUNTS, "trials_per_second", "eta_seconds"]

HOLD = """
import fcntl, sys, time
with open(sys.argv[1]) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def launch(sweep, packs=(), state="running", lock=True, **values):
    """What a launch leaves in ``log/``, and the lock that it holds."""
    sweep.log_path.mkdir(parents=True, exist_ok=True)
    beat = {
        "launch_id": "l",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "updated": time.time(),
        "state": state,
        "running_packs": list(packs),
        "trials_per_second": 2.0,
        "eta_seconds": 30.0,
    }
    (sweep.log_path / "launch.json").write_text(json.dumps(beat | values))
    with (sweep.log_path / "launch.lock").open("w") as file:
        if lock:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def planned(build, sweep="digits"):
    build.plan(*(build.trial(str(k), sweep, pack_id=f"p{k // 2}") for k in range(6)), sweep=sweep)


def test_no_sweep_no_row(tmp_path):
    assert status(tmp_path / "nothing") == []


def test_a_running_sweep(build):
    planned(build)
    build.commit("p0", build.measured("0"), build.trial("1", status="diverged"))
    with launch(build.sweep(), ["p1"]):
        (row,) = status(build.store)
    assert list(row) == COLUMNS
    assert row == {
        "sweep": "digits",
        "state": "running",
        **dict(zip(("planned", *COUNTS), (6, 1, 1, 0, 2, 2), strict=True)),
        "trials_per_second": 2.0,
        "eta_seconds": 30.0,
    }


@pytest.mark.parametrize(
    ("beat", "state"),
    [
        ({"lock": True, "state": "stopped"}, "running"),  # a new launch that has not beaten yet
        ({"lock": False, "state": "stopped"}, "stopped"),
        ({"lock": False, "state": "running"}, "interrupted"),
        ({"lock": False, "state": "running", "updated": 0.0, "host": "elsewhere"}, "interrupted"),
        ({"lock": False, "state": "running", "host": "elsewhere"}, "running"),
    ],
)
def test_state_of_a_sweep_with_work_left(build, beat, state):
    planned(build)
    with launch(build.sweep(), ["p1"], **beat):
        (row,) = status(build.store)
    assert row["state"] == state
    alive = state == "running"
    assert row["running"] == (2 if alive else 0)
    assert row["eta_seconds"] == (30.0 if alive else None)


def test_a_planned_sweep_that_never_ran_is_interrupted(build):
    planned(build)
    assert status(build.store)[0]["state"] == "interrupted"


@pytest.mark.parametrize("said", ["complete", "stopped", "running"])
def test_complete_is_when_nothing_is_left(build, said):
    planned(build)
    for pack in range(2):
        build.commit(f"p{pack}", *(build.measured(str(2 * pack + k)) for k in range(2)))
    build.fail("p2", build.trial("4"), build.trial("5"))
    with launch(build.sweep(), state=said, lock=False):
        (row,) = status(build.store)
    assert (row["state"], row["finished"], row["failed"]) == ("complete", 4, 2)


def test_imported_trials_are_complete(build):
    build.commit("p", build.measured("t", "mine"), build.trial("u", "mine", status="diverged"), sweep="mine")
    (row,) = status(build.store)
    assert [row[k] for k in ("state", "planned", "finished", "diverged")] == ["complete", 2, 1, 1]


def test_one_sweep_of_several(build):
    for sweep in ("b", "a"):
        planned(build, sweep)
    assert [row["sweep"] for row in status(build.store)] == ["a", "b"]
    assert [row["sweep"] for row in status(build.store, "b")] == ["b"]
    with pytest.raises(StoreError, match=r"no sweep 'c' in .*: it holds a, b"):
        status(build.store, "c")


def test_a_renamed_directory_is_noticed(build):
    planned(build)
    build.sweep().path.rename(build.store.root / "other")
    with pytest.raises(StoreError, match="rows of sweep 'digits' lie in a directory of another name"):
        status(build.store)


def test_a_killed_launch_is_interrupted_at_once(build):
    """The lock goes with its process, whatever the heartbeat says."""
    planned(build)
    with launch(build.sweep(), ["p1"], lock=False):
        pass
    lock = str(build.sweep().log_path / "launch.lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert status(build.store)[0]["state"] == "running"
        holder.kill()
        holder.wait()
        assert status(build.store)[0]["state"] == "interrupted"


FATES = st.lists(st.sampled_from(COUNTS), min_size=1, max_size=12)


@given(fates=FATES, alive=st.booleans())
@settings(max_examples=25, deadline=None)
def test_numbers_sum_to_what_is_planned(builder, tmp_path_factory, fates, alive):
    build = builder(tmp_path_factory.mktemp("store"))
    build.plan(*(build.trial(f"t{k}", pack_id=f"p{k}") for k in range(len(fates))))
    for k, fate in enumerate(fates):
        if fate in ("finished", "diverged"):
            build.commit(f"p{k}", build.trial(f"t{k}", status=fate))
        elif fate == "failed":
            build.fail(f"p{k}", build.trial(f"t{k}"))
    with launch(build.sweep(), [f"p{k}" for k, fate in enumerate(fates) if fate == "running"], lock=alive):
        (row,) = status(build.store)
    expected = [fate if alive or fate != "running" else "pending" for fate in fates]
    assert {name: row[name] for name in COUNTS} == {name: expected.count(name) for name in COUNTS}
    assert row["planned"] == len(fates) == sum(row[name] for name in COUNTS)
    assert (row["state"] == "complete") == (not alive and "pending" not in expected)
