"""What happens when a process is killed or told to end: a worker, a part of Ray, the driver, or all at once."""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import workload
from drivers import Driver, descendants, parent, program, soon
from workload import orders

from cluster import ClusterError, Event, Failed, Finished, Progress, Started, dispatcher
from cluster.dispatcher import Dispatcher, HandlerError
from cluster.tune import TuneExecutor

CORES = len(os.sched_getaffinity(0))
SERVERS = ("raylet", "gcs_server")


@pytest.fixture(scope="module")
def others() -> set[int]:
    """Processes that tests of other modules have left below this one, to be used again."""
    return descendants(os.getpid())


@pytest.fixture(scope="module")
def executor(others: set[int]) -> Iterator[TuneExecutor]:
    """Keeps its Ray from test to test, until one kills that."""
    with TuneExecutor(cpus_per_item=CORES) as made:
        yield made


def test_a_process_that_dies_or_is_told_to_end_fails_its_item_only(
    executor: TuneExecutor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    items = orders(tmp_path, "write", "kill", "terminate", "write")
    executor.run(workload.obey, items, on_event=events.append, stop=lambda: False)
    assert [e for e in events if not isinstance(e, Progress | Failed)] == [
        Started(0), Finished(0), Started(1), Started(2), Started(3), Finished(3),
    ]  # fmt: skip
    crash, preemption = (e for e in events if isinstance(e, Failed))
    assert (crash.index, crash.cause) == (1, "crash")
    assert "The process that ran this item died" in crash.error
    assert "worker process has died" in crash.error
    assert (preemption.index, preemption.cause) == (2, "preemption")
    assert preemption.error.endswith("InterruptedError: the process was told to end (SIGTERM)\n")
    assert (tmp_path / "2").read_text() == "saved"
    assert capfd.readouterr().out == ""


@pytest.mark.long
def test_a_process_that_ray_kills_for_memory_is_told_from_one_that_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.0001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "20")
    events: list[Event] = []
    TuneExecutor().run(workload.obey, orders(tmp_path, "patient"), on_event=events.append, stop=lambda: False)
    assert isinstance(events[-1], Failed)
    assert events[-1].cause == "memory"
    assert "ran out of memory: smaller items" in events[-1].error


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("The actor died because its node has died. Node Id: 0a0b", "preemption"),
        ("1 worker(s) were killed due to the node running low on memory.", "memory"),
        ("The actor is dead because its worker process has died.", "crash"),
    ],
)
def test_a_process_that_dies_without_an_item_takes_the_next_with_it(tmp_path: Path, said: str, cause: str) -> None:
    """Where none can even start, this is what brings the run to its end."""
    (tmp_path / "error.txt").write_text(said)
    events: list[Event] = []
    told = Dispatcher(2, lambda: 1, events.append, lambda: False)
    for trial_id in "abc":
        trial = SimpleNamespace(trial_id=trial_id, error_file=tmp_path / "error.txt")
        assert told.stop_all() == (trial_id == "c")
        told.on_trial_error(iteration=0, trials=[], trial=trial)
    assert [(type(e), e.index) for e in events] == [(Started, 0), (Failed, 0), (Started, 1), (Failed, 1)]
    assert [e.cause for e in events if isinstance(e, Failed)] == [cause, cause]


def test_a_run_ends_where_ray_gives_up_the_machine_it_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "LAST_WORDS", 0.0)
    (tmp_path / "error.txt").write_text("The actor is dead because its owner has died.")
    told = Dispatcher(1, lambda: 1, pytest.fail, lambda: False)
    with pytest.raises(HandlerError) as caught:
        told.on_trial_error(iteration=0, trials=[], trial=SimpleNamespace(error_file=tmp_path / "error.txt"))
    assert str(caught.value.cause) == "Ray gave up this machine; launch again to go on"


class Killer:
    """Kills a server of the Ray that runs below this process, some time after the first item has started."""

    def __init__(self, server: str, wait: float) -> None:
        self.server, self.wait, self.events, self.when = server, wait, list[Event](), 0.0

    def __call__(self, event: Event) -> None:
        if not self.events:
            (pid,) = (pid for pid in descendants(os.getpid()) if program(pid) == self.server)
            time.sleep(self.wait)
            os.kill(pid, signal.SIGKILL)
            self.when = time.monotonic()
        self.events.append(event)


@pytest.mark.parametrize("servers", [SERVERS[:1], pytest.param(SERVERS * 2, marks=pytest.mark.long)], ids=len)
def test_a_run_ends_within_seconds_of_its_ray_and_the_next_starts_another(
    servers: Sequence[str], executor: TuneExecutor, others: set[int], tmp_path: Path
) -> None:
    dice = random.Random(len(servers))
    for server in servers:
        kill = Killer(server, dice.uniform(0, 1))
        with pytest.raises(ClusterError) as caught:
            executor.run(workload.obey, orders(tmp_path, "patient"), on_event=kill, stop=lambda: False)
        assert time.monotonic() - kill.when < 8  # Ray itself takes 10 s and 60 s, and then ends the process
        assert str(caught.value) == (
            f"the local Ray died (its {kill.server} ended with exit status -9); launch again to go on"
        )
        assert not any(isinstance(event, Finished | Failed) for event in kill.events)
        assert descendants(os.getpid()) <= others


