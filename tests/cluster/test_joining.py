"""A cluster whose machines come and go under a run: two nodes of a real Ray on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import workload
from drivers import Driver, descendants, program
from test_tune import JOIN, free_port
from workload import orders, written

from cluster import Event, Failed, Finished, Progress, Started
from cluster.tune import TuneExecutor

NODE = """
import sys
from ray.scripts.scripts import main
sys.argv = "ray start --block --num-cpus 1 --disable-usage-stats --object-store-memory 80000000".split() + {arguments!r}
main()
"""
QUICK = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}

Start = Callable[[list[str]], Driver]


@pytest.fixture
def start(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a node with one CPU, and waits until it is up."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:

        def begin(arguments: list[str]) -> Driver:
            node = stack.enter_context(Driver(NODE.format(arguments=arguments), short_tmp, short_tmp))
            while "--block" not in (line := node.line()):
                assert node.process.poll() is None, line
            return node

        yield begin


def raylet(node: Driver) -> int:
    (pid,) = (pid for pid in descendants(node.process.pid) if program(pid) == "raylet")
    return pid


@pytest.mark.long
def test_a_node_that_joins_late_is_used_and_one_that_is_lost_takes_only_what_ran_there(
    tmp_path: Path, short_tmp: Path, start: Start
) -> None:
    (out := tmp_path / "out").mkdir()
    port = str(free_port())
    start(["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(short_tmp)])
    events: list[Event] = []
    late: list[Driver] = []
    killed: list[int] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished) and not late:
            late.append(start(["--address", f"127.0.0.1:{port}"]))
        elif isinstance(event, Finished) and not killed:
            pid, ran_at = raylet(late[0]), (out / str(event.index)).read_text().split()[1]
            if int(ran_at) == pid:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    def stop() -> bool:
        lost = [at for at, event in enumerate(events) if isinstance(event, Failed)]
        return bool(lost) and any(isinstance(event, Finished) for event in events[lost[0] :])

    items = orders(out, *["slow"] * 500)
    executor = TuneExecutor(f"127.0.0.1:{port}")
    executor.run(workload.obey, items, on_event=on_event, stop=stop)
    (lost,) = (event for event in events if isinstance(event, Failed))
    assert lost.cause == "preemption"
    started = [event.index for event in events if isinstance(event, Started)]
    ended = [event.index for event in events if not isinstance(event, Started | Progress)]
    assert started == list(range(len(started)))
    assert sorted(ended) == started


@pytest.mark.long
def test_a_run_that_finds_no_free_place_waits_for_one(tmp_path: Path, short_tmp: Path, start: Start) -> None:
    port = str(free_port())
    start(["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(short_tmp)])
    here, folders = Path(__file__).parent, [tmp_path / "a", tmp_path / "b"]
    with ExitStack() as stack:
        runs = []
        for folder in folders:
            folder.mkdir()
            script = JOIN.format(out=str(folder), address=f"127.0.0.1:{port}")
            runs.append(stack.enter_context(Driver(script, here, short_tmp)))
        assert [run.finish().count("Finished") for run in runs] == [3, 3]
    assert [written(folder) for folder in folders] == [[0, 1, 2]] * 2
