"""The papers' nets on data of CIFAR-10's shape, from the command line, on Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = """
name: image-nets
dataset: {name: teacher, shape: [3, 32, 32], train_size: 256, test_size: 64}
train: {epochs: 2, momentum: 0.9, augment: crop_flip, schedule: {cosine: {}}}
grid:
  arch: [{name: resnet, depth: 20}, vgg11]
  ratio: [1.5625e-4]
  batch_size: [64]
  seed: {range: 2}
measure:
  at: []
  hessian: {top: 2, trace_probes: 2, examples: 32, bottom: 0, max_iterations: 30}
pack: {engine: vmap}
"""


@pytest.mark.long
def test_resnet20_and_vgg11_train_and_have_their_curvature_measured(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    rows = json.loads(_isoratio(tmp_path, "plan", "sweep.yaml", "--format", "json"))
    assert [(row["trials"], row["engine"]) for row in rows] == [(2, "vmap"), (2, "vmap")]
    _isoratio(tmp_path, "launch", "sweep.yaml")
    query = (
        "SELECT status, steps, train_loss, lambda_max, lambda_max_residual, hessian_trace, gradient_norm FROM trials"
    )
    trials = json.loads(_isoratio(tmp_path, "sql", query, "--format", "json"))
    assert [(t["status"], t["steps"]) for t in trials] == [("finished", 8)] * 4
    for trial in trials:
        assert all(trial[name] is not None for name in trial)
        assert 0 <= trial["lambda_max_residual"] < 0.1 * trial["lambda_max"]


def _isoratio(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
