"""What the nodes of a Ray say of themselves: one function, run on each of them, and how they are reached.

Ray may end the process that is connected to it, at once and without an exception. So that is a process of its own.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.executor import ClusterError

Resources = Mapping[str, float]
"""What Ray counts of a node: "CPU", "GPU", "memory" (bytes), ..."""
HELLO_SECONDS = 20.0
"""In which a node must take a task that does nothing; its worker process has to start first."""
WORK_SECONDS = 120.0
CONNECT_SECONDS = 60.0
PORT_SECONDS = 3.0
PORTS = ("NodeManagerPort", "ObjectManagerPort")
COMMAND = (sys.executable, "-P", "-c", "from cluster.nodes import main; main()")


@dataclass(frozen=True)
class Cluster:
    """A Ray that runs.

    Attributes:
        address: "host:port" of its head.
        is_open: whether it answers without a token.
        ray: its version.
        python: the version of the Python that it was started with.
    """

    address: str
    is_open: bool
    ray: str
    python: str


@dataclass(frozen=True)
class Answer:
    """What one node answers.

    Attributes:
        node: its host's name, the begin of its id, its address.
        result: of the function; None where there is none.
        error: why there is none.
        ahead: seconds by which its clock is ahead of the one here; None where it did not say.
        within: the largest error of that, half the time that asking took.
        closed: "host:port" that do not take a connection from here.
    """

    node: str
    result: Any = None
    error: str = ""
    ahead: float | None = None
    within: float = 0.0
    closed: tuple[str, ...] = ()


def look(address: str) -> Cluster:
    """What runs at "auto" or "host:port".

    Raises:
        ClusterError: nothing, or no node of it on this machine, or it refuses our token.
    """
    found, ray, python = _apart(_look, address)
    return Cluster(found, _apart(_answers, found, without_token=True), ray, python)


def ask_nodes(
    address: str,
    work: Callable[[Any, Resources], Any],
    argument: Any,
    *,
    modules: Sequence[str] = (),
    hello_seconds: float = HELLO_SECONDS,
    work_seconds: float = WORK_SECONDS,
) -> list[Answer]:
    """Runs a function on every node that is alive, at the same time; it takes nothing from what Ray counts.

    Args:
        address: "auto" or "host:port".
        work: called there with ``argument`` and what Ray counts of the node.
        argument: of plain types.
        modules: that are sent with it, and so need not be there; at their tops they import one another, and what every
            Python has.
        hello_seconds: after which a node that takes no task is given up.
        work_seconds: after which the function is given up.

    Raises:
        ClusterError: there is no Ray to join.
    """
    limits = hello_seconds, work_seconds
    answers: list[Answer] = _apart(
        _ask, address, work, argument, modules, *limits, seconds=CONNECT_SECONDS + sum(limits)
    )
    return answers


def _apart(
    function: Callable[..., Any], *arguments: Any, seconds: float = CONNECT_SECONDS, without_token: bool = False
) -> Any:
    """Calls a function in a process of its own, and returns or raises what it did there."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    if without_token:
        environment = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH_")}
        environment["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory, "answer")
        try:
            done = subprocess.run(
                [*COMMAND, str(answer)],
                input=pickle.dumps((function, arguments)),
                capture_output=True,
                env=environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"the Ray at {arguments[0]!r} gave no answer in {seconds:g} s") from None
        if not answer.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ClusterError(f"the connection to the Ray at {arguments[0]!r} broke: {''.join(last)}")
        result = pickle.loads(answer.read_bytes())
    if isinstance(result, ClusterError):
        raise result
    return result


def main() -> None:
    """The other process: the call comes on standard input, what came of it goes to a file."""
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        result = function(*arguments)
    except ClusterError as error:
        result = error
    written = Path(sys.argv[1] + ".partial")
    written.write_bytes(pickle.dumps(result))
    written.rename(sys.argv[1])


def _look(address: str) -> tuple[str, str, str]:
    """The address of the head, and the versions of Ray and Python there."""
    from cluster.connection import check_address, check_node

    found = check_address(address)
    check_node(address, found)
    about = _about(found)
    return found, about["ray_version"], about["python_version"]


def _answers(found: str) -> bool:
    """Whether a Ray tells this process about itself."""
    from ray.exceptions import AuthenticationError

    try:
        return bool(_about(found))
    except AuthenticationError:
        return False


def _about(found: str) -> Mapping[str, str]:
    import ray._raylet
    from ray._common.usage.usage_lib import get_cluster_metadata

    about: Mapping[str, str] = get_cluster_metadata(ray._raylet.GcsClient(address=found))
    return about


def _ask(
    address: str,
    work: Callable[..., Any],
    argument: Any,
    modules: Sequence[str],
    hello_seconds: float,
    work_seconds: float,
) -> list[Answer]:
    import ray
    from ray import cloudpickle

    from cluster.connection import connect

    connect(address, Path())
    for module in (__name__, *modules):
        cloudpickle.register_pickle_by_value(importlib.import_module(module))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    greeted = _gathered({_name(n): _send(n, _now) for n in nodes}, hello_seconds)
    awake = {_name(n): n for n in nodes if not greeted[_name(n)][1]}
    clocks = {name: _clock(n) for name, n in awake.items()}
    done = _gathered({name: _send(n, work, argument, n["Resources"]) for name, n in awake.items()}, work_seconds)
    return [
        Answer(name, *(greeted | done)[name], *clocks.get(name, (None, 0.0)), _closed(node))
        if name in done
        else Answer(name, None, greeted[name][1], closed=_closed(node))
        for name, node in ((_name(n), n) for n in nodes)
    ]


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"


def _send(node: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Starts a function on a node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)


def _now() -> float:
    return time.time()


def _gathered(sent: Mapping[str, Any], seconds: float) -> dict[str, tuple[Any, str]]:
    """For each node the result, or why there is none."""
    import ray

    ready, _ = ray.wait(list(sent.values()), num_returns=len(sent), timeout=seconds) if sent else ([], [])
    found: dict[str, tuple[Any, str]] = {}
    for name, reference in sent.items():
        found[name] = None, f"no answer in {seconds:g} s"
        if reference in ready:
            try:
                found[name] = ray.get(reference), ""
            except Exception as error:
                cause = getattr(error, "cause", None) or error  # what the function itself has raised
                found[name] = None, f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
    return found


def _clock(node: Mapping[str, Any]) -> tuple[float | None, float]:
    """Seconds by which its clock is ahead, as if the two ways took the same time, and half of that time."""
    import ray

    began, ticking = time.time(), time.monotonic()
    try:
        there: float = ray.get(_send(node, _now), timeout=HELLO_SECONDS)
    except Exception:
        return None, 0.0
    half = (time.monotonic() - ticking) / 2
    return there - began - half, half


def _closed(node: Mapping[str, Any]) -> tuple[str, ...]:
    """The ports of Ray on a node that take no connection from here."""
    found = []
    for port in PORTS:
        try:
            with socket.create_connection((node["NodeManagerAddress"], node[port]), PORT_SECONDS):
                pass
        except OSError:
            found.append(f"{node['NodeManagerAddress']}:{node[port]}")
    return tuple(found)
