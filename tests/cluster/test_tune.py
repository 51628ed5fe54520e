"""What only Ray can get wrong: dead processes, import paths, signals, addresses."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import workload
from ray.air.execution._internal import RayActorManager, TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError
from workload import Order, written

from cluster import ClusterError, Event, Failed, Finished, Progress, Started
from cluster.connection import TOKEN_IN_USE, connected
from cluster.tune import Dispatcher, TuneExecutor

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)  # where workers find `workload`
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory for temporary files whose path is short enough for Ray's sockets."""
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Driver:
    """A process that runs a script as the installed command would, and the processes that come from it."""

    def __init__(self, script: str, directory: Path, tmp: Path, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, "-P", "-c", script],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(tmp), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family: set[int] = set()

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def line(self) -> str:
        """Its next line; what it has started by then is its family."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        self.family |= descendants(self.process.pid)
        return line

    def alive(self) -> list[int]:
        return [pid for pid in self.family if parent(pid) is not None]

    def finish(self, timeout: float = 60) -> str:
        out, err = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, err
        return out


def parent(pid: int) -> int | None:
    """The parent of a process that lives, zombies excluded."""
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(ppid)


def descendants(pid: int) -> set[int]:
    parents = {int(p.name): parent(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
    found = {pid}
    while more := {child for child, its in parents.items() if its in found} - found:
        found |= more
    return found - {pid}


def soon(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def orders(directory: Path, *behaviours: str) -> list[Order]:
    return [Order(str(directory), number, behaviour) for number, behaviour in enumerate(behaviours)]


def run(executor: TuneExecutor, items: Sequence[Order]) -> list[Event]:
    events: list[Event] = []
    executor.run(workload.obey, items, on_event=events.append, stop=lambda: False)
    return events


def test_a_killed_process_fails_its_item_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events = run(TuneExecutor(cpus_per_item=CORES), orders(tmp_path, "write", "kill", "write"))
    assert [e for e in events if not isinstance(e, Progress | Failed)] == [
        Started(0), Finished(0), Started(1), Started(2), Finished(2),
    ]  # fmt: skip
    (crash,) = (e for e in events if isinstance(e, Failed))
    assert (crash.index, crash.cause) == (1, "crash")
    assert "The process that ran this item died" in crash.error
    assert "worker process has died" in crash.error
    assert capfd.readouterr().out == ""


def test_one_process_per_core_takes_item_after_item_in_order_with_one_thread(tmp_path: Path) -> None:
    events = run(TuneExecutor(), orders(tmp_path, *["uneven"] * 100))
    assert [e.index for e in events if isinstance(e, Started)] == list(range(100))
    assert sorted(e.index for e in events if isinstance(e, Finished)) == list(range(100))
    told = {tuple((tmp_path / str(i)).read_text().split()) for i in range(100)}
    assert len({pid for pid, _ in told}) == CORES
    assert {threads for _, threads in told} == {"1"}


def test_a_process_that_dies_without_an_item_takes_the_next_with_it(tmp_path: Path) -> None:
    """Where none can even start, this is what brings the run to its end."""
    (tmp_path / "error.txt").write_text("no such interpreter")
    events: list[Event] = []
    dispatcher = Dispatcher(2, 1, events.append, lambda: False)
    for trial_id in "abc":
        trial = SimpleNamespace(trial_id=trial_id, error_file=tmp_path / "error.txt")
        assert dispatcher.stop_all() == (trial_id == "c")
        dispatcher.on_trial_error(iteration=0, trials=[], trial=trial)
    assert [(type(e), e.index) for e in events] == [(Started, 0), (Failed, 0), (Started, 1), (Failed, 1)]


def test_what_cannot_be_imported_there_is_the_failure_of_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(item):\n    yield 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    events: list[Event] = []
    TuneExecutor().run(only_here.work, [0], on_event=events.append, stop=lambda: False)
    assert isinstance(events[-1], Failed)
    assert events[-1].cause == "exception"
    assert "No module named 'only_here'" in events[-1].error


IN_A_FOLDER_OF_THE_SAME_NAMES = """
import os, signal, sys
from cluster.tune import TuneExecutor
sys.path.append(os.getcwd())
import mymod

def state():
    return dict(os.environ), os.getpgrp(), os.getcwd(), signal.getsignal(signal.SIGTERM), list(sys.path)

def handler(event):
    assert signal.getsignal(signal.SIGTERM) == before[3]
    print(event)

before = state()
TuneExecutor().run(mymod.work, [0], on_event=handler, stop=lambda: False)
assert state() == before
"""
MYMOD = """
import os, sys
def work(item):
    import analysis, cluster, orchestrator, trainables
    assert cluster.__file__ == {ours!r}, cluster.__file__
    import mymod, helper
    assert os.getcwd() == {here!r} == os.path.dirname(mymod.__file__)
    assert all(os.path.abspath(entry) != {here!r} for entry in sys.path)
    yield 1.0
"""


def test_a_users_folders_never_shadow_ours_and_no_home_is_needed(tmp_path: Path, short_tmp: Path) -> None:
    import cluster

    for name in ("analysis", "cluster", "orchestrator", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger')")
    (tmp_path / "mymod.py").write_text(MYMOD.format(ours=cluster.__file__, here=str(tmp_path)))
    (tmp_path / "helper.py").write_text("")
    with Driver(IN_A_FOLDER_OF_THE_SAME_NAMES, tmp_path, short_tmp, HOME="/dev/null/no") as driver:
        assert driver.finish() == "Started(index=0)\nFinished(index=0)\n"
    assert list(short_tmp.iterdir()) == []


WITH_SIGNALS = """
import os, signal, sys
from cluster.tune import TuneExecutor
sys.path.append(os.getcwd())
import workload

