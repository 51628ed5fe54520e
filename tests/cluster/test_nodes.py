"""What the nodes of a Ray say of themselves, when they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import ClusterError, nodes
from cluster.nodes import ask_nodes, look


def test_nothing_at_an_address() -> None:
    with pytest.raises(ClusterError, match=r"no Ray to join at '127\.0\.0\.1:9'"):
        look("127.0.0.1:9")


def test_what_happens_to_the_other_process_is_an_error_here() -> None:
    assert nodes._apart(divmod, 7, 2) == (3, 1)
    with pytest.raises(ClusterError, match=r"the connection to the Ray at 3 broke: $"):
        nodes._apart(os._exit, 3)
    with pytest.raises(ClusterError, match="broke: ZeroDivisionError"):
        nodes._apart(divmod, 1, 0)
    with pytest.raises(ClusterError, match=r"the Ray at 60 gave no answer in 0\.5 s"):
        nodes._apart(time.sleep, 60, seconds=0.5)


def test_one_of_its_calls_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    assert nodes._apart(os.getenv, "RAY_AUTH_TOKEN") == "secret"
    assert nodes._apart(os.getenv, "RAY_AUTH_TOKEN", without_token=True) is None
    assert nodes._apart(os.getenv, "RAY_AUTH_TOKEN_PATH", without_token=True) is None
    assert nodes._apart(os.getenv, "RAY_AUTH_MODE", without_token=True) == "disabled"


def test_ports_that_take_no_connection() -> None:
    import socket

    with socket.socket() as taken, socket.socket() as closed:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        closed.bind(("127.0.0.1", 0))
        ports = {"NodeManagerPort": taken.getsockname()[1], "ObjectManagerPort": closed.getsockname()[1]}
        node = {"NodeManagerAddress": "127.0.0.1", **ports}
        assert nodes._closed(node) == (f"127.0.0.1:{ports['ObjectManagerPort']}",)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
second = cluster.add_node(num_cpus=2)
print(cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
WORK = """
import os
import sys

def work(argument, counted):
    if argument == counted["CPU"]:
        raise ValueError("first\\nsecond")
    return counted["CPU"], "sent" in sys.modules, os.getpid()
"""


@contextmanager
def two_nodes(short_tmp: Path) -> Iterator[tuple[str, int]]:
    """Its address, and the process of its second node's raylet."""
    command = [sys.executable, "-P", "-c", CLUSTER]
    environment = {**os.environ, "RAY_TMPDIR": str(short_tmp)}
    pipes: Mapping[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as cluster:
        address, raylet = cluster.stdout.readline().split()  # type: ignore[union-attr]
        try:
            yield address, int(raylet)
        finally:
            os.kill(int(raylet), signal.SIGCONT)
            cluster.stdin.close()  # type: ignore[union-attr]


@pytest.mark.long
def test_every_node_answers_for_itself(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token, a function that only this process knows, one that fails on a node, and one node that hangs."""
    token = short_tmp / "token"
    token.write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    (short_tmp / "own").mkdir()
    (short_tmp / "own" / "sent.py").write_text(WORK)
    with two_nodes(short_tmp) as (address, raylet):
        monkeypatch.setenv("PYTHONPATH", str(short_tmp / "own"))
        monkeypatch.syspath_prepend(short_tmp / "own")
        import sent  # type: ignore[import-not-found]

        found = look(address)
        assert (found.address, found.is_open) == (address, False)
        assert found.python == ".".join(map(str, sys.version_info[:3]))

        answers = ask_nodes(address, sent.work, 2, modules=["sent"])
        assert len({answer.node for answer in answers}) == 2
        assert sorted((a.result or [0])[0] for a in answers) == [0, 1]
        assert sorted(a.error for a in answers) == ["", "ValueError: first"]
        assert all(a.closed == () and abs(a.ahead or 9) < 1 for a in answers)

        os.kill(raylet, signal.SIGSTOP)
        answers = ask_nodes(address, sent.work, 0, modules=["sent"], hello_seconds=8)
        assert sorted(a.error for a in answers) == ["", "no answer in 8 s"]

        token.write_text("fedcba9876543210" * 4)
        with pytest.raises(ClusterError, match="refuses our token"):
            look(address)
