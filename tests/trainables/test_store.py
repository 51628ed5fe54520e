from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainables import storage as module
from trainables.packs import plan_metadata
from trainables.schema import CURVES, FORMAT, PLAN, TRIALS
from trainables.settings import Measure
from trainables.storage import DamagedStoreError, LocalStorage, StoreError
from trainables.store import ENDPOINTS, Store, SweepStore, parquet_bytes, table


def rows(trial_id: str, **more: object) -> pa.Table:
    return table([{"sweep": "s", "trial_id": trial_id, **more}], TRIALS)


def side(attempt: str) -> dict[str, pa.Table | bytes]:
    return {"curves": table([{"sweep": "s", "attempt": attempt}], CURVES), ENDPOINTS: attempt.encode()}


def files(sweep: SweepStore) -> set[str]:
    return {str(p.relative_to(sweep.storage.root)) for p in sweep.storage.root.rglob("*") if p.is_file()}


def test_a_commit_leaves_rows_what_goes_with_them_and_their_sums(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.commit("p", "a", rows("t"), side("a"))
    written = {"trials/p.parquet", "curves/p.a.parquet", "endpoints/p.a.safetensors"}
    assert files(sweep) == {*written, "sums/p.a.json"}
    sums = json.loads((sweep.storage.root / "sums/p.a.json").read_text())
    assert sums.keys() == written
    for name in written:
        data = (sweep.storage.root / name).read_bytes()
        assert sums[name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert pq.read_schema(sweep.storage.root / "trials/p.parquet").metadata[b"isoratio_format"] == str(FORMAT).encode()
    assert sweep.is_committed("p")
    assert sweep.listing("trials").dataset("trials").to_table()["trial_id"].to_pylist() == ["t"]


def test_the_first_commit_wins_and_what_the_second_wrote_stays_for_who_has_listed_it(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.commit("p", "a", rows("first"), side("a"))
    before = {name: (sweep.storage.root / name).read_bytes() for name in files(sweep)}
    assert not sweep.commit("p", "b", rows("second"), side("b"))
    assert files(sweep) - before.keys() == {"curves/p.b.parquet", "endpoints/p.b.safetensors", "sums/p.b.json"}
    assert {name: (sweep.storage.root / name).read_bytes() for name in before} == before
    assert pq.read_table(sweep.storage.root / "trials/p.parquet").column("trial_id").to_pylist() == ["first"]


def test_no_attempt_at_a_closed_pack_is_accepted(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.close("p")
    assert sweep.is_committed("p")
    assert not sweep.commit("p", "a", rows("late"), side("a"))
    assert sweep.close("p"), "again, as after a stop"
    assert sweep.commit("q", "a", rows("t"), side("a"))
    assert not sweep.close("q"), "it has its rows"
    listing = sweep.listing("trials")
    assert listing.dataset("trials").to_table()["trial_id"].to_pylist() == ["t"]
    assert listing.packs() == {"p", "q"}


def test_of_many_concurrent_commits_one_wins(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: sweep.commit("p", f"a{i}", rows(f"t{i}"), side(f"a{i}")), range(16)))
    assert sum(won) == 1
    winner = won.index(True)
    assert len(files(sweep)) == 1 + 3 * 16
    rows_there = pq.read_table(sweep.storage.root / "trials/p.parquet")
    assert rows_there["trial_id"].to_pylist() == [f"t{winner}"]
    assert (sweep.storage.root / f"endpoints/p.a{winner}.safetensors").read_bytes() == f"a{winner}".encode()


@pytest.mark.parametrize("step", range(1, 5))
def test_a_failure_at_any_step_leaves_nothing_visible_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sweep = Store(tmp_path).sweep("s")
    calls = 0
    real = os.link

    def failing(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(module.os, "link", failing)
    with pytest.raises(OSError, match="No space left"):
        sweep.commit("p", "a", rows("t"), side("a"))
    assert calls == step
    assert not sweep.is_committed("p")
    assert sweep.listing("trials").tables["trials"] == []
    assert not [f for f in files(sweep) if f.endswith(".partial")]
    assert sweep.commit("p", "b", rows("t"), side("b"))


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    with pytest.raises(StoreError, match="no hard links"):
        LocalStorage(tmp_path).create("x", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_the_users_own_becomes_a_column(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    sweep.commit("p", "a", rows("t", my_metric=3), {})
    stored = pq.read_table(sweep.storage.root / "trials/p.parquet")
    assert stored.column("my_metric").to_pylist() == [3.0]
    assert stored.schema.field("my_metric").type == pa.float64()


@pytest.mark.parametrize("name", ["", "../up", "Upper", "a/b", ".hidden", "x" * 65])
def test_a_sweep_name_stays_inside_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="sweep name"):
        Store(tmp_path).sweep(name)


def test_what_is_no_store_and_no_sweep_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="it is a file"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="gopher"):
        Store("gopher://bucket/x")
    with pytest.raises(StoreError, match=r"no sweep .x. in .*: it holds none"):
        Store(tmp_path).existing("x")
    Store(tmp_path).sweep("one").commit("p", "a", rows("t"), {})
    with pytest.raises(StoreError, match="it holds one"):
        Store(tmp_path).existing("x")


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "trials").mkdir()
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; nothing of it was kept: '.*trials/p\.parquet'"):
        LocalStorage(tmp_path).create("trials/p.parquet", b"rows")
    assert list((tmp_path / "trials").iterdir()) == []


def plan(*packs: str, text: str = "name: s") -> pa.Table:
    """Two trials per pack, in no order."""
    rows = [{"sweep": "s", "trial_id": f"{p}{k}", "pack_id": p, "slot": k, "round": 0} for k in (1, 0) for p in packs]
    return table(rows, PLAN).replace_schema_metadata(plan_metadata(Measure(), ".yaml", text))


def test_the_plan_of_the_latest_launch_counts_and_brings_its_sweep_file(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert (sweep.plan_name(), sweep.read_plan(), sweep.sweep_file()) == (None, None, None)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.yaml").write_text("a copy for people")
    assert sweep.sweep_file() == (".yaml", "a copy for people")
    first = sweep.write_plan(plan("p", text="first"), 9, 1)
    sweep.write_plan(plan("p", "q", text="second"), 10, 1)
    last = sweep.write_plan(plan("r", "q", text="third"), 10, 2)
    assert sweep.sweep_file() == (".yaml", "third")
    late = sweep.write_plan(plan("late", text="late"), 9, 2)  # of a launch that was taken over, and does not know it
    assert sweep.plan_name() == last
    assert sweep.sweep_file() == (".yaml", "third")
    found = sweep.read_plan()
    assert found is not None
    assert found["trial_id"].to_pylist() == ["q0", "q1", "r0", "r1"]
    assert found.schema.names == PLAN.names
    assert sweep.read_pack(first, "p")["trial_id"].to_pylist() == ["p0", "p1"]
    assert sweep.read_pack(late, "late").num_rows == 2
    with pytest.raises(StoreError, match=r"s/plan/000010-0002\.[0-9a-f]{16}\.parquet: no pack 'p'"):
        sweep.read_pack(last, "p")
    sweep.storage.delete(first)
    with pytest.raises(FileNotFoundError):
        sweep.read_pack(first, "p")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:-300] + b"x" * 300])
def test_a_damaged_plan_is_named_by_all_that_read_it(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    sweep = Store(tmp_path).sweep("s")
    name = sweep.write_plan(plan("p"), 1, 1)
    sweep.storage.replace(name, damage(sweep.storage.read(name)))
    for read in (sweep.read_plan, sweep.sweep_file, lambda: sweep.read_pack(name, "p")):
        with pytest.raises(DamagedStoreError, match=rf"{name}: cannot be read: .*`isoratio verify` moves damaged fil"):
            read()


def test_bits_that_have_changed_are_named(tmp_path: Path) -> None:
    """What PyArrow calls an OSError is none of the storage."""
    sweep = Store(tmp_path).sweep("s")
    sweep.commit("p", "a", rows("t"), {})
    data = bytearray(sweep.storage.read("trials/p.parquet"))
    data[4:40] = b"\xff" * 36
    sweep.storage.replace("trials/p.parquet", bytes(data))
    with pytest.raises(DamagedStoreError, match=r"trials/p\.parquet: cannot be read"):
        sweep.read_table("trials/p.parquet")
    with pytest.raises(FileNotFoundError):
        sweep.read_table("trials/q.parquet")


def test_columns_that_a_file_lacks_are_null(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    sweep.storage.create("trials/old.parquet", parquet_bytes(rows("old").select(["sweep", "trial_id"])))
    sweep.commit("p", "a", rows("new", together=3), {})
    found = sweep.listing("trials").dataset("trials").to_table()
    assert found.schema.names == TRIALS.names
    assert (
        found.select(["trial_id", "together"]).to_pylist()
        == [
            {"trial_id": "new", "together": 3},
            {"trial_id": "old", "together": None},
        ][::-1]
    )
    old = sweep.read_table("trials/old.parquet", TRIALS)
    assert old.schema.equals(TRIALS)
    assert old["together"].to_pylist() == [None]


def test_a_newer_format_is_neither_read_nor_written(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    sweep.mark_format()
    assert json.loads(sweep.storage.read("format.json"))["format"] == FORMAT
    newer = json.dumps({"format": FORMAT + 1, "isoratio": "9.1"}).encode()
    sweep.storage.replace("format.json", newer)
    says = rf"s: written by Isoratio 9\.1 in format {FORMAT + 1}; this is version .*, which reads up to format {FORMAT}"
    for refused in (sweep.listing, sweep.check_format, sweep.mark_format):
        with pytest.raises(StoreError, match=says + ": install a newer one"):
            refused()
    assert sweep.storage.read("format.json") == newer


@pytest.mark.parametrize("text", ["", "{", "[2]", "null"])
def test_a_mark_that_is_none_is_made_anew(tmp_path: Path, text: str) -> None:
    sweep = Store(tmp_path).sweep("s")
    sweep.storage.replace("format.json", text.encode())
    sweep.check_format()
    sweep.mark_format()
    assert json.loads(sweep.storage.read("format.json"))["format"] == FORMAT


def test_the_finest_cut_counts_whoever_wrote_it_last(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.read_split("p") is None
    for cut in ((8, None), (1, 16), (1, None), (8, None), (1, 32)):
        sweep.write_split("p", *cut)
    sweep.write_split("other", 1, 1)
    assert sweep.read_split("p") == (1, 16)
    sweep.storage.replace("splits/q.json", b"{}")  # as format 1 had it
    assert sweep.read_split("q") is None


def test_failures_of_one_attempt_never_replace_each_other(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    for trial in ("t", "u", "t"):
        sweep.write_failures("p", "a", rows(trial))
    assert len(sweep.storage.names("failures")) == 2
    assert all(name.startswith("p.a.") for name in sweep.storage.names("failures"))


def test_links_out_of_the_store_are_refused(tmp_path: Path) -> None:
    """A sweep that is a link, a table that is one, and a file that is one."""
    outside, store = tmp_path / "outside" / "s" / "trials", Store(tmp_path / "store")
    Store(tmp_path / "outside").sweep("s").commit("p", "a", rows("t"), {})
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "s").symlink_to(outside.parent)
    with pytest.raises(StoreError, match=r"store/s is a link: a store holds files of its own only; put the file"):
        store.existing("s")
    assert store.sweeps() == []
    (tmp_path / "store" / "t" / "curves").mkdir(parents=True)
    (tmp_path / "store" / "t" / "trials").symlink_to(outside)
    (tmp_path / "store" / "t" / "curves" / "p.a.parquet").symlink_to(outside / "p.parquet")
    with pytest.raises(StoreError, match=r"t/trials is a link"):
        store.sweep("t").listing()
    with pytest.raises(StoreError, match=r"p\.a\.parquet is a link"):
        store.sweep("t").read_table("curves/p.a.parquet")
    assert store.sweep("t").storage.names("curves") == []
    with pytest.raises(StoreError, match="is a link"):
        store.sweep("t").commit("q", "a", rows("t"), {})
