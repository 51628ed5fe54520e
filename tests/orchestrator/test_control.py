"""Stop, log, take over, remove: what one terminal does to a launch of another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator import import_trials, launch, launching, logs, remove, resume, sql, status, stop
from orchestrator.cli import main
from orchestrator.launching import LaunchResult
from trainables.lease import Holder, LaunchHeldError, Lease, heartbeat, latest, stop_request
from trainables.storage import StoreError
from trainables.store import Store, SweepStore

SWEEP = """
    name: own
    dataset: digits
    train: {call: "own_trials:trial"}
    grid: {lr: [0.1], batch_size: [8], seed: {range: 4}}
    pack: {max_trials: 2}
"""

TRIALS = """
from pathlib import Path

hooks = {}

def trial(config):
    with Path("calls.txt").open("a+") as file:
        file.seek(0)
        before = len(file.readlines())
        file.write(f"{config['seed']}\\n")
    hooks.pop(before, lambda: None)()
    return {"test_loss": config["seed"] / 10}
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], object]]:
    """How many trials have run -> what happens while the next one does, once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_trials", raising=False)
    Path("own_trials.py").write_text(TRIALS)
    Path("own.yaml").write_text(textwrap.dedent(SWEEP))
    import own_trials

    found: dict[int, Callable[[], object]] = own_trials.hooks
    return found


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    return Store(tmp_path / "store").sweep("own")


def go(more: str = "", **options: bool) -> LaunchResult:
    Path("own.yaml").write_text(textwrap.dedent(SWEEP) + more)
    return launch("own.yaml", "store", executor="inline", **options)


def calls() -> list[str]:
    return Path("calls.txt").read_text().split()


def done() -> list[str]:
    """Seeds that are stored, in the order of :func:`calls`."""
    stored = map(str, sql("store", "SELECT seed FROM trials")["seed"].to_pylist())
    return sorted(stored, key=calls().index)


@contextmanager
def held(sweep: SweepStore, command: str = "launch") -> Iterator[Lease]:
    """Somebody holds the sweep, and its heart beats."""
    lease = Lease(sweep, command)
    lease.every = 0.02
    with lease:
        yield lease


# ---- stop


def test_stop_says_whether_there_is_a_launch_to_stop(hooks: object, sweep: SweepStore) -> None:
    with pytest.raises(StoreError, match=r"no sweep 'own' in .*: it holds none"):
        stop("own", "store")
    go()
    assert not stop("own", "store")
    with held(sweep) as lease:
        assert stop("own", "store")
        assert lease.stop == "finish"
        assert stop("own", "store", now=True)
        assert lease.stop == "checkpoint"
        assert stop("own", "store")
        assert lease.stop == "checkpoint", "what was asked for cannot be taken back"
    with held(sweep, "compact"):
        assert not stop("own", "store")
    assert go("retries: 3\n").done == 4, "a request left behind stops no later launch"


@pytest.mark.parametrize("first", ["driver", "worker"])
def test_asked_to_finish_it_commits_the_pack_that_runs(
    hooks: dict[int, Callable[[], object]], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whoever sees the request first, and even where the launch is through before its driver looks again."""
    if first == "worker":
        monkeypatch.setattr(launching._Launch, "_request", lambda self: None)
    hooks[0] = lambda: stop("own", "store")
    result = go()
    assert (result.stopped, result.done) == (True, 2)
    assert len(calls()) == 2
    assert done() == calls()
    assert status("store")[0]["state"] == "stopped"
    assert resume("own", "store", executor="inline").ran == 2
    assert len(set(calls())) == len(calls()) == 4, "nothing ran twice"


def test_asked_to_save_the_pack_ends_where_it_is_and_goes_on_from_there(
    hooks: dict[int, Callable[[], object]], sweep: SweepStore
) -> None:
    def ask() -> None:
        assert stop("own", "store", now=True)
        time.sleep(1.0)  # after which a worker looks again

    hooks[0] = ask
    result = go()
    assert (result.stopped, result.done, done()) == (True, 0, [])
    assert len(calls()) == 1
    assert len(sweep.storage.names("checkpoints")) == 1
    again = resume("own", "store", executor="inline")
    assert (again.ran, again.done) == (4, 4)
    assert len(set(calls())) == len(calls()) == 4, "nothing ran twice"
    assert sweep.storage.names("checkpoints") == []


