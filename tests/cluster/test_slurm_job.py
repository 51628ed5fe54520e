"""What a job for Slurm does: the script runs, with stand-ins for Slurm, Ray and the launch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.options import ClusterOptions, Kind
from cluster.rendering import render

JOB = str(4000 * (os.getpid() + 1000) + 711)  # of this process alone
PORT = 20000 + 3 * 711
STANDINS = {
    # Ends with LAUNCH_ENDS; where that is `saves`, waits for SIGTERM and ends as a launch does that has saved itself.
    "isoratio": """
echo "$@" >"$HOME/launched"
ls -l "$RAY_AUTH_TOKEN_PATH" >"$HOME/token"
if [ "$LAUNCH_ENDS" = saves ]; then
  trap 'exit 143' TERM
  touch "$HOME/running"
  while :; do sleep 0.05; done
fi
exit "$LAUNCH_ENDS"
""",
    "scontrol": """
[ "$1" = requeue ] && echo "$2" >>"$HOME/requeued"
[ "$1 $2" = "show node" ] && echo "   NodeAddr=192.0.2.7 NodeHostName=$3"
true
""",
    "getent": 'echo "127.0.1.1 x"; echo "$2 x"',
    "sleep": "exec /bin/sleep 0.05",
    # Two nodes, one after the other begun, each with its number.
    "srun": """
SLURM_NODEID=0 bash "${@: -1}" & first=$!
SLURM_NODEID=1 bash "${@: -1}" & second=$!
trap 'kill $first $second' TERM
wait $first; wait $second
""",
    "ray": """
[ "$1" = stop ] && exit
echo "$SLURM_NODEID $*" >>"$HOME/ray"
[ "$RAY_FAILS" ] && exit 1
while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
shift
if [ "$SLURM_NODEID" = 0 ]; then "$@"; else /bin/sleep 60 || echo "1 ended" >>"$HOME/ray"; fi
""",
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, in which the stand-ins come first; ``HOME`` is where they say what they did."""
    (tmp_path / "bin").mkdir()
    for name, body in STANDINS.items():
        tool = tmp_path / "bin" / name
        tool.write_text(f"#!/bin/bash\n{body}")
        tool.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": JOB,
        "SLURM_CPUS_ON_NODE": "6",
        "SLURMD_NODENAME": "n1",
    }


def start(job: dict[str, str], nodes: int, **more: str) -> subprocess.Popen[str]:
    options = ClusterOptions(workers=(nodes, nodes), setup=(), store="my store", sweep="s.yaml")
    script = Path(job["HOME"]) / "job.sh"
    script.write_text(render(Kind.SLURM, options))
    return subprocess.Popen(["bash", str(script)], env=job | more, stdout=subprocess.DEVNULL, text=True)


def ended(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=30)


def appears(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("code", [0, 1, 2, 4, 130])
def test_a_job_ends_as_its_launch_does(job: dict[str, str], tmp_path: Path, nodes: int, code: int) -> None:
    assert ended(start(job, nodes, LAUNCH_ENDS=str(code))) == code
    assert not (tmp_path / "requeued").exists()
    assert not (tmp_path / f".isoratio-{JOB}").exists()
    launched = (tmp_path / "launched").read_text().strip()
    assert launched.removesuffix(" --address 192.0.2.7:" + str(PORT)) == "launch s.yaml --store my store"
    assert ("--address" in launched) == (nodes > 1)


@pytest.mark.parametrize("nodes", [1, 2])
def test_before_its_time_is_up_a_job_saves_and_queues_itself_again(
    job: dict[str, str], tmp_path: Path, nodes: int
) -> None:
    process = start(job, nodes, LAUNCH_ENDS="saves")
    appears(tmp_path / "running")
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == 143
    assert (tmp_path / "requeued").read_text() == f"{JOB}\n"
    again = start(job, nodes, LAUNCH_ENDS="0", SLURM_RESTART_COUNT="1")  # the same job, in the same directory
    assert ended(again) == 0
    assert (tmp_path / "requeued").read_text() == f"{JOB}\n"


def test_a_sweep_that_is_complete_in_time_is_not_queued_again(job: dict[str, str], tmp_path: Path) -> None:
    isoratio = tmp_path / "bin/isoratio"
    isoratio.write_text(isoratio.read_text().replace("exit 143", "exit 0"))
    process = start(job, 1, LAUNCH_ENDS="saves")
    appears(tmp_path / "running")
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == 0
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_is_cancelled_while_it_saves_is_not_queued_again(job: dict[str, str], tmp_path: Path) -> None:
    isoratio = tmp_path / "bin/isoratio"
    isoratio.write_text(isoratio.read_text().replace("exit 143", "/bin/sleep 1; exit 143"))
    process = start(job, 1, LAUNCH_ENDS="saves")
    appears(tmp_path / "running")
    process.send_signal(signal.SIGUSR1)
    appears(tmp_path / f".isoratio-{JOB}/stop")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 143
    assert not (tmp_path / "requeued").exists()
    assert not (tmp_path / f".isoratio-{JOB}").exists()


def test_a_job_does_not_queue_itself_for_ever(job: dict[str, str], tmp_path: Path) -> None:
    process = start(job, 1, LAUNCH_ENDS="saves", SLURM_RESTART_COUNT="3", ISORATIO_REQUEUES="3")
    appears(tmp_path / "running")
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == 143
    assert not (tmp_path / "requeued").exists()


def test_a_job_told_before_its_launch_began_queues_itself_again(job: dict[str, str], tmp_path: Path) -> None:
    never = "[ $1 = stop ] || { touch $HOME/waiting; exec /bin/sleep 2; }"  # nodes that never come
    (tmp_path / "bin/ray").write_text(f"#!/bin/bash\n{never}\n")
    process = start(job, 2, LAUNCH_ENDS="0")
    appears(tmp_path / "waiting")
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == 143
    assert (tmp_path / "requeued").exists()
    assert not (tmp_path / "launched").exists()


def test_a_cluster_that_does_not_start_is_no_success(job: dict[str, str], tmp_path: Path) -> None:
    assert ended(start(job, 2, LAUNCH_ENDS="0", RAY_FAILS="yes")) == 1
    assert not (tmp_path / "requeued").exists()


def test_only_its_owner_reads_the_token_of_a_job(job: dict[str, str], tmp_path: Path) -> None:
    assert ended(start(job, 1, LAUNCH_ENDS="0")) == 0
    said = (tmp_path / "token").read_text().split()
    assert (said[0], said[4]) == ("-rw-------", "64")


def test_ray_is_given_what_slurm_gave(job: dict[str, str], tmp_path: Path) -> None:
    assert ended(start(job, 2, LAUNCH_ENDS="0")) == 0
    said = (tmp_path / "ray").read_text()
    assert f"0 symmetric-run --address 192.0.2.7:{PORT} --min-nodes 2 --num-cpus 6 --dashboard-host 127.0.0.1" in said
    assert "1 ended" in said
