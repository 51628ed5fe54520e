"""Jobs on a cluster: what comes through, whatever the network does, and who is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dashboard import Dashboard, breaks, free_port, says, stalls
from drivers import Driver

from cluster import ClusterError, jobs
from cluster.connection import check_address
from cluster.jobs import JobServer, LostError, Outcome

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's own use of aiohttp

OUTPUT = "first\nsecond line\n\nfourth: é\nlast, without an end"
LINES = OUTPUT.split("\n")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_EVERY", 0.02)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with Dashboard() as found:
        yield found


def followed(server: JobServer, told: list[str] | None = None, job: str = "job") -> list[str]:
    said = (told if told is not None else []).append
    return [line for line in server.follow(job, said) if line is not None]


def test_output_comes_in_lines_and_the_exit_code_after_it(dashboard: Dashboard) -> None:
    dashboard.tails.append(says(OUTPUT[:3], OUTPUT[3:20], OUTPUT[20:]))
    server = JobServer(dashboard.address)
    assert server.ray_version == "2.60.0"
    assert server.outcome("job") is None
    dashboard.end(3, "why")
    assert followed(server) == LINES
    assert server.outcome("job") == Outcome(3, "why")


@pytest.mark.parametrize("at", [0, 3, 6, 17, 20, len(OUTPUT)])
def test_a_connection_that_breaks_loses_and_repeats_nothing(dashboard: Dashboard, at: int) -> None:
    dashboard.tails.extend([breaks(OUTPUT[:at]), breaks(OUTPUT[:at], OUTPUT[at : at + 4]), says(OUTPUT)])
    dashboard.end(0)
    told: list[str] = []
    assert followed(JobServer(dashboard.address), told) == LINES
    assert "broke off" in told[0]
    assert told[1] == f"{dashboard.address} answers again"


def test_a_connection_that_is_dead_without_a_word_is_made_anew(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RENEW_AFTER", 1.0)
    dashboard.tails.extend([stalls(OUTPUT[:8]), says(OUTPUT)])
    dashboard.end(0)
    told: list[str] = []
    assert followed(JobServer(dashboard.address), told) == LINES
    assert told == []


def test_silence_is_told_every_second(dashboard: Dashboard) -> None:
    dashboard.tails.append(stalls("begun\n"))
    output = JobServer(dashboard.address).follow("job")
    assert [next(output) for _ in range(3)] == ["begun", None, None]
    output.close()


def test_a_cluster_that_comes_back_is_followed_further() -> None:
    told: list[str] = []
    with ExitStack() as stack:
        first, again = Dashboard(), Dashboard()
        again.tails.append(says("begun\n", "and ended\n"))
        again.end(0)

        def trouble(why: str) -> None:
            told.append(why)
            if len(told) == 1:
                again.port = first.port
                stack.enter_context(again)

        with first:
            first.tails.append(stalls("begun\n"))
            output = JobServer(first.address).follow("job", trouble)
            assert next(output) == "begun"
        assert [line for line in output if line is not None] == ["and ended"]
    assert len(told) == 2
    assert told[1] == f"{first.address} answers again"


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    told: list[str] = []
    with Dashboard() as dashboard:
        dashboard.tails.append(stalls())
        output = JobServer(dashboard.address).follow("job", told.append)
        assert next(output) is None
    with pytest.raises(LostError, match=f"no answer from '{dashboard.address}': Connection refused"):
        list(output)
    assert len(told) == 1


def test_a_job_that_is_unknown_is_said_at_once(dashboard: Dashboard) -> None:
    with pytest.raises(ClusterError, match="answers: Request failed with status code 404") as raised:
        next(JobServer(dashboard.address).follow("other"))
    assert not isinstance(raised.value, LostError)


def test_what_is_submitted_takes_no_cpu_and_holds_no_token(dashboard: Dashboard, tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("a", "b")
    JobServer(dashboard.address).submit("isoratio-x", "true", package, {"OWN": "1"})
    environment = dashboard.submitted["runtime_env"]
    assert dashboard.submitted["submission_id"] == "isoratio-x"
    assert dashboard.submitted["entrypoint_num_cpus"] == 0
    assert environment["working_dir"].startswith("gcs://")
    assert environment["env_vars"] == {"OWN": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert "right" not in str(dashboard.submitted)
    assert {token for _, path, token in dashboard.asked if "mode" not in path} == {"Bearer right"}


def test_the_token_comes_from_where_ray_looks_for_it(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=f"asks for a token, and there is none in {tmp_path}/.ray/auth_token: "):
        JobServer(dashboard.address)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("right\n")
    assert JobServer(dashboard.address).guarded
    (tmp_path / "other").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    with pytest.raises(ClusterError, match="refuses our token: set RAY_AUTH_TOKEN_PATH") as raised:
        JobServer(dashboard.address)
    assert "wrong" not in str(raised.value)


def test_a_cluster_without_a_token_gets_none_and_is_exposed_unless_it_is_here() -> None:
    with Dashboard(mode="disabled") as dashboard:
        server = JobServer(dashboard.address)
        assert not server.guarded
        assert not server.exposed
        assert {token for _, _, token in dashboard.asked} == {None}
        server.address = "http://10.0.0.1:8265"
        assert server.exposed
        server.guarded = True
        assert not server.exposed


def test_an_older_dashboard_asks_for_no_token() -> None:
    with Dashboard(mode=None) as dashboard:
        assert not JobServer(dashboard.address).guarded


def test_variables_for_ray_do_not_replace_the_address(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert JobServer(dashboard.address).ray_version == "2.60.0"
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ftp://host:8265", r"http://HOST:8265 of a Ray dashboard is expected"),
        ("http://", r"http://HOST:8265 of a Ray dashboard is expected"),
        ("http://host:port", r"http://HOST:8265 of a Ray dashboard is expected"),
        ("http://me:secret@host:8265", r"^an address holds no credentials: set RAY_AUTH_TOKEN_PATH"),
        ("http://host:8265?token=secret", r"^an address holds no credentials: set RAY_AUTH_TOKEN_PATH"),
        ("http://127.0.0.1:1", r"no Ray dashboard answers at 'http://127\.0\.0\.1:1': Connection refused"),
    ],
)
def test_a_wrong_address_is_said(address: str, problem: str) -> None:
    with pytest.raises(ClusterError, match=problem):
        JobServer(address)


def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "TIMEOUT", (1, 0.3))
    monkeypatch.setattr("cluster.greeting.TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(LostError, match="it took too long"):
        JobServer(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_the_port_of_a_dashboard_is_not_joined(dashboard: Dashboard) -> None:
    with pytest.raises(
        ClusterError, match=rf"is the port of a dashboard, for jobs: give --address {dashboard.address}$"
    ):
        check_address(f"127.0.0.1:{dashboard.port}")


HEAD = """
import sys
from ray.scripts.scripts import main
sys.argv = "ray start --head --block --num-cpus 1 --disable-usage-stats --dashboard-agent-listen-port 0".split()
sys.argv += {arguments!r}
main()
"""

STOPPED = """
import os, signal, sys, time
sys.path.remove(os.getcwd())
import there

