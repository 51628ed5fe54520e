"""Control trials in a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.grid import expand
from orchestrator.sweepfile import SweepFileError, load
from trainables.registry import resolve
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
