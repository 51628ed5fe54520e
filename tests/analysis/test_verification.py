from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from watched_storage import Fault, KilledError, contents, rows, watched

from analysis.checks import look
from analysis.compaction import compact
from analysis.sql import sql
from analysis.verification import Damage, verify
from trainables import store as store_module
from trainables.lease import Lease, ask_to_stop
from trainables.manifest import COPY, file_name, read_manifest
from trainables.schema import CURVES, FAILURES, FORMAT, PLAN, PROVENANCE, TRIALS
from trainables.storage import LocalStorage, StoreError
from trainables.store import ENDPOINTS, FIRST_PLAN, Store, SweepStore, hashed, parquet_bytes, table
from trainables.trial import canonical_json, content_id

PACKS = ("p", "q", "r")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def rows_too() -> None:
    """For tests of what rows say, which is left out elsewhere: it takes most of the time."""


@pytest.fixture(autouse=True)
def files_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "rows_too" not in request.fixturenames:
        monkeypatch.setattr("analysis.checks.strange_packs", lambda *arguments: {})


def key(pack: str, **more: Any) -> dict[str, Any]:
    return {"sweep": "s", "trial_id": f"t-{pack}", "pack_id": pack, "lr": 0.1, "batch_size": 8, "slot": 0} | more


def commit(sweep: SweepStore, pack: str, *trials: dict[str, Any], attempt: str = "a") -> bool:
    found = [trial | {"status": "finished", "attempt": attempt} for trial in trials or (key(pack),)]
    at = {"sweep": "s", "trial_id": f"t-{pack}", "pack_id": pack, "attempt": attempt}
    curves = table([at | {"statistic": "x", "value": 1.0}], CURVES)
    return sweep.commit(pack, attempt, table(found, TRIALS), {"curves": curves, ENDPOINTS: b"some tensors"})


def plan(sweep: SweepStore, *trials: dict[str, Any], number: int = 1) -> str:
    text = {b"sweep_file": json.dumps([".yaml", "name: s"]).encode()}
    planned = [{"round": 0, "engine": "fused", "cost": 1.0, "measure_id": "m"} | trial for trial in trials]
    sweep.storage.replace("sweep.yaml", b"name: s")
    return sweep.write_plan(table(planned, PLAN).replace_schema_metadata(text), 1, number)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepStore:
    """A sweep with a file of every kind."""
    held = Store(tmp_path / "store").sweep("s")
    held.mark_format()
    plan(held, *map(key, PACKS))
    for pack in PACKS:
        assert commit(held, pack)
    failed = key("lost") | {"attempt": "b", "round": 0, "cause": "exception", "error": "no"}
    held.write_failures("lost", "b", table([failed], FAILURES))
    held.write_split("q", 2, None)
    row = {name: None for name in PROVENANCE.names if name != "provenance_id"} | {"torch": "2.13.0", "threads": 1}
    identity = content_id(canonical_json(row))[:16]
    held.write_provenance(identity, table([row | {"provenance_id": identity}], PROVENANCE))
    data = b"a checkpoint"
    held.storage.create(hashed("checkpoints/lost.0000-0000000001", data, ".safetensors"), data)
    with Lease(held) as lease:
        lease.log("a line")
        ask_to_stop(held.storage, lease.number, "finish")
        lease.beat("stopped")
    return held


def root(sweep: SweepStore) -> Path:
    return Path(sweep.store_url)


def path(sweep: SweepStore, name: str) -> Path:
    return Path(sweep.storage.url) / name


def only(sweep: SweepStore, folder: str) -> str:
    (name,) = sweep.storage.names(folder)
    return f"{folder}/{name}"


def packs(sweep: SweepStore) -> set[str]:
    return {*sweep.listing("trials").dataset("trials").to_table()["pack_id"].to_pylist()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.write_bytes(b"not a table"),
}


# --- packs ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rows_too")
def test_a_sound_store_is_left_alone(sweep: SweepStore) -> None:
    before = contents(root(sweep))
    assert verify(root(sweep)) == []
    assert contents(root(sweep)) == before


FILES = ("trials/q.parquet", "curves/q.a.parquet", "endpoints/q.a.safetensors", "sums/q.a.json")
WAYS = [(kind, file) for kind in DAMAGE for file in FILES]
WAYS.remove(("missing", "trials/q.parquet"))  # without its rows a pack is not committed


