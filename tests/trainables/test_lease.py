"""One launch per sweep: numbers, heartbeats, and who may replace whom."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainables import lease as module
from trainables.lease import (
    FOLDER,
    Holder,
    LaunchHeldError,
    Lease,
    ask_to_stop,
    create,
    has_ended,
    heartbeat,
    is_silent,
    latest,
    logs,
    note,
    stop_request,
)
from trainables.storage import StoreError
from trainables.store import Store, SweepStore
from trainables.tidying import tidy

HOLD = """
import sys, time
from pathlib import Path
from trainables.lease import LaunchHeldError, Lease
from trainables.store import Store

lease = Lease(Store(sys.argv[1]).sweep("s"))
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease:
        print("held", lease.number, flush=True)
        sys.stdin.readline()
except LaunchHeldError as error:
    print(error, flush=True)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    return Store(tmp_path).sweep("s")


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may wait for a heartbeat."""
    monkeypatch.setattr(module, "is_silent", lambda *_: pytest.fail("it was watched"))


def quick(sweep: SweepStore, **options: float) -> Lease:
    """A lease whose heart beats often."""
    lease = Lease(sweep, **options)  # type: ignore[arg-type]
    lease.every = 0.02
    return lease


def leave(sweep: SweepStore, number: int = 1, beat: str | None = '{"state": "running"}', **changes: object) -> Holder:
    """What a launch leaves behind."""
    holder = replace(Holder.of_this_process(number, "launch"), **changes)  # type: ignore[arg-type]
    sweep.storage.create(f"{FOLDER}/{number:06d}.json", json.dumps(asdict(holder)).encode())
    if beat is not None:
        sweep.storage.replace(f"log/{number:06d}.json", beat.encode())
    return holder


@contextmanager
def processes(sweep: SweepStore, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Some processes that wait for a line before they take the lease, and for another before they give it back."""
    command = [sys.executable, "-c", HOLD, sweep.store_url]
    with ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(number)
        ]
        for process in started:
            stack.callback(process.kill)
            assert said(process) == "ready"
        yield started


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# ---- who holds it


@pytest.mark.usefixtures("unwatched")
def test_leases_are_numbered_and_the_next_one_follows_at_once(sweep: SweepStore) -> None:
    for number in (1, 2, 3):
        with Lease(sweep) as lease:
            assert lease.number == number
            assert latest(sweep.storage) == lease.holder
            assert heartbeat(sweep.storage, number)["state"] == "running"
            lease.check()
        assert heartbeat(sweep.storage, number)["state"] == "interrupted"
    with pytest.raises(FileExistsError):
        create(sweep.storage, 2, "launch")


@pytest.mark.parametrize("end", ["stopped", "complete"])
def test_the_last_word_stays(sweep: SweepStore, end: str) -> None:
    with quick(sweep) as lease:
        lease.beat(end, trials_done=3)
        while heartbeat(sweep.storage, 1)["beat"] <= 3:  # the heart goes on until the end
            time.sleep(0.01)
    beat = heartbeat(sweep.storage, 1)
    assert (beat["state"], beat["trials_done"]) == (end, 3)
    assert has_ended(beat)


