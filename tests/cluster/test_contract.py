"""What every executor keeps: one suite, asked of each."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import workload
from hypothesis import given
from hypothesis import strategies as st
from workload import orders, written

from cluster import Event, Executor, Failed, Finished, InlineExecutor, Progress
from cluster.tune import TuneExecutor

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module", params=["inline", "tune"])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One that runs a single item at a time, so that the order of all events is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))
        with InlineExecutor() if request.param == "inline" else TuneExecutor(cpus_per_item=CORES) as made:
            yield made


@pytest.fixture(autouse=True)
def _where_workers_find_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where items leave what they wrote."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def without_progress(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(type(e).__name__, e.index) for e in events if not isinstance(e, Progress)]


def test_items_start_in_order_and_a_failing_one_changes_nothing_for_the_others(
    executor: Executor, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    items = orders(out, "write", "raise", "slow", "exit", "refuse", "interrupt", "write")
    executor.run(workload.obey, items, on_event=events.append, stop=lambda: False)
    assert without_progress(events) == [
        ("Started", 0), ("Finished", 0), ("Started", 1), ("Failed", 1), ("Started", 2), ("Finished", 2),
        ("Started", 3), ("Failed", 3), ("Started", 4), ("Failed", 4), ("Started", 5), ("Failed", 5),
        ("Started", 6), ("Finished", 6),
    ]  # fmt: skip
    assert written(out) == [0, 2, 6]
    bad, exited, refused, interrupted = (e for e in events if isinstance(e, Failed))
    assert bad.cause == exited.cause == refused.cause == "exception"
    assert interrupted.cause == "preemption"
    assert "ValueError: item 1 is bad" in bad.error
    assert "workload.py" in bad.error
    assert "SystemExit: 3" in exited.error
    assert "TypeError: item 4 cannot even begin" in refused.error
    assert "InterruptedError: item 5 may go on later" in interrupted.error
    slow = [e.fraction for e in events if isinstance(e, Progress) and e.index == 2]
    assert 0.25 in slow
    assert slow == sorted(slow)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("sign", [Progress, Finished])
def test_stop_lets_what_runs_finish_and_starts_nothing_else(executor: Executor, out: Path, sign: type[Event]) -> None:
    events: list[Event] = []
    executor.run(
        workload.obey,
        orders(out, "slow", "write", "write"),
        on_event=events.append,
        stop=lambda: any(isinstance(e, sign) for e in events),
    )
    assert without_progress(events) == [("Started", 0), ("Finished", 0)]
    assert written(out) == [0]


def test_nothing_happens_without_items_or_when_told_to_stop_before(executor: Executor, out: Path) -> None:
    executor.run(workload.obey, [], on_event=pytest.fail, stop=lambda: False)
    executor.run(workload.obey, orders(out, "write"), on_event=pytest.fail, stop=lambda: True)
    assert written(out) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_a_handler_raises_leaves_run(executor: Executor, out: Path, error: BaseException) -> None:
    def fail(event: Event) -> None:
        assert threading.current_thread() is threading.main_thread()
        raise error

    with pytest.raises(type(error)) as caught:
        executor.run(workload.obey, orders(out, "slow", "write"), on_event=fail, stop=lambda: False)
    assert caught.value is error
    assert written(out) == []


def test_what_stop_raises_leaves_run(executor: Executor, out: Path) -> None:
    answers = iter([False])

    def stop() -> bool:
        return next(answers, None) is None and bool(1 / 0)

    with pytest.raises(ZeroDivisionError):
        executor.run(workload.obey, orders(out, "write", "write"), on_event=lambda e: None, stop=stop)


@given(st.lists(st.sampled_from(["write", "raise", "exit"]), max_size=8), st.integers(0, 8))
def test_the_grammar_of_events(tmp_path_factory: pytest.TempPathFactory, behaviours: list[str], limit: int) -> None:
    events: list[Event] = []
    InlineExecutor().run(
        workload.obey,
        orders(tmp_path_factory.mktemp("items"), *behaviours),
        on_event=events.append,
        stop=lambda: sum(isinstance(e, Finished) for e in events) >= limit,
    )
    told = without_progress(events)
    assert [name for name, _ in told[::2]] == ["Started"] * (len(told) // 2)
    assert [i for _, i in told[::2]] == [i for _, i in told[1::2]] == list(range(len(told) // 2))
    assert [name == "Finished" for name, _ in told[1::2]] == [b == "write" for b in behaviours[: len(told) // 2]]
    assert sum(name == "Finished" for name, _ in told) <= limit
