"""Sweeps launched over HTTP on a real Ray head, through the command line, by a user whose machine is no part of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "trainables"))  # for the object store
from s3_server import S3Server, serving

from orchestrator import launch, remote
from orchestrator.job import SAME, versions
from trainables.storage import StoreError

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's own use of aiohttp

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

TOKEN = "a token of thirty-two characters, or so"

NETS = """\
import torch

from helpers.widths import WIDTH

def net(input_shape, num_classes):
    print("printed by the user's own code")
    return torch.nn.Sequential(torch.nn.Linear(input_shape[0], WIDTH), torch.nn.Linear(WIDTH, num_classes))
"""

SWEEP = """\
name: small
dataset: {name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}
train: {epochs: 2}
grid: {arch: ["nets:net"], ratio: [0.001, 0.01], batch_size: [4], seed: {range: 4}}
measure: {at: [], hessian: {top: 1, trace_probes: 2, examples: 40}}
"""

NAPS = """\
name: naps
dataset: digits
train: {call: "naps:nap"}
grid: {lr: [0.1], batch_size: [8], seed: {range: 40}}
pack: {max_trials: 1}
"""

NAP = """\
import time

def nap(config):
    time.sleep(0.5)
    return {"test_loss": float(config["seed"])}
"""


@dataclass
class Head:
    """A Ray with a dashboard that asks for a token.

    Attributes:
        address: of the dashboard.
        user: what the machine of a user has in its environment who may use it.
        process: which runs it.
        objects: an object store whose keys the head has in its environment.
    """

    address: str
    user: dict[str, str]
    process: subprocess.Popen[bytes]
    objects: S3Server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def below(pid: int) -> set[int]:
    """A process and what comes from it."""
    found, parents = {pid}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture(scope="module")
def objects() -> Iterator[S3Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, objects: S3Server) -> Iterator[Head]:
    home, port, web = tmp_path_factory.mktemp("head"), free_port(), free_port()
    (home / "token").write_text(TOKEN)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "token")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ISORATIO"))}
    short = tempfile.mkdtemp(prefix="r", dir="/tmp")  # for Ray's sockets
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--num-cpus=2", "--object-store-memory=80000000", f"--temp-dir={short}", f"--port={port}"]
    command += [f"--dashboard-port={web}", "--dashboard-agent-listen-port=0"]
    with (home / "output").open("wb") as output:
        environment = kept | token | objects.environment() | {"HOME": str(home)}
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=output, stderr=output)
    try:
        while b"--block" not in (home / "output").read_bytes():
            assert process.poll() is None, (home / "output").read_text()
            time.sleep(0.1)
        yield Head(f"http://127.0.0.1:{web}", token, process, objects)
    finally:
        for pid in below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def work(head: Head, tmp_path: Path, environment: dict[str, str], isoratio: Run) -> Path:
    """The user's directory, with modules and sweeps; the token is in the environment."""
    environment |= head.user
    found = tmp_path / "work"
    for name in ("helpers", "analysis"):
        (found / name).mkdir()
    (found / "analysis/__init__.py").write_text("raise RuntimeError('not ours')")
    (found / "helpers/widths.py").write_text("WIDTH = 4")
    (found / "nets.py").write_text(NETS)
    (found / "naps.py").write_text(NAP)
    (found / "sweep.yaml").write_text(SWEEP)
    (found / "naps.yaml").write_text(NAPS)
    return found


def rows(isoratio: Run, store: Path) -> list[dict[str, Any]]:
    query = "SELECT trial_id, status, test_loss, lambda_max FROM trials ORDER BY ALL"
    found: list[dict[str, Any]] = json.loads(isoratio("sql", query, "--store", store, "--format", "json").stdout)
    return found


