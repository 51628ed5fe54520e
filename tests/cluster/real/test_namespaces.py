"""A real Ray on machines of its own: nodes that die, join late and lose their network, and a head that is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import Host, Network, end, missing, network, until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]

GIVES_UP = 45
"""Seconds after which Ray gives a machine up that it cannot reach, with the settings of the files that we render."""
SETTINGS = {"RAY_health_check_timeout_ms": "5000"}
TOKEN = "a token of thirty-two characters, or so"
NODE = ["start", "--disable-usage-stats", "--num-cpus", "1", "--object-store-memory", "80000000"]
SWEEP = """\
name: small
dataset: digits
train: {epochs: 30}
grid: {arch: [{name: mlp, depth: 1, width: 16}], ratio: [0.001, 0.004, 0.016], batch_size: [8, 16], seed: {range: 12}}
measure: {at: [1.0], hessian: {top: 2, trace_probes: 4, examples: 200}}
pack: {max_trials: 2}
"""
TRIALS, PACKS = 72, 36
VALUES = "SELECT trial_id, status, test_loss, lambda_max, hessian_trace FROM trials ORDER BY ALL"
ONCE = "SELECT count(*) AS rows, count(DISTINCT trial_id) AS trials FROM trials"

Row = dict[str, Any]


class Cluster:
    """A head, nodes and somebody's laptop; each node has one CPU for packs.

    Attributes:
        shared: a directory that all of them see.
        laptop: no node of the cluster.
    """

    def __init__(self, net: Network) -> None:
        self.net, self.shared = net, net.shared
        (self.shared / "token").write_text(TOKEN)
        (self.shared / "token").chmod(0o600)
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.shared / "token")}
        self.laptop = net.add("laptop", **self.token)
        (self.laptop.home / "sweep.yaml").write_text(SWEEP)
        self.store = self.shared / "store"

    def head(self, name: str = "head") -> Host:
        """Starts the first node of a cluster, with the sweep file in its HOME."""
        host = self.net.add(name, **self.token, **SETTINGS)
        (host.home / "sweep.yaml").write_text(SWEEP)
        self.gcs, self.dashboard = f"{host.address}:6379", f"http://{host.address}:8265"
        self._node(host, "--head", "--port", "6379", "--dashboard-host", "0.0.0.0")
        return host

    def join(self, name: str, *options: str) -> Host:
        """Starts another node."""
        host = self.net.add(name, **self.token)
        self._node(host, "--address", self.gcs, *options)
        return host

    def rejoin(self, host: Host) -> None:
        """Starts Ray on a machine that is there."""
        self._node(host, "--address", self.gcs)

    def _node(self, host: Host, *options: str) -> None:
        done = host.run("ray", *NODE, "--node-ip-address", host.address, *options)
        assert done.returncode == 0, done.stdout + done.stderr

    def alive(self, host: Host) -> int:
        """How many nodes the head knows to live."""
        script = (
            "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()), flush=True)"
        )
        return int(
            (re.findall(r"^\d+$", host.run("python", "-c", script).stdout, re.MULTILINE) or [0])[0]
        )  # Ray talks, too

    def launch(self, host: Host, *options: str) -> subprocess.Popen[str]:
        """Starts the sweep from a machine."""
        return host.start("isoratio", "launch", "sweep.yaml", "--store", self.store, *options)

    def isoratio(self, host: Host, *args: object) -> subprocess.CompletedProcess[str]:
        """A command on the store."""
        return host.run("isoratio", *args, "--store", self.store)

    def status(self) -> Row:
        """What the store says of the sweep, read on the laptop."""
        done = self.isoratio(self.laptop, "status", "small", "--format", "json")
        return next(iter(json.loads(done.stdout or "[]")), {"state": "not there", "finished": 0, "running": 0})

    def rows(self, query: str) -> list[Row]:
        found: list[Row] = json.loads(self.isoratio(self.laptop, "sql", query, "--format", "json").stdout)
        return found


def processes(host: Host) -> str:
    """What runs there, a line each."""
    return host.run("ps", "-eo", "args").stdout


def works(host: Host) -> bool:
    """Whether a pack runs there."""
    return "ray::ResourceTrainable" in processes(host)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with network() as net:
        yield Cluster(net)


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What the sweep gives in one process of one machine that loses nothing."""
    here = tmp_path_factory.mktemp("here")
    (here / "sweep.yaml").write_text(SWEEP)
    isoratio = [str(Path(sys.executable).with_name("isoratio"))]
    subprocess.run([*isoratio, "launch", "sweep.yaml", "--executor", "inline"], cwd=here, check=True)
    done = subprocess.run([*isoratio, "sql", VALUES, "--format", "json"], cwd=here, check=True, capture_output=True)
    found: list[Row] = json.loads(done.stdout)
    assert len(found) == TRIALS
    return found


def complete(cluster: Cluster, values: list[Row]) -> None:
    """Nothing is lost, nothing is there twice, and every value is that of an undisturbed run."""
    assert cluster.rows(ONCE) == [{"rows": TRIALS, "trials": TRIALS}]
    assert cluster.rows(VALUES) == values
    row = cluster.status()
    assert (row["state"], row["finished"], row["failed"]) == ("complete", TRIALS, 0)


def ended(process: subprocess.Popen[str], code: int = 0, seconds: float = 240) -> str:
    """What a launch said, once it has ended as it should."""
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end(process)
        out, _ = process.communicate()
        raise AssertionError(out) from None
    assert process.returncode == code, out
    return out