@pytest.mark.long
def test_a_ray_that_hangs_does_not_keep_what_stop_raises_from_leaving_run(
    executor: TuneExecutor, others: set[int], tmp_path: Path
) -> None:
    frozen: list[int] = []

    def freeze(event: Event) -> None:
        if not frozen:
            (session,) = {parent(pid) for pid in descendants(os.getpid()) if program(pid) in SERVERS}
            assert session not in (None, os.getpid())
            frozen.append(session)
            os.kill(session, signal.SIGSTOP)

    def stop() -> bool:
        if frozen:
            raise TimeoutError("nothing comes any more")
        return False

    with pytest.raises(TimeoutError, match="nothing comes any more"):
        executor.run(workload.obey, orders(tmp_path, "patient"), on_event=freeze, stop=stop)
    assert descendants(os.getpid()) <= others


LAUNCH = """
import os, signal, sys
from cluster import Progress
from cluster.tune import TuneExecutor
sys.path.append(os.getcwd())
import workload

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
items = [workload.Order({out!r}, number, "patient") for number in range(3)]

def tell(event):
    if not isinstance(event, Progress):
        print(type(event).__name__, event.index, getattr(event, "cause", ""), flush=True)

TuneExecutor(address={address!r}).run(workload.obey, items, on_event=tell, stop=lambda: bool(told))
"""


def start(out: Path, tmp: Path, address: str | None = None) -> Driver:
    out.mkdir()
    return Driver(LAUNCH.format(out=str(out), address=address), Path(__file__).parent, tmp)


@pytest.mark.long
def test_kill_9_of_the_driver_leaves_no_process(tmp_path: Path, short_tmp: Path) -> None:
    with start(tmp_path / "out", short_tmp) as driver:
        assert driver.line().startswith("Started 0")
        assert len(driver.alive()) > 6
        driver.process.kill()
        assert soon(lambda: not driver.alive()), driver.alive()
        assert soon(lambda: not list(short_tmp.iterdir()))


def test_sigterm_to_every_process_of_a_job_lets_the_items_save_themselves(tmp_path: Path, short_tmp: Path) -> None:
    """As Slurm sends it, 30 s before it kills: to the driver, to all of its Ray and to what looks after both."""
    with start(tmp_path / "out", short_tmp) as driver:
        for index in range(CORES):
            assert driver.line().split() == ["Started", str(index)]
        assert soon(lambda: all((tmp_path / "out" / str(index)).exists() for index in range(CORES)))  # they have begun
        for pid in driver.look():
            os.kill(pid, signal.SIGTERM)
        driver.process.terminate()
        told = driver.finish(timeout=20).splitlines()
        assert sorted(told) == [f"Failed {index} preemption" for index in range(CORES)]
        assert [(tmp_path / "out" / str(index)).read_text() for index in range(CORES)] == ["saved"] * CORES
        assert soon(lambda: not driver.alive(), 5), driver.alive()
    assert list(short_tmp.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_a_server_killed_at_any_moment_ends_the_run(seed: int, tmp_path: Path, short_tmp: Path) -> None:
    """While Ray still starts too."""
    dice = random.Random(seed)
    server, wait = SERVERS[seed % 2], dice.uniform(0, 5)
    with start(tmp_path / "out", short_tmp) as driver:
        found: list[int] = []
        while not found:
            assert driver.process.poll() is None
            found = [pid for pid in driver.look() if program(pid) == server]
        time.sleep(wait)
        driver.look()
        os.kill(found[0], signal.SIGKILL)
        _, said = driver.process.communicate(timeout=30)
        assert driver.process.returncode == 1
        assert "the local Ray died" in said.splitlines()[-1], (server, wait)
        assert soon(lambda: not driver.alive(), 5), (server, wait)
    assert list(short_tmp.iterdir()) == []


NODE = """
import sys
from ray.scripts.scripts import main
sys.argv = {arguments!r}.split()
main()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.long
def test_a_machine_that_goes_away_takes_its_items_only(tmp_path: Path, short_tmp: Path) -> None:
    here, address = Path(__file__).parent, f"127.0.0.1:{free_port()}"
    common = "--block --disable-usage-stats --num-cpus 1"
    head = f"ray start --head --include-dashboard false --temp-dir {short_tmp} --port {address.rpartition(':')[2]}"
    with (
        Driver(NODE.format(arguments=f"{head} {common}"), here, short_tmp, RAY_AUTH_MODE="disabled") as first,
        Driver(
            NODE.format(arguments=f"ray start --address {address} {common}"), here, short_tmp, RAY_AUTH_MODE="disabled"
        ) as second,
    ):
        for node in (first, second):
            while "--block" not in (line := node.line()):
                assert node.process.poll() is None, line
        with start(tmp_path / "out", tmp_path, address) as driver:
            assert [driver.line().split() for _ in range(2)] == [["Started", "0"], ["Started", "1"]]
            for pid in sorted(second.look(), key=lambda pid: program(pid) != "raylet"):  # it cannot tell of the others
                os.kill(pid, signal.SIGKILL)
            assert driver.line().split()[::2] == ["Failed", "preemption"]
            driver.process.kill()
            assert soon(lambda: not driver.alive()), driver.alive()
