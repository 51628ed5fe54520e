"""Launch, resume, extend, reuse and refuse: in this process, on a small teacher."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator import import_trials, launch, logs, plan, resume, run_trial, sql, status, verify
from orchestrator.launching import LaunchResult
from orchestrator.reconcile import SweepChangedError
from trainables.datasets import _first, load_dataset
from trainables.lease import LaunchHeldError, Lease
from trainables.results import _dataset_sha256
from trainables.storage import DamagedStoreError, StoreError
from trainables.store import Store, SweepStore

SWEEP = """
    name: small
    dataset: {name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}
    train: {epochs: 2}
    grid:
      arch: [{name: mlp, depth: 1, width: 4}]
      ratio: [0.001, 0.01]
      batch_size: [4, 8]
      seed: {range: 3}
    measure: {at: [], hessian: {top: 1, trace_probes: 2, examples: 40}}
"""


def write(directory: Path, text: str = SWEEP, **replaced: str) -> Path:
    for old, new in replaced.items():
        assert REPLACE[old] in text
        text = text.replace(REPLACE[old], new)
    file = directory / "sweep.yaml"
    file.write_text(textwrap.dedent(text))
    return file


REPLACE = {"name": "name: small", "seed": "{range: 3}", "measure": "trace_probes: 2", "train": "{epochs: 2}"}


def go(file: Path, tmp_path: Path, **options: Any) -> LaunchResult:
    return launch(file, tmp_path / "store", executor="inline", **options)


def rows(tmp_path: Path, query: str = "SELECT * FROM trials ORDER BY trial_id") -> list[dict[str, Any]]:
    return sql(tmp_path / "store", query).to_pylist()


def small(tmp_path: Path) -> SweepStore:
    return Store(tmp_path / "store").sweep("small")


def planned(tmp_path: Path) -> list[dict[str, Any]]:
    found = small(tmp_path).read_plan()
    assert found is not None
    return found.to_pylist()


def committed(tmp_path: Path) -> dict[str, bytes]:
    root = tmp_path / "store"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.glob("*/trials/*.parquet")}


def test_a_launch_runs_the_grid_and_a_second_one_nothing(tmp_path: Path) -> None:
    file = write(tmp_path)
    first = go(file, tmp_path)
    assert (first.planned, first.done, first.ran, first.failed, first.stopped) == (12, 12, 12, 0, False)
    found = rows(tmp_path)
    assert len({r["trial_id"] for r in found}) == 12
    assert {r["status"] for r in found} == {"finished"}
    assert {(r["lr"], r["batch_size"]) for r in found} == {(0.004, 4), (0.008, 8), (0.04, 4), (0.08, 8)}
    before = committed(tmp_path)
    again = go(file, tmp_path)
    assert (again.ran, again.done) == (0, 12)
    assert committed(tmp_path) == before
    assert status(tmp_path / "store")[0]["state"] == "complete"
    assert "12/12 trials done" in "".join(logs("small", tmp_path / "store"))


def test_the_same_launch_gives_the_same_bits(tmp_path: Path) -> None:
    values = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        go(write(tmp_path / name), tmp_path / name)
        columns = "trial_id, train_loss, test_loss, lambda_max, hessian_trace, gradient_norm, pack_id"
        values.append(rows(tmp_path / name, f"SELECT {columns} FROM trials ORDER BY trial_id"))
    assert values[0] == values[1]


def test_a_grown_grid_runs_only_what_is_new(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    before = committed(tmp_path)
    grown = go(write(tmp_path, seed="{range: 5}"), tmp_path)
    assert (grown.planned, grown.ran) == (20, 8)
    after = committed(tmp_path)
    assert before.items() < after.items()
    assert len({r["trial_id"] for r in rows(tmp_path)}) == 20


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"seed": "{range: 2}"}, "seed: {range: 2}"),
        ({"train": "{epochs: 3}"}, "train: {epochs: 3}"),
        ({"measure": "trace_probes: 3"}, "trace_probes: 3"),
    ],
)
def test_another_meaning_under_the_same_name_is_refused_with_a_difference(
    tmp_path: Path, change: dict[str, str], shown: str
) -> None:
    go(write(tmp_path), tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    with pytest.raises(SweepChangedError, match="another name") as refused:
        go(write(tmp_path, **change), tmp_path)
    assert any(line.startswith("+") and shown in line for line in str(refused.value).splitlines())
    assert {p for p, data in before.items() if p.read_bytes() != data} == set()
    new = {str(p.relative_to(tmp_path / "store/small")) for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert new - {str(p.relative_to(tmp_path / "store/small")) for p in before} == {
        "lease/000002.json",
        "log/000002.json",
    }


def test_equal_trials_of_another_sweep_are_reused_not_run(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    other = go(write(tmp_path, name="name: other", seed="{range: 4}"), tmp_path)
    assert (other.planned, other.done, other.ran) == (16, 16, 4)
    shared = rows(
        tmp_path,
        "SELECT a.trial_id, a.test_loss = b.test_loss AS same FROM trials a JOIN trials b USING (trial_id) "
        "WHERE a.sweep = 'small' AND b.sweep = 'other'",
    )
    assert len(shared) == 12
    assert all(r["same"] for r in shared)
    curves = rows(tmp_path, "SELECT sweep, count(*) AS n FROM curves GROUP BY sweep ORDER BY sweep")
    assert curves[0]["n"] / 16 == curves[1]["n"] / 12


FAILING = """
    name: failing
    dataset: digits
    train: {call: "callable:sometimes"}
    grid:
      lr: [0.1]
      batch_size: [8]
      seed: {range: 6}
    pack: {max_trials: 3}
