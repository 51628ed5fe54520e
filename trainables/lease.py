"""One launch per sweep: who may plan and run, told by exclusive creation, never by comparing clocks.

``lease/000001.json``, ``000002.json``, ... name one launch each, and the highest number holds the sweep. Its holder
writes a heartbeat into ``log/<number>.json``. Whoever wants the sweep creates the next number: at once where the holder
has said that it ended, or is a process of this machine that is gone; else when its heartbeat has stood still for
:data:`PATIENCE` seconds of one's own watching. A holder that wakes up later finds a higher number and ends.

All this only saves work: what a store shows rests on first commit wins (see :mod:`trainables.store`), and the plan of a
launch counts only until one with a higher number has written its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from trainables.storage import Storage, StoreError
from trainables.store import SweepStore

FOLDER = "lease"
FIRST_LOG = "log/launch.log"  # of all launches, where format 1 had it
_NAME = re.compile(r"\d+\.json")
_NUMBER = re.compile(r"(\d{6})[.-]")
PATIENCE = 30.0
"""Seconds without a heartbeat after which a launch counts as dead."""

SIGN = 6.0
"""Seconds within which a launch that lives gives a sign as a rule: nothing is said of waiting for it."""

StopKind = Literal["finish", "checkpoint"]
"""Finish: running packs are committed first. Checkpoint: they save where they are and end."""


class LaunchHeldError(RuntimeError):
    """Another launch holds the sweep."""


@dataclass(frozen=True)
class Holder:
    """A launch, or another command that changes a sweep.

    Attributes:
        number: of its lease.
        command: what it is.
        pid: its process.
        host: the name of its machine.
        machine: what tells this machine, since it was started, from all others; None where it cannot be told.
        started: clock ticks after the machine at which the process started; a pid alone may be used again.
        since: for people.
        token: sets apart two leases that one process asks for at once.
    """

    number: int
    command: str
    pid: int
    host: str
    machine: str | None
    started: int | None
    since: str
    token: str

    @classmethod
    def of_this_process(cls, number: int, command: str) -> Holder:
        """This process, as the holder of a lease."""
        since = datetime.now(UTC).isoformat("T", "seconds")
        me = os.getpid()
        return cls(number, command, me, socket.gethostname(), _machine(), _started(me), since, secrets.token_hex(8))

    def is_gone(self) -> bool:
        """Whether its process was on this machine and has ended; False also where that cannot be told from here."""
        if self.machine is None or self.machine != _machine():
            return False
        return self.started is not None and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def latest(storage: Storage) -> Holder | None:
    """Who holds a sweep, or held it last; None where nobody ever did."""
    for name in filter(_NAME.fullmatch, reversed(storage.names(FOLDER))):
        with suppress(FileNotFoundError):  # else a later one has cleaned up
            return _holder(name, storage.read(f"{FOLDER}/{name}"))
    return None


def _holder(name: str, data: bytes) -> Holder:
    """Whom a lease names; where it is damaged its number and its heartbeat still count."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder(int(name.partition(".")[0]), "launch", 0, "an unknown machine", None, None, "an unknown time", "")


def heartbeat(storage: Storage, number: int) -> dict[str, Any]:
    """What the holder of a lease said last of itself; empty before its first word."""
    data = storage.read_if_there(_log_name(number, "json"))
    with suppress(ValueError):
        found = json.loads(data or b"{}")
        return found if isinstance(found, dict) else {}
    return {}


def create(storage: Storage, number: int, command: str) -> Holder:
    """Takes the lease of this number.

    Raises:
        FileExistsError: another one was faster.
    """
    me = Holder.of_this_process(number, command)
    storage.create(f"{FOLDER}/{number:06d}.json", json.dumps(asdict(me)).encode())
    return me


