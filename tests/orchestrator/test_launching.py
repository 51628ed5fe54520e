"""Launch, resume, extend, reuse and refuse: in this process, on a small teacher."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator import import_trials, launch, logs, plan, remove, resume, run_trial, sql, status, stop, verify
from orchestrator.launching import LaunchResult
from orchestrator.lock import LaunchHeldError, launch_lock
from orchestrator.reconcile import SweepChangedError
from trainables.store import Store, StoreError

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
    changed = {p for p, data in before.items() if p.read_bytes() != data}
    assert {p.name for p in changed} <= {"launch.lock"}


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
    asked = iter([False, False, False, True])
    result = go(file, tmp_path, should_stop=lambda: next(asked, True))
    assert result.stopped
    assert 0 < result.done < 12
    assert result.done == len(rows(tmp_path))
    assert status(tmp_path / "store", "small")[0]["state"] == "stopped"
    assert resume("small", tmp_path / "store", executor="inline").done == 12


def test_stop_says_whether_there_is_a_launch_to_stop(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    assert not stop("small", tmp_path / "store")
    with launch_lock(Store(tmp_path / "store").sweep("small")):
        assert stop("small", tmp_path / "store")
    assert go(write(tmp_path), tmp_path).done == 12  # a request left behind stops no later launch


def test_one_launch_per_sweep(tmp_path: Path) -> None:
    file = write(tmp_path)
    go(file, tmp_path)
    with launch_lock(Store(tmp_path / "store").sweep("small")):
        for again in (lambda: go(file, tmp_path), lambda: remove("small", tmp_path / "store")):
            with pytest.raises(LaunchHeldError, match=r"sweep 'small' is being run by process \d+ on .* since"):
                again()


def test_a_sweep_is_removed_whole(tmp_path: Path) -> None:
    go(write(tmp_path), tmp_path)
    remove("small", tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    with pytest.raises(StoreError, match="no sweep 'small'"):
        resume("small", tmp_path / "store")


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
    first = pq.read_table(tmp_path / "store/small/plan.parquet").to_pylist()
    go(write(tmp_path, seed="{range: 5}"), tmp_path)
    second = {r["trial_id"]: r for r in pq.read_table(tmp_path / "store/small/plan.parquet").to_pylist()}
    assert all(second[r["trial_id"]] == r for r in first)
    assert (tmp_path / "store/small/sweep.yaml").read_text() == file.read_text()


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
    (tmp_path / "store/small/plan.parquet").unlink()
    again = go(file, tmp_path)
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


def test_a_detached_launch_of_a_held_sweep_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path)
    with launch_lock(Store(tmp_path / "store").sweep("small")), pytest.raises(LaunchHeldError):
        go(file, tmp_path, detach=True)