def test_a_pack_that_does_not_save_itself_in_time_is_not_waited_for(
    hooks: object, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf:
        """An executor whose workers never end."""

        def __enter__(self) -> Deaf:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, work: object, items: object, *, on_event: object, stop: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                stop()
            pytest.fail("it was waited for")

    monkeypatch.setattr(launching, "SAVE_SECONDS", 0.1)
    monkeypatch.setattr(launching, "_executor", lambda *_: Deaf())
    asked = iter([None, None, None, "finish"])
    result = launch("own.yaml", "store", should_stop=lambda: next(asked, "checkpoint"))
    assert (result.stopped, result.done) == (True, 0)
    assert stop_request(sweep.storage, 1) == "checkpoint"
    assert heartbeat(sweep.storage, 1)["state"] == "stopped"


# ---- held and taken over


def test_one_launch_per_sweep(hooks: object, sweep: SweepStore) -> None:
    go()
    with held(sweep):
        for again in (go, lambda: remove("own", "store")):
            with pytest.raises(LaunchHeldError, match=r"sweep 'own' is being run by process \d+ on .* since"):
                again()
    with (
        held(sweep, "compact"),
        pytest.raises(LaunchHeldError, match=r"'own' is being changed \(`compact`\) by process"),
    ):
        go()


def test_a_launch_that_is_held_off_ends_with_code_4(
    hooks: object, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["isoratio", "launch", "own.yaml", "--store", "store", "--executor", "inline"]
    monkeypatch.setattr(sys, "argv", command)
    with held(sweep) as lease, pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert f"isoratio: sweep 'own' is being run by process {lease.holder.pid} on" in capsys.readouterr().err
    assert not Path("calls.txt").exists()
    monkeypatch.setattr(sys, "argv", [*command, "--take-over"])
    with held(sweep), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert done() == calls()


def test_a_launch_that_waits_for_a_silent_one_says_so_once_and_hears_ctrl_c(
    hooks: object, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = replace(Holder.of_this_process(1, "launch"), machine="another", host="far\x1b[31m")
    sweep.storage.create("lease/000001.json", json.dumps(asdict(elsewhere)).encode())
    monkeypatch.setattr("trainables.lease.SIGN", 0.1)
    monkeypatch.setattr(sys, "argv", ["isoratio", "launch", "own.yaml", "--store", "store", "--executor", "inline"])
    press = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    with pytest.raises(SystemExit) as ended:
        main()
    press.join()
    assert ended.value.code == 4
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert f"sweep 'own' is being run by process {os.getpid()} on far\\x1b[31m since" in said[0]
    assert said[0].endswith("Waiting for a sign of it, 30 s at most")
    assert said[1] == f"isoratio: {said[0]}; stopped"
    assert not Path("calls.txt").exists()


def test_a_launch_that_is_taken_over_ends_with_code_4(
    hooks: dict[int, Callable[[], object]],
    sweep: SweepStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def take_over() -> None:
        with Lease(sweep, patience=0):
            time.sleep(1.3)  # until the launch has looked

    hooks[0] = take_over
    monkeypatch.setattr(sys, "argv", ["isoratio", "launch", "own.yaml", "--store", "store", "--executor", "inline"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert "sweep 'own' was taken over by process" in capsys.readouterr().err
    assert len(calls()) == 1, "it did not even go on with the pack that ran"
    assert done() == []
    assert go().done == 4


def test_taking_over_needs_no_patience(hooks: dict[int, Callable[[], object]], sweep: SweepStore) -> None:
    """The other one runs to its end while the first still holds a pack, whose rows come to nothing."""
    results: list[LaunchResult] = []
    hooks[0] = lambda: results.append(go(take_over=True))
    with pytest.raises(LaunchHeldError, match="was taken over"):
        go()
    (other,) = results
    assert (other.done, other.ran) == (4, 4)
    assert len(sql("store", "SELECT trial_id FROM trials")) == 4
    assert len(calls()) in {5, 6}, "as it finds out between the two trials of its pack, or after them"
    assert sorted(done()) == ["0", "1", "2", "3"]
    assert len(sweep.storage.names("trials")) == len(sweep.storage.names("sums")) == 2


def test_the_launch_of_a_killed_process_is_replaced_at_once(
    hooks: object, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import own_trials, os, signal; from orchestrator import launch;"
        "own_trials.hooks[1] = lambda: os.kill(os.getpid(), signal.SIGKILL);"
        "launch('own.yaml', 'store', executor='inline')"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -9
    holder = latest(sweep.storage)
    assert holder is not None
    assert heartbeat(sweep.storage, 1)["state"] == "running"
    assert status("store")[0]["state"] == "interrupted"
    monkeypatch.setattr("trainables.lease.is_silent", lambda *_: pytest.fail("it was watched"))
    assert go().ran == 4
    assert len(calls()) == 6
    assert sorted(done()) == ["0", "1", "2", "3"]


# ---- logs


def test_logs_of_all_launches_and_of_a_running_one_as_it_grows(hooks: object, sweep: SweepStore) -> None:
    with pytest.raises(StoreError, match="no sweep 'own'"):
        next(logs("own", "store"))
    go()
    before = list(logs("own", "store"))
    assert "own: 4 trials planned, 0 done before; running 4 in 2 packs" in before[0]
    with held(sweep) as lease:
        lease.log("begun")
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(logs("own", "store", follow=True)))
        reader.start()
        sweep.storage.append("log/000002.log", b"half a ")
        time.sleep(0.8)
        sweep.storage.append("log/000002.log", b"line\n")
        assert list(logs("own", "store"))[: len(before)] == before
    reader.join(20)
    assert not reader.is_alive()
    assert lines[: len(before)] == before
    assert [line.split(" ", 1)[-1] for line in lines[len(before) :]] == ["begun\n", "a line\n"]


# ---- verify


def test_what_verify_advises_brings_the_rows_back(
    hooks: object,
    sweep: SweepStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    go()
    (tmp_path / "theirs.csv").write_text("lr,batch_size,test_loss\n0.1,32,1.5\n")
    import_trials("store", tmp_path / "theirs.csv", "theirs")
    for there in (sweep, Store("store").sweep("theirs")):
        there.storage.replace(f"trials/{there.storage.names('trials')[0]}", b"broken")

    def isoratio(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["isoratio", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code  # type: ignore[return-value]

    assert isoratio("verify", "--store", "store") == 3
    resume, again = re.findall("`isoratio ([^`]*)`", capsys.readouterr().err)
    assert len(sql("store", "SELECT trial_id FROM trials")) == 2
    assert isoratio(*resume.split(), "--executor", "inline") == 0
    assert isoratio(*again.replace("FILE", "theirs.csv").split()) == 0
    assert len(sql("store", "SELECT trial_id FROM trials")) == 5


# ---- remove


def test_a_sweep_is_removed_whole(hooks: object, tmp_path: Path) -> None:
    go()
    remove("own", "store")
    assert list((tmp_path / "store").iterdir()) == []
    with pytest.raises(StoreError, match="no sweep 'own'"):
        resume("own", "store")
    with pytest.raises(StoreError, match="no sweep 'own'"):
        remove("own", "store")
    assert go().ran == 4


def test_a_sweep_is_removed_from_under_a_launch_when_told_so(hooks: dict[int, Callable[[], object]]) -> None:
    def take_away() -> None:
        remove("own", "store", take_over=True)
        time.sleep(1.3)

    hooks[0] = take_away
    with pytest.raises(LaunchHeldError, match="sweep 'own' was removed: this launch ends"):
        go()
    assert len(calls()) == 1
    assert Store("store").sweeps() == []
