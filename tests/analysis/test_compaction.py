from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from watched_storage import OPERATIONS, WRITING, Fault, KilledError, contents, rows, watched

from analysis import compaction
from analysis.compaction import Compacted, compact
from analysis.database import connect
from analysis.discarding import ABANDONED, discard
from analysis.verification import verify
from trainables.lease import LaunchHeldError, Lease, heartbeat, latest
from trainables.manifest import MERGED_TABLES, file_name, numbers, read_manifest
from trainables.schema import CURVES, PROFILES, TRIALS
from trainables.storage import DamagedStoreError, StoreError
from trainables.store import ENDPOINTS, Store, SweepStore, parquet_bytes, side_name, table


def commit(sweep: SweepStore, pack: str, attempt: str = "a", **more: Any) -> None:
    key = {"sweep": sweep.name, "trial_id": f"t-{pack}", "pack_id": pack, "attempt": attempt}
    trials = table([key | {"status": "finished", "lr": 0.1, "batch_size": 8, "slot": 0} | more], TRIALS)
    curves = table([key | {"statistic": "x", "step": s, "value": float(len(pack))} for s in (0, 1)], CURVES)
    side: dict[str, pa.Table | bytes] = {"curves": curves, ENDPOINTS: f"tensors of {pack}".encode()}
    if pack == "p":
        side["profiles"] = table([key | {"profile": "y", "x": 1.0, "value": 2.0}], PROFILES)
    assert sweep.commit(pack, attempt, trials, side)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    held = Store(tmp_path / "store").sweep("s")
    for pack in ("p", "q", "r"):
        commit(held, pack)
    return held


def root(sweep: SweepStore) -> Path:
    return Path(sweep.store_url)


def files(sweep: SweepStore, *folders: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in sweep.storage.names(folder)]


def age(sweep: SweepStore, name: str, seconds: float) -> None:
    path = Path(sweep.storage.url) / name
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


# --- what is merged -------------------------------------------------------------------------------------------------


def test_packs_become_one_file_per_table_with_the_same_rows(sweep: SweepStore) -> None:
    before = rows(sweep)
    assert compact(root(sweep)) == [Compacted("s", 3, 7, 3, 0)]
    assert rows(sweep) == before
    listing = sweep.listing()
    assert {name: len(listing.tables[name]) for name in MERGED_TABLES} == {
        "trials": 1,
        "curves": 1,
        "profiles": 1,
        "eigenvalues": 0,
        "density": 0,
    }
    assert sweep.is_committed("p")
    with connect(root(sweep)) as connection:
        assert connection.sql("SELECT count(*), count(DISTINCT trial_id) FROM trials").fetchall() == [(3, 3)]
        assert connection.sql("SELECT count(*) FROM curves").fetchall() == [(6,)]


def test_packs_that_were_closed_stay_closed_and_are_no_damage(sweep: SweepStore) -> None:
    assert sweep.close("z")
    before = rows(sweep)
    assert verify(root(sweep)) == []
    compact(root(sweep), grace=0)
    assert sweep.storage.names("trials") == []
    assert sweep.close("only"), "alone in its batch"
    compact(root(sweep), grace=0)
    assert rows(sweep) == before
    assert sweep.listing("trials").packs() == {"p", "q", "r", "z", "only"}
    assert not sweep.commit("z", "late", table([], TRIALS), {}) or sweep.listing("trials").tables["trials"] == [
        *read_manifest(sweep.storage).files("trials")
    ]
    assert verify(root(sweep)) == []


def test_endpoints_stay_as_they_are_and_their_sums_go_into_the_manifest(sweep: SweepStore) -> None:
    before = {name: sweep.storage.read(name) for name in files(sweep, ENDPOINTS)}
    compact(root(sweep), grace=0)
    assert {name: sweep.storage.read(name) for name in files(sweep, ENDPOINTS)} == before
    (batch,) = read_manifest(sweep.storage).batches
    assert batch.kept.keys() == before.keys()
    assert {name: kept["size"] for name, kept in batch.kept.items()} == {n: len(data) for n, data in before.items()}