@pytest.mark.parametrize(("kind", "file"), WAYS)
def test_a_damaged_pack_goes_to_quarantine_whole_and_the_rest_can_be_asked(
    sweep: SweepStore, kind: str, file: str
) -> None:
    DAMAGE[kind](path(sweep, file))
    (damage,) = verify(root(sweep), "s")
    blamed = "trials/q.parquet" if (kind, file) == ("missing", "sums/q.a.json") else file
    assert (damage.sweep, damage.file) == ("s", blamed)
    assert verify(root(sweep)) == []
    assert packs(sweep) == {"p", "r"}
    assert not sweep.is_committed("q")
    gone = {str(p.relative_to(path(sweep, "quarantine"))) for p in path(sweep, "quarantine").rglob("q.*")}
    assert gone == {*FILES} - ({file} if kind == "missing" else set())
    assert not [
        name for name in contents(root(sweep)) if "/q." in name and "quarantine" not in name and "split" not in name
    ]
    assert commit(sweep, "q", attempt="b")  # as a launch does that runs it again
    assert verify(root(sweep)) == []
    assert packs(sweep) == {*PACKS}


def test_a_query_that_meets_a_damaged_file_says_which_and_verify_makes_the_rest_answer(sweep: SweepStore) -> None:
    query = "SELECT trial_id, value FROM trials JOIN curves USING (trial_id) ORDER BY ALL"
    DAMAGE["foreign"](path(sweep, "curves/q.a.parquet"))
    with pytest.raises(StoreError, match=r"curves/q\.a\.parquet: cannot be read: .*`isoratio verify`.*resume"):
        sql(root(sweep), query)
    verify(root(sweep))
    assert sql(root(sweep), query).to_pylist() == [{"trial_id": f"t-{pack}", "value": 1.0} for pack in "pr"]


def test_what_is_wrong_is_said(sweep: SweepStore) -> None:
    size = path(sweep, "curves/p.a.parquet").stat().st_size
    path(sweep, "curves/p.a.parquet").write_bytes(b"")
    flip(path(sweep, "endpoints/q.a.safetensors"))
    path(sweep, "endpoints/r.a.safetensors").unlink()
    assert verify(root(sweep)) == [
        Damage("s", "curves/p.a.parquet", f"has 0 bytes instead of {size}"),
        Damage("s", "endpoints/q.a.safetensors", "differs from what was committed"),
        Damage("s", "endpoints/r.a.safetensors", "is missing"),
    ]


def test_rows_without_sums_and_a_pack_under_another_name_were_never_committed(sweep: SweepStore) -> None:
    shutil.copy(path(sweep, "trials/p.parquet"), path(sweep, "trials/z.parquet"))
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == ("trials/z.parquet", "has no sums: it was never committed")
    shutil.copy(path(sweep, "trials/p.parquet"), path(sweep, "trials/q.parquet"))
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == ("trials/q.parquet", "differs from what was committed")
    assert packs(sweep) == {"p", "r"}