def end(number, frame):
    time.sleep(4)
    print("saved", os.environ["OWN"])
    sys.exit(7)

signal.signal(signal.SIGTERM, end)
print(there.NAME, flush=True)
time.sleep(60)
"""


@pytest.mark.long
def test_on_a_real_ray(tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit codes, a command that is told to end and takes longer than Ray's 3 s, and ports that are mixed up."""
    port, web = free_port(), free_port()
    arguments = ["--temp-dir", str(short_tmp), "--port", str(port), "--dashboard-port", str(web)]
    package = tmp_path / "package.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("run.py", STOPPED)
        archive.writestr("there.py", "NAME = 'imported'")
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right" * 8}
    with Driver(HEAD.format(arguments=arguments), tmp_path, short_tmp, **environment) as head:
        while "--block" not in (line := head.line()):
            assert head.process.poll() is None, line
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        server = JobServer(f"http://127.0.0.1:{web}")
        server.submit("first", "echo said; exit 3", package, {})
        assert "said" in followed(server, job="first")
        assert server.outcome("first").exit_code == 3

        server.submit("second", "python3 run.py", package, {"OWN": "mine"})
        said = []
        for line in server.follow("second"):
            said += [line] if line else []
            if line == "imported":
                server.stop("second")
        assert said[-1] == "saved mine"
        server.forget("second")
        with pytest.raises(ClusterError, match="404"):
            server.outcome("second")

        with pytest.raises(ClusterError, match=r"is a port of Ray itself.*give http://127\.0\.0\.1:8265"):
            JobServer(f"http://127.0.0.1:{port}")
        assert node_check(port) == "127.0.0.1 joined"
        refused = node_check(port, RAY_AUTH_TOKEN="wrong" * 8)
        assert "refuses our token, or asks for one: set RAY_AUTH_MODE=token" in refused
        missing = node_check(port, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH="/missing")
        assert missing == "RAY_AUTH_TOKEN_PATH is set to /missing, and there is no such file"
        apart = node_check(port, hidden=True)
        assert f"no node of the Ray at '127.0.0.1:{port}' runs on this machine: launch on one of its nodes; " in apart
        assert ":8265, its dashboard, does from anywhere" in apart


NODE_CHECK = """
import ray._private.services
from cluster import connection
connection.FIND_TIMEOUT = 1.0
if {hidden}:
    ray._private.services.find_node_ids = set
address = "127.0.0.1:{port}"
try:
    connection.check_node(address, connection.check_address(address))
    print("127.0.0.1 joined")
except connection.ClusterError as error:
    print(error)
"""


def node_check(port: int, *, hidden: bool = False, **environment: str) -> str:
    """What a process of this machine hears that would join the Ray at ``port``; ``hidden``: as if it were another's."""
    script = NODE_CHECK.format(port=port, hidden=hidden)
    command = [sys.executable, "-c", script]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
