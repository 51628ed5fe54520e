"""Rows of `isoratio status`: numbers that sum to what is planned, and the state."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.status import status
from trainables.lease import Lease
from trainables.storage import StoreError

COUNTS = ("finished", "diverged", "failed", "running", "pending")
USED = ("gpu_hours", "cpu_hours", "cost")
COLUMNS = ["sweep", "state", "planned", *COUNTS, "trials_per_second", "eta_seconds", *USED]

HOLD = """
import sys, time
from trainables.lease import Lease
from trainables.store import Store
with Lease(Store(sys.argv[1]).sweep("digits")):
    print("held", flush=True)
    time.sleep(60)
"""

TOLD = {"trials_per_second": 2.0, "eta_seconds": 30.0}


@contextmanager
def launch(sweep, packs=()):
    """A launch whose heart beats."""
    lease = Lease(sweep)
    lease.every = 0.05  # it says 1 second: only silence of 2.5 makes it dead
    with lease:
        lease.beat(running_packs=list(packs), **TOLD)
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
        **dict.fromkeys(USED),  # no sweep file says what a pack takes
    }


@pytest.mark.parametrize(
    ("where", "said", "state"),
    [
        ("here", "stopped", "stopped"),
        ("here", "interrupted", "interrupted"),
        ("gone", "running", "interrupted"),
        ("here", "running", "interrupted"),  # a process that is there, but does not beat
        ("elsewhere", "running", "interrupted"),
        ("elsewhere", "stopped", "stopped"),
    ],
)
def test_state_of_a_sweep_with_work_left(build, where, said, state):
    planned(build)
    build.hold(where, state=said, running_packs=["p1"], **TOLD)
    (row,) = status(build.store)
    assert (row["state"], row["running"], row["eta_seconds"]) == (state, 0, None)


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_launch_after_one_that_stopped_is_running(build, monkeypatch, machine):
    planned(build)
    build.hold(state="stopped")
    with launch(build.sweep(), ["p1"]):
        if machine == "another":
            monkeypatch.setattr("trainables.lease._machine", lambda: "another")
        (row,) = status(build.store)
    assert (row["state"], row["running"], row["eta_seconds"]) == ("running", 2, 30.0)


def test_a_planned_sweep_that_never_ran_is_interrupted(build):
    planned(build)
    assert status(build.store)[0]["state"] == "interrupted"


@pytest.mark.parametrize("said", ["complete", "stopped", "running"])
def test_complete_is_when_nothing_is_left(build, said):
    planned(build)
    for pack in range(2):
        build.commit(f"p{pack}", *(build.measured(str(2 * pack + k)) for k in range(2)))
    build.fail("p2", build.trial("4"), build.trial("5"))
    build.hold(state=said)
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
    build.sweep().storage.root.rename(build.store.storage.root / "other")
    with pytest.raises(StoreError, match="rows of sweep 'digits' lie in a directory of another name"):
        status(build.store)


def test_a_killed_launch_is_interrupted_at_once(build, monkeypatch):
    """Its process is gone: nobody waits for its next beat."""
    planned(build)
    command = [sys.executable, "-c", HOLD, str(build.store.storage.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert status(build.store)[0]["state"] == "running"
        holder.kill()
        holder.wait()
        monkeypatch.setattr("analysis.database.is_silent", lambda *_: pytest.fail("it was watched"))
        assert status(build.store)[0]["state"] == "interrupted"


FATES = st.lists(st.sampled_from(COUNTS), min_size=1, max_size=12)


@given(fates=FATES, alive=st.booleans())
@settings(max_examples=10, deadline=None)
def test_numbers_sum_to_what_is_planned(builder, tmp_path_factory, fates, alive):
    build = builder(tmp_path_factory.mktemp("store"))
    build.plan(*(build.trial(f"t{k}", pack_id=f"p{k}") for k in range(len(fates))))
    for k, fate in enumerate(fates):
        if fate in ("finished", "diverged"):
            build.commit(f"p{k}", build.trial(f"t{k}", status=fate))
        elif fate == "failed":
            build.fail(f"p{k}", build.trial(f"t{k}"))
    packs = [f"p{k}" for k, fate in enumerate(fates) if fate == "running"]
    build.hold("gone", running_packs=packs)
    with launch(build.sweep(), packs) if alive else nullcontext():
        (row,) = status(build.store)
    expected = [fate if alive or fate != "running" else "pending" for fate in fates]
    assert {name: row[name] for name in COUNTS} == {name: expected.count(name) for name in COUNTS}
    assert row["planned"] == len(fates) == sum(row[name] for name in COUNTS)
    assert (row["state"] == "complete") == (not alive and "pending" not in expected)
