from __future__ import annotations

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainables import store as module
from trainables.schema import CURVES, FORMAT, TRIALS
from trainables.store import ENDPOINTS, Store, StoreError, SweepStore, create, table


def rows(trial_id: str, **more: object) -> pa.Table:
    return table([{"sweep": "s", "trial_id": trial_id, **more}], TRIALS)


def side(attempt: str) -> dict[str, pa.Table | bytes]:
    return {"curves": table([{"sweep": "s", "attempt": attempt}], CURVES), ENDPOINTS: attempt.encode()}


def files(sweep: SweepStore) -> set[str]:
    return {str(p.relative_to(sweep.path)) for p in sweep.path.rglob("*") if p.is_file()}


def test_a_commit_leaves_rows_what_goes_with_them_and_their_sums(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.commit("p", "a", rows("t"), side("a"))
    written = {"trials/p.parquet", "curves/p.a.parquet", "endpoints/p.a.safetensors"}
    assert files(sweep) == {*written, "sums/p.a.json"}
    sums = json.loads((sweep.path / "sums/p.a.json").read_text())
    assert sums.keys() == written
    for name in written:
        data = (sweep.path / name).read_bytes()
        assert sums[name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert pq.read_schema(sweep.path / "trials/p.parquet").metadata[b"isoratio_format"] == str(FORMAT).encode()
    assert sweep.committed_packs() == {"p"}


def test_the_first_commit_wins_and_the_second_leaves_nothing(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    assert sweep.commit("p", "a", rows("first"), side("a"))
    before = files(sweep)
    assert not sweep.commit("p", "b", rows("second"), side("b"))
    assert files(sweep) == before
    assert pq.read_table(sweep.path / "trials/p.parquet").column("trial_id").to_pylist() == ["first"]


def test_of_many_concurrent_commits_one_wins(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: sweep.commit("p", f"a{i}", rows(f"t{i}"), side(f"a{i}")), range(16)))
    assert sum(won) == 1
    winner = won.index(True)
    side_files = {f"curves/p.a{winner}.parquet", f"endpoints/p.a{winner}.safetensors"}
    assert files(sweep) == {"trials/p.parquet", *side_files, f"sums/p.a{winner}.json"}
    assert (sweep.path / f"endpoints/p.a{winner}.safetensors").read_bytes() == f"a{winner}".encode()


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
    assert sweep.committed_packs() == set()
    assert not [f for f in files(sweep) if f.endswith(".partial")]
    assert sweep.commit("p", "b", rows("t"), side("b"))


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    with pytest.raises(StoreError, match="no hard links"):
        create(tmp_path / "x", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_the_users_own_becomes_a_column(tmp_path: Path) -> None:
    sweep = Store(tmp_path).sweep("s")
    sweep.commit("p", "a", rows("t", my_metric=3), {})
    stored = pq.read_table(sweep.path / "trials/p.parquet")
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
    with pytest.raises(StoreError, match="object stores are not supported yet"):
        Store("s3://bucket/x")
    with pytest.raises(StoreError, match=r"no sweep .x. in .*: it holds none"):
        Store(tmp_path).existing("x")
    Store(tmp_path).sweep("one").commit("p", "a", rows("t"), {})
    with pytest.raises(StoreError, match="it holds one"):
        Store(tmp_path).existing("x")


def test_a_full_disk_is_said_with_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; nothing of it was kept: '.*trials/p\.parquet'"):
        create(tmp_path / "trials" / "p.parquet", b"rows")
    assert list((tmp_path / "trials").iterdir()) == []