def test_a_disk_that_cannot_read_a_file_is_damage_and_a_file_that_may_not_be_read_is_none(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.EACCES
    real = LocalStorage.read

    def read(self: LocalStorage, name: str) -> bytes:
        if name == "curves/q.a.parquet":
            raise OSError(number, os.strerror(number), name)
        return real(self, name)

    monkeypatch.setattr(LocalStorage, "read", read)
    with pytest.raises(PermissionError):
        verify(root(sweep))
    number = errno.EIO
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == (
        "curves/q.a.parquet",
        "cannot be read: [Errno 5] Input/output error: 'curves/q.a.parquet'",
    )
    assert path(sweep, "quarantine/curves/q.a.parquet").exists()


# --- every file, every region ---------------------------------------------------------------------------------------

RECORDS = ("plan", "failures", "provenance", "checkpoints", "manifest", "merged")


@pytest.mark.parametrize("merged", [False, True])
def test_a_bit_that_is_flipped_anywhere_is_found(sweep: SweepStore, tmp_path: Path, merged: bool) -> None:
    commit(sweep, "w", key("p", pack_id="w"))
    plan(sweep, *map(key, PACKS), number=2)
    own = ["trials/p.parquet", "curves/q.a.parquet", "endpoints/w.a.safetensors"]
    if merged:
        compact(root(sweep), grace=0)
        own = own[2:]
    every = [*own, *(f"{folder}/{name}" for folder in RECORDS for name in sweep.storage.names(folder))]
    for chance in map(random.Random, range(20)):
        there = tmp_path / str(chance.random())
        shutil.copytree(root(sweep), there)
        names = [name for name in every if not (name.endswith(COPY) or chance.random() < 0.2)]
        for name in names:
            _flip_somewhere(there / "s" / name, chance)
        assert {*names} <= look(Store(there).sweep("s")).damage.keys()


def _flip_somewhere(path: Path, chance: random.Random) -> None:
    """Flips a bit anywhere, and often enough in the first or the last byte."""
    data = bytearray(path.read_bytes())
    position = chance.choice([0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(8))])
    data[position] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_a_bit_that_is_flipped_in_what_others_are_compared_with_is_found(sweep: SweepStore) -> None:
    name = "sums/r.a.json"
    sound = path(sweep, name).read_bytes()
    for position in range(0, len(sound), 1 + len(sound) // 25):
        data = bytearray(sound)
        data[position] ^= 1 << random.Random(position).randrange(8)
        path(sweep, name).write_bytes(data)
        found = look(sweep).damage
        assert len(found) >= 1
        assert all(file == name or "/r." in file for file in found)  # either of two may be the damaged one


@pytest.mark.parametrize("file", ["format.json", "lease/*.json", "log/*.json", "log/*.stop"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "foreign"])
def test_what_a_launch_says_of_itself_goes_when_it_cannot_be_understood(
    sweep: SweepStore, file: str, kind: str
) -> None:
    (there,) = Path(sweep.storage.url).glob(file)
    DAMAGE[kind](there)
    file = str(there.relative_to(sweep.storage.url))
    assert [(damage.file, damage.problem) for damage in verify(root(sweep))] == [
        (file, "differs from what was written")
    ]
    assert not path(sweep, file).exists()
    assert path(sweep, f"quarantine/{file}").exists()
    assert packs(sweep) == {*PACKS}


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "foreign"])
def test_a_plan_that_is_damaged_goes_and_the_one_before_counts(sweep: SweepStore, kind: str) -> None:
    first = sweep.plan_name()
    last = plan(sweep, *map(key, (*PACKS, "new")), number=2)
    DAMAGE[kind](path(sweep, last))
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == (last, "differs from what was written")
    assert sweep.plan_name() == first


@pytest.mark.usefixtures("rows_too")
def test_files_of_format_1_have_to_be_readable(sweep: SweepStore) -> None:
    failure = only(sweep, "failures")
    path(sweep, failure).rename(path(sweep, "failures/lost.b.parquet"))
    last = sweep.plan_name()
    assert last is not None
    path(sweep, last).rename(path(sweep, FIRST_PLAN))
    path(sweep, "splits/q.json").write_text("{}")
    for name in ("launch.log", "launch.json", "launch.lock", "stop"):
        path(sweep, f"log/{name}").write_text("{}")
    assert verify(root(sweep)) == []
    for name in (FIRST_PLAN, "failures/lost.b.parquet"):
        data = bytearray(path(sweep, name).read_bytes())
        data[4:200] = b"\xff" * 196
        path(sweep, name).write_bytes(data)
    found = {damage.file: damage.problem for damage in verify(root(sweep))}
    assert found.keys() == {FIRST_PLAN, "failures/lost.b.parquet"}
    assert all(problem.startswith("cannot be read: ") for problem in found.values())


# --- foreign files --------------------------------------------------------------------------------------------------

FOLDERS = (
    *("trials", "curves", "eigenvalues", "density", "profiles", ENDPOINTS, "sums", "merged", "plan", "failures"),
    *("checkpoints", "provenance", "splits", "lease", "log", "manifest"),
)


def test_files_that_no_store_has_go_from_every_folder_and_from_the_sweeps_own(sweep: SweepStore) -> None:
    compact(root(sweep))
    for folder in FOLDERS:
        path(sweep, folder).mkdir(exist_ok=True)
        for name in ("notes.txt", "copy of p.a.b.parquet"):
            path(sweep, f"{folder}/{name}").write_bytes(b"foreign")
    path(sweep, "notes.txt").write_bytes(b"foreign")
    found = verify(root(sweep))
    assert {damage.file for damage in found} == {
        "notes.txt",
        *(f"{folder}/{name}" for folder in FOLDERS for name in ("notes.txt", "copy of p.a.b.parquet")),
    }
    assert {damage.problem for damage in found} == {"is no file of a store"}
    assert path(sweep, "quarantine/trials/notes.txt").read_bytes() == b"foreign"
    assert verify(root(sweep)) == []
    assert packs(sweep) == {*PACKS}


