"""The contract that every executor keeps, and the events by which it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self, TypeVar

Item = TypeVar("Item")

Work = Callable[[Item], Iterator[float]]
"""Runs one item and yields the fraction done, 0 to 1, now and then. It stores its results itself.

A generator may be told at a ``yield`` to end, by an ``InterruptedError`` raised there: it saves itself and raises on.
"""


@dataclass(frozen=True)
class Started:
    """Work on an item begins."""

    index: int


@dataclass(frozen=True)
class Progress:
    """So much of an item is done."""

    index: int
    fraction: float


@dataclass(frozen=True)
class Finished:
    """Work on an item came to its end."""

    index: int


class Cause(StrEnum):
    """Why an item failed."""

    EXCEPTION = "exception"
    """Python raised."""
    CRASH = "crash"
    """The process was killed, or native code crashed."""
    MEMORY = "memory"
    """Ray killed the process, since its machine ran out of memory."""
    PREEMPTION = "preemption"
    """The machine went away, or the process was told to end: ``InterruptedError`` left the work."""


@dataclass(frozen=True)
class Failed:
    """Work on an item raised, or the process that ran it died.

    Attributes:
        cause: which of the two, and why.
        error: the traceback, or what is known of the process's end.
    """

    index: int
    cause: Cause
    error: str


Event = Started | Progress | Finished | Failed
"""What happens to the item at ``index`` of the sequence given to :meth:`Executor.run`."""


class ClusterError(ValueError):
    """Ray cannot be reached at an address, cannot give what an item needs, or died under the run."""


class Executor(Protocol):
    """Runs a callable over items; a context manager, which keeps what one run has started for the next.

    Invariants, which one suite of tests asks of every executor:

    - Items start in the order given.
    - An item that starts has one ``Started``, any number of ``Progress``, then one ``Finished`` or ``Failed``.
      An item that never starts has no event. Only an exception that leaves ``run`` cuts this short.
    - An item that fails changes nothing for the others. Nothing is tried again.
    - Once ``stop()`` is true no further item starts; those that run come to their end.
    - ``on_event`` and ``stop`` are called in the thread that called ``run``, and what they raise leaves ``run``.
    - When ``run`` is left, by return or by exception, no item is still running. When the ``with`` is left, or ``run``
      where there is none, nothing at all that was started is still running.
    """

    def __enter__(self) -> Self:
        """Keeps what the first run starts until the ``with`` is left."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all that was started."""
        ...

    def run(
        self,
        work: Work[Item],
        items: Sequence[Item],
        *,
        on_event: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        """Runs ``work(item)`` for each item and returns when all that started are settled.

        Args:
            work: a function of a module, or a ``functools.partial`` of one.
            items: small values that pickle, those to start first in front.
            on_event: hears of every event.
            stop: asked before an item starts, and many times a second while items run.
        """
        ...