def test_a_worker_is_killed_and_another_one_joins(cluster: Cluster, values: list[Row]) -> None:
    head = cluster.head()
    nodes = [head, cluster.join("one"), cluster.join("two")]
    launch = cluster.launch(head, "--address", cluster.gcs)
    until(lambda: all(map(works, nodes)) and cluster.status()["finished"] >= 6, 90)
    nodes[1].kill()
    late = cluster.join("late")
    until(lambda: works(late))
    assert "72/72 trials done" in ended(launch)
    complete(cluster, values)


def test_a_launch_from_a_laptop_that_is_no_part_of_the_cluster(cluster: Cluster, values: list[Row]) -> None:
    """As a Ray Job: left alone, looked at, stopped and resumed from there; without the right token, nothing."""
    cluster.head()
    cluster.join("one")
    cluster.join("two")
    laptop, there = cluster.laptop, ("--address", cluster.dashboard)
    for token in ({"RAY_AUTH_TOKEN": "a wrong token of thirty-two characters"}, {"RAY_AUTH_TOKEN_PATH": "/none"}):
        for address in (cluster.dashboard, cluster.gcs):
            refused = laptop.run("isoratio", "launch", "sweep.yaml", "--address", address, env=token)
            assert refused.returncode == 2, refused.stderr
            assert "token" in refused.stderr.lower() or "http://" in refused.stderr
            assert "Traceback" not in refused.stderr
    elsewhere = cluster.launch(laptop, "--address", cluster.gcs)
    assert f"no node of the Ray at '{cluster.gcs}' runs on this machine" in ended(elsewhere, 2)

    left = cluster.launch(laptop, "--detach", *there)
    assert f"isoratio status small --store {cluster.store}" in ended(left)
    following = laptop.start("isoratio", "logs", "small", "--follow", "--store", cluster.store, *there)
    asked = cluster.isoratio(laptop, "status", "small", "--format", "json", *there)
    assert json.loads(asked.stdout)[0]["state"] == "running", asked.stderr
    assert cluster.isoratio(laptop, "stop", "small", *there).returncode == 0
    assert "go on with: isoratio resume small" in ended(following)
    assert cluster.status()["state"] == "stopped"

    assert "72/72 trials done" in ended(laptop.start("isoratio", "resume", "small", "--store", cluster.store, *there))
    complete(cluster, values)


NAP = """\
import socket, time

def nap(config):
    time.sleep(2)
    return {"test_loss": float(config["seed"]), "ran_on": float(socket.gethostname()[-1])}
"""
NAPS = """\
name: naps
dataset: digits
train: {call: "naps:nap"}
grid: {lr: [0.1], batch_size: [8], seed: {range: 12}}
pack: {max_trials: 1}
"""


def test_modules_of_the_users_own_reach_every_node(cluster: Cluster) -> None:
    """Also one whose Ray keeps its files elsewhere."""
    cluster.head("node1")
    cluster.join("node2")
    cluster.join("node3", "--temp-dir", "/tmp/elsewhere")
    (cluster.laptop.home / "naps.py").write_text(NAP)
    (cluster.laptop.home / "naps.yaml").write_text(NAPS)
    there = ("--address", cluster.dashboard, "--store", cluster.store)
    ended(cluster.laptop.start("isoratio", "launch", "naps.yaml", *there))
    query = "SELECT count(DISTINCT trial_id) AS trials, list(DISTINCT ran_on ORDER BY ran_on) AS nodes FROM trials"
    assert cluster.rows(query) == [{"trials": 12, "nodes": [1.0, 2.0, 3.0]}]


def test_a_machine_is_taken_away_with_notice(cluster: Cluster, values: list[Row]) -> None:
    """As one rented on the spot: everything on it hears SIGTERM, and soon after it is gone."""
    head, spot = cluster.head(), cluster.join("spot")
    launch = cluster.launch(head, "--address", cluster.gcs)
    until(lambda: works(spot) and cluster.status()["finished"] >= 6, 90)
    spot.run("bash", "-c", "kill -TERM -1")
    time.sleep(10)
    spot.kill()
    assert "preemption" in ended(launch)
    complete(cluster, values)


@pytest.mark.parametrize("seconds", [5, 100])
def test_a_link_is_cut_and_healed(cluster: Cluster, values: list[Row], seconds: float) -> None:
    """Before Ray gives the machine up, and long after; its packs may be done twice, their rows are there once."""
    head, away = cluster.head(), cluster.join("away")
    launch = cluster.launch(head, "--address", cluster.gcs)
    until(lambda: works(away) and cluster.status()["finished"] >= 6, 90)
    away.cut()
    start = time.monotonic()
    if seconds > GIVES_UP:
        until(lambda: cluster.alive(head) == 1)
        until(lambda: cluster.status()["running"] <= 2, 60 - (time.monotonic() - start))
    time.sleep(max(0, start + seconds - time.monotonic()))
    away.heal()
    if seconds > GIVES_UP:
        until(lambda: "raylet/raylet" not in processes(away))  # it has heard that it was given up, and ends
        cluster.rejoin(away)
    out = ended(launch)
    assert ("preemption" in out) == (seconds > GIVES_UP)
    complete(cluster, values)


def test_the_head_is_lost_and_the_sweep_goes_on_on_another_cluster(cluster: Cluster, values: list[Row]) -> None:
    head, orphan = cluster.head(), cluster.join("one")
    job = cluster.launch(cluster.laptop, "--address", cluster.dashboard)
    until(lambda: cluster.status()["finished"] >= 6, 90)
    head.kill()
    assert until(lambda: cluster.status()["state"] == "interrupted") < 60
    assert cluster.status()["finished"] < TRIALS
    orphan.kill()
    end(job)

    cluster.head("another")
    cluster.join("two")
    resumed = cluster.launch(cluster.laptop, "--address", cluster.dashboard)
    assert "72/72 trials done" in ended(resumed)
    complete(cluster, values)
