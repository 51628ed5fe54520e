from __future__ import annotations

from pathlib import Path

import pytest

from analysis.sql import sql
from analysis.verification import verify
from trainables.schema import CURVES, TRIALS
from trainables.store import ENDPOINTS, Store, SweepStore, table


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    held = Store(tmp_path).sweep("s")
    for pack in ("p", "q", "r"):
        key = {"sweep": "s", "trial_id": f"t-{pack}", "pack_id": pack, "attempt": "a"}
        rows = table([key | {"status": "finished", "lr": 0.1, "batch_size": 1}], TRIALS)
        curves = table([key | {"statistic": "x", "value": 1.0}], CURVES)
        held.commit(pack, "a", rows, {"curves": curves, ENDPOINTS: b"some tensors"})
    return held


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.write_bytes(b"not a table"),
}
FILES = ["trials/q.parquet", "curves/q.a.parquet", "endpoints/q.a.safetensors", "sums/q.a.json"]


def test_a_sound_store_is_left_alone(tmp_path: Path, sweep: SweepStore) -> None:
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert verify(tmp_path) == []
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(
    "file", ["trials/q.parquet", "curves/q.a.parquet", "endpoints/q.a.safetensors", "sums/q.a.json"]
)
def test_a_damaged_pack_goes_to_quarantine_whole_and_the_rest_can_be_asked(
    tmp_path: Path, sweep: SweepStore, kind: str, file: str
) -> None:
    if (kind, file) == ("missing", "trials/q.parquet"):
        pytest.skip("without its rows a pack is not committed")
    DAMAGE[kind](sweep.path / file)
    if (kind, file) == ("flipped", "sums/q.a.json"):
        assert verify(tmp_path)
    else:
        (damage,) = verify(tmp_path, "s")
        assert damage.sweep == "s"
        assert damage.file in {file, "trials/q.parquet"}
    assert verify(tmp_path) == []
    assert sweep.committed_packs() == {"p", "r"}
    assert not list(sweep.path.glob("*/q.*"))
    assert list((sweep.path / "quarantine").rglob("q.*"))
    found = sql(tmp_path, "SELECT t.trial_id FROM trials t JOIN curves c USING (trial_id) ORDER BY 1")
    assert found["trial_id"].to_pylist() == ["t-p", "t-r"]


def test_a_plan_that_cannot_be_read_is_set_aside(tmp_path: Path, sweep: SweepStore) -> None:
    sweep.plan_path.write_bytes(b"PAR1 no")
    (damage,) = verify(tmp_path)
    assert damage.file == "plan.parquet"
    assert damage.problem.startswith("cannot be read")
    assert not sweep.plan_path.exists()