def test_columns_that_only_some_packs_have_are_null_elsewhere(sweep: SweepStore) -> None:
    commit(sweep, "w", flatness=0.5)
    old = table([{"sweep": "s", "trial_id": "t-old", "pack_id": "old", "attempt": "a", "status": "diverged"}], TRIALS)
    sweep.commit("old", "a", old.select(["sweep", "trial_id", "pack_id", "attempt", "status"]), {})
    compact(root(sweep), grace=0)
    with connect(root(sweep)) as connection:
        found = connection.sql("SELECT pack_id, lr, flatness FROM trials ORDER BY ALL").fetchall()
    assert found == [("old", None, None), *((pack, 0.1, None) for pack in "pqr"), ("w", 0.1, 0.5)]
    (name,) = sweep.listing("trials").tables["trials"]
    assert pq.read_schema(Path(sweep.storage.url) / name).names == [*TRIALS.names, "flatness"]


def test_rows_of_attempts_that_were_not_accepted_are_left_out(sweep: SweepStore) -> None:
    curves = table([{"sweep": "s", "trial_id": "t-p", "pack_id": "p", "attempt": "b", "value": 3.0}], CURVES)
    sweep.storage.create(side_name("curves", "p", "b"), parquet_bytes(curves))
    compact(root(sweep))
    assert "'b'" not in str(rows(sweep)["curves"])


def test_nothing_to_do_is_nothing_written(sweep: SweepStore) -> None:
    compact(root(sweep), grace=0)
    before = contents(root(sweep))
    assert compact(root(sweep), grace=0) == [Compacted("s", 0, 3, 3, 0)]
    assert contents(root(sweep)) == before