def test_no_beat_comes_after_the_last_word(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was being written when the last word came must not replace it."""
    with Lease(sweep) as lease:
        reached, go_on = threading.Event(), threading.Event()
        really = lease.storage.replace

        def slow(name: str, data: bytes) -> None:
            if threading.current_thread() is slow_one:
                reached.set()
                assert go_on.wait(5)
            really(name, data)

        monkeypatch.setattr(lease.storage, "replace", slow)
        slow_one = threading.Thread(target=lease.beat)
        slow_one.start()
        assert reached.wait(5)
        last = threading.Thread(target=lease.beat, args=("complete",))
        last.start()
        last.join(0.1)
        go_on.set()
        slow_one.join()
        last.join()
        lease.end()
    assert heartbeat(sweep.storage, 1)["state"] == "complete"


@pytest.mark.parametrize("repetition", range(3))
def test_of_threads_that_race_one_wins(sweep: SweepStore, repetition: int) -> None:
    del repetition
    barrier, over = threading.Barrier(6), threading.Event()
    refused: list[str] = []

    def contend(_: int) -> int:
        barrier.wait()
        try:
            with quick(sweep) as lease:
                assert over.wait(20)
                return lease.number
        except LaunchHeldError as error:
            refused.append(str(error))
            if len(refused) == 5:
                over.set()
            return 0

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(contend, range(6)))
    assert sorted(numbers) == [0, 0, 0, 0, 0, 1]
    assert all(f"sweep 's' is being run by process {os.getpid()} on " in text for text in refused)


def test_of_processes_that_race_one_wins_and_names_itself(sweep: SweepStore) -> None:
    with processes(sweep, 2) as started:
        for process in started:
            tell(process)
        lines = {process.pid: said(process) for process in started}
        ((winner, _),) = (pair for pair in lines.items() if pair[1] == "held 1")
        (other,) = (line for pid, line in lines.items() if pid != winner)
        assert other.startswith(f"sweep 's' is being run by process {winner} on ")
        assert "end it with `isoratio stop s`, or, where it is stuck, replace it with --take-over" in other
    holder = latest(sweep.storage)
    assert holder is not None
    assert holder.pid == winner


# ---- holders that are gone


@pytest.mark.usefixtures("unwatched")
def test_a_killed_holder_is_replaced_at_once(sweep: SweepStore) -> None:
    with processes(sweep, 1) as (process,):
        tell(process)
        assert said(process) == "held 1"
        holder = latest(sweep.storage)
        assert holder is not None
        process.send_signal(signal.SIGSTOP)
        assert not holder.is_gone(), "it may go on, so that only its silence counts"
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert holder.is_gone(), "dead, though its parent has not looked yet"
        process.wait()
        assert holder.is_gone()
        with Lease(sweep) as lease:
            assert lease.number == 2
    assert heartbeat(sweep.storage, 1)["state"] == "running", "the dead said nothing"


@pytest.mark.usefixtures("unwatched")
def test_a_pid_that_another_process_has_now_is_told_apart(sweep: SweepStore) -> None:
    started = Holder.of_this_process(1, "launch").started
    assert started is not None
    assert leave(sweep, started=started - 1).is_gone()
    with Lease(sweep) as lease:
        assert lease.number == 2


def test_what_runs_on_another_machine_is_never_gone(sweep: SweepStore) -> None:
    """Another machine, another start of this one, another container, or one that cannot tell."""
    here = Holder.of_this_process(1, "launch")
    assert here.machine is not None
    for machine in ("another", None, here.machine.replace("pid:[", "pid:[9"), f"0{here.machine}"):
        assert not replace(here, machine=machine, started=1).is_gone()
    assert replace(here, started=1).is_gone()


# ---- silence


def test_a_silent_holder_is_replaced_when_patience_ends(sweep: SweepStore) -> None:
    leave(sweep, machine="another")
    began = time.monotonic()
    with Lease(sweep, patience=0.4) as lease:
        assert time.monotonic() - began >= 0.4
        assert lease.number == 2


def test_who_waits_for_a_sign_hears_of_whom_and_may_give_up(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGN", 0.1)
    holder, said = leave(sweep, machine="another"), list[str]()
    with Lease(sweep, patience=0.05, on_wait=said.append):
        assert not said, "it lasted less than a launch takes to give a sign"
    holder = leave(sweep, 3, machine="another")
    with Lease(sweep, patience=0.7, on_wait=said.append):
        assert 1 <= len(said) <= 4
    (why,) = {*said}
    assert why.startswith(f"sweep 's' is being run by {holder}: ")
    assert why.endswith(" replace it with --take-over. Waiting for a sign of it, 1 s at most")

    def give_up(why: str) -> None:
        raise LaunchHeldError(why)

    leave(sweep, 5, machine="another")
    began = time.monotonic()
    with pytest.raises(LaunchHeldError, match="Waiting for a sign"):
        Lease(sweep, on_wait=give_up).__enter__()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("beat", [None, "", "{", "[1]", "null", '{"every": 1.0}'])
def test_a_heartbeat_that_is_none_is_silence(sweep: SweepStore, beat: str | None) -> None:
    leave(sweep, machine="another", beat=beat)
    with Lease(sweep, patience=0.05) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 4}'])
def test_a_damaged_lease_keeps_its_number(sweep: SweepStore, text: str) -> None:
    leave(sweep, 4)
    sweep.storage.replace(f"{FOLDER}/000004.json", text.encode())
    sweep.storage.replace(f"{FOLDER}/notes.txt", b"of somebody else")
    with Lease(sweep, patience=0.05) as lease:
        assert lease.number == 5


def test_no_number_comes_twice_even_where_leases_are_lost(sweep: SweepStore) -> None:
    """An old plan would count for more than a new one, and an old request would stop a new launch."""
    for name in ("log/000003.stop", "log/000004.log", "plan/000007-0002.0123456789abcdef.parquet", "log/20260101.txt"):
        sweep.storage.replace(name, b"")
    with Lease(sweep) as lease:
        assert lease.number == 8
        sweep.storage.delete(f"{FOLDER}/000008.json")  # as `verify` does when it is damaged
        lease.check()
        with Lease(sweep) as other:
            assert other.number == 9
            with pytest.raises(LaunchHeldError, match="was taken over"):
                lease.check()


@pytest.mark.usefixtures("unwatched")
@pytest.mark.parametrize("state", ["stopped", "complete", "interrupted"])
def test_one_that_has_ended_on_another_machine_is_replaced_at_once(sweep: SweepStore, state: str) -> None:
    leave(sweep, machine="another", beat=json.dumps({"state": state}))
    with Lease(sweep) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("machine", ["this", "another"])
def test_one_that_beats_is_not_replaced(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    with quick(sweep) as lease:
        if machine == "another":
            monkeypatch.setattr(module, "_machine", lambda: "another")
        with pytest.raises(LaunchHeldError, match=f"process {os.getpid()} on {lease.holder.host} since 20"):
            Lease(sweep).__enter__()
        assert sweep.storage.names(FOLDER) == ["000001.json"]


def test_another_command_is_named(sweep: SweepStore) -> None:
    with ExitStack() as stack:
        lease = Lease(sweep, "compact")
        lease.every = 0.02
        stack.enter_context(lease)
        with pytest.raises(LaunchHeldError, match=r"sweep 's' is being changed \(`compact`\) by process"):
            Lease(sweep).__enter__()


def jumping(hours: Iterator[float]) -> Callable[[], float]:
    really = time.time
    return lambda: really() + 3600 * next(hours)


@pytest.mark.parametrize("jump", [1.0, -1.0])
def test_no_clock_matters(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Neither this machine's, which jumps by an hour whenever it is read, nor another's, nor the file server's."""
    monkeypatch.setattr(time, "time", jumping(iter(k * jump for k in range(10**6))))
    with quick(sweep) as lease:
        with pytest.raises(LaunchHeldError):
            Lease(sweep).__enter__()
        lease.check()
    leave(sweep, 2, machine="another", since="2001-01-01T00:00:00+00:00" if jump > 0 else "2999-01-01T00:00:00+00:00")
    for name in (f"{FOLDER}/000002.json", "log/000002.json"):
        os.utime(sweep.storage.path(name), (0, 0) if jump > 0 else (2**32, 2**32))  # type: ignore[attr-defined]
    with pytest.raises(LaunchHeldError), beating(sweep, 2):
        Lease(sweep, patience=2.0).__enter__()
    began = time.monotonic()
    assert is_silent(sweep.storage, 2, heartbeat(sweep.storage, 2), 0.3)
    assert 0.3 <= time.monotonic() - began < 2


@contextmanager
def beating(sweep: SweepStore, number: int) -> Iterator[None]:
    """A heart that beats once, soon."""
    beat = json.dumps({"state": "running", "beat": 2}).encode()
    timer = threading.Timer(0.02, sweep.storage.replace, (f"log/{number:06d}.json", beat))
    timer.start()
    try:
        yield
    finally:
        timer.join()


# ---- taken over


@pytest.mark.usefixtures("unwatched")
def test_a_launch_that_is_taken_over_finds_out_by_itself_and_when_it_asks(sweep: SweepStore) -> None:
    idle = Lease(sweep)
    idle.every = 60.0
    with idle as slow, quick(sweep, patience=0) as second, quick(sweep, patience=0) as third:
        assert [slow.number, second.number, third.number] == [1, 2, 3]
        assert not slow.lost, "it has not looked yet"
        with pytest.raises(LaunchHeldError, match=rf"'s' was taken over by process {os.getpid()} on .*: this launch e"):
            slow.check()
        assert slow.lost
        second._thread.join(5)
        assert second.lost
        assert not second._thread.is_alive()
        last = heartbeat(sweep.storage, 2)
        third.check()
        time.sleep(0.05)
        assert heartbeat(sweep.storage, 2) == last, "its heart stands still"
        with pytest.raises(LaunchHeldError, match="what it has committed is kept"):
            second.check()
    assert [heartbeat(sweep.storage, n)["state"] for n in (1, 2, 3)] == ["running", "running", "interrupted"]


@pytest.mark.parametrize("asks", [False, True])
def test_a_launch_whose_sweep_is_removed_makes_nothing_anew(sweep: SweepStore, asks: bool) -> None:
    with Lease(sweep) if asks else quick(sweep) as lease:
        sweep.storage.remove()
        if not asks:
            lease._thread.join(5)
            assert lease.lost
        with pytest.raises(LaunchHeldError, match=r"sweep 's' was removed: this launch ends"):
            lease.check()
    assert sweep.storage.folders() == []


ERRORS = [OSError(errno.ENOSPC, "No space left on device"), StoreError("there is no such bucket")]


@pytest.mark.parametrize("error", ERRORS)
def test_no_trouble_with_the_store_stops_the_heart(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with quick(sweep) as lease:
        tried = threading.Event()

        def full(name: str, data: bytes) -> None:
            tried.set()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(lease.storage, "replace", full)
            assert tried.wait(5)
        before = heartbeat(sweep.storage, 1)
        assert not is_silent(sweep.storage, 1, before, 5)
    assert heartbeat(sweep.storage, 1)["state"] == "interrupted"


@pytest.mark.parametrize("error", ERRORS)
def test_trouble_at_the_end_hides_nothing_else(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(name: str, data: bytes) -> None:
        raise error

    with Lease(sweep) as lease:
        monkeypatch.setattr(lease.storage, "replace", full)
    assert heartbeat(sweep.storage, 1)["state"] == "running"


def test_a_launch_says_how_it_goes(sweep: SweepStore) -> None:
    with quick(sweep) as lease:
        lease.describe = lambda: {"trials_done": 7}
        while "trials_done" not in heartbeat(sweep.storage, 1):
            time.sleep(0.01)
        assert heartbeat(sweep.storage, 1) | {"beat": 0} == {
            "state": "running",
            "every": 1.0,
            "trials_done": 7,
            "beat": 0,
        }
        assert [lease.next_plan(), lease.next_plan()] == [1, 2]


# ---- stop and log


def test_a_request_to_stop_grows_stronger_and_never_weaker(sweep: SweepStore) -> None:
    storage = sweep.storage
    with Lease(sweep) as lease:
        assert lease.stop is None
        ask_to_stop(storage, 1, "finish")
        assert lease.stop == "finish"
        ask_to_stop(storage, 1, "checkpoint")
        assert lease.stop == "checkpoint"
        ask_to_stop(storage, 1, "finish")
        assert lease.stop == "checkpoint"
    with Lease(sweep) as later:
        assert later.stop is None, "it was for the launch before"
    storage.replace("log/000002.stop", b"what no version writes")
    assert stop_request(storage, 2) == "finish"


def test_every_launch_has_its_log(sweep: SweepStore) -> None:
    for text in ("first", "second"):
        with Lease(sweep) as lease:
            lease.log(text)
            lease.log("again")
    note(sweep.storage, 1, "0a", "from a worker")
    assert logs(sweep.storage) == ["log/000001.log", "log/000001.0a.log", "log/000002.log"]
    lines = sweep.storage.read("log/000002.log").decode().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["second", "again"]
    assert all(line.startswith("20") for line in lines)


def test_what_later_launches_have_replaced_is_tidied_away(sweep: SweepStore) -> None:
    for number in (1, 2, 3):
        with suppress(LaunchHeldError), Lease(sweep) as lease:
            lease.log("hello")
            ask_to_stop(sweep.storage, number, "finish")
            sweep.storage.replace(f"plan/{number:06d}-0001.0123456789abcdef.parquet", b"")
            for name in ("plan.parquet", "log/launch.json", "log/launch.lock", "log/launch.log", "log/stop"):
                sweep.storage.replace(name, b"of format 1")
            tidy(sweep, lease.number)
    names = {folder: sweep.storage.names(folder) for folder in (FOLDER, "plan", "log")}
    assert names == {
        FOLDER: ["000003.json"],
        "plan": ["000002-0001.0123456789abcdef.parquet", "000003-0001.0123456789abcdef.parquet"],
        "log": ["000001.log", "000002.log", "000003.json", "000003.log", "000003.stop", "launch.log"],
    }
    assert not sweep.storage.exists("plan.parquet")
    assert logs(sweep.storage)[:2] == ["log/launch.log", "log/000001.log"]
    with Lease(sweep) as lease:
        assert lease.number == 4
