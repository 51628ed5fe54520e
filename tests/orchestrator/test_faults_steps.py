"""SIGKILL, errors and pauses at every step of a launch, and of what else changes a store."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import KILL, STOP, AtStep, Raise
from forked import Command, run
from invariants import View, check_invariants, finish, uninterrupted
from sweeps_for_faults import TINY

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")
STEPS = 80
"""A launch of the sweep has more: so many must have been met, or nothing was tested."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(TINY)
    return tmp_path


def stores(work: Path, first: int, stride: int) -> Iterator[tuple[int, Path]]:
    """Numbers of steps, each with a store that does not exist yet."""
    for number in itertools.count(first, stride):
        yield number, work / "results"
        shutil.rmtree(work / "results", ignore_errors=True)


def steps(first: int, stride: int, long: tuple[int, int] = (1, 1)) -> pytest.MarkDecorator:
    """Which steps are met: a few, or in the long tests every one, or every other one."""
    return pytest.mark.parametrize(("first", "stride"), [(first, stride), pytest.param(*long, marks=pytest.mark.long)])


@steps(19, 31)
def test_kill_9_at_any_step_of_a_launch_loses_nothing(work: Path, first: int, stride: int) -> None:
    whole = uninterrupted(TINY)
    for number, store in stores(work, first, stride):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, KILL)])
        if code != -9:
            assert number > STEPS
            assert code == 0, said
            return
        killed = View.of(store)
        check_invariants(View(), killed, whole)
        finish(work, killed, whole)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 8))])
def test_launches_killed_one_after_the_other_come_to_the_same_end(work: Path, seed: int) -> None:
    whole, dice, store = uninterrupted(TINY), random.Random(seed), work / "results"
    view, kills = View(), 0
    while not view.is_whole():
        code, said = run(work, *LAUNCH, faults=[AtStep(dice.randint(1, STEPS), store, KILL)])
        before, view = view, View.of(store)
        check_invariants(before, view, whole)
        assert code in {0, -9}, said
        kills += code == -9
    assert kills > 1
    assert finish(work, view, whole).rows == view.rows


@steps(36, 67, (2, 2))
def test_an_error_at_any_step_of_a_launch_is_said_or_overcome(work: Path, first: int, stride: int) -> None:
    """Reading as well as writing."""
    whole, said_so = uninterrupted(TINY), 0
    for number, store in stores(work, first, stride):
        fault = AtStep(number, store, Raise(errno.EIO), changes=False)
        code, said = run(work, *LAUNCH, faults=[fault])
        failed = View.of(store)
        check_invariants(View(), failed, whole)
        if failed.is_whole() and number > 2 * STEPS:
            break
        if code:
            assert code in {2, 3}
            assert "Input/output error" in said
            said_so += 1
        finish(work, failed, whole)
    assert said_so


@steps(45, 34, (2, 2))
def test_a_launch_that_sleeps_at_any_step_while_another_takes_over_changes_nothing(
    work: Path, first: int, stride: int
) -> None:
    whole = uninterrupted(TINY)
    for number, store in stores(work, first, stride):
        with Command(work, *LAUNCH, faults=[AtStep(number, store, STOP)]) as sleeper:
            if not sleeper.stops():
                assert number > STEPS
                assert sleeper.ended() == 0
                return
            asleep = View.of(store)
            finished = finish(work, asleep, whole, "results", *LAUNCH[:2], "--take-over")
            sleeper.signal(signal.SIGCONT)
            if sleeper.ended() == 4:
                assert "sweep 'tiny' was taken over by process" in sleeper.said
            else:  # it was through
                assert asleep.is_whole()
            assert View.of(store) == finished


