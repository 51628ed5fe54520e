"""An object store on a machine whose cable is pulled, or a launch whose own is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import Host, missing, network, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(900),
]

SERVER = f"""
import asyncio
import sys

from aiohttp import web

sys.path.append({str(Path(__file__).parents[2] / "trainables")!r})
from s3_server import Server


async def serve():
    server = Server()
    server.buckets.control_bucket("bucket")
    runner = web.ServerRunner(web.Server(server.handle), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, sys.argv[1], 9000).start()
    print("serving", flush=True)
    await asyncio.Event().wait()


asyncio.run(serve())
"""

SWEEP = """\
name: naps
dataset: digits
train: {call: "naps:nap"}
grid: {lr: [0.1], batch_size: [8], seed: {range: 40}}
pack: {max_trials: 2}
"""

NAPS = """\
import os
import time


def nap(config):
    time.sleep(float(os.environ.get("NAP", "1")))
    return {"test_loss": config["seed"] / 7}
"""

STORE = "s3://bucket/results"


@dataclass
class Site:
    """A machine with an object store, and two from which sweeps are launched."""

    bucket: Host
    first: Host
    second: Host

    def launch(self, host: Host) -> subprocess.Popen[str]:
        """A launch on a machine; what it says is in its log."""
        command = ("isoratio", "launch", host.home / "sweep.yaml", "--store", STORE)
        return host.start(*command, log=host.home / "launch.log")

    def state(self) -> dict[str, Any]:
        """What the store says of the sweep; empty before it says anything."""
        asked = self.second.run("isoratio", "status", "naps", "--store", STORE, "--format", "json")
        return dict(json.loads(asked.stdout)[0]) if asked.returncode == 0 else {}

    def rows(self, host: Host, store: object = STORE) -> list[dict[str, Any]]:
        """What trials gave."""
        query = "SELECT trial_id, status, test_loss FROM trials ORDER BY ALL"
        return list(json.loads(host.run("isoratio", "sql", query, "--format", "json", "--store", store).stdout))

    def assert_whole(self, host: Host) -> None:
        """All trials are there once, as they are without any trouble, and every file is what was written."""
        store = host.home / "here"
        inline = ("isoratio", "launch", "sweep.yaml", "--executor", "inline", "--store", store)
        assert host.run(*inline, env={"NAP": "0"}).returncode == 0
        assert self.rows(host) == self.rows(host, store)
        assert len({row["trial_id"] for row in self.rows(host)}) == len(self.rows(host)) == 40
        assert host.run("isoratio", "verify", "--store", STORE).returncode == 0


@pytest.fixture
def site() -> Iterator[Site]:
    with network() as net:
        bucket = net.add("bucket")
        environment = {
            "AWS_ENDPOINT": f"http://{bucket.address}:9000",
            "AWS_ACCESS_KEY_ID": "planted-access-key",
            "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
            "AWS_REGION": "us-east-1",
        }
        site = Site(bucket, *(net.add(name, **environment) for name in ("gpu1", "gpu2")))
        log = net.shared / "server.log"
        bucket.start(sys.executable, "-c", SERVER, bucket.address, log=log)
        for host in (site.first, site.second):
            (host.home / "sweep.yaml").write_text(SWEEP)
            (host.home / "naps.py").write_text(NAPS)
        until(lambda: "serving" in log.read_text())
        yield site


def said(host: Host) -> str:
    """What a launch has said."""
    return (host.home / "launch.log").read_text()


def assert_unanswered(done: subprocess.CompletedProcess[str], seconds: float, host: Host) -> None:
    """A command that ended in time, with one line that says what does not answer."""
    assert done.returncode == 2
    line = rf"isoratio: {STORE}[\w/.-]*: (cannot be written: \S+ )?no answer from {host.address}:9000: .*\n"
    assert re.fullmatch(line, done.stderr), done.stderr
    assert done.stdout == ""
    assert seconds < 90


def timed(host: Host, *args: object) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    return host.run(*args, timeout=180), time.monotonic() - began


def test_away_for_a_minute(site: Site) -> None:
    launch = site.launch(site.first)
    until(lambda: site.state().get("finished", 0) >= 4, 180)
    site.bucket.cut()
    cut = time.monotonic()
    assert_unanswered(*timed(site.second, "isoratio", "status", "naps", "--store", STORE), site.bucket)
    time.sleep(max(0.0, cut + 60 - time.monotonic()))
    site.bucket.heal()
    assert launch.wait(300) == 0, said(site.first)
    assert f"no answer from {site.bucket.address}:9000: " in said(site.first)
    assert re.search(r"; waiting for it, \d+ s at most\n", said(site.first))
    assert "40/40 trials done (0 diverged), 0 failed" in said(site.first)
    assert site.state()["state"] == "complete"
    site.assert_whole(site.second)


def test_away_from_the_beginning(site: Site) -> None:
    site.bucket.cut()
    for command in (("launch", "sweep.yaml"), ("status", "naps")):
        assert_unanswered(*timed(site.first, "isoratio", *command, "--store", STORE), site.bucket)
    site.bucket.heal()
    assert site.launch(site.first).wait(300) == 0, said(site.first)
    site.assert_whole(site.second)


def test_cut_off_while_another_machine_goes_on(site: Site) -> None:
    """Who cannot be heard of is replaced; back again, it ends and has done no harm."""
    first = site.launch(site.first)
    until(lambda: site.state().get("finished", 0) >= 4, 180)
    site.first.cut()
    assert site.launch(site.second).wait(300) == 0, said(site.second)
    assert re.search(r"is being run by process \d+ on gpu1 since .* Waiting for a sign of it", said(site.second))
    assert "40/40 trials done (0 diverged), 0 failed" in said(site.second)
    before = site.rows(site.second)
    site.first.heal()
    assert first.wait(300) == 4, said(site.first)
    assert re.search(r"isoratio: sweep 'naps' was taken over by process \d+ on gpu2 ", said(site.first))
    assert "Traceback" not in said(site.first)
    assert site.state()["state"] == "complete"
    assert site.rows(site.second) == before
    site.assert_whole(site.second)
