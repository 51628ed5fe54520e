"""A sweep in an object store: answers that are lost, errors, a server that goes, and launches killed at any request."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import KILL, STOP, AtReport, AtRequest, Beating, Impatient, Note, Slow, Steps, Together, steps
from forked import Command, Fault, run
from invariants import View, check_invariants, finish, uninterrupted
from sweeps_for_faults import LONGER, TINY, WAIT, WAITING

sys.path.append(str(Path(__file__).parents[1] / "trainables"))  # for the server
from s3_server import S3Server, serving

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")


@pytest.fixture(scope="module")
def process() -> Iterator[S3Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    process.clear()
    for name, value in process.environment().items():
        monkeypatch.setenv(name, value)
    return process


@pytest.fixture
def url(server: S3Server) -> str:
    return f"s3://{server.bucket()}/results"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(TINY)
    return tmp_path


def go(work: Path, server: S3Server, *arguments: str, **options: object) -> tuple[int, str]:
    return run(work, *arguments, environment=server.environment(), **options)  # type: ignore[arg-type]


BELOW = "*/tiny/*/*"  # not what a launch tries out first, which it is less patient with
ROWS = "*/tiny/trials/*"
TIMES = 4


@pytest.mark.parametrize(
    ("kind", "operation", "key"),
    [
        ("drop", "PUT", ROWS),
        ("precondition", "PUT", ROWS),
        ("cut", "PUT", ROWS),
        *(
            pytest.param(*fault, marks=pytest.mark.long)
            for fault in [
                ("cut", "PUT", BELOW),
                ("slow_down", "PUT", BELOW),
                ("conflict", "PUT", BELOW),
                ("precondition", "PUT", BELOW),
                ("drop", "PUT", BELOW),
                ("error", "*", BELOW),
                ("truncate", "GET", BELOW),
                ("drop", "DELETES", "*"),
                ("cut", "LIST", "*"),
            ]
        ),
    ],
)
def test_what_goes_wrong_on_the_way_changes_nothing(
    work: Path, server: S3Server, url: str, kind: str, operation: str, key: str
) -> None:
    server.fault(kind, operation, key, times=TIMES)
    code, said = go(work, server, *LAUNCH, "--store", url)
    assert code == 0, said
    assert server.fired() == {kind: TIMES}
    server.clear()
    view = View.of(url)
    assert view.is_whole()
    check_invariants(View(), view, uninterrupted(TINY))


@steps(0.7, long=((1, 2), (2, 2)))
def test_kill_9_at_any_request_loses_nothing(work: Path, server: S3Server, url: str, steps: Steps) -> None:
    whole, count = uninterrupted(TINY), AtRequest(1, Note(work / "requests"), times=sys.maxsize)
    assert go(work, server, *LAUNCH, "--store", url, faults=[count])[0] == 0
    total = (work / "requests").stat().st_size
    for number in steps(total):
        url = f"s3://{server.bucket()}/results"
        code, said = go(work, server, *LAUNCH, "--store", url, faults=[AtRequest(number, KILL)])
        if code == 0:
            assert number > total
            return
        assert code == -9, said
        killed = View.of(url)
        check_invariants(View(), killed, whole)
        finish(work, killed, whole, url, *LAUNCH[:2], environment=server.environment())


def test_every_command_takes_a_url(work: Path, server: S3Server, url: str) -> None:
    def ask(*command: str, code: int = 0) -> str:
        got, said = go(work, server, *command, "--store", url)
        assert got == code, said
        return said

    ask(*LAUNCH)
    before = View.of(url)
    (state,) = json.loads(ask("status", "--format", "json"))
    assert (state["state"], state["finished"]) == ("complete", 4)
    assert "tiny: 4/4 trials done" in ask("logs", "tiny")
    assert json.loads(ask("sql", "SELECT count(*) AS n FROM curves", "--format", "json"))[0]["n"] > 4
    assert "INCONCLUSIVE" in ask("invariance", "tiny")
    assert "no launch of tiny is running" in ask("stop", "tiny")
    assert "every file is what was written" in ask("verify")
    (merged,) = json.loads(ask("compact", "--grace", "0", "--format", "json"))
    assert merged["packs"] == 2
    assert "every file is what was written" in ask("verify")
    after = View.of(url)
    check_invariants(before, after, uninterrupted(TINY))
    assert all(name.startswith("merged/") for name in after.files)
    ask("resume", "tiny", "--executor", "inline")
    ask("export", "tiny", "tiny.csv")
    ask("rm", "tiny", "--yes")
    assert "no sweep 'tiny'" in ask("status", "tiny", code=2)
    assert server.keys(url.split("/")[2]) == []


@pytest.mark.parametrize("faults", [[Impatient(3)], pytest.param([], marks=pytest.mark.long)], ids=["3 s", "120 s"])
def test_a_server_that_goes_for_good_ends_the_launch(work: Path, faults: list[Fault]) -> None:
    (work / "sweep.yaml").write_text(LONGER)
    with (
        serving() as mortal,
        Command(
            work,
            *LAUNCH,
            "--store",
            f"s3://{mortal.bucket()}/results",
            faults=[Slow(0.1), *faults],
            environment=mortal.environment(),
        ) as launch,
    ):
        launch.until(lambda: "running 4" in launch.said)
        mortal.stop()
        began = time.monotonic()
        assert launch.ended(60 if faults else 180) == 2
        print(launch.said, time.monotonic() - began)
        assert "no answer from" in launch.said
        began = time.monotonic()
        for command in (["status"], list(LAUNCH)):
            code, said = run(
                work, *command, "--store", "s3://bucket-0/results", faults=faults, environment=mortal.environment()
            )
            print(code, said, time.monotonic() - began)
            assert code == 2
            assert "no answer from" in said


def test_of_two_launches_at_once_one_is_refused_on_an_object_store_too(work: Path, server: S3Server, url: str) -> None:
    (work / "sweep.yaml").write_text(WAITING)
    (work / "waiting.py").write_text(WAIT)
    command = (*LAUNCH, "--store", url)
    options = {"faults": [Together(time.monotonic() + 0.5)], "environment": server.environment()}
    with Command(work, *command, **options) as one, Command(work, *command, **options) as other:
        while one.process.is_alive() and other.process.is_alive():
            time.sleep(0.02)
        refused, winner = (other, one) if one.process.is_alive() else (one, other)
        assert refused.ended() == 4
        assert f"process {winner.pid} on" in refused.said
        (work / "go").touch()
        assert winner.ended() == 0
    assert len(View.of(url).rows) == 2


def test_a_launch_that_sleeps_is_replaced_on_an_object_store_too(work: Path, server: S3Server, url: str) -> None:
    whole, environment, faults = uninterrupted(TINY), server.environment(), [Beating(0.4), AtReport(2, STOP)]
    with Command(work, *LAUNCH, "--store", url, faults=faults, environment=environment) as sleeper:
        assert sleeper.stops()
        asleep = View.of(url)
        finished = finish(work, asleep, whole, url, *LAUNCH[:2], "--take-over", environment=environment)
        sleeper.signal(signal.SIGCONT)
        assert sleeper.ended() == 4
        assert "sweep 'tiny' was taken over by process" in sleeper.said
    assert View.of(url) == finished
