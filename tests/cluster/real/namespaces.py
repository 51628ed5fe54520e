"""Machines on a network, made of Linux's namespaces.

A host has an address, processes, a name and a /tmp of its own, and shares every other file with this machine, as the
nodes of a cluster share a file system. Its processes see none of another host's, so that what ends all Rays of a
user there ends one node. The switch between them lives in a namespace too: nothing of it is seen outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUBNET = "10.77.0"
INIT = """
import signal, socket, subprocess, sys
name, tmp = sys.argv[1:]
socket.sethostname(name)
subprocess.run(["mount", "--bind", tmp, "/tmp"], check=True)
subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nothing stays a zombie
print("up", flush=True)
sys.stdin.read()
"""
"""The first process of a host: with it all others end, at once, as when a machine loses its power."""
KEPT = ("LANG", "LC_ALL", "SSL_CERT_FILE", "TERM")
PROGRAMS = ("ip", "nsenter", "unshare", "mount")


def missing() -> str:
    """Why there can be no such machines here; empty where there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    without = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"there is no {', '.join(without)} (Debian: iproute2, util-linux, mount)" if without else ""


@dataclass
class Host:
    """A machine.

    Attributes:
        name: its host name.
        address: in the network.
        port: of the switch, to which it is connected.
        init: its first process, as this machine numbers it.
        home: the HOME of its user.
        environment: what its processes get, besides HOME and PATH.
    """

    name: str
    address: str
    port: str
    init: subprocess.Popen[str]
    pid: int
    home: Path
    network: Network
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *args: object) -> list[str]:
        """What runs a program there, in the HOME of its user."""
        into = ["--mount", "--uts", "--net", "--pid", f"--wdns={self.home}"]
        return ["nsenter", f"--target={self.pid}", *into, "--", *map(str, args)]

    def start(self, *args: object, log: Path | None = None, **options: Any) -> subprocess.Popen[str]:
        """Starts a program; what it says goes to ``log``, or to its ``stdout``."""
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.home)}
        options = {"text": True, "start_new_session": True, "stdin": subprocess.DEVNULL} | options
        environment |= self.environment | options.pop("env", {})
        with ExitStack() as stack:
            output = stack.enter_context(log.open("a")) if log else subprocess.PIPE
            options = {"stdout": output, "stderr": output if log else subprocess.STDOUT} | options
            return subprocess.Popen(self.command(*args), env=environment, **options)

    def run(
        self, *args: object, timeout: float = 120, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end."""
        process = self.start(*args, stderr=subprocess.PIPE, env=dict(env or {}))
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end(process)
            raise
        return subprocess.CompletedProcess([str(arg) for arg in args], process.returncode, out, err)

    def cut(self) -> None:
        """Pulls the cable."""
        self.network.ip("link", "set", self.port, "down")

    def heal(self) -> None:
        """Puts it back."""
        self.network.ip("link", "set", self.port, "up")

    def kill(self) -> None:
        """Pulls the plug."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.init.wait()


class Network:
    """A switch, and the hosts that are connected to it."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.namespace = f"iso{os.getpid()}"
        self.hosts: list[Host] = []

    def ip(self, *args: str) -> None:
        """Configures the switch."""
        _check("ip", "-n", self.namespace, *args)

    def add(self, name: str, **environment: str) -> Host:
        """Another machine, with an address, a HOME and a /tmp of its own."""
        number = len(self.hosts) + 1
        home, tmp = self.shared / "home" / name, self.shared / "tmp" / name
        for directory in (home, tmp):
            directory.mkdir(parents=True)
        tmp.chmod(0o1777)
        command = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        init = subprocess.Popen(
            [*command, sys.executable, "-c", INIT, name, str(tmp)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # unshare complains when its child is killed
            text=True,
        )
        assert init.stdout is not None
        assert init.stdout.readline() == "up\n"
        (pid,) = map(int, Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split())
        host = Host(name, f"{SUBNET}.{number}", f"port{number}", init, pid, home, self, dict(environment))
        self.hosts.append(host)
        self.ip("link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.ip("link", "set", host.port, "master", "switch", "up")
        for args in (
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            _check(*host.command("ip", *args))
        return host


@contextmanager
def network() -> Iterator[Network]:
    """A network without machines. When it is left, all of it ends, and its files go."""
    shared = Path(tempfile.mkdtemp(prefix="iso", dir="/var/tmp"))  # every host has a /tmp of its own
    shared.chmod(0o755)
    net = Network(shared)
    try:
        _check("ip", "netns", "add", net.namespace)
        net.ip("link", "add", "switch", "type", "bridge")
        net.ip("link", "set", "switch", "up")
        yield net
    finally:
        for host in net.hosts:
            host.kill()
        subprocess.run(["ip", "netns", "del", net.namespace], check=False)
        shutil.rmtree(shared, ignore_errors=True)


def end(process: subprocess.Popen[str]) -> None:
    """Kills a program that was started on a host, and what it has started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(condition: Callable[[], object], seconds: float = 60) -> float:
    """Waits; returns the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, f"not within {seconds:g} s"
        time.sleep(0.2)
    return time.monotonic() - start


def _check(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
