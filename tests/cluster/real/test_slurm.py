"""Jobs in a real Slurm: the rendered script, and what becomes of it when its time is up or a node is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import slurm
from namespaces import missing, network, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
    pytest.mark.timeout(1200),
]

SWEEP = """\
name: small
dataset: {name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}
train: {epochs: 20}
grid: {arch: ["nets:net"], ratio: [0.001, 0.01], batch_size: [4], seed: {range: 8}}
measure: {at: [], hessian: {top: 1, trace_probes: 2, examples: 40}}
pack: {max_trials: 2}
"""
NETS = """\
import os
import socket
import time

import torch


class Slow(torch.nn.Linear):
    def forward(self, inputs):
        time.sleep(float(os.environ["STEP_SECONDS"]))
        return super().forward(inputs)


def net(input_shape, num_classes):
    with open("ran", "a") as file:
        print(socket.gethostname(), file=file)
    return Slow(input_shape[0], num_classes)
"""
"""Slow steps, of which a pack has about 240, and where each was made."""
TRIALS = 16
VALUES = "SELECT trial_id, status, test_loss, lambda_max, hessian_trace FROM trials ORDER BY ALL"
ONCE = "SELECT count(*) AS rows, count(DISTINCT trial_id) AS trials FROM trials"

Row = dict[str, Any]


@dataclass
class Site:
    """A Slurm, and somebody with a sweep in their HOME on its login node."""

    slurm: slurm.Slurm
    home: Path

    def isoratio(self, *args: object) -> str:
        """A command on the login node."""
        done = self.slurm.login.run("isoratio", *args)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def render(self, *options: object) -> None:
        """Writes ``job.sh``, with which nothing is wrong, as Slurm says too."""
        self.isoratio("cluster", "render", "slurm", *options, "--store", "results", "-o", "job.sh")
        self.isoratio("cluster", "check", "job.sh")

    def status(self) -> Row:
        """What the store says of the sweep."""
        rows: list[Row] = json.loads(self.isoratio("status", "--store", "results", "--format", "json"))
        return next(iter(rows), {"finished": 0, "running": 0})

    def rows(self, query: str) -> list[Row]:
        found: list[Row] = json.loads(self.isoratio("sql", query, "--store", "results", "--format", "json"))
        return found

    def ran(self) -> list[str]:
        """The machines on which packs began, in order."""
        return (self.home / "ran").read_text().split() if (self.home / "ran").exists() else []

    def complete(self, job: int, values: list[Row]) -> None:
        """The job is done, nothing is lost, nothing is there twice, and every value is that of an undisturbed run."""
        assert self.slurm.ended(job) == "COMPLETED", self.slurm.log(job)
        assert self.rows(ONCE) == [{"rows": TRIALS, "trials": TRIALS}]
        assert self.rows(VALUES) == values
        assert (self.status()["state"], self.status()["failed"]) == ("complete", 0)
        assert re.search(r" the launch has ended with exit code 0(;.*)?\n", self.slurm.log(job))

    def gone(self, job: int) -> None:
        """Nothing of the job is left."""
        assert not (self.home / f".isoratio-{job}").exists()
        for node in self.slurm.nodes:
            assert not re.search(r"ray::|raylet|gcs_server|isoratio launch", node.run("ps", "-eo", "args").stdout)
            assert "ray" not in node.run("ls", "/tmp").stdout


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    with network() as net:

        def make(*nodes: str) -> Site:
            found = slurm.start(net, *nodes)
            (found.login.home / "sweep.yaml").write_text(SWEEP)
            (found.login.home / "nets.py").write_text(NETS)
            return Site(found, found.login.home)

        yield make


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What the sweep gives in one process of one machine that loses nothing."""
    here = tmp_path_factory.mktemp("here")
    (here / "sweep.yaml").write_text(SWEEP)
    (here / "nets.py").write_text(NETS)
    isoratio = [str(Path(sys.executable).with_name("isoratio"))]
    launch = [*isoratio, "launch", "sweep.yaml", "--executor", "inline"]
    subprocess.run(launch, cwd=here, check=True, env=os.environ | {"STEP_SECONDS": "0"})
    done = subprocess.run([*isoratio, "sql", VALUES, "--format", "json"], cwd=here, check=True, capture_output=True)
    found: list[Row] = json.loads(done.stdout)
    assert len(found) == TRIALS
    return found


