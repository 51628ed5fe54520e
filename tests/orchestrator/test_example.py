"""The example of plug-ins as a user has it: copied to a directory of one's own, tested, planned, launched, judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import sql

Run = Callable[..., subprocess.CompletedProcess[str]]

EXAMPLE = Path(__file__).parents[2] / "docs" / "example"


@pytest.fixture
def example(tmp_path: Path, isoratio: Run) -> Path:
    """A copy in the user's directory."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "work", dirs_exist_ok=True))


def test_its_plugins_pass_their_tests(example: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=example, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for kind in ("Bottleneck", "Rings", "Smoothed", "Confidence", "WholeTrial"):
        assert f"Test{kind}::test_every_parameter_is_part_of_the_identity PASSED" in done.stdout


def test_its_sweep_runs_on_ray_beside_folders_named_like_ours(example: Path, isoratio: Run) -> None:
    for name in ("analysis", "cluster", "trainables"):
        (example / name).mkdir()
        (example / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    done = isoratio("launch", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "32/32 trials done" in done.stderr
    store = example / "results"
    query = "SELECT count(*) AS n, min(test_confidence) AS confidence, min(weight_norm) AS norm FROM trials"
    (row,) = sql(store, query).to_pylist()
    assert row["n"] == 32
    assert row["confidence"] > 1 / 3
    assert row["norm"] > 0
    measured = sql(store, "SELECT DISTINCT statistic FROM curves").to_pylist()
    assert {"statistic": "test_confidence"} in measured
    (origin,) = sql(store, "SELECT DISTINCT plugins FROM provenance").to_pylist()
    assert sorted(json.loads(origin["plugins"])) == [
        f"mine:{n}" for n in ("bottleneck", "confidence", "rings", "smoothed")
    ]


def test_its_whole_trials_are_judged_like_ours(example: Path, isoratio: Run) -> None:
    assert "quadratic: 96 trials" in isoratio("plan", "quadratic.yaml").stdout
    done = isoratio("launch", "quadratic.yaml", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert "96/96 trials done" in done.stderr
    judged = isoratio("invariance", "quadratic", "--metric", "test_loss", "--format", "json")
    (verdict,) = json.loads(judged.stdout)
    assert verdict["n_seeds"] == 16
