"""Control trials in a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import invariance, sql, status, verify
from orchestrator.grid import expand
from orchestrator.launching import LaunchResult, launch
from orchestrator.reconcile import SweepChangedError, reconcile
from orchestrator.sweepfile import SweepFileError, load
from trainables.registry import resolve
from trainables.store import Store
from trainables.trial import AGAIN, FIELDS, REFERENCES, Trial, trial_id

GRID = "ratio: [0.001, 0.002], batch_size: [32, 8], seed: {range: 2}"


def rows(grid: str = GRID, controls: str = "[noise_free, a_a]", more: str = "") -> list[dict[str, Any]]:
    text = f"name: c\ndataset: digits\ngrid: {{{grid}}}\ncontrols: {controls}\n{more}\n"
    found: list[dict[str, Any]] = expand(load(Path("c.yaml"), text=text)).to_pylist()
    return found


def controls_in(found: list[dict[str, Any]]) -> set[tuple[object, ...]]:
    names = ("lr", "batch_size", "seed", "order_seed", "sampler", "gradient_noise")
    marked = [row for row in found if row["sampler"] == "full" or row["order_seed"] is not None]
    return {tuple(row[name] for name in names) for row in marked}


def test_each_line_gets_gradient_descent_and_another_order_at_its_smallest_batch_size() -> None:
    found = rows()
    assert len(found) == 8 + 4 + 4
    assert controls_in(found) == {
        *((lr, 8, seed, None, "full", 0.0) for lr in (0.008, 0.016) for seed in (0, 1)),
        *((lr, 8, seed, seed ^ AGAIN, "stream", 0.0) for lr in (0.008, 0.016) for seed in (0, 1)),
    }


def test_controls_are_added_to_what_the_condition_leaves() -> None:
    assert {row[1] for row in controls_in(rows(more="where: batch_size > 8"))} == {32}


def test_no_control_is_there_twice() -> None:
    swept = rows(f"{GRID}, sampler: [stream, full]", "[noise_free, noise_free]")
    assert len(swept) == 16
    noisy = rows(f"{GRID}, gradient_noise: [0.0, 0.1]", "[noise_free]")
    assert len(noisy) == 16 + 4, "one for both levels of noise"


def test_a_grown_sweep_keeps_its_controls() -> None:
    before, after = ({row["trial_id"] for row in rows(f"{GRID}, momentum: [{m}]")} for m in ("0.0", "0.0, 0.9"))
    assert before < after


@pytest.mark.parametrize("more", ["", ", seed: [9223372036854775807]", ", order_seed: [null, 5]", ", sampler: [full]"])
def test_identities_are_those_of_the_domain(more: str) -> None:
    grid = "ratio: [0.001, 0.002], batch_size: [8, 32]" + more
    for row in rows(grid):
        fields = Trial(**{name: row[name] for name in FIELDS}).model_dump()
        resolved = {n: resolve(n, v).identity if n in REFERENCES and v is not None else v for n, v in fields.items()}
        assert trial_id(resolved) == row["trial_id"]


def test_an_unknown_control_is_a_mistake_in_the_file() -> None:
    with pytest.raises(SweepFileError, match=r"c\.yaml:4:\d+: controls: unknown key 'noisefree'"):
        rows(controls="[noisefree]")


@pytest.mark.parametrize(("largest", "taken"), [(None, 8), (4, 8), (8, 8), (31, 8), (32, 32), (1000, 32)])
def test_gradient_descent_may_take_longer_steps(largest: int | None, taken: int) -> None:
    found = rows(controls=f"{{noise_free: {{batch_size: {largest or 'null'}}}, a_a: true}}")
    assert {row["batch_size"] for row in found if row["sampler"] == "full"} == {taken}
    assert {row["batch_size"] for row in found if row["order_seed"] is not None} == {8}


# ---- a grid that grows, and its controls with it


SMALL, GROWN = "[32, 128]", "[8, 32, 128]"


def launched(
    folder: Path, batch_sizes: str, controls: str = "controls: [noise_free, a_a]", **options: Any
) -> LaunchResult:
    """Trials of two steps at one ratio, at most four in a pack; fills the store in the folder."""
    (folder / "c.yaml").write_text(
        f"""
        name: c
        dataset: digits
        train: {{max_steps: 2, train_size: 256}}
        grid: {{ratio: [0.001], batch_size: {batch_sizes}, seed: {{range: 4}}}}
        measure: {{hessian: false, gradient_noise: false}}
        pack: {{max_trials: 4}}
        {controls}
        """
    )
    return launch(folder / "c.yaml", folder / "store", executor="inline", **options)


def told(folder: Path, query: str) -> set[tuple[Any, ...]]:
    return {tuple(row.values()) for row in sql(folder / "store", query).to_pylist()}


KINDS = "SELECT DISTINCT batch_size, sampler, order_seed IS NOT NULL AS again FROM"
CONTROLS = {(32, "full", False), (32, "stream", True)}
NEW_CONTROLS = {(8, "full", False), (8, "stream", True)}


def test_controls_move_with_a_grid_that_grows_and_those_that_were_run_stay(tmp_path: Path) -> None:
    launched(tmp_path, SMALL)
    before = told(tmp_path, "SELECT trial_id, test_loss FROM trials")
    grown = launched(tmp_path, GROWN)
    assert (grown.ran, grown.planned, grown.done) == (4 + 8, 20, 20)
    assert before < told(tmp_path, "SELECT trial_id, test_loss FROM trials")
    assert told(tmp_path, f"{KINDS} plan") == told(tmp_path, f"{KINDS} trials") > CONTROLS | NEW_CONTROLS
    (row,) = status(tmp_path / "store", "c")
    assert (row["state"], row["planned"], row["finished"], row["pending"]) == ("complete", 28, 28, 0)
    assert launched(tmp_path, GROWN).ran == 0


@pytest.mark.parametrize("limit", [1, 5, 9])
def test_controls_that_were_not_run_leave_the_plan(tmp_path: Path, limit: int) -> None:
    """Also where they wait in one pack with trials that are still wanted, which then run in another one."""
    ran = launched(tmp_path, SMALL, limit=limit).ran
    assert 0 < ran < 16
    done = told(tmp_path, f"{KINDS} trials") & CONTROLS
    grown = launched(tmp_path, GROWN)
    assert (grown.planned, grown.done) == (20, 20)
    assert told(tmp_path, f"{KINDS} plan") & CONTROLS == done
    (row,) = status(tmp_path / "store", "c")
    assert (row["state"], row["pending"]) == ("complete", 0)
    assert told(tmp_path, "SELECT count(*) FROM plan") == told(tmp_path, "SELECT count(*) FROM trials")
    assert verify(tmp_path / "store", "c") == []


def test_controls_may_be_given_up_and_asked_for_again(tmp_path: Path) -> None:
    launched(tmp_path, SMALL)
    without = launched(tmp_path, SMALL, controls="")
    assert (without.ran, without.planned) == (0, 8)
    assert launched(tmp_path, SMALL).ran == 0


@pytest.mark.parametrize("smaller", ["[32]", "[8, 32]"])
def test_a_grid_that_shrinks_is_refused_with_controls_or_without(tmp_path: Path, smaller: str) -> None:
    launched(tmp_path, SMALL)
    for controls in ("controls: [noise_free, a_a]", ""):
        with pytest.raises(SweepChangedError, match="4 of its 16 trials are not in this grid"):
            launched(tmp_path, smaller, controls)


def test_gradient_descent_that_was_swept_does_not_count_as_a_control(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SWEPT)
    launch(tmp_path / "c.yaml", tmp_path / "store", executor="inline")
    (tmp_path / "c.yaml").write_text(SWEPT.replace("[stream, full]", "[stream]"))
    with pytest.raises(SweepChangedError, match="1 of its 4 trials are not in this grid"):
        launch(tmp_path / "c.yaml", tmp_path / "store", executor="inline")


SWEPT = """
name: c
dataset: digits
train: {max_steps: 2, train_size: 256}
grid: {ratio: [0.001], batch_size: [32, 64], sampler: [stream, full]}
measure: {hessian: false, gradient_noise: false}
controls: [noise_free]
"""


def test_where_identities_have_changed_all_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(tmp_path, SMALL)
    monkeypatch.setattr("orchestrator.grid.SEMANTICS", 999)
    with pytest.raises(SweepChangedError, match="16 of its 16 trials are not in this grid"):
        reconcile(load(tmp_path / "c.yaml"), Store(tmp_path / "store"))


def test_verdicts_are_those_of_a_sweep_that_was_never_smaller(tmp_path: Path) -> None:
    """Old controls do not make gradient descent a swept condition, and do not stand in for the new ones."""
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    for folder, steps in ((grown, (SMALL, GROWN)), (fresh, (GROWN,))):
        folder.mkdir()
        for batch_sizes in steps:
            launched(folder, batch_sizes)
    (one,), (other,) = (invariance(folder / "store", "c", ["train_loss"]) for folder in (grown, fresh))
    assert (one.group, one.n_contrasts, one.effect) == ({}, 2, other.effect)
    assert one.noise == other.noise
    assert [line.n for line in one.noise] == [4]