def test_a_job_of_one_node_that_is_told_by_hand_to_save_goes_on(site: Callable[..., Site], values: list[Row]) -> None:
    here = site("n1")
    here.render("--time-limit", "30:00")
    job = here.slurm.submit("job.sh", STEP_SECONDS="0.02")
    until(lambda: here.status()["finished"] > 0, 300)
    here.slurm.tell("scancel", "--batch", "--signal=USR1", job)
    here.slurm.queued_again(job)
    assert 0 < here.status()["finished"] < TRIALS
    here.complete(job, values)
    assert set(here.ran()) == {"n1"}
    here.gone(job)


def test_a_job_that_is_cancelled_while_it_saves_does_not_come_again(site: Callable[..., Site]) -> None:
    here = site("n1")
    here.render()
    job = here.slurm.submit("job.sh", STEP_SECONDS="0.05")
    until(lambda: here.status()["running"] > 0, 300)
    here.slurm.tell("scancel", "--batch", "--signal=USR1", job)
    until(lambda: "told to save" in here.slurm.log(job))
    here.slurm.tell("scancel", job)
    assert here.slurm.ended(job, 120) == "CANCELLED"
    until(lambda: here.slurm.idle() == 1)
    assert here.slurm.show(job)["Restarts"] == "0", here.slurm.log(job)
    here.gone(job)


def test_a_job_of_two_nodes_whose_time_is_up_saves_and_goes_on(site: Callable[..., Site], values: list[Row]) -> None:
    here = site("n1", "n2")
    here.render("--workers", 2, "--time-limit", "4:00")
    job = here.slurm.submit("job.sh", STEP_SECONDS="0.1")
    here.slurm.queued_again(job)
    saved = list((here.home / "results/small/checkpoints").iterdir())
    assert saved
    assert here.status()["state"] == "stopped"
    here.slurm.tell("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # enough for the rest
    here.complete(job, values)
    assert set(here.ran()) == {"n1", "n2"}
    here.gone(job)
    told = r" told to save and to queue again\n"
    ended = r" the launch has ended with exit code 143; what Ray says from here on is about its own end\n"
    again = r" the sweep is not complete: queued again\n"
    rest = rf"small: {TRIALS} trials planned, \d+ done before"
    assert re.search(rf"{told}.*{ended}.*{again}.*{rest}", here.slurm.log(job), re.DOTALL), here.slurm.log(job)


def test_a_job_that_is_cancelled_leaves_nothing_and_one_that_loses_a_node_goes_on(
    site: Callable[..., Site], values: list[Row]
) -> None:
    here = site("n1", "n2", "n3")
    here.render("--workers", 2)
    job = here.slurm.submit("job.sh", STEP_SECONDS="0.1")
    until(lambda: "n2" in here.ran(), 300)
    here.slurm.tell("scancel", job)
    assert here.slurm.ended(job, 60) == "CANCELLED"
    until(lambda: here.slurm.idle() == 3)
    here.gone(job)

    begun = here.ran().count("n2")
    job = here.slurm.submit("job.sh", STEP_SECONDS="0.05")
    until(lambda: here.ran().count("n2") > begun, 300)
    lost = here.slurm.nodes.pop(1)
    lost.kill()
    here.complete(job, values)
    assert here.slurm.show(job)["Restarts"] == "1"
    assert set(here.ran()) == {"n1", "n2", "n3"}
    assert "DUE TO NODE FAILURE" in here.slurm.log(job)
    here.gone(job)
