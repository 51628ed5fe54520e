"""Ends what a process leaves behind, however that process ends: a program that runs beside it.

Killed with -9, a driver takes most of its Ray with it, but the agents wait another minute for a dead server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "ISORATIO_RUN"
"""The environment variable by which the processes of a run are known; its value is the run's directory."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes with this process, and with it every process whose environment has it as MARK."""
    with tempfile.TemporaryDirectory(prefix="isoratio-", dir=_short(), ignore_cleanup_errors=True) as directory:
        command = [sys.executable, "-I", "-S", __file__, directory]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
            yield Path(directory)


def _short() -> str:
    """Where Ray's sockets go: their path may have 107 characters, of which Ray needs up to 80 or so."""
    directory = tempfile.gettempdir()
    return directory if len(directory) <= 16 else "/tmp"


def reap(directory: str) -> None:
    """Waits for the process at the other end of standard input to be gone, then ends what it has left."""
    sys.stdin.buffer.read()
    for _ in range(100):
        left = marked(directory)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)


def marked(directory: str) -> list[int]:
    """Our processes that were started with the mark of ``directory``."""
    mark, found = f"{MARK}={directory}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    reap(sys.argv[1])
