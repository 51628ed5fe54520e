"""SIGKILL, errors and pauses at every step of a launch, and of what else changes a store."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from faults import KILL, STOP, AtStep, Beating, Note, Raise, Steps, steps
from forked import Command, run
from invariants import View, check_invariants, finish, ran, undisturbed
from sweeps_for_faults import TINY

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")
ALL = ((1, 2), (2, 2))
"""Every step, in two tests."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(TINY)
    return tmp_path


def stores(work: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Path]]:
    """Numbers of steps, each with a store that does not exist yet."""
    for number in numbers:
        yield number, work / "results"
        shutil.rmtree(work / "results", ignore_errors=True)


@steps(0.4, 0.9, long=ALL)
def test_kill_9_at_any_step_of_a_launch_loses_nothing(work: Path, steps: Steps) -> None:
    without = undisturbed(TINY)
    for number, store in stores(work, steps(without.changes)):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, KILL)])
        if code != -9:
            assert number > without.changes
            assert code == 0, said
            return
        killed = View.of(store)
        check_invariants(View(), killed, without.view)
        finish(work, killed, without.view)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 16))])
def test_launches_killed_one_after_the_other_come_to_the_same_end(work: Path, seed: int) -> None:
    without, dice, store = undisturbed(TINY), random.Random(seed), work / "results"
    begin, end = without.changes // 6, without.changes  # even a launch with nothing left to run begins
    view = View()
    for number in (dice.randint(1, end), dice.randint(1, begin), dice.randint(begin, end), dice.randint(1, begin)):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, KILL)])
        before, view = view, View.of(store)
        check_invariants(before, view, without.view)
        assert code == -9 or (code == 0 and number > begin and view.is_whole()), said
    finish(work, view, without.view)


@steps(0.3, 0.7, long=((2, 4), (4, 4)))
def test_an_error_at_any_step_of_a_launch_is_said_or_overcome(work: Path, steps: Steps) -> None:
    """Reading as well as writing."""
    without, said_so = undisturbed(TINY), 0
    for number, store in stores(work, steps(without.operations)):
        fault = AtStep(number, store, Raise(errno.EIO), changes=False)
        code, said = run(work, *LAUNCH, faults=[fault])
        failed = View.of(store)
        check_invariants(View(), failed, without.view)
        if failed.is_whole() and number > without.operations:
            break
        if code:
            assert code in {2, 3}
            assert "Input/output error" in said
            said_so += 1
        finish(work, failed, without.view)
    assert said_so


@steps(0.6, long=((1, 4), (3, 4)))
def test_a_launch_that_sleeps_at_any_step_while_another_takes_over_changes_nothing(work: Path, steps: Steps) -> None:
    without = undisturbed(TINY)
    for number, store in stores(work, steps(without.changes)):
        with Command(work, *LAUNCH, faults=[Beating(0.4), AtStep(number, store, STOP)]) as sleeper:
            if not sleeper.stops():
                assert number > without.changes
                assert sleeper.ended() == 0
                return
            asleep = View.of(store)
            finished = finish(work, asleep, without.view, "results", *LAUNCH[:2], "--take-over")
            sleeper.signal(signal.SIGCONT)
            if sleeper.ended() == 4:
                assert "sweep 'tiny' was taken over by process" in sleeper.said
            else:  # it was through, or had not begun
                assert asleep.is_whole() or ran(sleeper.said) == (len(finished.rows), 0)
            assert View.of(store) == finished


@steps(0.7, long=((2, 2),))
def test_at_no_step_of_a_launch_is_anything_damaged(work: Path, steps: Steps) -> None:
    without = undisturbed(TINY)
    for number, store in stores(work, steps(without.changes)):
        with Command(work, *LAUNCH, faults=[AtStep(number, store, STOP)]) as sleeper:
            if not sleeper.stops():
                assert number > without.changes
                return
            code, said = run(work, "verify")
            assert code == 0, said
            sleeper.signal(signal.SIGCONT)
            assert sleeper.ended() == 0
            check_invariants(View(), awake := View.of(store), without.view)
            assert awake.is_whole()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with a sweep that is done."""
    work = tmp_path_factory.mktemp("done")
    (work / "sweep.yaml").write_text(TINY)
    finish(work, View(), undisturbed(TINY).view)
    return work


def copies(done: Path, work: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Path]]:
    """Numbers of steps, each with a copy of a store in which the sweep is done."""
    for number in numbers:
        shutil.copytree(done / "results", work / "results")
        yield number, work / "results"
        shutil.rmtree(work / "results")


def counted(done: Path, work: Path, *command: str) -> int:
    """How many steps a command has that is not disturbed, on a copy of the store."""
    for _, store in copies(done, work, [0]):
        code, said = run(work, *command, faults=[AtStep(1, store, Note(work / "steps"), times=sys.maxsize)])
        assert code == 0, said
    return (work / "steps").stat().st_size


@steps(0.6)
def test_kill_9_at_any_step_of_a_compaction_leaves_each_row_once(done: Path, work: Path, steps: Steps) -> None:
    before, total = View.of(done / "results"), counted(done, work, "compact", "--grace", "0")
    for number, store in copies(done, work, steps(total)):
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
            assert number > total
            return


@steps()
def test_kill_9_at_any_step_of_a_verification_quarantines_no_more_than_is_bad(
    done: Path, work: Path, steps: Steps
) -> None:
    before = View.of(done / "results")
    for number, store in copies(done, work, steps(20)):
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


@steps()
def test_kill_9_at_any_step_of_a_removal_leaves_a_sweep_whole_or_gone(done: Path, work: Path, steps: Steps) -> None:
    before, total = View.of(done / "results"), counted(done, work, "rm", "tiny", "--yes")
    for number, store in copies(done, work, steps(total)):
        code, said = run(work, "rm", "tiny", "--yes", faults=[AtStep(number, store, KILL)])
        assert code in {0, -9}, said
        killed = View.of(store)
        assert killed.rows in (before.rows, {})
        finish(work, killed, before)
        if code == 0:
            assert number > total
            return


@steps(long=ALL)
def test_kill_9_at_any_step_of_taking_over_trials_of_another_sweep(done: Path, work: Path, steps: Steps) -> None:
    """They count as done before, in the launch that goes on."""
    (work / "sweep.yaml").write_text(TINY.replace("name: tiny", "name: other").replace("[0]", "[0, 1]"))
    before, total = View.of(done / "results"), counted(done, work, *LAUNCH)
    for number, store in copies(done, work, steps(total)):
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
            assert number > total
            return
