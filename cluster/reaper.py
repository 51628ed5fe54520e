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


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes with this process, and with it every other process that holds a file of it open."""
    with tempfile.TemporaryDirectory(prefix="isoratio-", dir=_short(), ignore_cleanup_errors=True) as directory:
        command = [sys.executable, "-I", "-S", __file__, directory]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
            yield Path(directory)


def _short() -> str:
    """Where Ray's sockets go: their path may have 107 characters, of which Ray and we need up to 85."""
    directory = tempfile.gettempdir()
    return directory if len(directory) <= 20 else "/tmp"


def reap(directory: str) -> None:
    """Waits for the process at the other end of standard input to be gone, then ends what it has left."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # sent to every process of a job: what is left goes with the driver
    driver = os.getppid()
    sys.stdin.buffer.read()
    left = [0]
    deadline = time.monotonic() + 10
    while (left or os.path.exists(directory)) and time.monotonic() < deadline:
        left = [pid for pid in users(directory) if pid != driver]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)  # what still dies may still write
        time.sleep(0.05)


def users(directory: str) -> list[int]:
    """Our processes that have a file below ``directory`` open, such as Ray's with their logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if any(os.readlink(fd).startswith(f"{directory}/") for fd in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    reap(sys.argv[1])
