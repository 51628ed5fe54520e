"""Real processes on a real Ray, killed for real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

# Packs of 5, each about a second: long enough to be interrupted, short enough for a test.
SWEEP = """\
name: killed
dataset: digits
train: {epochs: 10}
grid:
  ratio: [0.0005, 0.002]
  batch_size: [16, 64]
  label_noise: [0.0, 0.25]
  seed: {range: 5}
measure: {at: {every: 5}, hessian: {top: 2, trace_probes: 4, examples: 256}}
pack: {max_trials: 5}
"""

ENDPOINTS = """
SELECT trial_id, status, steps, train_loss, test_loss, train_accuracy, test_accuracy, memorized, lambda_max,
    lambda_max_residual, lambda_min, hessian_trace, hessian_trace_se, hessian_frobenius, gradient_norm
FROM trials ORDER BY trial_id"""


def endpoints(isoratio: Run, store: str) -> list[dict[str, object]]:
    found = isoratio("sql", ENDPOINTS, "--store", store, "--format", "json")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def files(store: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in store.glob("*/trials/*.parquet")}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def sweep(tmp_path: Path, isoratio: Run) -> Path:
    file = tmp_path / "work" / "sweep.yaml"
    file.write_text(SWEEP)
    return file


@pytest.fixture(scope="module")
def uninterrupted(shared: tuple[Path, Run]) -> list[dict[str, object]]:
    """What every way through the sweep has to come to: in one go, without Ray."""
    work, isoratio = shared
    (work / "sweep.yaml").write_text(SWEEP)
    done = isoratio("launch", "sweep.yaml", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert "40/40 trials done" in done.stderr
    return endpoints(isoratio, "results")


def left_running(home: Path) -> Iterator[str]:
    """Command lines of processes that belong to this test: Ray's included, since all inherit its HOME."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if f"HOME={home}".encode() in environment.split(b"\0"):
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue


def test_a_launch_killed_in_the_middle_is_resumed_to_the_same_bits(
    tmp_path: Path, sweep: Path, isoratio: Run, start: Start, uninterrupted: list[dict[str, object]]
) -> None:
    store = tmp_path / "work" / "results"
    process = start("launch", sweep)
    wait_for(lambda: len(files(store)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if not list(left_running(tmp_path / "home")):
            break
        time.sleep(0.1)
    assert list(left_running(tmp_path / "home")) == []
    kept = files(store)
    assert 2 <= len(kept) < 8
    (state,) = json.loads(isoratio("status", "killed", "--format", "json").stdout)
    assert state["state"] == "interrupted"
    assert state["finished"] == 5 * len(kept)
    assert state["planned"] == 40
    resumed = isoratio("resume", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{5 * len(kept)} done before" in resumed.stderr
    after = files(store)
    assert kept.items() <= after.items()
    assert len(after) == 8
    assert endpoints(isoratio, "results") == uninterrupted
    doubled = isoratio("sql", "SELECT trial_id FROM trials GROUP BY trial_id HAVING count(*) > 1", "--format", "json")
    assert json.loads(doubled.stdout) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_stops_after_committing(
    tmp_path: Path, sweep: Path, isoratio: Run, start: Start, number: signal.Signals, code: int
) -> None:
    store = tmp_path / "work" / "results"
    process = start("launch", sweep)
    wait_for(lambda: len(files(store)) >= 1, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the whole group
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    assert "isoratio resume killed" in out
    assert "Traceback" not in out
    assert list(left_running(tmp_path / "home")) == []
    (state,) = json.loads(isoratio("status", "killed", "--format", "json").stdout)
    assert state["state"] == "stopped"
    assert 0 < state["finished"] < 40
    assert state["failed"] == 0


def test_another_launch_is_refused_and_stop_reaches_the_first(
    tmp_path: Path, sweep: Path, isoratio: Run, start: Start
) -> None:
    sweep.write_text(SWEEP.replace("epochs: 10", "epochs: 30"))
    process = start("launch", sweep)
    wait_for(lambda: (tmp_path / "work/results/killed/lease/000001.json").exists(), process)
    refused = isoratio("launch", sweep)
    assert refused.returncode == 4
    assert f"process {process.pid} on" in refused.stderr

    def running() -> dict[str, object]:
        (state,) = json.loads(isoratio("status", "killed", "--format", "json").stdout)
        return state

    assert running()["state"] == "running"
    wait_for(lambda: running()["running"], process)
    assert "asked the launch of killed to stop" in isoratio("stop", "killed").stderr
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "go on with: isoratio resume killed" in out


def test_a_detached_launch_outlives_its_command_and_gives_the_numbers_of_the_inline_executor(
    sweep: Path, isoratio: Run, uninterrupted: list[dict[str, object]]
) -> None:
    begun = time.monotonic()
    done = isoratio("launch", sweep, "--detach")
    assert done.returncode == 0, done.stderr
    assert "isoratio logs killed --follow" in done.stderr
    assert time.monotonic() - begun < 20
    followed = isoratio("logs", "killed", "--follow", timeout=120)
    assert "40/40 trials done" in followed.stdout, followed.stdout
    (state,) = json.loads(isoratio("status", "killed", "--format", "json").stdout)
    assert state["state"] == "complete"
    assert endpoints(isoratio, "results") == uninterrupted


def test_a_launch_joins_a_running_ray(tmp_path: Path, isoratio: Run, environment: dict[str, str], sweep: Path) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = [
        ray,
        "start",
        "--head",
        "--num-cpus=2",
        f"--port={port}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    sweep.write_text(SWEEP.replace("epochs: 10", "epochs: 1"))
    started = subprocess.run(head, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        done = isoratio("launch", sweep, "--address", f"127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr
        assert "40/40 trials done" in done.stderr
    finally:
        for line in list(left_running(tmp_path / "home")):
            assert "ray" in line
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"HOME={tmp_path / 'home'}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


def test_an_address_where_nothing_listens_is_said_in_seconds(isoratio: Run, sweep: Path) -> None:
    begun = time.monotonic()
    known = {"RAY_ADDRESS": "127.0.0.1:2"}  # or else auto joins whatever Ray runs on this machine
    for address in ("127.0.0.1:1", "http://127.0.0.1:8265", "auto"):
        refused = isoratio("launch", sweep, "--address", address, env=known)
        assert refused.returncode == 2, refused.stderr
        assert repr(address) in refused.stderr
        assert "Traceback" not in refused.stderr
    assert time.monotonic() - begun < 60
