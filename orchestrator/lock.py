"""One launch per sweep: a lock that the operating system gives up when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from trainables.store import SweepStore


class LaunchHeldError(RuntimeError):
    """Another launch holds the sweep."""


@contextmanager
def launch_lock(sweep: SweepStore) -> Iterator[None]:
    """Holds ``log/launch.lock`` exclusively.

    It only saves work: what a store shows never depends on it (see :mod:`trainables.store`).

    Raises:
        LaunchHeldError: naming the holder.
    """
    sweep.log_path.mkdir(parents=True, exist_ok=True)
    with sweep.lock_path.open("a+") as file:
        if not _acquired(file):
            file.seek(0)
            raise LaunchHeldError(_held(sweep.name, file.read()))
        if not _is_still_there(sweep, file):  # the sweep was removed while we waited
            raise LaunchHeldError(f"sweep {sweep.name!r} was removed just now: launch it again")
        file.truncate(0)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        file.write(json.dumps(holder))
        file.flush()
        yield


def _acquired(file: TextIO) -> bool:
    """Tries for a second: whoever asks for the status of a sweep holds its lock for a moment."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _is_still_there(sweep: SweepStore, file: TextIO) -> bool:
    try:
        return os.path.samestat(sweep.lock_path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _held(sweep: str, holder: str) -> str:
    try:
        by = json.loads(holder)
        who = f"process {by['pid']} on {by['host']} since {by['since']}"
    except (ValueError, KeyError, TypeError):
        who = "a process that has not yet said which"
    return (
        f"sweep {sweep!r} is being run by {who}: watch it with `isoratio status`, end it with `isoratio stop {sweep}`"
    )