"""


@pytest.fixture
def callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own in the working directory, told by files what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # each test has its own module of this name
    monkeypatch.delitem(sys.modules, "callable", raising=False)
    (tmp_path / "callable.py").write_text(
        textwrap.dedent("""
            from pathlib import Path

            def sometimes(config):
                calls = Path("calls.txt")
                with calls.open("a") as file:
                    file.write(f"{config['seed']}\\n")
                if config["seed"] == 2 and not Path("mended").exists():
                    raise RuntimeError("seed two is broken")
                if config["seed"] == 4 and calls.read_text().split().count("4") == 1:
                    raise RuntimeError("only the first time")
                return {"test_accuracy": config["seed"] / 10}
        """)
    )
    return tmp_path


def test_a_failed_trial_is_tried_again_then_recorded_while_the_rest_goes_on(callables: Path) -> None:
    file = write(callables, FAILING)
    result = go(file, callables)
    assert (result.planned, result.done, result.failed) == (6, 5, 1)
    calls = (callables / "calls.txt").read_text().split()
    assert calls.count("2") == 3  # once, and two retries
    assert calls.count("4") == 2
    assert all(calls.count(seed) == 1 for seed in "0135")
    (failed,) = rows(callables, "SELECT * FROM trials WHERE status = 'failed'")
    assert failed["seed"] == 2
    assert "RuntimeError: seed two is broken" in failed["error"]
    state = status(callables / "store", "failing")[0]
    assert (state["planned"], state["finished"], state["failed"], state["pending"]) == (6, 5, 1, 0)
    (callables / "mended").touch()
    mended = resume("failing", callables / "store", executor="inline")
    assert (mended.ran, mended.done, mended.failed) == (1, 6, 0)
    assert {r["status"] for r in rows(callables)} == {"finished"}


def test_trials_of_the_users_own_need_no_data_files(callables: Path) -> None:
    text = FAILING.replace("digits", "cifar10").replace("{range: 6}", "[0]")
    done = go(write(callables, text), callables, data_root=callables / "nowhere")
    assert (done.done, done.failed) == (1, 0)


def test_retries_are_the_sweep_files(callables: Path) -> None:
    go(write(callables, FAILING + "    retries: 0\n"), callables)
    assert (callables / "calls.txt").read_text().split().count("2") == 1


def test_a_limit_runs_some_and_resume_the_rest(tmp_path: Path) -> None:
    file = write(tmp_path, SWEEP + "    pack: {max_trials: 2}\n")
    some = go(file, tmp_path, limit=3)
    assert some.ran == 4  # whole packs
    assert "isoratio resume small" in some.text()
    assert status(tmp_path / "store", "small")[0]["pending"] == 8
    rest = resume("small", tmp_path / "store", executor="inline")
    assert (rest.ran, rest.done) == (8, 12)


def test_asked_to_stop_it_commits_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    file = write(tmp_path, SWEEP + "    pack: {max_trials: 2}\n")
    asked = iter([None] * 6)  # before a pack starts, and again while the first one runs
    result = go(file, tmp_path, should_stop=lambda: next(asked, "finish"))
    assert result.stopped
    assert result.done == result.ran == len(rows(tmp_path)) == 2
    assert status(tmp_path / "store", "small")[0]["state"] == "stopped"
    assert resume("small", tmp_path / "store", executor="inline").done == 12


def test_a_trial_run_again_alone_gives_what_is_stored_and_stores_nothing(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    before = sorted(str(p) for p in (tmp_path / "store").rglob("*"))
    stored = rows(tmp_path)[0]
    found = run_trial("small", stored["trial_id"][:10], tmp_path / "store")
    assert sorted(str(p) for p in (tmp_path / "store").rglob("*")) == before
    last = {r["statistic"]: r["value"] for r in found if r["epoch"] == 2}
    for name in ("train_loss", "test_loss", "lambda_max", "gradient_norm", "hessian_trace"):
        assert last[name] == pytest.approx(stored[name], rel=1e-4)
    assert found[-1]["statistic"] == "status: finished"
    with pytest.raises(StoreError, match="12 trials begin so"):
        run_trial("small", "", tmp_path / "store")
    with pytest.raises(StoreError, match="there is none"):
        run_trial("small", "xyz", tmp_path / "store")


def test_the_plan_is_stored_before_anything_runs_and_packs_never_change(tmp_path: Path) -> None:
    file = write(tmp_path)
    go(file, tmp_path)
    first = planned(tmp_path)
    go(write(tmp_path, seed="{range: 5}"), tmp_path)
    second = {r["trial_id"]: r for r in planned(tmp_path)}
    assert all(second[r["trial_id"]] == r for r in first)
    assert small(tmp_path).sweep_file() == (".yaml", file.read_text())
    assert (tmp_path / "store/small/sweep.yaml").read_text() == file.read_text(), "a copy for people"


def test_resume_goes_by_the_sweep_file_in_the_plan(tmp_path: Path) -> None:
    """Its copy may be edited, or cut off with the launch that was to write it."""
    go(write(tmp_path), tmp_path)
    write(tmp_path / "store/small", seed="{range: 5}")
    assert resume("small", tmp_path / "store", executor="inline").planned == 12
    (tmp_path / "store/small/sweep.yaml").unlink()
    assert resume("small", tmp_path / "store", executor="inline").planned == 12


def test_plan_writes_nothing_and_knows_what_is_done(tmp_path: Path) -> None:
    file = write(tmp_path)
    found = plan(file, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert "12 trials" in found.summary()
    assert sum(r["trials"] for r in found.rows()) == 12
    go(file, tmp_path)
    done = plan(file, tmp_path / "store")
    assert all(r["estimated_seconds"] is None for r in done.rows())


def test_a_net_that_cannot_be_built_fails_its_trials_and_not_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("def broken(shape, classes):\n    raise ValueError('cannot be built')\n")
    old, new = "[{name: mlp, depth: 1, width: 4}]", "[linear, 'nets:broken']"
    result = go(write(tmp_path, SWEEP.replace(old, new) + "    retries: 0\n"), tmp_path)
    assert (result.done, result.failed) == (12, 12)
    failed = rows(tmp_path, "SELECT DISTINCT error FROM trials WHERE status = 'failed'")
    assert "ValueError: cannot be built" in failed[0]["error"]


def test_a_limited_launch_reports_what_failed_and_leaves_the_rest_open(callables: Path) -> None:
    file = write(callables, FAILING)
    some = go(file, callables, limit=3)
    assert (some.ran, some.failed) == (2, 1)
    assert status(callables / "store", "failing")[0]["state"] == "stopped"
    assert go(file, callables).done == 5


def test_imported_trials_are_not_mixed_with_a_launch(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("lr,batch_size,test_loss\n0.1,8,1.0\n")
    import_trials(tmp_path / "store", tmp_path / "mine.csv", "small")
    with pytest.raises(StoreError, match="holds imported trials: give the sweep file another name"):
        go(write(tmp_path), tmp_path)


def test_a_lost_plan_is_made_again_and_nothing_runs_twice(tmp_path: Path) -> None:
    file = write(tmp_path)
    go(file, tmp_path)
    for kept in (tmp_path / "store/small/plan").iterdir():
        kept.unlink()
    again = resume("small", tmp_path / "store", executor="inline")
    assert (again.ran, again.done, again.planned) == (0, 12, 12)
    assert run_trial("small", rows(tmp_path)[0]["trial_id"], tmp_path / "store")


def test_a_damaged_pack_is_set_aside_and_run_again(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    before = rows(tmp_path, "SELECT trial_id, test_loss, lambda_max FROM trials ORDER BY trial_id")
    victim = next((tmp_path / "store/small/trials").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-9])
    assert verify(tmp_path / "store")
    assert 0 < resume("small", tmp_path / "store", executor="inline").ran < 12
    assert rows(tmp_path, "SELECT trial_id, test_loss, lambda_max FROM trials ORDER BY trial_id") == before


def test_a_damaged_plan_is_set_aside_and_made_again(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    before = committed(tmp_path)
    (victim,) = (tmp_path / "store/small/plan").iterdir()
    victim.write_bytes(victim.read_bytes()[:-9])
    for asked in (lambda: resume("small", tmp_path / "store"), lambda: status(tmp_path / "store")):
        with pytest.raises(DamagedStoreError, match=rf"{victim.name}: cannot be read: .*`isoratio verify`"):
            asked()
    assert [damage.file for damage in verify(tmp_path / "store")] == [f"plan/{victim.name}"]
    again = resume("small", tmp_path / "store", executor="inline")
    assert (again.planned, again.done, again.ran) == (12, 12, 0)
    assert committed(tmp_path) == before


def test_a_reused_trial_can_be_run_again(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    go(write(tmp_path, name="name: other"), tmp_path)
    assert run_trial("other", rows(tmp_path)[0]["trial_id"], tmp_path / "store")


def test_yaml_may_become_toml(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    toml = tmp_path / "sweep.toml"
    toml.write_text(
        'name = "small"\n'
        "dataset = {name = 'teacher', train_size = 40, test_size = 10, dimension = 4, classes = 3}\n"
        "train = {epochs = 2}\n"
        "measure = {at = [], hessian = {top = 1, trace_probes = 2, examples = 40}}\n"
        "[grid]\narch = [{name = 'mlp', depth = 1, width = 4}]\nratio = [0.001, 0.01]\nbatch_size = [4, 8]\n"
        "seed = {range = 4}\n"
    )
    assert go(toml, tmp_path).ran == 4
    assert resume("small", tmp_path / "store", executor="inline").done == 16


def test_a_changed_plugin_is_said(callables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(write(callables, FAILING), callables)
    assert "has changed" not in capsys.readouterr().err
    with (callables / "callable.py").open("a") as file:
        file.write("# another\n")
    go(write(callables, FAILING), callables)
    assert "warning: callable:sometimes has changed since trials of this sweep ran" in capsys.readouterr().err


def test_data_that_have_changed_since_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data.py").write_text(textwrap.dedent(OWN_DATA))
    now_there_is("1.0")
    text = SWEEP.replace(
        "{name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}", "'own_data:points'"
    )
    assert go(write(tmp_path, text), tmp_path, limit=6).done == 6
    now_there_is("2.0")
    second = go(write(tmp_path, text + "    retries: 0\n"), tmp_path)
    assert (second.done, second.failed, second.ran) == (6, 6, 0)
    (failed,) = rows(
        tmp_path, "SELECT DISTINCT split_part(error, chr(10), -2) AS why FROM trials WHERE status = 'failed'"
    )
    assert "data set 'own_data:points' is not what earlier trials of this sweep were trained on" in failed["why"]
    assert verify(tmp_path / "store") == []
    now_there_is("1.0")
    assert go(write(tmp_path, text), tmp_path).done == 12


OWN_DATA = """
    from pathlib import Path

    import torch
    from trainables import Dataset

    def points(root: Path) -> Dataset:
        x = torch.arange(80.0).reshape(20, 4) * float(Path("points.txt").read_text())
        return Dataset(x, torch.arange(20) % 3, x, torch.arange(20) % 3, num_classes=3)
