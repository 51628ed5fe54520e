"""Processes that take turns under a seed: at every storage operation another one may go on, and a fault may strike.

They are real code in threads, of which one runs at a time: the one that was handed the baton. Time is simulated, too.
All choices come from one generator, so that a seed is a schedule, and the same one whenever it is played.
"""

from __future__ import annotations

import errno
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Literal

LIMIT = 3_000
"""Operations after which everything is killed, as by a power cut."""

PACE = 0.02
"""Mean simulated seconds from one operation to the next."""

WRITES = frozenset({"create", "replace", "append", "delete", "remove"})


class Fault(StrEnum):
    """What can happen to a process at an operation."""

    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    ERROR = "error"
    LOST_ANSWER = "answer lost"  # an error, but it was done
    PAUSE = "pause"  # all threads of the process stand still while others go on


Step = tuple[str, str, str]
"""Kind of process, operation, folder."""

PAUSES = (0.5, 5.0, 60.0)


class Killed(BaseException):
    """Takes down the threads of a process that was killed: none of them touches the storage any more."""


class InjectedError(OSError):
    """The storage's fault."""


class ViolationError(AssertionError):
    """Something that must never happen has happened."""


@dataclass(eq=False)
class Process:
    """One that is alive until its first thread ends, or it is killed.

    Attributes:
        kind: what it is doing.
        number: its process id.
        host: its machine.
        faults: how often each strikes, as a probability per operation.
        error: what ended it, if anything did.
    """

    kind: str
    number: int
    host: int
    faults: Mapping[Fault, float]
    alive: bool = True
    paused: float = 0.0
    error: BaseException | None = None
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


@dataclass(eq=False)
class Task:
    """A thread of a process: ready once its time has come, or what it waits for."""

    process: Process
    work: Callable[[], None]
    wake: float = 0.0
    until: Callable[[], bool] | None = None
    done: bool = False
    fault: Fault | None = None
    runner: _Runner = field(default_factory=lambda: _idle.pop() if _idle else _Runner())

    def due(self) -> float:
        """When it is ready, as things stand."""
        return self.process.paused if self.until and self.until() else max(self.process.paused, self.wake)