def test_a_sweep_with_modules_of_the_users_own(head: Head, work: Path, tmp_path: Path, isoratio: Run) -> None:
    store, here = tmp_path / "store", tmp_path / "here"
    there = ("--address", head.address, "--store", store)
    done = isoratio("launch", "sweep.yaml", *there)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("8/8 trials done (0 diverged), 0 failed") == 1
    assert done.stderr.endswith(f"next: isoratio invariance small --store {store}\n")
    assert isoratio("launch", "sweep.yaml", "--executor", "inline", "--store", here).returncode == 0
    assert rows(isoratio, store) == rows(isoratio, here)

    read = isoratio("status", "--format", "json", *there)
    assert json.loads(read.stdout) == json.loads(isoratio("status", "--format", "json", "--store", store).stdout)
    assert read.stderr == ""
    assert TOKEN not in done.stderr + "".join(p.read_text(errors="replace") for p in store.rglob("*.json"))


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def state(isoratio: Run, store: Path, sweep: str = "naps") -> dict[str, Any]:
    """What the store says of a sweep."""
    [row] = json.loads(isoratio("status", sweep, "--store", store, "--format", "json").stdout)
    return row


def said(process: subprocess.Popen[str], text: str) -> str:
    """What a command has written, up to the line with a text."""
    assert process.stdout is not None
    read = ""
    while text not in read:
        line = process.stdout.readline()
        assert line, read
        read += line
    return read


