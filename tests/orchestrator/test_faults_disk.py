"""Disks that are full, read-only, out of file handles, or gone."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import KILL, AtReport, AtStep, Delete, Fill, NoMoreFiles, save_often
from forked import run
from invariants import View, check_invariants, finish, uninterrupted
from sweeps_for_faults import LONGER, TINY

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")
STEPS = 80

every_step = pytest.mark.parametrize(("first", "stride"), [(27, 38), pytest.param(1, 2, marks=pytest.mark.long)])


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


@every_step
def test_a_disk_that_is_full_at_any_step_ends_the_launch_and_spoils_nothing(
    small_disk: Path, work: Path, first: int, stride: int
) -> None:
    whole, store, filler = uninterrupted(TINY), small_disk / "results", small_disk / "filler"
    for number in itertools.count(first, stride):
        code, said = run(work, *LAUNCH, "--store", store, faults=[AtStep(number, store, Fill(filler))])
        if not filler.exists():
            assert number > STEPS
            assert code == 0
            return
        full = View.of(store)
        check_invariants(View(), full, whole)
        print(number, code, said, full.state)
        if not full.is_whole():
            assert code == 2, said
            assert "No space left on device" in said
        filler.unlink()
        finish(work, full, whole, str(store), *LAUNCH[:2])
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


def test_a_disk_that_is_full_leaves_a_compaction_undone(small_disk: Path, work: Path) -> None:
    whole, store, filler = uninterrupted(TINY), small_disk / "results", small_disk / "filler"
    finished = finish(work, View(), whole, str(store), *LAUNCH[:2])
    said_so = 0
    for number in itertools.count(2, 7):
        compact = ("compact", "--grace", "0", "--store", str(store))
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


@every_step
def test_no_more_files_that_may_be_open_from_any_step_on_are_said(work: Path, first: int, stride: int) -> None:
    whole, store, said_so = uninterrupted(TINY), work / "results", 0
    for number in itertools.count(first, stride):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, NoMoreFiles(), changes=False)])
        failed = View.of(store)
        check_invariants(View(), failed, whole)
        print(number, code, said)
        if code == 0:
            break
        assert code == 2
        assert "Too many open files" in said
        said_so += 1
        finish(work, failed, whole)
        shutil.rmtree(store)
    assert said_so


@every_step
def test_a_store_that_is_deleted_at_any_step_ends_the_launch(work: Path, first: int, stride: int) -> None:
    whole, store = uninterrupted(TINY), work / "results"
    for number in itertools.count(first, stride):
        code, said = run(work, *LAUNCH, faults=[AtStep(number, store, Delete(store / "tiny"))])
        if code == 0:
            assert number > STEPS
            return
        assert (code, "was removed" in said) == (4, True) or (code, "No such file or directory" in said) == (2, True)
        left = View.of(store)
        check_invariants(View(), left, whole)
        finish(work, left, whole)
        shutil.rmtree(store)
