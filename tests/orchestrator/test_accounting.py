"""What a sweep will cost, and a launch that ends with its budget."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import Cause, Failed, Finished, Progress, Started
from orchestrator import launch, plan, resume, sql, status
from orchestrator.accounting import Budget, Estimate
from orchestrator.cli import launch_code
from orchestrator.launching import LaunchResult
from orchestrator.terminal import Exit
from trainables.resources import HOUR, Prices, Resources
from trainables.store import REUSED, Store

SWEEP = """
name: small
dataset: {name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}
train: {epochs: 2}
grid: {arch: [{name: mlp, depth: 1, width: 4}], lr: [0.01, 0.02], batch_size: [4, 8], seed: {range: 2}}
measure: {at: [], hessian: false}
pack: {max_trials: 1}
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_counts_packs_from_start_to_end() -> None:
    clock = Clock()
    budget = Budget(Resources(cpu=4, gpu=0.5), hours=1.0, clock=clock)
    budget.note("a", Started(0))
    clock.now = HOUR
    budget.note("b", Started(1))
    budget.note("a", Progress(0, 0.5))
    assert (budget.used, budget.is_spent) == (0.5, False)
    clock.now = 1.5 * HOUR
    budget.note("a", Finished(0))
    assert (budget.used, budget.is_spent) == (1.0, True)  # (1.5 + 0.5) hours of half a GPU
    assert budget.text() == "the budget of 1 GPU-hours is used up; 1 running packs are saved as they are"
    budget.note("b", Failed(1, Cause.CRASH, "it died"))
    clock.now = 9 * HOUR
    assert budget.used == 1.0
    assert budget.text() == "the budget of 1 GPU-hours is used up"


def test_without_a_gpu_a_budget_is_of_cpu_hours() -> None:
    clock = Clock()
    budget = Budget(Resources(cpu=4), hours=1.0, clock=clock)
    budget.note("a", Started(0))
    clock.now = HOUR / 4
    assert budget.is_spent
    assert budget.text().startswith("the budget of 1 CPU-hours is used up")
    assert not Budget(Resources(), clock=clock, ended=1e9).is_spent


@pytest.mark.parametrize(
    ("resources", "prices", "said"),
    [
        (Resources(), Prices(), "2 CPU-hours"),
        (Resources(cpu=2), Prices(cpu=0.05), "4 CPU-hours, 0.2"),
        (Resources(cpu=4, gpu=1), Prices(gpu={"any": 2.5}, currency="USD"), "2 GPU-hours and 8 CPU-hours, 5 USD"),
        (Resources(cpu=0, gpu=0.5), Prices(gpu={"H100": 4, "L4": 1}), "1 GPU-hours, 1 to 4"),
        (Resources(cpu=0, gpu=1, accelerator="H100"), Prices(gpu={"H100": 4, "L4": 1}), "2 GPU-hours, 8"),
        (Resources(gpu=1), Prices(cpu=1.0), "2 GPU-hours and 2 CPU-hours"),
    ],
)
def test_an_estimate_for_people(resources: Resources, prices: Prices, said: str) -> None:
    assert Estimate.of(2 * HOUR, resources, prices).text() == said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def go(file: Path, **options: Any) -> LaunchResult:
    return launch(file, file.parent / "store", executor="inline", **options)


def test_a_launch_ends_with_its_budget_and_is_resumed(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ticks = itertools.count(0.0, HOUR / 100)
    monkeypatch.setattr("orchestrator.launching.Budget", partial(Budget, clock=lambda: next(ticks)))
    first = go(file, budget_hours=0.3)
    assert first.stopped
    assert 0 < first.ran < 8 == first.planned
    assert "the budget of 0.3 CPU-hours is used up" in capfd.readouterr().err
    assert "go on with: isoratio resume small" in first.text()
    assert launch_code(first, None, []) == Exit.INTERRUPTED
    (row,) = status(file.parent / "store")
    assert (row["state"], row["pending"]) == ("stopped", 8 - first.ran)
    again = resume("small", file.parent / "store", executor="inline", budget_hours=1000.0)
    assert (again.ran, again.done, again.stopped) == (8 - first.ran, 8, False)


def test_status_counts_what_is_stored_at_the_prices_of_now(file: Path) -> None:
    store = file.parent / "store"
    file.write_text(SWEEP + "resources: {cpu: 2}\nprices: {cpu: 0.5}\n")
    go(file, limit=3)
    file.write_text(SWEEP + "resources: {cpu: 2}\nprices: {cpu: 0.25}\n")
    go(file)  # prices are no part of what a sweep means
    ((seconds,),) = sql(store, "SELECT sum(seconds) AS s FROM trials").to_pandas().to_numpy().tolist()
    (row,) = status(store)
    assert row["gpu_hours"] == 0.0
    assert row["cpu_hours"] == pytest.approx(2 * seconds / HOUR)
    assert row["cost"] == pytest.approx(row["cpu_hours"] * 0.25)


def test_trials_that_are_reused_cost_nothing(file: Path) -> None:
    go(file)
    file.write_text(SWEEP.replace("small", "again") + "prices: {cpu: 1}\n")
    assert go(file).ran == 0
    again, small = status(file.parent / "store")
    assert (again["cpu_hours"], again["cost"]) == (0.0, 0.0)
    assert small["cpu_hours"] > 0
    assert small["cost"] is None
    assert all(name.startswith(REUSED) for name in Store(file.parent / "store").sweep("again").storage.names("trials"))


def test_a_plan_says_what_it_will_take(file: Path) -> None:
    file.write_text(SWEEP + "resources: {cpu: 4, gpu: 0.5}\nprices: {gpu: 2, currency: EUR}\n")
    found = plan(file, file.parent / "store", workers=3)
    seconds = found.seconds_per_cost * sum(found.found.packs["cost"].to_pylist())
    assert found.estimate.gpu_hours == pytest.approx(seconds / HOUR / 2)
    assert found.estimate.cost == pytest.approx((seconds / HOUR, seconds / HOUR))
    assert f"\n  cost     about {found.estimate.text()}" in found.summary()