def test_imports_and_copies_are_merged_like_all_else_and_the_state_of_the_sweep_stays(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    for pack in ("import-0123", "reuse-4567"):
        commit(sweep, pack)
    with Lease(sweep) as lease:
        lease.beat("stopped")
    assert compact(tmp_path)[0].packs == 2
    holder = latest(sweep.storage)
    assert holder is not None
    assert (holder.command, heartbeat(sweep.storage, holder.number)["state"]) == ("compact", "stopped")


def test_a_batch_has_at_most_so_many_packs_and_small_ones_are_merged_anew(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "BATCH_PACKS", 4)
    before = rows(sweep)
    for i in range(12):
        commit(sweep, f"x{i}")
        now = rows(sweep)
        assert compact(root(sweep), grace=0)[0].packs == (4 if i == 0 else 1)
        assert rows(sweep) == now
        sizes = sorted(len(batch.packs) for batch in read_manifest(sweep.storage).batches)
        assert max(sizes) <= 4
        assert len([size for size in sizes if size <= 2]) <= 1, sizes
    assert len(before["trials"]) + 12 == len(rows(sweep)["trials"])
    assert len(files(sweep, "merged")) < 25
    assert verify(root(sweep)) == []


def test_a_batch_has_at_most_so_many_bytes(sweep: SweepStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "BATCH_BYTES", 1)
    before = rows(sweep)
    compact(root(sweep))
    assert [len(batch.packs) for batch in read_manifest(sweep.storage).batches] == [1, 1, 1]
    assert rows(sweep) == before


# --- what goes, and when --------------------------------------------------------------------------------------------


def test_the_packs_own_files_go_with_a_later_compaction_once_they_have_been_merged_for_long(sweep: SweepStore) -> None:
    own = files(sweep, "trials", "curves", "profiles", "sums")
    assert compact(root(sweep), grace=100)[0].files_deleted == 0
    assert files(sweep, "trials", "curves", "profiles", "sums") == own
    age(sweep, file_name(1), 90)
    assert compact(root(sweep), grace=100)[0].files_deleted == 0
    age(sweep, file_name(1), 20)
    before = rows(sweep)
    assert compact(root(sweep), grace=100) == [Compacted("s", 0, 3, 3, len(own))]
    assert files(sweep, "trials", "curves", "profiles", "sums") == []
    assert rows(sweep) == before


def test_frequent_compactions_do_not_keep_the_packs_own_files_for_ever(sweep: SweepStore) -> None:
    for i in range(6):
        commit(sweep, f"x{i}")
        compact(root(sweep), grace=100)
        for number in numbers(sweep.storage):
            age(sweep, file_name(number), 40)
    assert len(files(sweep, "trials")) == 3
    assert len(files(sweep, "manifest")) == 2 * 4  # the newest that is old enough, and later ones


def test_a_merged_file_goes_when_it_was_merged_anew_for_long_and_the_last_but_one_manifest_does_not_name_it(
    sweep: SweepStore,
) -> None:
    for pack in ("x", "y", "z"):
        compact(root(sweep), grace=0)
        commit(sweep, pack)
    compact(root(sweep), grace=0)
    assert numbers(sweep.storage) == [3, 4]
    named = {name for n in (3, 4) for name in _named(sweep, n)}
    assert set(files(sweep, "merged")) == named


def _named(sweep: SweepStore, number: int) -> set[str]:
    from trainables.manifest import read_numbered

    manifest = read_numbered(sweep.storage, number)
    assert manifest is not None
    return {name for batch in manifest.batches for name in batch.files.values()}


def test_what_dead_processes_left_goes_in_time(sweep: SweepStore) -> None:
    storage = sweep.storage
    compact(root(sweep), grace=0)
    left = [side_name("curves", "dead", "a"), side_name(ENDPOINTS, "dead", "a"), "sums/dead.a.json"]
    partial = "trials/.0123456789abcdef.partial"
    checkpoint = "checkpoints/{}.0000-0000000001.0123456789abcdef.safetensors"
    for name in (
        *left,
        checkpoint.format("p"),
        checkpoint.format("dead"),
        "merged/trials-000001-ff.0123456789abcdef.parquet",
    ):
        storage.create(name, b"")
    (Path(storage.url) / partial).parent.mkdir(exist_ok=True)
    (Path(storage.url) / partial).write_bytes(b"")
    assert discard(sweep, grace=0) == 2
    assert not files(sweep, "trials")
    assert files(sweep, "checkpoints") == [checkpoint.format("dead")]  # which goes on from there
    assert all(map(storage.exists, (*left, partial)))  # whoever is paused may yet commit them
    for name in (*left, partial):
        age(sweep, name, ABANDONED)
    assert discard(sweep, grace=0) == 4
    assert not any(map(storage.exists, (*left, partial)))
    assert discard(sweep, grace=0) == 0


def test_files_of_losing_attempts_go_with_their_pack_and_its_endpoints_do_not(sweep: SweepStore) -> None:
    for kind in ("curves", ENDPOINTS):
        sweep.storage.create(side_name(kind, "p", "late"), b"")
    compact(root(sweep), grace=0)
    assert [name for name in files(sweep, "curves", ENDPOINTS) if "late" in name] == []
    assert len(files(sweep, ENDPOINTS)) == 3


def test_a_merged_file_that_is_damaged_keeps_the_packs_own_files(sweep: SweepStore) -> None:
    compact(root(sweep))
    own = files(sweep, "trials")
    (merged,) = sweep.listing("curves").tables["curves"]
    sweep.storage.replace(merged, b"no table")
    with pytest.raises(DamagedStoreError, match=rf"(?s){merged}: cannot be read: it differs .*`isoratio verify`"):
        compact(root(sweep), grace=0)
    assert files(sweep, "trials") == own


# --- several at once ------------------------------------------------------------------------------------------------


def test_a_launch_holds_the_sweep(sweep: SweepStore) -> None:
    with Lease(sweep):
        with pytest.raises(LaunchHeldError, match="sweep 's' is being run by process"):
            with_patience(lambda: compact(root(sweep)))
        assert compact(root(sweep), take_over=True)[0].packs == 3


def with_patience(call: Callable[[], Any], seconds: float = 2.0) -> None:
    """Watching a launch that lives for a moment only."""
    before, compaction.PATIENCE = compaction.PATIENCE, seconds
    try:
        call()
    finally:
        compaction.PATIENCE = before


@pytest.mark.parametrize("moment", ["read", "create"])
def test_of_two_compactions_one_changes_nothing_and_leaves_nothing(sweep: SweepStore, moment: str) -> None:
    before, interfered = rows(sweep), []

    def interfere(operation: str, name: str, when: str) -> None:
        if not interfered and operation == moment and name.startswith(("trials/", "merged/")):
            interfered.append(name)
            compact(root(sweep), take_over=True, grace=0 if moment == "create" else 3600)

    with pytest.raises((StoreError, LaunchHeldError), match="was taken over by"):
        compact(watched(root(sweep), interfere))
    assert interfered
    assert rows(sweep) == before
    assert set(files(sweep, "merged")) == _named(sweep, 1)


def test_a_manifest_that_another_wrote_first_stays(sweep: SweepStore) -> None:
    before = rows(sweep)

    def interfere(operation: str, name: str, when: str) -> None:
        if (operation, name, when) == ("create", file_name(1), "before"):
            read_manifest(sweep.storage).successor(()).write(sweep.storage)

    with pytest.raises(StoreError, match=r"another compaction was faster, .* this one has changed nothing"):
        compact(watched(root(sweep), interfere))
    assert rows(sweep) == before
    assert files(sweep, "merged") == []
    assert compact(root(sweep))[0].packs == 3


# --- damage and crashes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["trials/q.parquet", "curves/q.a.parquet", "sums/q.a.json"])
def test_damage_is_found_before_it_is_merged_and_nothing_changes(sweep: SweepStore, file: str) -> None:
    data = bytearray(sweep.storage.read(file))
    data[len(data) // 2] ^= 1
    sweep.storage.replace(file, bytes(data))
    with pytest.raises(DamagedStoreError, match=r"q.*`isoratio verify` moves damaged files"):
        compact(root(sweep))
    assert read_manifest(sweep.storage).number == 0
    assert files(sweep, "merged") == []
    verify(root(sweep))
    assert compact(root(sweep))[0].packs == 2


def test_a_reader_sees_every_row_once_at_every_moment(sweep: SweepStore) -> None:
    before, looks = rows(sweep), []

    def read(operation: str, name: str, when: str) -> None:
        if operation in WRITING:
            assert rows(sweep) == before, (operation, name, when)
            looks.append(operation)

    compact(watched(root(sweep), read), grace=0)
    commit(sweep, "x")
    before = rows(sweep)
    compact(watched(root(sweep), read), grace=0)
    assert {"create", "replace", "delete"} <= {*looks}
    assert rows(sweep) == before


@pytest.mark.parametrize(
    ("how", "when", "among"),
    [
        ("killed", "before", WRITING),
        ("error", "after", WRITING),
        *(pytest.param("error", when, OPERATIONS, marks=pytest.mark.long) for when in ("before", "after")),
    ],
)
def test_stopped_at_any_step_every_row_is_there_once_and_the_next_one_completes_it(
    sweep: SweepStore, tmp_path: Path, how: str, when: str, among: tuple[str, ...]
) -> None:
    compact(root(sweep), grace=0)
    for pack in ("x", "y"):
        commit(sweep, pack)
    before = rows(sweep)
    count = Fault(None, when, among=among)
    compact(_copied(sweep, tmp_path / "count", count), grace=0)
    assert count.count >= 16  # lease, merged files, manifest and its copy, deletions
    for step in range(count.count):
        fault = Fault(step, when, killed=how == "killed", among=among)
        there = _copied(sweep, tmp_path / f"step{step}", fault)
        with suppress(KilledError, OSError, StoreError):
            compact(there, grace=0)
        assert fault.fired
        again = Store(there.url).sweep("s")
        assert rows(again) == before, step
        compact(there.url, grace=0, take_over=True)
        assert rows(again) == before, step
        assert files(again, "trials", "curves", "sums") == [], step
        if step % 7 == 0:
            assert verify(there.url) == []


def _copied(sweep: SweepStore, to: Path, fault: Fault) -> Store:
    shutil.copytree(root(sweep), to)
    return watched(to, fault)