def test_hidden_files_and_folders_of_ones_own_are_left_alone(sweep: SweepStore) -> None:
    for name in ("trials/.nfs0001", ".DS_Store", "plots/a.png"):
        path(sweep, name).parent.mkdir(exist_ok=True)
        path(sweep, name).write_bytes(b"mine")
    assert verify(root(sweep)) == []


@pytest.mark.parametrize("data", [b"not a table", b"", None])
def test_side_tables_of_no_pack_have_to_be_readable_since_they_are_read_with_the_rest(
    sweep: SweepStore, data: bytes | None
) -> None:
    if data is None:
        rows = table([key("lost") | {"attempt": "b"}], CURVES.append(pa.field("lr", pa.float64())))
        assert sweep.storage.create("curves/lost.b.parquet", parquet_bytes(rows)) is None
        assert verify(root(sweep)) == []
        data = parquet_bytes(rows.drop_columns(["pack_id"]))
    path(sweep, "curves/lost.b.parquet").write_bytes(data)
    (damage,) = verify(root(sweep))
    assert damage.file == "curves/lost.b.parquet"
    assert damage.problem.startswith(("cannot be read: ", "lacks the column pack_id"))


def test_a_column_of_another_type_is_said(sweep: SweepStore) -> None:
    rows = table([key("odd") | {"attempt": "a", "status": "finished"}], TRIALS)
    lr = rows.schema.get_field_index("lr")
    assert sweep.commit("old", "a", rows.set_column(lr, "lr", pa.array([1])), {})  # a number all the same
    assert verify(root(sweep)) == []
    assert sweep.commit("odd", "a", rows.set_column(lr, "lr", pa.array(["high"])), {})
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == ("trials/odd.parquet", "holds string in the column lr instead of double")