class _Runner(threading.Thread):
    """A real thread that runs one task after the other, each when it is handed the baton."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.baton = _baton()
        self.job: Callable[[], None]
        self.start()

    def run(self) -> None:
        while True:
            self.baton.acquire()
            self.job()


_idle: list[_Runner] = []


def _baton() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Simulation:
    """A schedule while it is played.

    Attributes:
        random: where all choices come from.
        clock: simulated seconds.
        current: the task that has the baton.
        steps: what happened: when, who, operation, name, fault.
        watch: called after every operation that writes, with the name of the file.
        switching: probability that another process goes on before an operation.
        aim: (kind of process, operation, folder) at which a fault is to strike once, and the fault.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = 0.0
        self.current: Task | None = None
        self.steps: list[tuple[float, Process, str, str, Fault | None]] = []
        self.watch: Callable[[str], None] = lambda name: None
        self.switching = self.random.choice((0.1, 0.3, 0.6))
        self.aim: tuple[Step, Fault] | None = None
        self.processes: list[Process] = []
        self._tasks: list[Task] = []
        self._violation: BaseException | None = None
        self._home = _baton()
        self._tokens = count()
        self._limit = LIMIT

    # --- processes --------------------------------------------------------------------------------------------------

    def start(
        self, kind: str, work: Callable[[], None], faults: Mapping[Fault, float], *, delay: float = 0.0
    ) -> Process:
        """A process, from so many seconds on."""
        process = Process(kind, len(self.processes), self.random.randrange(2), faults)
        self.processes.append(process)
        self.thread(process, work, delay)
        return process

    def thread(self, process: Process, work: Callable[[], None], delay: float = 0.0) -> Task:
        """A further thread of a process; it ends with the process."""
        task = Task(process, work, self.clock + delay)
        first = process.threads == 0
        process.threads += 1
        task.runner.job = lambda: self._run(task, first=first)
        self._tasks.append(task)
        return task

    def play(self) -> None:
        """Until all processes have ended.

        Raises:
            ViolationError: as found while they ran.
        """
        self._limit = len(self.steps) + LIMIT
        if self._tasks:
            self._hand_to(self._next())
            if not self._home.acquire(timeout=120):
                raise ViolationError(f"{self.current and self.current.process} hangs")
        if self._violation is not None:
            raise self._violation

    def kill(self, process: Process) -> None:
        """As SIGKILL does."""
        process.alive = False

    def _run(self, task: Task, *, first: bool) -> None:
        process = task.process
        try:
            self._check(task)
            task.work()
        except Killed:
            pass
        except ViolationError as error:
            self._fail(error)
        except BaseException as error:
            process.error = error
        task.done = True
        if first:
            self.kill(process)
        self._tasks.remove(task)
        del task.runner.job
        _idle.append(task.runner)
        if self._tasks:
            self._hand_to(self._next())
        else:
            self.current = None
            self._home.release()

    def _fail(self, error: BaseException) -> None:
        """Ends the schedule."""
        self._violation = self._violation or error
        for process in self.processes:
            self.kill(process)

    # --- turns ------------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Lets others go on for so long, or until something is true."""
        task = self.me()
        task.wake, task.until = self.clock + seconds, until
        self._yield(task)
        task.wake, task.until = 0.0, None

    def chance(self, probability: float) -> bool:
        """Whether something happens that does so with this probability."""
        return self.random.random() < probability

    def token(self, size: int) -> str:
        """In place of random names: the next one."""
        return f"{next(self._tokens):0{2 * size}x}"

    def me(self) -> Task:
        assert self.current is not None
        return self.current

    def _yield(self, task: Task) -> None:
        other = self._next()
        if other is not task:
            self._hand_to(other)
            task.runner.baton.acquire()
        self._check(task)

    def _next(self) -> Task:
        """Whose turn it is: first those that were killed, so that they are gone; else any that is ready."""
        for task in self._tasks:
            if not task.process.alive:
                return task
        due = [task.due() for task in self._tasks]
        now = max(self.clock, min(due))
        if math.isinf(now):
            self._fail(ViolationError("all processes wait for each other"))
            return self._tasks[0]
        self.clock = now
        ready = [task for task, at in zip(self._tasks, due, strict=True) if at <= now]
        return ready[0] if len(ready) == 1 else self.random.choice(ready)

    def _hand_to(self, task: Task) -> None:
        self.current = task
        task.runner.baton.release()

    @staticmethod
    def _check(task: Task) -> None:
        if not task.process.alive:
            raise Killed

    # --- storage ----------------------------------------------------------------------------------------------------

    def hook(self, operation: str, name: str, when: Literal["before", "after"]) -> None:
        """At every operation of a storage; who has no turn, as whoever only looks, does as he likes."""
        task = self.current
        if task is None or task.runner.ident != threading.get_ident():
            return
        (self._before if when == "before" else self._after)(task, operation, name)

    def _before(self, task: Task, operation: str, name: str) -> None:
        process = task.process
        self._check(task)
        self.clock += self.random.random() * 2 * PACE
        fault = self._drawn(process.faults) or self._aimed(process, operation, name)
        if fault is Fault.PAUSE:
            process.paused = self.clock + self.random.choice(PAUSES)
        if fault is Fault.PAUSE or self.chance(self.switching):
            self._yield(task)
        self.steps.append((self.clock, process, operation, name, fault))
        if len(self.steps) > self._limit:
            self._fail(ViolationError(f"no end after {LIMIT} operations"))
            raise Killed
        task.fault = fault
        if fault is Fault.CRASH_BEFORE:
            self.kill(process)
            raise Killed
        if fault is Fault.ERROR:
            raise InjectedError(errno.ESTALE, "Stale file handle (simulated)", name)

    def _after(self, task: Task, operation: str, name: str) -> None:
        fault, task.fault = task.fault, None
        if operation in WRITES:
            try:
                self.watch(name)
            except BaseException as error:
                self._fail(error)
                raise Killed from error
        if fault is Fault.CRASH_AFTER:
            self.kill(task.process)
            raise Killed
        if fault is Fault.LOST_ANSWER:
            raise InjectedError(errno.ETIMEDOUT, "Connection timed out (simulated)", name)

    def _drawn(self, faults: Mapping[Fault, float]) -> Fault | None:
        if not faults:
            return None
        left = self.random.random()
        for fault, probability in faults.items():
            left -= probability
            if left < 0:
                return fault
        return None

    def _aimed(self, process: Process, operation: str, name: str) -> Fault | None:
        if self.aim is None or self.aim[0] != (process.kind, operation, _folder(name, operation)) or self.chance(0.3):
            return None
        fault, self.aim = self.aim[1], None
        return fault

    def fired(self) -> Counter[tuple[Step, Fault | None]]:
        """How often each fault, or none, struck at each step."""
        return Counter(((who.kind, what, _folder(name, what)), fault) for _, who, what, name, fault in self.steps)

    def story(self) -> str:
        """What happened, for people."""
        return "\n".join(
            f"{at:8.2f} s  {who}: {what} {name}{f'  <- {fault}' if fault else ''}"
            for at, who, what, name, fault in self.steps
        )


def _folder(name: str, operation: str) -> str:
    """Below the sweep."""
    parts = name.split("/")
    return parts[1] if len(parts) > 1 + (operation != "names") else ""


class Thread:
    """In place of ``threading.Thread``."""

    def __init__(self, play: Simulation, target: Callable[[], None]) -> None:
        self.play, self.target = play, target
        self.task: Task | None = None

    def start(self) -> None:
        self.task = self.play.thread(self.play.me().process, self.target)

    def join(self) -> None:
        task = self.task
        if task is not None:
            self.play.sleep(math.inf, lambda: task.done)


class Event:
    """In place of ``threading.Event``."""

    def __init__(self, play: Simulation) -> None:
        self.play, self.told = play, False

    def set(self) -> None:
        self.told = True

    def is_set(self) -> bool:
        return self.told

    def wait(self, seconds: float) -> bool:
        if not self.told:
            self.play.sleep(seconds, self.is_set)
        return self.told


class Lock:
    """In place of ``threading.Lock``."""

    def __init__(self, play: Simulation) -> None:
        self.play, self.is_held = play, False

    def __enter__(self) -> None:
        while self.is_held:
            self.play.sleep(math.inf, lambda: not self.is_held)
        self.is_held = True

    def __exit__(self, *error: object) -> None:
        self.is_held = False


def of_threads(simulation: Callable[[], Simulation]) -> SimpleNamespace:
    """What code that starts threads finds in place of ``threading``."""
    return SimpleNamespace(
        Thread=lambda target, daemon: Thread(simulation(), target),
        Event=lambda: Event(simulation()),
        Lock=lambda: Lock(simulation()),
    )


def of_time(simulation: Callable[[], Simulation]) -> SimpleNamespace:
    """What code that looks at clocks finds in place of ``time``."""
    return SimpleNamespace(
        monotonic=lambda: simulation().clock,
        sleep=lambda seconds: simulation().sleep(seconds),
        perf_counter=lambda: 0.0,  # what is stored does not depend on it
    )
