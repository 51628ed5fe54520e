"""How often a launch runs what has failed, by its cause: an executor that fails as it is told."""

from __future__ import annotations

import errno
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from cluster.executor import Cause, Event, Failed, Finished, Progress, Started
from orchestrator import launch, launching, logs, sql, status
from orchestrator.attempts import BUDGETS, Attempts
from orchestrator.launching import LaunchResult
from trainables.lease import LaunchHeldError, Lease, heartbeat
from trainables.packs import PackItem
from trainables.storage import LocalStorage, StoreError
from trainables.store import Store, SweepStore

SWEEP = """
    name: told
    dataset: digits
    train: {call: "told_trials:trial"}
    grid: {lr: [0.1], batch_size: [8], seed: {range: 4}}
    retries: 1
"""

NET = SWEEP.replace('{call: "told_trials:trial"}', "{epochs: 1}").replace(
    "retries", "measure: {at: [], hessian: false}\n    retries"
)
NET = NET.replace("{lr", "{arch: [linear], lr")

Tell = Callable[[PackItem, int], str | None]
"""What befalls a pack the n-th time that it runs, from 0: a cause of failure, or None where it runs to its end."""


class Told:
    """An executor in this process whose workers end as told, before they have done anything."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.ran: list[tuple[str, str | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(
        self,
        work: Callable[[PackItem], Any],
        items: Sequence[PackItem],
        *,
        on_event: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        for index, item in enumerate(items):
            if stop():
                return
            on_event(Started(index))
            cause = self.tell(item, [pack for pack, _ in self.ran].count(item.pack_id))
            self.ran.append((item.pack_id, cause))
            if cause is None:
                for fraction in work(item):
                    on_event(Progress(index, fraction))
            on_event(Failed(index, Cause(cause), f"the worker says:\n{cause}") if cause else Finished(index))

    def causes(self) -> list[list[str | None]]:
        """What befell each pack, in the order in which packs first ran."""
        return [[cause for pack, cause in self.ran if pack == p] for p in dict.fromkeys(pack for pack, _ in self.ran)]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tell], tuple[Told, LaunchResult]]:
    """Launches the sweep with workers that are told what befalls them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "told_trials", raising=False)
    (tmp_path / "told_trials.py").write_text("def trial(config):\n    return {'test_loss': config['seed'] / 10}\n")

    def run(tell: Tell, text: str = SWEEP) -> tuple[Told, LaunchResult]:
        (tmp_path / "told.yaml").write_text(textwrap.dedent(text))
        told = Told(tell)
        monkeypatch.setattr(launching, "_executor", lambda *_: told)
        return told, launch(tmp_path / "told.yaml", tmp_path / "store")

    return run


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    return Store(tmp_path / "store").sweep("told")


def ask(sweep: SweepStore, query: str) -> list[dict[str, Any]]:
    return sql(sweep.store_url, query).to_pylist()


def recorded(sweep: SweepStore) -> Counter[str]:
    """Failures in the store, by cause."""
    return Counter(sweep.listing("failures").dataset("failures").to_table()["cause"].to_pylist())


# ---- budgets


@pytest.mark.parametrize("cause", BUDGETS)
def test_every_pack_has_a_budget_for_every_cause(cause: str) -> None:
    attempts = Attempts()
    budget = BUDGETS[cause]
    if budget == math.inf:
        assert all(attempts.again("p", cause) for _ in range(100))
    else:
        assert [attempts.again("p", cause) for _ in range(int(budget) + 2)] == [True] * int(budget) + [False] * 2
    assert attempts.again("another", cause)
    assert all(attempts.again("p", other) for other in BUDGETS if other != cause)


def test_every_cause_has_a_budget() -> None:
    assert BUDGETS.keys() == {*Cause}


def test_after_one_crash_the_pack_runs_again_as_it_is(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "crash" if n == 0 else None)
    assert told.causes() == [["crash", None]]
    assert (result.done, result.failed, result.ran) == (4, 0, 4)
    assert recorded(sweep) == {}
    assert {row["round"] for row in ask(sweep, "FROM plan")} == {0}
    assert "crash: crash" in "".join(logs("told", sweep.store_url)), "the last line of what the worker said"


def test_after_two_crashes_its_trials_run_alone_and_find_the_one_that_crashes(go: Any, sweep: SweepStore) -> None:
    def seed(item: PackItem) -> int | None:
        (first, *more) = sweep.read_pack(item.plan, item.pack_id)["seed"].to_pylist()
        return None if more else first

    told, result = go(lambda item, n: "crash" if seed(item) in {None, 2} else None)
    together, *alone = told.causes()
    assert together == ["crash", "crash"]
    assert sorted(alone, key=str) == [["crash", "crash"], [None], [None], [None]]
    assert (result.done, result.failed) == (3, 1)
    assert recorded(sweep) == {"crash": 5}, "four in the first round, one in the second"
    (failed,) = ask(sweep, "SELECT seed, error FROM trials WHERE status = 'failed'")
    assert failed == {"seed": 2, "error": "the worker says:\ncrash"}
    assert {row["round"] for row in ask(sweep, "FROM plan")} == {1}
    (state,) = status(sweep.store_url)
    assert [state[name] for name in ("planned", "finished", "failed", "pending")] == [4, 3, 1, 0]


