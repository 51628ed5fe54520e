"""Launches that meet: two at once, one that sleeps, one that is told to end, one that is gone; and wrong clocks."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faults import KILL, STOP, AtReport, AtStep, Beating, Clock, Instead, Slow, Together
from forked import Command, run
from invariants import View, check_invariants, finish, uninterrupted
from sweeps_for_faults import LONGER, TINY, WAIT, WAITING

from trainables.lease import PATIENCE, heartbeat
from trainables.packs import PackItem
from trainables.store import Store

INLINE = ("--executor", "inline")
LAUNCH = ("launch", "sweep.yaml", *INLINE)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(TINY)
    return tmp_path


def logs(work: Path) -> str:
    code, said = run(work, "logs", "tiny")
    assert code == 0
    return said


def clock_was_wrong(work: Path) -> bool:
    """Whether the log tells of times that are not now."""
    now = datetime.now(UTC)
    times = [datetime.fromisoformat(line.split()[0]) for line in logs(work).splitlines() if "+00:00 " in line]
    return any(abs(time - now) > timedelta(minutes=30) for time in times)


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 5))])
def test_of_two_launches_at_once_one_is_refused(work: Path, number: int) -> None:
    (work / "sweep.yaml").write_text(WAITING)
    (work / "waiting.py").write_text(WAIT)
    at_once = [Together(time.monotonic() + 0.5)]
    with Command(work, *LAUNCH, faults=at_once) as one, Command(work, *LAUNCH, faults=at_once) as other:
        while one.process.is_alive() and other.process.is_alive():
            time.sleep(0.02)
        refused, winner = (other, one) if one.process.is_alive() else (one, other)
        assert refused.ended() == 4
        assert f"process {winner.pid} on" in refused.said
        assert "`isoratio stop tiny`" in refused.said
        (work / "go").touch()
        assert winner.ended() == 0
    assert [row["test_loss"] for row in View.of(work / "results").rows.values()] in ([0.0, 1.0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param([signal.SIGTERM], 143, id="SIGTERM"),
        pytest.param([], 130, id="stop --now", marks=pytest.mark.long),
        pytest.param([signal.SIGINT, signal.SIGINT], 130, id="Ctrl-C twice", marks=pytest.mark.long),
    ],
)
def test_a_launch_told_to_end_saves_itself_and_goes_on_bit_for_bit(
    work: Path, how: list[signal.Signals], code: int
) -> None:
    (work / "sweep.yaml").write_text(LONGER)
    whole = uninterrupted(LONGER)
    with Command(work, *LAUNCH, faults=[Slow(0.2)]) as launch:
        launch.until(lambda: heartbeat(Store(work / "results").sweep("tiny").storage, 1).get("running_packs"))
        time.sleep(0.5)
        assert not (work / "results/tiny/checkpoints").exists()
        began = time.monotonic()
        for number in how:
            launch.signal(number)
            time.sleep(0.3)
        if not how:
            assert "asked the launch" in run(work, "stop", "tiny", "--now")[1]
        assert launch.ended() == code
        assert time.monotonic() - began < 30
        assert "go on with: isoratio resume tiny" in launch.said
    stopped = View.of(work / "results")
    assert stopped.state is not None
    assert stopped.state["state"] == "stopped"
    (saved,) = (work / "results/tiny/checkpoints").iterdir()
    assert int(re.split(r"[.-]", saved.name)[2]) > 0  # steps within a group of trials
    finish(work, stopped, whole, "results", "resume", "tiny")
    assert f"goes on from its checkpoint {saved}" in logs(work)
    assert not list((work / "results/tiny/checkpoints").iterdir())


def test_a_launch_that_is_gone_is_replaced_at_once(work: Path) -> None:
    code, _ = run(work, *LAUNCH, faults=[AtReport(1, KILL)])
    assert code == -9
    killed = View.of(work / "results")
    assert killed.state is not None
    assert killed.state["state"] == "interrupted"
    began = time.monotonic()
    finish(work, killed, uninterrupted(TINY))
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("take_over", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_launch_that_sleeps_is_replaced_and_ends_once_awake(work: Path, take_over: bool) -> None:
    whole = uninterrupted(TINY)
    with Command(work, *LAUNCH, faults=[Beating(0.4), AtReport(2, STOP)]) as sleeper:
        assert sleeper.stops()
        asleep = View.of(work / "results")
        began = time.monotonic()
        finished = finish(work, asleep, whole, "results", *LAUNCH[:2], *(["--take-over"] if take_over else []))
        assert (time.monotonic() - began > PATIENCE) != take_over
        sleeper.signal(signal.SIGCONT)
        assert sleeper.ended() == 4
        assert "sweep 'tiny' was taken over by process" in sleeper.said
        assert "what it has committed is kept" in sleeper.said
    assert View.of(work / "results") == finished


@pytest.mark.parametrize("number", [17, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 17))])
def test_a_worker_that_outlives_its_launch_changes_nothing(work: Path, number: int) -> None:
    whole, store = uninterrupted(TINY), work / "results"
    assert run(work, *LAUNCH, faults=[AtReport(1, KILL)])[0] == -9
    there = Store(store).sweep("tiny")
    (plan,) = there.listing("plan").tables["plan"]
    pack_id = there.read_plan()["pack_id"][0].as_py()
    item = PackItem(str(store), "tiny", pack_id, plan, launch=1)
    with Command(work, *LAUNCH, faults=[AtStep(number, store, STOP), Instead(item)]) as worker:
        assert worker.stops()
        finished = finish(work, View.of(store), whole)
        worker.signal(signal.SIGCONT)
        assert worker.ended() == 0
    assert View.of(store) == finished


HOUR = 3600.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Clock(HOUR), Clock(-HOUR)),
        *(
            pytest.param(Clock(*one), Clock(*other), marks=pytest.mark.long)
            for one in ((-HOUR,), (HOUR, 2), (-HOUR, 2))
            for other in ((HOUR,), (-HOUR, 2), (0.0,))
        ),
    ],
)
def test_a_clock_moved_by_an_hour_changes_nothing(work: Path, first: Clock, second: Clock) -> None:
    """In the middle of a launch, or between two."""
    whole = uninterrupted(TINY)
    assert run(work, *LAUNCH, faults=[first, AtReport(4, KILL)])[0] == -9
    killed = View.of(work / "results")
    finish(work, killed, whole, faults=[second])
    assert clock_was_wrong(work)


@pytest.mark.long
@pytest.mark.parametrize("offsets", [("+1h", "-1h"), ("-1h", "+1h")])
def test_the_clock_of_the_machine_moved_by_an_hour_changes_nothing(work: Path, offsets: tuple[str, str]) -> None:
    """As the C library tells it, to all libraries; the monotonic clock is not moved."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed")
    isoratio = str(Path(sys.executable).with_name("isoratio"))
    for offset, limit in zip(offsets, (["--limit", "2"], []), strict=True):
        command = [faketime, "--exclude-monotonic", "-f", offset, isoratio, *LAUNCH, *limit]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    view = View.of(work / "results")
    check_invariants(View(), view, uninterrupted(TINY))
    assert view.is_whole()
    assert clock_was_wrong(work)
