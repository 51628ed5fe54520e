"""Endpoints from a launch to the line between two of them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import import_trials, interpolate, launch, resume, sql, verify
from trainables.endpoints import Endpoint, as_file, read
from trainables.storage import DamagedStoreError, StoreError
from trainables.store import ENDPOINTS, Store

SWEEP = """
    name: {name}
    dataset: {{name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}}
    train: {{epochs: 2, loss: mse}}
    grid:
      arch: [linear, {{name: mlp, depth: 1, width: 4}}]
      lr: [0.01, 1.0e+60]
      batch_size: [4, 8]
      seed: {{range: {seeds}}}
    where: "lr < 1 OR (arch = 'linear' AND batch_size = 4)"
    measure: {{at: [], hessian: false, gradient_noise: false, endpoints: {endpoints}}}
"""


def go(folder: Path, name: str = "kept", seeds: int = 2, endpoints: str = "true", text: str = SWEEP) -> None:
    file = folder / f"{name}.yaml"
    file.write_text(textwrap.dedent(text.format(name=name, seeds=seeds, endpoints=endpoints)))
    launch(file, folder / "store", executor="inline")


def ids(folder: Path, where: str = "true", sweep: str = "kept") -> list[str]:
    query = f"SELECT trial_id FROM trials WHERE sweep = '{sweep}' AND {where} ORDER BY arch, batch_size, seed"
    return [f"{sweep}/{i}" for i in sql(folder / "store", query)["trial_id"].to_pylist()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is only read: linear nets and nets with a hidden layer, some diverged."""
    folder = tmp_path_factory.mktemp("kept")
    go(folder)
    go(folder, "lost", 1, "false")
    (folder / "mine.csv").write_text("lr,batch_size,test_loss\n0.1,8,1.0\n")
    import_trials(folder / "store", folder / "mine.csv", "mine")
    return folder


def test_the_ends_of_the_line_are_the_stored_trials(kept: Path) -> None:
    a, b = ids(kept, "arch <> 'linear' AND seed = 0")
    rows = interpolate(a, b[:12], kept / "store", points=4)
    assert [r["alpha"] for r in rows] == [-1, 0, 1, 2]
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    for name, row in ((a, rows[1]), (b, rows[2])):
        query = f"SELECT {', '.join(names)} FROM trials WHERE trial_id = '{name[5:]}' AND sweep = 'kept'"
        (stored,) = sql(kept / "store", query).to_pylist()
        assert {n: row[n] for n in names} == pytest.approx(stored, rel=1e-5)
    assert len(interpolate(a, b, kept / "store")) == 31
    assert [r["alpha"] for r in interpolate(a, b, kept / "store", points=3, start=0.1, stop=0.3)] == [0.1, 0.2, 0.3]
    assert {r["train_loss"] for r in interpolate(a, a, kept / "store", points=2, start=0, stop=1)} == {
        rows[1]["train_loss"]
    }


def test_what_is_beyond_numbers_is_none(kept: Path) -> None:
    a, b = ids(kept, "arch <> 'linear' AND seed = 0")
    far, near = interpolate(a, b, kept / "store", points=2, start=-1e35, stop=0.5)
    assert far == {"alpha": -1e35} | dict.fromkeys(["train_loss", "train_accuracy", "test_loss", "test_accuracy"])
    assert None not in near.values()


@pytest.mark.parametrize("name", ["kept", "/3f2a", "kept/", "kept/xyz", "kept/3f/2a", "", "kept/'"])
def test_another_form_is_refused(kept: Path, name: str) -> None:
    (a,) = ids(kept, "arch = 'linear' AND seed = 0 AND batch_size = 8")
    for pair in ((name, a), (a, name)):
        with pytest.raises(ValueError, match="SWEEP/TRIAL_ID is expected, such as digits/3f2a"):
            interpolate(*pair, kept / "store")


def test_what_has_no_endpoint_is_said_with_the_reason(kept: Path) -> None:
    (a,) = ids(kept, "arch = 'linear' AND seed = 0 AND batch_size = 8")
    (diverged, *_) = ids(kept, "status = 'diverged'")
    (lost, *_) = ids(kept, "status = 'finished'", "lost")
    (imported,) = ids(kept, sweep="mine")
    for name, reason in {
        diverged: "has no endpoint: it diverged",
        imported: "has no endpoint: it was imported",
        lost: r"they are not kept in sweep 'lost'; set `measure: \{endpoints: true\}` in its sweep file",
        "kept/0123456789abcdef": "trial '0123456789abcdef' of 'kept': there is none; SELECT trial_id FROM trials",
        "none/3f2a": "no sweep 'none'",
    }.items():
        with pytest.raises(StoreError, match=reason):
            interpolate(a, name, kept / "store")


def test_several_trials_that_begin_so_are_refused(kept: Path) -> None:
    first = [name[5] for name in ids(kept)]
    digit = next(d for d in first if first.count(d) > 1)
    with pytest.raises(StoreError, match=f"trial '{digit}' of 'kept': {first.count(digit)} trials begin so"):
        interpolate(f"kept/{digit}", f"kept/{digit}", kept / "store")


