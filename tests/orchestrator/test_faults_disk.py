"""Disks that are full, read-only, out of file handles, or gone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import KILL, AtReport, AtStep, Delete, Fill, NoMoreFiles, Note, Steps, save_often, steps
from forked import run
from invariants import View, check_invariants, finish, undisturbed, uninterrupted
from sweeps_for_faults import LONGER, TINY

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def small_disk(work: Path) -> Iterator[Path]:
    """A directory on a disk of its own, with room for a sweep or two."""
    disk = work / "disk"
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "-o", "size=2m", "tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def mount(directory: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(directory)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@steps(0.5, long=((1, 2),))
def test_a_disk_that_is_full_at_any_step_ends_the_launch_and_spoils_nothing(
    small_disk: Path, work: Path, steps: Steps
) -> None:
    without, store, filler = undisturbed(TINY), small_disk / "results", small_disk / "filler"
    for number in steps(without.changes):
        code, said = run(work, *LAUNCH, "--store", store, faults=[AtStep(number, store, Fill(filler))])
        if not filler.exists():
            assert number > without.changes
            assert code == 0
            return
        full = View.of(store)
        check_invariants(View(), full, without.view)
        print(number, code, said, full.state)
        if not full.is_whole():
            assert code == 2, said
            assert "No space left on device" in said
        filler.unlink()
        finish(work, full, without.view, str(store), *LAUNCH[:2])
        shutil.rmtree(store)


def test_a_disk_that_is_full_when_a_checkpoint_is_due_costs_only_the_checkpoint(small_disk: Path, work: Path) -> None:
    (work / "sweep.yaml").write_text(LONGER.replace("pack: {}", "pack: {checkpoint_seconds: 0}"))
    store, filler = small_disk / "results", small_disk / "filler"
    faults = [save_often, AtReport(9, Fill(filler)), AtReport(20, KILL)]
    code, said = run(work, *LAUNCH, "--store", store, faults=faults)
    assert code == -9, said
    saved = sorted(path.name for path in (store / "tiny/checkpoints").iterdir())
    assert len(saved) == 2
    filler.unlink()
    finish(work, View.of(store), uninterrupted(LONGER), str(store), *LAUNCH[:2])
    code, said = run(work, "logs", "tiny", "--store", store)
    assert f"goes on from its checkpoint {store}/tiny/checkpoints/{saved[-1]}" in said


@steps(0.4, long=((2, 3),))
def test_a_disk_that_is_full_leaves_a_compaction_undone(small_disk: Path, work: Path, steps: Steps) -> None:
    """It goes on where it was left, again and again."""
    whole, store, filler = uninterrupted(TINY), small_disk / "results", small_disk / "filler"
    compact = ("compact", "--grace", "0", "--store", str(store))
    finished = finish(work, View(), whole, str(store), *LAUNCH[:2])
    shutil.copytree(store, work / "copy")
    count = AtStep(1, work / "copy", Note(work / "steps"), times=sys.maxsize)
    assert run(work, *compact[:-1], "copy", faults=[count])[0] == 0
    said_so = 0
    for number in steps((work / "steps").stat().st_size):
        code, said = run(work, *compact, faults=[AtStep(number, store, Fill(filler))])
        print(number, code, said)
        full = View.of(store)
        check_invariants(finished, full, whole)
        if not filler.exists():
            break
        if code:
            said_so += 1
            assert code == 2
            assert "No space left on device" in said
        filler.unlink()
    assert said_so
    assert run(work, *compact)[0] == 0
    assert [name for name in View.of(store).files if name.startswith("merged/")]


def test_a_store_that_is_read_only_can_be_asked_and_not_launched(work: Path) -> None:
    whole, store = uninterrupted(TINY), work / "results"
    assert run(work, *LAUNCH, "--limit", "2")[0] == 0
    begun = View.of(store)
    assert 0 < len(begun.rows) < len(whole.rows)
    mount(store, "--bind", str(store))
    try:
        mount(store, "-o", "remount,bind,ro")
        for command in (["status"], ["sql", "FROM trials"], ["plan", "sweep.yaml"], ["logs", "tiny"], ["verify"]):
            code, said = run(work, *command)
            assert code == 0, said
        for command in ([*LAUNCH], ["compact"], ["rm", "tiny", "--yes"], ["resume", "tiny", "--take-over"]):
            code, said = run(work, *command)
            assert code == 2, said
            assert "Read-only file system" in said
        assert View.of(store) == begun
    finally:
        subprocess.run(["umount", "--lazy", str(store)], check=True)
    finish(work, begun, whole)


@steps(0.4, long=((1, 3),))
def test_no_more_files_that_may_be_open_from_any_step_on_are_said(work: Path, steps: Steps) -> None:
    without, store, said_so = undisturbed(TINY), work / "results", 0
    for number in steps(without.operations):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, NoMoreFiles(), changes=False)])
        failed = View.of(store)
        check_invariants(View(), failed, without.view)
        print(number, code, said)
        if code == 0:
            assert number > without.operations / 2  # the last files may be open already
            break
        assert code == 2
        assert "Too many open files" in said
        said_so += 1
        finish(work, failed, without.view)
        shutil.rmtree(store)
    assert said_so


LAST_WORDS = 2
"""Changes after the last look at whether the sweep is still there: state and result."""


@steps(0.6, long=((1, 2),))
def test_a_store_that_is_deleted_at_any_step_ends_the_launch(work: Path, steps: Steps) -> None:
    without, store = undisturbed(TINY), work / "results"
    for number in steps(without.changes):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, Delete(store / "tiny"))])
        left = View.of(store)
        check_invariants(View(), left, without.view)
        if code == 0:  # there was nothing yet that it could miss, or only its last word was left to say
            print(number, without.changes)
            assert left.is_whole() or number >= without.changes - LAST_WORDS
            assert number >= without.changes - LAST_WORDS or number < 0.2 * without.changes
        else:
            assert (code, "was removed" in said) == (4, True) or (code, "No such file" in said) == (2, True)
        finish(work, left, without.view)
        if code == 0 and number > without.changes:
            return
        shutil.rmtree(store)
