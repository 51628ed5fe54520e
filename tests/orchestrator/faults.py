"""What happens to a command, in its own process: set up there before it begins (see :mod:`forked`)."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

Steps = Callable[[int], Iterable[int]]
"""At which of its steps something happens to a command that has about so many."""

CHANGES = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class AtStep:
    """Acts right before the operation of this number, from 1, below a directory, whichever thread it is in.

    Attributes:
        number: of the operation.
        below: the directory.
        action: what to do; it may raise.
        changes: only operations that change something count; else every file that is opened does, too.
        times: how many operations in a row it meets.
    """

    number: int
    below: Path
    action: Callable[[], None]
    changes: bool = True
    times: int = 1

    def __call__(self) -> None:
        steps = itertools.count(1)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if self._is_step(event, arguments) and self.number <= next(steps) < self.number + self.times:
                self.action()

        sys.addaudithook(watch)

    def _is_step(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event not in CHANGES and (event != "open" or (self.changes and not arguments[2] & WRITING)):
            return False
        return not isinstance(arguments[0], int) and os.fsdecode(arguments[0]).startswith(f"{self.below}/")


@dataclass(frozen=True)
class AtRequest:
    """Acts right before the request of this number, from 1, to an object store.

    Attributes:
        number: of the request.
        action: what to do.
        times: how many requests in a row it meets.
    """

    number: int
    action: Callable[[], None]
    times: int = 1

    def __call__(self) -> None:
        from trainables.object_storage import ObjectStorage

        ask, requests = ObjectStorage._ask, itertools.count(1)

        def watched(storage: ObjectStorage, name: str, request: Callable[[], Any]) -> Any:
            if self.number <= next(requests) < self.number + self.times:
                self.action()
            return ask(storage, name, request)

        ObjectStorage._ask = watched  # type: ignore[assignment, method-assign]


@dataclass(frozen=True)
class AtReport:
    """Acts when a pack tells for the n-th time, from 1, how far it is.

    Attributes:
        number: of the report.
        action: what to do.
    """

    number: int
    action: Callable[[], None]

    def __call__(self) -> None:
        from trainables.checkpoint import Keeper

        report, reports = Keeper.report, itertools.count(1)

        def watched(keeper: Keeper, place: tuple[int, int], state: Callable[[], Any]) -> None:
            if next(reports) == self.number:
                self.action()
            report(keeper, place, state)

        Keeper.report = watched  # type: ignore[assignment, method-assign]


@dataclass(frozen=True)
class Send:
    """Sends this process a signal."""

    number: int

    def __call__(self) -> None:
        os.kill(os.getpid(), self.number)


KILL, STOP, TERMINATE = Send(signal.SIGKILL), Send(signal.SIGSTOP), Send(signal.SIGTERM)


@dataclass(frozen=True)
class Raise:
    """The operation fails."""

    number: int = errno.EIO

    def __call__(self) -> None:
        raise OSError(self.number, os.strerror(self.number), "planted")


@dataclass(frozen=True)
class Fill:
    """Takes all the space that is left, with a file that tells that it was done."""

    file: Path

    def __call__(self) -> None:
        with self.file.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                try:
                    while True:
                        file.write(b"0" * size)
                except OSError:  # there is no room for so much
                    continue


@dataclass(frozen=True)
class Delete:
    """Removes a file, or a directory with all that is in it."""

    path: Path

    def __call__(self) -> None:
        self.path.unlink() if self.path.is_file() else shutil.rmtree(self.path)


@dataclass(frozen=True)
class Note:
    """Leaves a byte in a file, one for each time that it is the main thread which acts."""

    file: Path

    def __call__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            with self.file.open("ab") as file:
                file.write(b".")


class NoMoreFiles:
    """No more files may be open at a time than are."""

    def __call__(self) -> None:
        lowest_free = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, lowest_free))


@dataclass(frozen=True)
class Slow:
    """Each report takes so many seconds longer."""

    seconds: float

    def __call__(self) -> None:
        from trainables.checkpoint import Keeper

        report = Keeper.report

        def slow(keeper: Keeper, place: tuple[int, int], state: Callable[[], Any]) -> None:
            time.sleep(self.seconds)
            report(keeper, place, state)

        Keeper.report = slow  # type: ignore[assignment, method-assign]


@dataclass(frozen=True)
class Together:
    """Begins at a moment of the monotonic clock, which all processes of a machine share."""

    moment: float

    def __call__(self) -> None:
        while time.monotonic() < self.moment:
            pass


@dataclass(frozen=True)
class Instead:
    """Runs a pack rather than the command, as a worker does."""

    item: Any

    def __call__(self) -> None:
        from trainables.packs import run_pack

        for _ in run_pack(self.item):
            pass
        raise SystemExit


@dataclass(frozen=True)
class Beating:
    """The heartbeat comes every so many seconds: who watches it need not watch for long."""

    every: float

    def __call__(self) -> None:
        from trainables.lease import Lease

        enter = Lease.__enter__

        def entered(lease: Lease) -> Lease:
            lease.every = lease.content["every"] = self.every
            return enter(lease)

        Lease.__enter__ = entered  # type: ignore[method-assign]


@dataclass(frozen=True)
class Impatient:
    """Requests to an object store are tried for so many seconds only."""

    seconds: float

    def __call__(self) -> None:
        from orchestrator import launching
        from trainables import packs
        from trainables.object_storage import ObjectStorage

        ObjectStorage.__init__.__defaults__ = (self.seconds,)  # type: ignore[attr-defined]
        for module in (launching, packs):
            module.PATIENCE_OF_WORK = self.seconds


def save_often() -> None:
    """A checkpoint at every report, however long it takes."""
    from trainables import checkpoint

    checkpoint.SHARE = 1.0


@dataclass(frozen=True)
class Clock:
    """The clock is wrong by so many seconds from the n-th look at it on."""

    seconds: float
    look: int = 1

    def __call__(self) -> None:
        import datetime

        from trainables import lease

        looks, real = itertools.count(1), time.time

        def wrong() -> float:
            return real() + (self.seconds if next(looks) >= self.look else 0.0)

        class Wrong(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Wrong:
                return cls.fromtimestamp(wrong(), tz)

        time.time = wrong
        lease.datetime = Wrong  # type: ignore[attr-defined]


def steps(*shares: float, long: Iterable[tuple[int, int]] = ((1, 1),)) -> pytest.MarkDecorator:
    """Gives a test its ``steps``: some by their share of the way; in the long tests all, by first one and stride."""
    some = [pytest.param(partial(_some, shares), id="some")] if shares else []
    marks = [pytest.mark.long, pytest.mark.timeout(1800)]
    every = [pytest.param(partial(_every, *of), id="{}-{}".format(*of), marks=marks) for of in long]
    return pytest.mark.parametrize("steps", some + every)


def _some(shares: Iterable[float], total: int) -> Iterator[int]:
    return (max(1, round(share * total)) for share in shares)


def _every(first: int, stride: int, total: int) -> Iterator[int]:
    yield from range(first, 3 * total, stride)  # the test ends with the command that has no such step
    pytest.fail("no command came to its end without the fault")