def test_links_and_folders_go_and_what_they_lead_to_stays(sweep: SweepStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path(sweep, "curves/q.a.parquet").rename(tmp_path / "elsewhere" / "q.parquet")
    path(sweep, "curves/q.a.parquet").symlink_to(tmp_path / "elsewhere" / "q.parquet")
    path(sweep, "trials/inner").mkdir()
    path(sweep, "notes").symlink_to(tmp_path / "elsewhere")
    found = {damage.file: damage.problem for damage in verify(root(sweep))}
    assert found == dict.fromkeys(
        ("curves/q.a.parquet", "trials/inner", "notes"), "is a link or a folder; a store has files of its own there"
    )
    assert (tmp_path / "elsewhere" / "q.parquet").exists()
    assert path(sweep, "quarantine/curves/q.a.parquet").is_symlink()
    assert verify(root(sweep)) == []
    assert packs(sweep) == {"p", "r"}


def test_a_folder_that_is_a_link_goes(sweep: SweepStore, tmp_path: Path) -> None:
    path(sweep, "failures").rename(tmp_path / "elsewhere")
    path(sweep, "failures").symlink_to(tmp_path / "elsewhere")
    (damage,) = verify(root(sweep))
    assert damage.file == "failures"
    assert verify(root(sweep)) == []


def test_what_is_in_quarantine_is_never_overwritten(sweep: SweepStore) -> None:
    for content in (b"one", b"two", b"three"):
        path(sweep, "trials/notes.txt").write_bytes(content)
        verify(root(sweep))
    kept = [p.read_bytes() for p in sorted(path(sweep, "quarantine/trials").iterdir())]
    assert kept == [b"one", b"two", b"three"]


# --- versions and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False])
def test_what_a_newer_version_wrote_is_refused_and_nothing_is_moved(
    sweep: SweepStore, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    monkeypatch.setattr(store_module, "FORMAT", FORMAT + 1)
    commit(sweep, "newer")
    if marked:
        sweep.mark_format()
    monkeypatch.undo()
    path(sweep, "trials/notes.txt").write_bytes(b"foreign")
    before = contents(root(sweep))
    with pytest.raises(StoreError, match=rf"format {FORMAT + 1}.*reads up to format {FORMAT}: install a newer one"):
        verify(root(sweep))
    assert contents(root(sweep)) == before


@pytest.mark.usefixtures("rows_too")
def test_a_directory_that_was_renamed_is_said_and_nothing_is_moved(sweep: SweepStore) -> None:
    Path(sweep.storage.url).rename(root(sweep) / "other")
    before = contents(root(sweep))
    with pytest.raises(StoreError, match=r"rows of sweep 's' lie in a directory of another name; rename it back"):
        verify(root(sweep))
    assert contents(root(sweep)) == before


# --- what rows say --------------------------------------------------------------------------------------------------

STRANGE = {
    "holds trials that are not planned, such as t-new": [key("new", pack_id="x")],
    "holds trials with another configuration than planned, such as t-x": [key("x", lr=0.2)],
    "holds rows of sweep other": [key("x", sweep="other")],
    "holds more than one row of slot 0": [key("x"), key("y", pack_id="x")],
    "holds more than one row of trial t-x": [key("x"), key("x", slot=1)],
    "holds no rows of its pack": [key("x", pack_id="z")],
}


@pytest.mark.usefixtures("rows_too")
@pytest.mark.parametrize(("problem", "merged"), [*((p, False) for p in STRANGE), (next(iter(STRANGE)), True)])
def test_rows_have_to_be_those_of_the_plan(sweep: SweepStore, problem: str, merged: bool) -> None:
    plan(sweep, *map(key, (*PACKS, "x")), key("y"), number=2)
    trials = [trial | {"status": "finished", "attempt": "a"} for trial in STRANGE[problem]]
    assert sweep.commit("x", "a", table(trials, TRIALS), {})
    if merged:
        compact(root(sweep), grace=0)
    file = "trials/x.parquet" if not merged else read_manifest(sweep.storage).batches[0].files["trials"]
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == (file, f"pack x {problem}")
    assert verify(root(sweep)) == []
    assert packs(sweep) == {*PACKS}
    assert path(sweep, f"quarantine/{file}").exists()


@pytest.mark.usefixtures("rows_too")
def test_a_trial_that_has_moved_to_another_pack_may_have_been_committed_by_both(sweep: SweepStore) -> None:
    plan(sweep, key("p"), key("q", pack_id="q2"), key("r"), key("x", pack_id="q"), number=2)
    assert verify(root(sweep)) == []


# --- what was merged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_merged_file_costs_its_batch_what_its_packs_do_not_have_themselves(
    sweep: SweepStore, kind: str, kept: bool
) -> None:
    before = rows(sweep)
    compact(root(sweep), grace=3600 if kept else 0)
    merged = read_manifest(sweep.storage).batches[0].files["curves"]
    DAMAGE[kind](path(sweep, merged))
    (damage,) = verify(root(sweep))
    said = "is missing" if kind == "missing" else "differs from what was written"
    assert (damage.file, damage.problem) == (merged, said)
    assert path(sweep, f"quarantine/{merged}").exists() == (kind != "missing")
    assert packs(sweep) == ({*PACKS} if kept else set())
    if kept:
        assert rows(sweep) == before
    assert read_manifest(sweep.storage).packs == {}
    assert verify(root(sweep)) == []


@pytest.mark.usefixtures("rows_too")
def test_packs_own_files_do_not_count_again_where_they_are_damaged_too(sweep: SweepStore) -> None:
    compact(root(sweep))
    flip(path(sweep, read_manifest(sweep.storage).batches[0].files["trials"]))
    flip(path(sweep, "trials/p.parquet"))
    path(sweep, "curves/q.a.parquet").unlink()  # of a merged pack it may be gone, of another one it may not
    assert [damage.file for damage in verify(root(sweep))][:2] == ["curves/q.a.parquet", *only_merged(sweep)]
    assert packs(sweep) == {"r"}


def only_merged(sweep: SweepStore) -> list[str]:
    return [f"merged/{p.name}" for p in path(sweep, "quarantine/merged").iterdir()]


@pytest.mark.usefixtures("rows_too")
def test_files_of_a_merged_pack_may_be_gone_and_may_not_be_damaged(sweep: SweepStore) -> None:
    compact(root(sweep))
    path(sweep, "trials/p.parquet").unlink()
    path(sweep, "curves/q.a.parquet").unlink()
    assert verify(root(sweep)) == []
    flip(path(sweep, "trials/r.parquet"))
    (damage,) = verify(root(sweep))
    assert damage.file == "trials/r.parquet"
    assert packs(sweep) == {*PACKS}


@pytest.mark.usefixtures("rows_too")
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_endpoint_costs_its_own_pack_only(sweep: SweepStore, kept: bool) -> None:
    compact(root(sweep), grace=3600 if kept else 0)
    before = rows(sweep)
    flip(path(sweep, "endpoints/q.a.safetensors"))
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == ("endpoints/q.a.safetensors", "differs from what was committed")
    assert packs(sweep) == {"p", "r"}
    assert rows(sweep) == {name: [row for row in each if "'t-q'" not in row] for name, each in before.items()}
    assert verify(root(sweep)) == []
    assert commit(sweep, "q", attempt="b")
    compact(root(sweep), grace=0)
    assert verify(root(sweep)) == []
    assert packs(sweep) == {*PACKS}


@pytest.mark.parametrize("which", ["", COPY])
def test_a_manifest_is_restored_from_its_copy_and_the_other_way_round(sweep: SweepStore, which: str) -> None:
    compact(root(sweep), grace=0)
    before, name = contents(root(sweep)), file_name(1) + which
    flip(path(sweep, name))
    (damage,) = verify(root(sweep))
    assert (damage.file, damage.problem) == (name, "differs from what was written; restored from its copy")
    assert path(sweep, f"quarantine/{name}").exists()
    assert {file: data for file, data in contents(root(sweep)).items() if "quarantine" not in file} == before


def test_where_both_are_damaged_the_manifest_before_counts(sweep: SweepStore) -> None:
    compact(root(sweep))
    commit(sweep, "x")
    compact(root(sweep))
    before = rows(sweep)
    for name in (file_name(2), file_name(2) + COPY):
        flip(path(sweep, name))
    found = verify(root(sweep))
    assert [damage.file for damage in found] == [file_name(2), file_name(2) + COPY]
    assert {damage.problem for damage in found} == {"differs from what was written; there is no sound copy"}
    assert read_manifest(sweep.storage).number == 1
    assert rows(sweep) == before


# --- while others work, and when it is stopped ----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_being_committed_merged_and_deleted_is_no_damage(sweep: SweepStore, when: str) -> None:
    moments = []

    def look_on(operation: str, name: str, moment: str) -> None:
        if operation in {"create", "replace", "delete"} and moment == when:
            assert look(sweep).damage == {}, (operation, name)
            moments.append(operation)

    there = watched(root(sweep), look_on)
    commit(there.sweep("s"), "x")
    commit(there.sweep("s"), "x", attempt="b")
    compact(there, grace=0)
    assert len(moments) > 25


def test_what_changes_between_two_looks_is_no_damage(sweep: SweepStore) -> None:
    def delete(operation: str, name: str, when: str) -> None:
        if (operation, name, when) == ("read", "curves/q.a.parquet", "before"):
            path(sweep, "trials/q.parquet").unlink(missing_ok=True)  # as compact does, in this order
            path(sweep, name).unlink(missing_ok=True)

    assert verify(watched(root(sweep), delete)) == []
    assert not path(sweep, "curves/q.a.parquet").exists()


@pytest.mark.parametrize(("how", "when", "kept"), [("killed", "before", False), ("error", "after", True)])
def test_stopped_at_any_step_sound_packs_are_readable_and_the_next_one_completes_it(
    sweep: SweepStore, tmp_path: Path, how: str, when: str, kept: bool
) -> None:
    compact(root(sweep), grace=3600 if kept else 0)
    for pack in ("x", "y"):
        commit(sweep, pack)
    before = rows(sweep)
    flip(path(sweep, "trials/x.parquet"))
    flip(path(sweep, "endpoints/q.a.safetensors"))
    flip(path(sweep, file_name(1)))
    lost = ("'t-x'", "'t-q'")
    sound = {name: [row for row in each if not any(t in row for t in lost)] for name, each in before.items()}
    count = _stopped(sweep, tmp_path / "count", Fault(None, when))
    assert count.count >= 8
    for step in range(count.count):
        fault = _stopped(sweep, tmp_path / f"step{step}", Fault(step, when, killed=how == "killed"))
        assert fault.fired
        again = Store(tmp_path / f"step{step}")
        assert {"p", "r", "y"} <= packs(again.sweep("s"))
        verify(again)
        assert rows(again.sweep("s")) == sound, step
        assert verify(again) == []


def _stopped(sweep: SweepStore, to: Path, fault: Fault) -> Fault:
    shutil.copytree(root(sweep), to)
    with suppress(KilledError, OSError):
        verify(watched(to, fault))
    return fault
