"""Processes that run executors, to be watched, signalled and killed by tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Driver:
    """A process that runs a script as the installed command would, and the processes that come from it."""

    def __init__(self, script: str, directory: Path, tmp: Path, *command: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, "-P", "-c", script],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(tmp), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family: set[int] = set()

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def line(self) -> str:
        """Its next line; what it has started by then is its family."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        self.look()
        return line

    def look(self) -> set[int]:
        """Its family, with what it has started by now."""
        self.family |= descendants(self.process.pid)
        return self.family

    def alive(self) -> list[int]:
        return [pid for pid in self.family if parent(pid) is not None]

    def finish(self, timeout: float = 60) -> str:
        out, err = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, err
        return out


def parent(pid: int) -> int | None:
    """The parent of a process that lives, zombies excluded."""
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(ppid)


def descendants(pid: int) -> set[int]:
    parents = {int(p.name): parent(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
    found = {pid}
    while more := {child for child, its in parents.items() if its in found} - found:
        found |= more
    return found - {pid}


def program(pid: int) -> str:
    """The name of the program that a process runs; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].rpartition("/")[2]
    except OSError:
        return ""


def soon(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()
