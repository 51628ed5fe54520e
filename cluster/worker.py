"""The half of a Tune run that lives in a worker process.

This module is sent to the workers by value: Ray puts the driver's working directory first on their import path, where
a user's own ``cluster/`` or ``analysis/`` would be found instead of ours. So nothing of ours may be imported before
:func:`enter` has put that right, and this module needs nothing but Ray and the standard library.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from ray import tune

REPORT_EVERY = 0.5
"""Seconds between two reports of one item, at least: a report costs the driver milliseconds."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Libraries read these when they are imported, which is when the work is."""


class Slot(tune.Trainable):
    """A process that runs one item after the other; a step ends when a report is due, or with the item.

    Attributes:
        told: whether SIGTERM has come: the item ends at its next report, and the process with it.
    """

    def setup(self, config: dict[str, Any], job: bytes, directory: str, threads: int) -> None:
        """Enters ``directory``. ``job`` is the pickled pair (work, items)."""
        self.told = False
        signal.signal(signal.SIGTERM, self.tell)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # which a Ray of our own starts with blocked
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        enter(directory)
        self.job = job
        self.loaded: tuple[Callable[[Any], Iterator[float]], Sequence[Any]] | None = None
        self.index: int | None = None
        self.fractions: Iterator[float] | None = None

    def tell(self, number: int, frame: object) -> None:
        """Hears a signal, wherever the work is: only at a report is it in a state that it can save."""
        self.told = True

    def take(self, index: int, every: float) -> None:
        """Makes an item the one that the next steps run, and sets the seconds between two of its reports."""
        self.index, self.every = index, every

    def step(self) -> dict[str, Any]:
        """{} without an item, {"fraction": done so far}, or how the item ended.

        That is {"ended": traceback, empty where all went well, "preempted": whether the process was told to end}.
        """
        if self.index is None:
            return {}
        due = time.monotonic() + self.every
        error, interrupted = "", False
        try:
            while (fraction := self.advance(self.index)) is not None:
                if time.monotonic() >= due:
                    return {"fraction": fraction}
        except (Exception, SystemExit) as raised:
            error, interrupted = traceback.format_exc(), isinstance(raised, InterruptedError)
        self.index = self.fractions = None  # what the work holds goes before the next item comes
        return {"ended": error, "preempted": self.told or interrupted}

    def advance(self, index: int) -> float | None:
        """The fraction done at the next report of the work, None at its end; interrupts it once told to end."""
        fractions = self.begun(index)
        try:
            return float(self.interrupt(fractions) if self.told else next(fractions))
        except StopIteration:
            return None

    def begun(self, index: int) -> Iterator[float]:
        """The work on an item, begun where it has not."""
        if self.fractions is None:
            self.loaded = self.loaded or pickle.loads(self.job)  # an import that fails is the item's failure
            work, items = self.loaded
            self.fractions = iter(work(items[index]))
        return self.fractions

    def interrupt(self, fractions: Iterator[float]) -> float:
        """Raises ``InterruptedError`` where the work has just reported."""
        error = InterruptedError("the process was told to end (SIGTERM)")
        if isinstance(fractions, Generator):
            return float(fractions.throw(error))
        raise error


def enter(directory: str) -> None:
    """Makes ``directory`` the working directory where it exists, importable after everything else."""
    directory = laid_down(directory, os.getcwd())
    sys.path[:] = [entry for entry in sys.path if entry != directory]
    sys.meta_path.append(LastDirectory(directory))
    if os.path.isdir(directory):
        os.chdir(directory)


def laid_down(directory: str, here: str) -> str:
    """Where a directory of the driver's lies on this node.

    What travels with a Ray Job each node's Ray lays down where it keeps its own files, and workers begin there.
    """
    _, package, below = directory.partition(f"/{os.path.basename(here)}/")
    return os.path.join(here, below) if package.startswith("/_ray_pkg_") else directory


class LastDirectory:
    """Finds modules in one directory when nobody else does.

    An entry at the end of ``sys.path`` would still come before packages that are installed as editable.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The specification of a top-level module in the directory, or None."""
        return PathFinder.find_spec(name, [self.directory]) if path is None else None
