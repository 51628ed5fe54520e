"""``isoratio cluster render`` and ``check``, as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., subprocess.CompletedProcess[str]]

KINDS = {
    "slurm": ("--workers", "2", "--gpus", "4", "--gpu-type", "a100"),
    "kuberay": ("--gpu-type", "L4", "--spot", "--workers", "0:8", "--store", "s3://b/r"),
    "aws": ("--region", "us-west-2", "--machine-image", "ami-1", "--gpu-type", "L4", "--spot", "--store", "s3://b/r"),
    "gcp": ("--project", "p", "--region", "r", "--zone", "z", "--machine-image", "i", "--setup", "a", "--setup", "b"),
    "onprem": ("--host", "gpu1", "--host", "gpu2", "--user", "me", "--store", "/mnt/r"),
}
COMMANDS = {
    "slurm": ("sbatch my.file", "scancel --batch --signal=USR1", "isoratio status"),
    "kuberay": (
        "kubectl apply -f my.file",
        "kubectl create secret",
        "kubectl port-forward",
        "kubectl delete -f my.file",
    ),
    **dict.fromkeys(("aws", "gcp", "onprem"), ("ray up my.file -y", "ray dashboard my.file", "ray down my.file -y")),
}


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """A machine on which no tool can be asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to(shutil.which("bash") or "bash")
    return {"PATH": str(tmp_path / "bin")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_written_explained_and_right(isoratio: Run, alone: dict[str, str], tmp_path: Path, kind: str) -> None:
    printed = isoratio("cluster", "render", kind, *KINDS[kind])
    assert (printed.returncode, printed.stderr) == (0, "")
    done = isoratio("cluster", "render", kind, *KINDS[kind], "-o", "my.file")
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote my.file" in done.stderr
    assert all(command in done.stderr for command in COMMANDS[kind])
    if kind != "slurm":
        assert "isoratio launch sweep.yaml --address http://127.0.0.1:8265 --store" in done.stderr
        assert yaml.safe_load(printed.stdout) == yaml.safe_load((tmp_path / "work/my.file").read_text())
    checked = isoratio("cluster", "check", "my.file", env=alone)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert "my.file: nothing is wrong with it" in checked.stderr
    assert "not asked" in checked.stderr


def test_options_reach_the_file(isoratio: Run) -> None:
    made = yaml.safe_load(isoratio("cluster", "render", "gcp", *KINDS["gcp"], "--workers", "2:3").stdout)
    assert made["setup_commands"] == ["a", "b"]
    assert made["max_workers"] == 3
    assert made["available_node_types"]["worker"]["min_workers"] == 2
    assert "scheduling" not in made["available_node_types"]["worker"]["node_config"]


def test_a_file_is_not_written_over(isoratio: Run, tmp_path: Path) -> None:
    (tmp_path / "work/c.sh").write_text("mine")
    done = isoratio("cluster", "render", "slurm", "-o", "c.sh")
    assert (done.returncode, done.stderr) == (2, "isoratio: c.sh is there already: --force writes over it\n")
    assert (tmp_path / "work/c.sh").read_text() == "mine"
    assert isoratio("cluster", "render", "slurm", "-o", "c.sh", "--force").returncode == 0
    assert (tmp_path / "work/c.sh").read_text().startswith("#!/bin/bash")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aws", "--gpu-type", "B9"), "--gpu-type B9: known are T4, L4,"),
        (("slurm", "--workers", "many"), "--workers many: a number or MIN:MAX is expected, such as 0:8"),
        (("onprem",), "--host is needed, once for each machine, the head first\n--user is needed"),
        (("slurm", "--region", "r"), "No such option"),
        (("azure",), "No such command"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    isoratio: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = isoratio("cluster", "render", *arguments, *(("-o", "f") if arguments[0] != "azure" else ()))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "work/f").exists()


def test_findings_have_their_lines_and_an_exit_code(isoratio: Run, alone: dict[str, str], tmp_path: Path) -> None:
    isoratio("cluster", "render", "slurm", "-o", "job.sh")
    job = tmp_path / "work/job.sh"
    job.write_text(job.read_text().replace("#SBATCH --requeue\n", "").replace("AUTH_MODE=token", "AUTH_MODE=x"))
    done = isoratio("cluster", "check", "job.sh", env=alone)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "job.sh:1: a Ray without a token: anyone on the nodes may run code; set RAY_AUTH_MODE=token where it starts",
        "job.sh:1: the job is not queued again when a node is lost; #SBATCH --requeue",
    ]
    assert "job.sh: 2 to mend" in done.stderr
    rows = json.loads(isoratio("cluster", "check", "job.sh", "--format", "json", env=alone).stdout)
    assert [row["serious"] for row in rows] == [False, True, True]
    assert set(rows[0]) == {"line", "problem", "advice", "serious"}


def test_another_file_and_none_are_usage_errors(isoratio: Run, tmp_path: Path) -> None:
    (tmp_path / "work/sweep.yaml").write_text("name: a\n")
    done = isoratio("cluster", "check", "sweep.yaml")
    assert done.returncode == 2
    assert "sweep.yaml: expected is a batch script of Slurm" in done.stderr
    assert isoratio("cluster", "check", "missing.yaml").returncode == 2


@pytest.mark.parametrize(
    "arguments", [("cluster", "--help"), ("cluster", "render", "slurm"), ("cluster", "check", "j.sh")]
)
def test_neither_torch_nor_ray_is_imported(isoratio: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    isoratio("cluster", "render", "slurm", "-o", "j.sh")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator.cli", *arguments],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "orchestrator.cluster_commands" in imported
    assert not imported & {"torch", "ray", "duckdb"}