@steps(37, 34, (2, 2))
def test_at_no_step_of_a_launch_is_anything_damaged(work: Path, first: int, stride: int) -> None:
    whole = uninterrupted(TINY)
    for number, store in stores(work, first, stride):
        with Command(work, *LAUNCH, faults=[AtStep(number, store, STOP)]) as sleeper:
            if not sleeper.stops():
                assert number > STEPS
                return
            code, said = run(work, "verify")
            assert code == 0, said
            sleeper.signal(signal.SIGCONT)
            assert sleeper.ended() == 0
            check_invariants(View(), awake := View.of(store), whole)
            assert awake.is_whole()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with a sweep that is done."""
    work = tmp_path_factory.mktemp("done")
    (work / "sweep.yaml").write_text(TINY)
    finish(work, View(), uninterrupted(TINY))
    return work


def copies(done: Path, work: Path, first: int, stride: int) -> Iterator[tuple[int, Path]]:
    """Numbers of steps, each with a copy of a store in which the sweep is done."""
    for number in itertools.count(first, stride):
        shutil.copytree(done / "results", work / "results")
        yield number, work / "results"
        shutil.rmtree(work / "results")


@steps(10, 8)
def test_kill_9_at_any_step_of_a_compaction_leaves_each_row_once(
    done: Path, work: Path, first: int, stride: int
) -> None:
    before = View.of(done / "results")
    for number, store in copies(done, work, first, stride):
        code, said = run(work, "compact", "--grace", "0", faults=[AtStep(number, store, KILL)])
        assert code in {0, -9}, said
        killed = View.of(store)
        check_invariants(before, killed, before)
        assert killed.sides == before.sides
        assert run(work, "compact", "--grace", "0")[0] == 0
        merged = View.of(store)
        check_invariants(killed, merged, before)
        assert all(name.startswith("merged/") for name in merged.files)
        assert run(work, "verify")[0] == 0
        if code == 0:
            assert number > 20
            return


@steps(4, 9)
def test_kill_9_at_any_step_of_a_verification_quarantines_no_more_than_is_bad(
    done: Path, work: Path, first: int, stride: int
) -> None:
    before = View.of(done / "results")
    for number, store in copies(done, work, first, stride):
        bad = next((store / "tiny/trials").iterdir())
        bad.write_bytes(bad.read_bytes()[:-9])
        code, said = run(work, "verify", faults=[AtStep(number, store, KILL)])
        assert code in {3, -9}, said
        assert run(work, "verify")[0] in {0, 3}
        assert run(work, "verify")[0] == 0
        left = View.of(store)
        assert len(left.rows) == 2
        check_invariants(left, finish(work, left, before), before)
        if code == 3:
            assert number > 5
            return


@steps(7, 9)
def test_kill_9_at_any_step_of_a_removal_leaves_a_sweep_whole_or_gone(
    done: Path, work: Path, first: int, stride: int
) -> None:
    before = View.of(done / "results")
    for number, store in copies(done, work, first, stride):
        code, said = run(work, "rm", "tiny", "--yes", faults=[AtStep(number, store, KILL)])
        assert code in {0, -9}, said
        killed = View.of(store)
        assert killed.rows in (before.rows, {})
        finish(work, killed, before)
        if code == 0:
            assert number > 5
            return


@steps(50, 40, (1, 2))
def test_kill_9_at_any_step_of_taking_over_trials_of_another_sweep(
    done: Path, work: Path, first: int, stride: int
) -> None:
    """They count as done before, in the launch that goes on."""
    (work / "sweep.yaml").write_text(TINY.replace("name: tiny", "name: other").replace("[0]", "[0, 1]"))
    before = View.of(done / "results")
    for number, store in copies(done, work, first, stride):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, KILL)])
        assert code in {0, -9}, said
        killed = View.of(store, "other")
        again, told = run(work, *LAUNCH)
        assert again == 0, told
        resumed = View.of(store, "other")
        check_invariants(killed, resumed, resumed)
        values = resumed.values()
        assert {trial: values[trial] | {"sweep": "tiny"} for trial in before.rows} == before.values()
        assert len(resumed.rows) == 8
        assert View.of(store) == before
        if code == 0:
            assert number > STEPS
            return