"""


def now_there_is(points: str) -> None:
    """What another process would load."""
    Path("points.txt").write_text(points)
    for kept in (_dataset_sha256, load_dataset, _first):
        kept.cache_clear()


def test_a_detached_launch_of_a_held_sweep_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path)
    with (
        Lease(small(tmp_path)),
        pytest.raises(LaunchHeldError, match=f"^sweep 'small' is .* process {os.getpid()} on "),
    ):
        go(file, tmp_path, detach=True)


def test_a_store_of_the_first_format_goes_on(tmp_path: Path) -> None:
    """Its plan lay elsewhere, nothing marked it, no lease was taken, and rows lacked columns."""
    file = write(tmp_path, SWEEP + "    pack: {max_trials: 3}\n")
    go(file, tmp_path, limit=6)
    query = "SELECT trial_id, test_loss, lambda_max, pack_id FROM trials ORDER BY trial_id"
    before = rows(tmp_path, query)
    as_format_1(tmp_path / "store/small")
    assert rows(tmp_path, query) == before
    assert (status(tmp_path / "store")[0]["state"], status(tmp_path / "store")[0]["pending"]) == ("interrupted", 6)
    kept = committed(tmp_path)
    rest = resume("small", tmp_path / "store", executor="inline")
    assert (rest.ran, rest.done) == (6, 12)
    assert kept.items() < committed(tmp_path).items()
    assert not (tmp_path / "store/small/plan.parquet").exists()
    assert {r["together"] for r in rows(tmp_path)} == {None, 3}
    assert go(write(tmp_path, SWEEP + "    pack: {max_trials: 3}\n", seed="{range: 4}"), tmp_path).ran == 4
    log = "".join(logs("small", tmp_path / "store"))
    assert log.startswith("a line of format 1\n")
    assert "16/16 trials done" in log


def as_format_1(sweep: Path) -> None:
    """Turns a sweep into what version 0.1.0 left behind after an interruption."""
    (plan_file,) = (sweep / "plan").iterdir()
    found = pq.read_table(plan_file)
    old = found.replace_schema_metadata({b"measure": found.schema.metadata[b"measure"]})
    pq.write_table(old, sweep / "plan.parquet")
    for path in [*(sweep / "plan").iterdir(), *(sweep / "lease").iterdir(), *(sweep / "log").iterdir()]:
        path.unlink()
    (sweep / "format.json").unlink()
    (sweep / "log/launch.log").write_text("a line of format 1\n")
    (sweep / "log/launch.lock").write_text("{}")
    (sweep / "log/launch.json").write_text('{"state": "running", "running_packs": []}')
    for path in (sweep / "trials").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["together", "physical_batch_size"]), path)


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path)
    go(file, tmp_path, limit=1)
    small(tmp_path).storage.replace("format.json", b'{"format": 3, "isoratio": "9.1"}')
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    for refused in (
        lambda: go(file, tmp_path),
        lambda: go(file, tmp_path, detach=True),
        lambda: resume("small", tmp_path / "store", executor="inline"),
        lambda: plan(file, tmp_path / "store"),
        lambda: go(write(tmp_path, name="name: other"), tmp_path),
    ):
        with pytest.raises(StoreError, match=r"store/small: written by Isoratio 9\.1 in format 3; .*: install a newer"):
            refused()
    assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p in before} == before


@pytest.mark.parametrize("what", ["", "trials", "plan"])
def test_a_sweep_that_is_a_link_is_refused(tmp_path: Path, what: str) -> None:
    file = write(tmp_path)
    go(file, tmp_path, limit=1)
    (tmp_path / "store/small" / what).rename(tmp_path / "elsewhere")
    (tmp_path / "store/small" / what).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"small/?{what} is a link: a store holds files of its own only; put the fi"):
        go(file, tmp_path)


def test_a_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path)
    go(file, tmp_path)
    rows_file = next((tmp_path / "store/small/trials").iterdir())
    rows_file.rename(tmp_path / "elsewhere.parquet")
    rows_file.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(StoreError, match=f"{rows_file.name} is a link: a store holds files of its own only"):
        go(file, tmp_path)