received = []
def interrupt(number, frame):
    received.append(number)
    if len(received) > 1:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
items = [workload.Order({out!r}, number, {behaviour!r}) for number in range(3)]
try:
    TuneExecutor(cpus_per_item=len(os.sched_getaffinity(0))).run(
        workload.obey, items, on_event=lambda event: print(event, flush=True), stop=lambda: bool(received)
    )
except KeyboardInterrupt:
    print("interrupted")
"""


def start_with_signals(out: Path, behaviour: str, tmp: Path, *command: str) -> Driver:
    script = WITH_SIGNALS.format(out=str(out), behaviour=behaviour)
    driver = Driver(script, Path(__file__).parent, tmp, *command)
    assert driver.line() == "Started(index=0)"
    return driver


def test_the_first_ctrl_c_under_make_lets_the_running_item_finish(tmp_path: Path, short_tmp: Path) -> None:
    # `env` stays in front, as make and sh do: the driver does not lead its process group
    wrapper = (
        "import subprocess, sys, signal; signal.signal(2, lambda *_: None); sys.exit(subprocess.call(sys.argv[1:]))"
    )
    with start_with_signals(tmp_path, "slow", short_tmp, sys.executable, "-c", wrapper) as driver:
        os.killpg(driver.process.pid, signal.SIGINT)
        told = driver.finish().splitlines()
        assert [line for line in told if "Progress" not in line] == ["Finished(index=0)"]
        assert written(tmp_path) == [0]
        assert soon(lambda: not driver.alive())


def test_the_second_ctrl_c_ends_everything_at_once(tmp_path: Path, short_tmp: Path) -> None:
    with start_with_signals(tmp_path, "endless", short_tmp) as driver:
        os.killpg(driver.process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.finish(timeout=20) == "interrupted\n"
        assert soon(lambda: not driver.alive(), 5)
    assert written(tmp_path) == []
    assert list(short_tmp.iterdir()) == []


def test_kill_9_of_the_driver_leaves_no_process(tmp_path: Path, short_tmp: Path) -> None:
    with start_with_signals(tmp_path, "endless", short_tmp) as driver:
        assert len(driver.alive()) > 6
        driver.process.kill()
        assert soon(lambda: not driver.alive()), driver.alive()
        assert soon(lambda: not list(short_tmp.iterdir()))


JOIN = """
import os, sys
from cluster.tune import TuneExecutor
sys.path.append(os.getcwd())
import workload
TuneExecutor(address={address!r}).run(
    workload.obey, [workload.Order({out!r}, number) for number in range(3)], on_event=print, stop=lambda: False
)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_running_ray_is_joined_and_left_running(tmp_path: Path, short_tmp: Path) -> None:
    (out := tmp_path / "out").mkdir()
    here, address = Path(__file__).parent, f"127.0.0.1:{free_port()}"
    head = f"""
import sys
from ray.scripts.scripts import main
sys.argv = "ray start --head --block --num-cpus 2 --include-dashboard false --disable-usage-stats".split()
sys.argv += ["--temp-dir", {str(short_tmp)!r}, "--port", {address.rpartition(":")[2]!r}]
main()
"""
    with Driver(head, here, short_tmp, RAY_AUTH_MODE="disabled") as cluster:
        while "--block" not in (line := cluster.line()):
            assert cluster.process.poll() is None, line
        for _ in range(2):
            with Driver(JOIN.format(out=str(out), address=address), here, tmp_path) as driver:
                assert driver.finish().count("Finished") == 3
        assert written(out) == [0, 1, 2]
        assert cluster.process.poll() is None


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as server:  # Ray turns localhost into another address of this machine
        yield int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://127.0.0.1:8265", "allowed are 'auto' and 'host:port'"),
        ("ray://127.0.0.1:10001", "allowed are 'auto' and 'host:port'"),
        ("nonsense", "Invalid address format"),
        ("127.0.0.1:1", "refused"),
        ("127.0.0.1:{silent_port}", "timed out"),
    ],
)
def test_a_wrong_address_is_said_at_once(
    address: str, problem: str, silent_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.connection.TOKEN_IN_USE", threading.Event())
    monkeypatch.setattr("cluster.connection.CONNECT_TIMEOUT", 0.5)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=problem):
        run(TuneExecutor(address=address.format(silent_port=silent_port)), orders(tmp_path, "write"))
    assert time.monotonic() - began < 5


def test_no_other_ray_is_joined_once_this_process_has_had_its_own(tmp_path: Path) -> None:
    TOKEN_IN_USE.set()
    with pytest.raises(ClusterError, match="from a new one"):
        run(TuneExecutor(address="auto"), orders(tmp_path, "write"))


def test_more_than_any_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=rf"needs {CORES + 1} CPUs and 0 GPUs.*: {CORES} CPUs and 0 GPUs"):
        run(TuneExecutor(cpus_per_item=CORES + 1), orders(tmp_path, "write"))


def test_a_worker_killed_for_memory_counts_as_one_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune lets any error but a RayActorError of an actor's task end the whole run."""
    with pytest.raises(ClusterError), connected("nonsense"):
        pass
    manager = RayActorManager(resource_manager=None)
    told: list[Exception] = []
    actor = TrackedActor(1, on_error=lambda actor, error: told.append(error))
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    manager._actor_task_failed(TrackedActorTask(actor), killed := OutOfMemoryError("node low on memory"))
    assert told == [killed]