def test_nets_of_two_kinds_have_no_line_between_them(kept: Path) -> None:
    a, b = ids(kept, "seed = 0 AND batch_size = 8")
    with pytest.raises(ValueError, match=r"no line goes from kept/.* to kept/.*: arch linear and \{.*mlp.*\}$"):
        interpolate(a, b, kept / "store")


@pytest.mark.parametrize(
    "wrong",
    [{"points": 1}, {"start": 1.0, "stop": 1.0}, {"start": 2.0}, {"start": float("nan")}, {"stop": float("inf")}],
)
def test_a_grid_that_is_none_is_refused(kept: Path, wrong: dict[str, Any]) -> None:
    a, b = ids(kept, "arch = 'linear' AND seed = 0 AND status = 'finished'")
    with pytest.raises(ValueError, match=r"points from .* to .*: two or more, upwards, are expected"):
        interpolate(a, b, kept / "store", **wrong)


def test_a_trial_of_the_users_own_has_no_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def trial(config):\n    return {'x': 1.0}\n")
    go(
        tmp_path,
        "own",
        text="""
            name: own
            dataset: digits
            train: {{call: "own:trial"}}
            grid: {{lr: [0.1], batch_size: [8]}}
            measure: {{endpoints: true}}
        """,
    )
    (name,) = ids(tmp_path, sweep="own")
    with pytest.raises(StoreError, match="has no endpoint: it is a trial of your own, call own:trial"):
        interpolate(name, name, tmp_path / "store")
    assert not (tmp_path / "store/own" / ENDPOINTS).exists()


def test_reused_trials_bring_their_endpoints(tmp_path: Path) -> None:
    go(tmp_path)
    go(tmp_path, "more", seeds=3)
    mine, copies = (Store(tmp_path / "store").sweep(name).storage for name in ("kept", "more"))
    (copied,) = (f"{ENDPOINTS}/{name}" for name in copies.names(ENDPOINTS) if name.startswith("reuse-"))
    shared = [name[5:] for name in ids(tmp_path, "status = 'finished'")]
    found = read(copies, copied, shared)
    for name in (f"{ENDPOINTS}/{name}" for name in mine.names(ENDPOINTS)):
        for trial_id in [i for i in shared if i.encode() in mine.read(name)]:
            (before,) = read(mine, name, [trial_id]).values()
            assert found[trial_id].trial == before.trial
            assert found[trial_id].tensors.keys() == before.tensors.keys()
            assert all(np.array_equal(found[trial_id].tensors[k], v) for k, v in before.tensors.items())
    a, b = ids(tmp_path, "arch = 'linear' AND batch_size = 8 AND seed IN (0, 2)", "more")
    assert len(interpolate(a, b, tmp_path / "store", points=2)) == 2
    assert interpolate("kept" + a[4:], b, tmp_path / "store") == interpolate(a, b, tmp_path / "store")
    assert verify(tmp_path / "store") == []


def test_a_damaged_endpoint_is_never_copied_and_its_pack_runs_again(tmp_path: Path) -> None:
    go(tmp_path)
    name, other = ids(tmp_path, "arch = 'linear' AND batch_size = 8")
    before = interpolate(name, other, tmp_path / "store")
    (pack,) = sql(tmp_path / "store", f"SELECT pack_id FROM trials WHERE trial_id = '{name[5:]}'")[
        "pack_id"
    ].to_pylist()
    (path,) = (tmp_path / "store/kept" / ENDPOINTS).glob(f"{pack}.*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedStoreError, match=path.name):
        interpolate(name, other, tmp_path / "store")
    with pytest.raises(DamagedStoreError, match=path.name):
        go(tmp_path, "copy")
    (damage,) = verify(tmp_path / "store")
    assert damage.file == f"{ENDPOINTS}/{path.name}"
    assert not path.exists()
    assert resume("kept", tmp_path / "store", executor="inline").ran == 2
    assert interpolate(name, other, tmp_path / "store") == before


def test_tensors_that_are_not_what_was_measured_are_refused(tmp_path: Path) -> None:
    go(tmp_path)
    name, other = ids(tmp_path, "arch = 'linear' AND batch_size = 8")
    storage = Store(tmp_path / "store").sweep("kept").storage
    for file in (f"{ENDPOINTS}/{file}" for file in storage.names(ENDPOINTS)):
        if name[5:].encode() in storage.read(file):
            found = read(storage, file, [name[5:], other[5:]])
            wrong = found[other[5:]]
            found[other[5:]] = Endpoint(wrong.trial, {k: v + 1 for k, v in wrong.tensors.items()})
            storage.replace(file, as_file(found))
    for pair in ((name, other), (other, name)):
        with pytest.raises(ValueError, match=rf"trial {other} now has a test loss of .*, but .* when it was trained"):
            interpolate(*pair, tmp_path / "store")
    assert interpolate(name, name, tmp_path / "store")
