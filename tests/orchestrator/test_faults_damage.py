"""Files that are truncated, empty, flipped in a bit, foreign or missing, in every folder; and damaged checkpoints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from faults import KILL, AtReport, save_often
from forked import run
from invariants import View, check_invariants, finish, uninterrupted
from sweeps_for_faults import FULL, LONGER, WAIT

from orchestrator import sql
from trainables.storage import DamagedStoreError
from trainables.store import pack_of

LAUNCH = ("launch", "sweep.yaml", "--executor", "inline")


def truncated(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: 2 * len(data) // 3])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def foreign(file: Path) -> None:
    file.with_name(f"stray{file.suffix}").write_text("not ours")


def missing(file: Path) -> None:
    file.unlink()


DAMAGES = [truncated, emptied, flipped, foreign, missing]
COMMITTED = ["trials", "curves", "eigenvalues", "density", "profiles", "endpoints", "sums"]
OTHERS = ["failures", "plan", "provenance", "lease", "log/*.json", "format.json", "sweep.yaml"]
MERGED = ["manifest/*.json", "manifest/*.copy", *(f"merged/{table}*" for table in COMMITTED[:-2])]
UNNOTICED = {  # and harmless
    *((place, missing) for place in ("failures", "provenance", "lease", "log/*.json", "format.json")),
    *((place, flipped) for place in ("lease", "log/*.json")),  # of which nothing tells what they were
    *(("sweep.yaml", damage) for damage in DAMAGES),  # for people
    ("trials", missing),  # as if never committed
    ("plan", missing),  # the one before counts
    ("manifest/*.json", missing),  # its copy counts
    ("manifest/*.copy", missing),
}
READERS = ["trials", "curves", "eigenvalues", "density", "profiles", "plan", "provenance"]


@cache
def finished() -> tuple[View, dict[str, dict[str, bytes]]]:
    """A finished sweep in which trials had failed at first, and name -> content of its files: single, and merged."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        prepare(work)
        (work / "broken").touch()
        assert run(work, *LAUNCH, "--limit", "2")[0] == 1
        (work / "broken").unlink()
        assert run(work, *LAUNCH)[0] == 0
        whole, single = View.of(work / "results", "full"), contents(work / "results")
        assert run(work, "compact", "--grace", "0")[0] == 0
        return whole, {"single": single, "merged": contents(work / "results")}


def prepare(work: Path) -> None:
    (work / "sweep.yaml").write_text(FULL)
    (work / "waiting.py").write_text(WAIT)


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def unanswered(store: Path) -> dict[str, str]:
    """Tables that cannot be read, and why."""
    found = {}
    for table in READERS:
        try:
            sql(store, f"SELECT count(COLUMNS(*)) FROM {table}")
        except DamagedStoreError as error:
            found[table] = str(error)
    return found


def cases() -> list[object]:
    short = {  # what every run of the tests does
        ("curves", flipped),
        ("trials", truncated),
        ("merged/trials*", flipped),
    }
    found = []
    for kind, places in (("single", COMMITTED + OTHERS), ("merged", MERGED)):
        for place in places:
            for damage in DAMAGES:
                marks = [] if (place, damage) in short else [pytest.mark.long]
                found.append(pytest.param(kind, place, damage, marks=marks, id=f"{kind}-{place}-{damage.__name__}"))
    return found


@pytest.mark.parametrize(("kind", "place", "damage"), cases())
def test_one_damaged_file_is_named_set_aside_and_replaced(
    tmp_path: Path, kind: str, place: str, damage: Callable[[Path], None]
) -> None:
    prepare(tmp_path)
    store, (whole, files) = tmp_path / "results", finished()
    for name, data in files[kind].items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(data)
    victim = sorted((store / "full").glob(place if "*" in place or "." in place else f"{place}/*"))[-1]
    damage(victim)
    named = f"stray{victim.suffix}" if damage is foreign else victim.name
    for table, why in unanswered(store).items():
        assert named in why, table
        assert "`isoratio verify`" in why
    code, said = run(tmp_path, "verify", "--format", "json")
    if code == 0:
        assert (place, damage) in UNNOTICED
    else:
        assert code == 3
        found = json.loads(said[: said.rindex("]") + 1])
        names = [damage["file"] for damage in found]
        if place == "sums":  # which of the files that they speak of is bad, or they, cannot always be told
            assert any(pack_of(victim.name) == pack_of(name) or named in name for name in names), found
        else:
            assert any(named in name for name in names), found
        assert "isoratio resume full" in said
    assert not unanswered(store)
    left = View.of(store, "full")
    check_invariants(View(), left, whole)
    after = finish(tmp_path, left, whole)
    assert run(tmp_path, "verify")[0] == 0
    assert after.is_whole()


@pytest.mark.parametrize("newest", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, newest: int) -> None:
    """With both damaged, the pack begins anew."""
    (tmp_path / "sweep.yaml").write_text(LONGER.replace("pack: {}", "pack: {checkpoint_seconds: 0}"))
    assert run(tmp_path, *LAUNCH, faults=[save_often, AtReport(20, KILL)])[0] == -9
    saved = sorted((tmp_path / "results/tiny/checkpoints").iterdir())
    assert len(saved) == 2
    for file in saved[-newest:]:
        flipped(file)
    finish(tmp_path, View.of(tmp_path / "results"), uninterrupted(LONGER))
    code, said = run(tmp_path, "logs", "tiny")
    assert code == 0
    for file in saved[-newest:]:
        assert f"checkpoint {file}: not used: it is damaged" in said
    assert (f"goes on from its checkpoint {saved[0]}" in said) == (newest == 1)
    assert said.count("goes on from its checkpoint") == 2 - newest


def test_a_query_of_a_damaged_file_ends_with_3_and_the_rest_is_answered(tmp_path: Path) -> None:
    prepare(tmp_path)
    for name, data in finished()[1]["single"].items():
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name).write_bytes(data)
    victim = next((tmp_path / "results/full/curves").iterdir())
    truncated(victim)
    code, said = run(tmp_path, "sql", "SELECT avg(value) FROM curves")
    assert code == 3
    assert str(victim) in said
    assert "`isoratio verify` moves damaged files to quarantine; then `isoratio resume`" in said
    assert run(tmp_path, "sql", "SELECT avg(test_loss) FROM trials")[0] == 0
    assert run(tmp_path, "status")[0] == 0
