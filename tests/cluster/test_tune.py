"""What only Ray can get wrong: import paths, Ctrl-C, addresses."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import workload
from drivers import Driver, descendants, parent, soon
from workload import Order, orders, written

from cluster import ClusterError, Event, Failed, Finished, Started
from cluster.connection import check_address
from cluster.tune import TuneExecutor

CORES = len(os.sched_getaffinity(0))


def run(executor: TuneExecutor, items: Sequence[Order]) -> list[Event]:
    events: list[Event] = []
    executor.run(workload.obey, items, on_event=events.append, stop=lambda: False)
    return events


def test_a_with_keeps_one_ray_for_all_runs_and_ends_it(tmp_path: Path) -> None:
    with TuneExecutor(cpus_per_item=CORES) as executor:
        run(executor, orders(tmp_path, "write", "write"))
        first = {(tmp_path / str(i)).read_text().split()[1] for i in range(2)}
        run(executor, orders(tmp_path, "write"))
        raylet = (tmp_path / "0").read_text().split()[1]
        assert first == {raylet}
        assert parent(int(raylet)) is not None
    assert parent(int(raylet)) is None


def test_one_process_per_core_takes_item_after_item_in_order_with_one_thread(tmp_path: Path) -> None:
    events = run(TuneExecutor(), orders(tmp_path, *["uneven"] * 100))
    assert [e.index for e in events if isinstance(e, Started)] == list(range(100))
    assert sorted(e.index for e in events if isinstance(e, Finished)) == list(range(100))
    told = {tuple((tmp_path / str(i)).read_text().split()) for i in range(100)}
    assert len({pid for pid, _, _ in told}) == CORES
    assert {threads for _, _, threads in told} == {"1"}


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
    address: str, problem: str, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.connection.CONNECT_TIMEOUT", 0.5)
    with pytest.raises(ClusterError, match=problem):
        check_address(address.format(silent_port=silent_port))


def test_no_ray_at_the_address_leaves_run_and_no_process(tmp_path: Path) -> None:
    others = descendants(os.getpid())
    with pytest.raises(ClusterError, match=r"no Ray to join at '127\.0\.0\.1:1'.*refused"):
        run(TuneExecutor(address="127.0.0.1:1"), orders(tmp_path, "write"))
    assert descendants(os.getpid()) <= others


def test_more_than_any_machine_has_is_refused(tmp_path: Path) -> None:
    others = descendants(os.getpid())
    with pytest.raises(ClusterError, match=rf"needs {CORES + 1} CPUs and 0 GPUs.*: {CORES} CPUs and 0 GPUs"):
        run(TuneExecutor(cpus_per_item=CORES + 1), orders(tmp_path, "write"))
    assert descendants(os.getpid()) <= others