@pytest.mark.long
def test_a_launch_that_nobody_follows(head: Head, work: Path, tmp_path: Path, isoratio: Run, start: Start) -> None:
    """Detached; looked at, stopped and resumed through the cluster; held against a second launch."""
    store = tmp_path / "store"
    there = ("--address", head.address, "--store", store)
    (work / "naps.yaml").write_text(NAPS.replace("40", "120"))
    left = isoratio("launch", "naps.yaml", "--detach", *there)
    assert left.returncode == 0, left.stderr
    assert (
        f"naps goes on at {head.address}: `isoratio status naps --store {store} --address {head.address}`"
        in left.stderr
    )
    assert state(isoratio, store)["state"] == "running"

    second = isoratio("launch", "naps.yaml", *there)
    assert second.returncode == 4
    assert "isoratio: sweep 'naps' is being run by" in second.stderr
    assert "Traceback" not in second.stderr

    following = start("logs", "naps", "--follow", *there)
    said(following, "120 trials planned")
    stopped = isoratio("stop", "naps", *there)
    assert (stopped.returncode, stopped.stderr) == (0, "asked the launch of naps to stop\n")
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert "go on with: isoratio resume naps" in out
    until(lambda: state(isoratio, store)["state"] == "stopped")
    assert isoratio("stop", "naps", *there).stderr == "no launch of naps is running\n"

    (work / "naps.py").write_text(NAP.replace("0.5", "0"))
    resumed = isoratio("resume", "naps", *there)
    assert resumed.returncode == 0, resumed.stderr
    assert "warning: naps:nap has changed since trials of this sweep ran" in resumed.stderr
    assert "120/120 trials done" in resumed.stderr
    unknown = isoratio("resume", "other", *there)
    assert (unknown.returncode, unknown.stderr.splitlines()[-1]) == (
        2,
        f"isoratio: no sweep 'other' in {store}: it holds naps",
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_goes_away_leaves_the_launch(
    head: Head, work: Path, tmp_path: Path, isoratio: Run, start: Start, number: int
) -> None:
    store = tmp_path / "store"
    following = start("launch", "naps.yaml", "--address", head.address, "--store", store)
    said(following, "40 trials planned")
    following.send_signal(number)
    out, _ = following.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert following.returncode == 143
        assert f"naps goes on at {head.address}: " in out
        assert "stopped at once" not in out
    else:
        assert following.returncode == -number
    until(lambda: state(isoratio, store)["state"] == "complete")
    assert state(isoratio, store)["finished"] == 40


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_asks_the_launch_there_to_stop(
    head: Head, work: Path, tmp_path: Path, isoratio: Run, start: Start, times: int
) -> None:
    store = tmp_path / "store"
    following = start("launch", "naps.yaml", "--address", head.address, "--store", store)
    said(following, "40 trials planned")
    for _ in range(times):
        following.send_signal(signal.SIGINT)
        time.sleep(1)
    out, _ = following.communicate(timeout=120)
    assert following.returncode == 130, out
    assert out.count("the launch on the cluster has been asked to stop") >= 1
    assert "go on with: isoratio resume naps" in out
    row = state(isoratio, store)
    assert row["state"] == "stopped"
    assert row["pending"] > 0


@pytest.mark.long
def test_two_sweeps_side_by_side(head: Head, work: Path, tmp_path: Path, isoratio: Run, start: Start) -> None:
    store = tmp_path / "store"
    (work / "other.yaml").write_text(NAPS.replace("name: naps", "name: other").replace("40", "10"))
    both = [start("launch", name, "--address", head.address, "--store", store) for name in ("naps.yaml", "other.yaml")]
    for process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    assert {row["state"] for row in (state(isoratio, store, name) for name in ("naps", "other"))} == {"complete"}


@pytest.mark.long
def test_what_goes_wrong_there_is_said_here(
    head: Head, work: Path, tmp_path: Path, isoratio: Run, environment: dict[str, str]
) -> None:
    there = ("--address", head.address, "--store", tmp_path / "store")
    refused = isoratio("launch", "naps.yaml", *there, env={"RAY_AUTH_TOKEN": "wrong"})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "refuses our token" in refused.stderr

    (work / "naps.py").write_text("def nap(config):\n    raise RuntimeError('of its own')\n")
    (work / "naps.yaml").write_text(NAPS.replace("40", "2") + "retries: 0\n")
    failed = isoratio("launch", "naps.yaml", *there)
    assert failed.returncode == 1, failed.stderr
    assert "0/2 trials done (0 diverged), 2 failed" in failed.stderr

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/only_here.py").write_text("")
    (work / "naps.py").write_text("import only_here\n" + NAP)
    missing = isoratio("launch", "naps.yaml", *there, env={"PYTHONPATH": str(tmp_path / "elsewhere")})
    assert missing.returncode == 2
    assert "isoratio: naps.yaml:3:15: train.call: cannot import 'naps'" in missing.stderr
    assert "No module named 'only_here'" in missing.stderr


@pytest.mark.long
def test_other_versions_there_are_refused_before_anything_is_done(
    head: Head, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in head.user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(work)
    store = tmp_path / "store"
    monkeypatch.setattr(
        "orchestrator.package.versions", lambda packages: versions(SAME) | {"python": "3.4", "torch": "1"}
    )
    with pytest.raises(
        ValueError, match=r"it has python 3\.\d+, and this machine 3\.4; it has torch .*, and this machine 1"
    ):
        launch("naps.yaml", store, address=head.address)
    monkeypatch.setattr(remote, "version", lambda name: "1.0")
    with pytest.raises(ValueError, match=r"runs Ray 2\.\S+, and this machine has Ray 1\.0: give every node"):
        launch("naps.yaml", store, address=head.address)
    with pytest.raises(StoreError, match="that would be a directory of the cluster's head alone"):
        launch("naps.yaml", address=head.address)
    assert not store.exists()


@pytest.mark.long
def test_an_object_store_that_only_the_cluster_has_the_keys_of(
    head: Head, work: Path, isoratio: Run, environment: dict[str, str]
) -> None:
    store = f"s3://{head.objects.bucket()}/results"
    done = isoratio("launch", "sweep.yaml", "--address", head.address, "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"next: isoratio invariance small --store {store}\n")
    there = isoratio("status", "--address", head.address, "--store", store, "--format", "json")
    assert json.loads(there.stdout)[0]["finished"] == 8
    environment |= head.objects.environment()
    assert isoratio("status", "--store", store, "--format", "json").stdout == there.stdout
    left = isoratio("resume", "small", "--address", head.address, "--store", store, "--detach")
    assert left.returncode == 0, left.stderr


@pytest.mark.long
def test_a_job_that_is_stopped_by_rays_own_means_saves_itself(
    head: Head, work: Path, tmp_path: Path, isoratio: Run, start: Start, environment: dict[str, str]
) -> None:
    store = tmp_path / "store"
    following = start("launch", "naps.yaml", "--address", head.address, "--store", store)
    job = said(following, "40 trials planned").partition(" as job ")[2].split()[0]
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run(
        [ray, "job", "stop", job, "--address", head.address], env=environment, check=True, capture_output=True
    )
    out, _ = following.communicate(timeout=60)
    assert following.returncode == 130, out
    assert f"go on with: isoratio resume naps --store {store} --address {head.address}" in out
    assert state(isoratio, store)["state"] == "stopped"