def test_the_next_launch_has_budgets_of_its_own(go: Any, sweep: SweepStore) -> None:
    _, first = go(lambda item, n: "crash")
    assert (first.done, first.failed) == (0, 4)
    told, second = go(lambda item, n: "crash" if n == 0 else None)
    assert told.causes() == [["crash", None]] * 4
    assert (second.done, second.failed) == (4, 0)
    assert recorded(sweep) == {"crash": 8}


def test_what_takes_too_much_memory_is_cut_in_half_and_that_is_recorded(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "memory" if n == 0 else None, NET)
    assert told.causes() == [["memory", None]]
    assert result.done == 4
    (pack,) = {pack for pack, _ in told.ran}
    assert sweep.read_split(pack) == (2, None)
    assert {row["together"] for row in ask(sweep, "FROM trials")} == {2}
    assert recorded(sweep) == {}


def test_what_cannot_be_cut_further_has_failed(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "memory", NET)
    together, *alone = told.causes()
    assert len(together) == 6, "4 trials at once, 2, 1, then half of a batch of 8, 2 of it, 1 example"
    assert [len(causes) for causes in alone] == [4] * 4
    assert (result.done, result.failed) == (0, 4)
    assert recorded(sweep) == {"memory": 8}
    assert sweep.read_split(told.ran[0][0]) == (1, 1)


def test_preemption_is_no_fault_of_the_trials(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "preemption" if n < 20 else None)
    assert told.causes() == [["preemption"] * 20 + [None]]
    assert (result.done, recorded(sweep)) == (4, {})


def test_even_preemption_comes_to_an_end(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "preemption")
    assert [len(causes) for causes in told.causes()] == [21] * 5
    assert (result.failed, recorded(sweep)) == (4, {"preemption": 8})


def test_causes_do_not_share_a_budget(go: Any, sweep: SweepStore) -> None:
    course = ["crash", "preemption", "exception", "memory", "preemption", "exception", None]
    told, result = go(lambda item, n: course[n], NET)
    assert told.causes() == [course]
    assert (result.done, recorded(sweep)) == (4, {})


def test_trials_of_the_users_own_cannot_be_cut(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "memory")
    assert [len(causes) for causes in told.causes()] == [1] * 5
    assert (result.failed, recorded(sweep)) == (4, {"memory": 8})


def test_what_was_committed_before_its_worker_died_is_done(go: Any, sweep: SweepStore) -> None:
    def tell(item: PackItem, n: int) -> str:
        list(launching.run_pack(item))
        return "crash"

    told, result = go(tell)
    assert told.causes() == [["crash"]]
    assert (result.done, result.failed, recorded(sweep)) == (4, 0, {})


# ---- the store


def test_errors_of_the_machine_are_tried_twice_more(go: Any, sweep: SweepStore) -> None:
    told, result = go(lambda item, n: "exception" if n < 2 else None)
    assert told.causes() == [["exception", "exception", None]]
    assert (result.done, recorded(sweep)) == (4, {})


def test_where_the_store_cannot_be_written_the_launch_ends_at_once(
    go: Any, sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalStorage, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def tell(item: PackItem, n: int) -> str:
        assert n == 0, "there is nothing to try"
        for method in ("create", "replace", "append"):
            monkeypatch.setattr(LocalStorage, method, full)
        return "exception"

    with pytest.raises(StoreError, match=r"store/told: cannot be written: .*No space left on device"):
        go(tell)
    assert recorded(sweep) == {}
    assert heartbeat(sweep.storage, 1)["state"] == "running", "it could not even say that it ends"


# ---- the lease


def test_a_failure_is_not_recorded_by_a_launch_that_was_taken_over(go: Any, sweep: SweepStore) -> None:
    """Nor does it plan anew, nor run anything: all that is left to its successor."""
    plans: list[str] = []

    def tell(item: PackItem, n: int) -> str:
        plans.extend(sweep.storage.names("plan"))
        with Lease(sweep, patience=0):
            return "crash"

    with pytest.raises(LaunchHeldError, match="sweep 'told' was taken over by process"):
        go(tell)
    assert recorded(sweep) == {}
    assert sweep.storage.names("plan") == plans
    told, result = go(lambda item, n: None)
    assert told.causes() == [[None]]
    assert result.done == 4


def test_a_plan_that_comes_late_does_not_count(go: Any, sweep: SweepStore) -> None:
    """A launch that is taken over between its last look and its plan: it plans, and nobody heeds it."""
    go(lambda item, n: None)
    grown = SWEEP.replace("{range: 4}", "{range: 6}")
    _, result = go(lambda item, n: None, grown)
    assert result.planned == 6
    last = sweep.plan_name()
    earlier = sweep.read_plan()
    assert earlier is not None
    sweep.write_plan(earlier.slice(0, 1), 1, 2)
    assert sweep.plan_name() == last
    assert status(sweep.store_url)[0]["planned"] == 6