class Lease:
    """The right to plan and run a sweep, from entering to leaving; a thread keeps the heartbeat going.

    Args:
        sweep: whose.
        command: what wants it.
        patience: seconds to watch a silent holder before replacing it; 0 takes over at once.
        on_wait: called while it is watched, several times a second, with what to say; to wait no longer, it may raise.
    """

    def __init__(
        self,
        sweep: SweepStore,
        command: str = "launch",
        *,
        patience: float = PATIENCE,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.sweep, self.storage, self.command = sweep, sweep.storage, command
        self.patience, self.on_wait = patience, on_wait
        self.every = 5.0 if self.storage.is_remote else 1.0  # seconds between two beats
        self.content: dict[str, Any] = {"every": self.every}
        self.describe: Callable[[], Mapping[str, Any]] = dict  # what the heartbeat says further
        self.lost = False  # once it is known that another one holds the sweep, or that it was removed
        self._beats, self._plans = 0, 0
        self._beating = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> Lease:
        self.holder = self._acquired()
        self.number = self.holder.number
        self.beat("running")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.storage.is_remote and isinstance(error, OSError | StoreError):
            self._over.set()  # it may not answer any more: nobody waits for its silence once again
            return
        beating = not self._over.is_set()
        self.end()
        if beating and not self.lost and self.content.get("state") == "running":
            with suppress(OSError, StoreError):  # whatever has gone wrong, this must not hide it
                self.beat("interrupted")

    def end(self) -> None:
        """Stops the heart."""
        self._over.set()
        self._thread.join()

    def beat(self, state: str | None = None, **content: Any) -> None:
        """Writes the heartbeat: what is known of the launch, a state that is not ``running`` being its last word."""
        with self._beating:  # else the thread's word could come after the last one
            self._beats += 1
            self.content |= content | ({"state": state} if state else {})
            data = json.dumps(self.content | {"beat": self._beats}).encode()
            self.storage.replace(_log_name(self.number, "json"), data)

    def check(self) -> None:
        """Finds out whether the sweep is still ours.

        Raises:
            LaunchHeldError: another launch has taken over, or the sweep was removed.
        """
        holder = latest(self.storage)
        self.lost = self.lost or not self._is_mine(holder)
        if self.lost:
            by, kept = (f"taken over by {holder}", "; what it has committed is kept") if holder else ("removed", "")
            raise LaunchHeldError(f"sweep {self.sweep.name!r} was {by}: this launch ends{kept}")

    def _is_mine(self, holder: Holder | None) -> bool:
        if holder is None or holder.number < self.number:  # our lease was damaged, or the sweep was removed
            return self.storage.exists(_log_name(self.number, "json"))
        return holder.number == self.number and holder.token in {self.holder.token, ""}

    def next_plan(self) -> int:
        """A fresh number for a plan of this launch."""
        self._plans += 1
        return self._plans

    def log(self, text: str) -> None:
        """A line of the sweep's log."""
        self.storage.append(_log_name(self.number, "log"), _line(text))

    @property
    def stop(self) -> StopKind | None:
        """What the launch was asked for, if anything."""
        return stop_request(self.storage, self.number)

    def _keep_beating(self) -> None:
        while not self._over.wait(self.every):
            with suppress(OSError, StoreError):  # a full disk must not end the launch: running packs may still commit
                if not self._is_mine(latest(self.storage)):
                    self.lost = True
                    return
                self.beat(**self.describe())

    def _acquired(self) -> Holder:
        while True:
            used = _used(self.storage)  # asked first: whoever takes a lease from now on is found below
            holder = latest(self.storage)
            if holder is not None and not self._is_free(holder):
                raise LaunchHeldError(held(self.sweep.name, holder))
            with suppress(FileExistsError):  # another one was faster: it is the holder now
                return create(self.storage, 1 + max(used, holder.number if holder else 0), self.command)

    def _is_free(self, holder: Holder) -> bool:
        beat = heartbeat(self.storage, holder.number)
        if has_ended(beat) or holder.is_gone() or not self.patience:
            return True
        why = f"{held(self.sweep.name, holder)}. Waiting for a sign of it, {self.patience:.0f} s at most"
        return is_silent(self.storage, holder.number, beat, self.patience, lambda: self.on_wait(why))


def _used(storage: Storage) -> int:
    """The highest number that plans and logs tell of: it must not come again, even where its lease is lost."""
    names = [name for folder in ("plan", "log") for name in storage.names(folder)]
    return max((int(found[1]) for name in names if (found := _NUMBER.match(name))), default=0)


def has_ended(beat: Mapping[str, Any]) -> bool:
    """Whether a heartbeat is the last one."""
    return bool(beat.get("state", "running") != "running")


def is_silent(
    storage: Storage,
    number: int,
    before: Mapping[str, Any],
    seconds: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> bool:
    """Whether a heartbeat stays as it was for so many seconds of this machine's own watching."""
    begun = time.monotonic()
    while heartbeat(storage, number) == before:
        left = begun + seconds - time.monotonic()
        if left <= 0:
            return True
        if seconds - left > SIGN:
            meanwhile()
        time.sleep(min(0.25, left))
    return False


def ask_to_stop(storage: Storage, number: int, kind: StopKind) -> None:
    """Leaves word for the launch of this number and its workers; the stronger request counts."""
    if stop_request(storage, number) != "checkpoint":
        storage.replace(_log_name(number, "stop"), kind.encode())


def stop_request(storage: Storage, number: int) -> StopKind | None:
    """What a launch was asked for, if anything."""
    found = storage.read_if_there(_log_name(number, "stop"))
    if found is None:
        return None
    return "checkpoint" if found == b"checkpoint" else "finish"


def note(storage: Storage, number: int, pack_id: str, text: str) -> None:
    """A line of a worker's about a pack."""
    remark(storage, number, pack_id, [f"pack {pack_id}: {text}"])


def remark(storage: Storage, number: int, about: str, lines: Iterable[str]) -> None:
    """Lines beside the log of a launch, which only its driver writes."""
    with suppress(OSError, StoreError):  # what is for people must not end what they are about
        storage.append(_log_name(number, f"{about}.log"), b"".join(map(_line, lines)))


def logs(storage: Storage) -> list[str]:
    """Names of the logs of all launches, oldest first, those of a launch's workers after its own."""
    found = [f"log/{name}" for name in storage.names("log") if name.endswith(".log")]
    return sorted(found, key=lambda name: (name != FIRST_LOG, name.partition(".")[0], name.count("."), name))


def held(sweep: str, holder: Holder) -> str:
    """What to say where another launch holds the sweep."""
    doing, advice = "run", f"watch it with `isoratio status`, end it with `isoratio stop {sweep}`"
    if holder.command != "launch":
        doing, advice = f"changed (`{holder.command}`)", "wait until that has ended"
    return f"sweep {sweep!r} is being {doing} by {holder}: {advice}, or, where it is stuck, replace it with --take-over"


def _log_name(number: int, suffix: str) -> str:
    return f"log/{number:06d}.{suffix}"


def _line(text: str) -> bytes:
    return f"{datetime.now(UTC).isoformat('T', 'seconds')} {text}\n".encode()


def _machine() -> str | None:
    """This start of this machine, as processes of this container see it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Clock ticks at which a process started, which no change of the clock moves; None where there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if status[0] in "ZX" else int(status[19])
