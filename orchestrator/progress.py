"""How a launch is going: counted from the store, shown on the terminal, written where other terminals look."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

from analysis.formats import escaped
from trainables.lease import Lease
from trainables.schema import Status
from trainables.storage import StoreError
from trainables.store import SweepStore, rows_name

LINE_SECONDS = 10.0
LOGGED_SECONDS = 60.0  # between lines of a log that is written anew for each
BAR_SECONDS = 0.25


@dataclass
class Tally:
    """Counts of a launch.

    Attributes:
        planned: trials of the whole sweep.
        counts: trials by how they ended, those of earlier launches included.
        cost: what this launch has to do, in the plan's relative unit.
        done_cost: what it has done.
        running: pack -> (its cost, the fraction done).
    """

    planned: int
    counts: dict[str, int]
    cost: float
    done_cost: float = 0.0
    done_here: int = 0
    running: dict[str, tuple[float, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Trials that finished or diverged."""
        return self.counts[Status.FINISHED] + self.counts[Status.DIVERGED]

    @property
    def pending(self) -> int:
        """Trials that have not ended."""
        return self.planned - self.done - self.counts[Status.FAILED]

    def settle(self, pack_id: str, cost: float, ended: Mapping[str, int]) -> None:
        """Counts a pack that came to its end: its trials by status."""
        self.running.pop(pack_id, None)
        self.done_cost += cost
        for status, trials in ended.items():
            self.counts[status] += trials
            self.done_here += trials if status != Status.FAILED else 0

    @property
    def trials_per_second(self) -> float | None:
        """Of this launch; None before the first trial is done."""
        elapsed = time.monotonic() - self.started
        return self.done_here / elapsed if self.done_here and elapsed else None

    @property
    def fraction(self) -> float:
        """Of this launch's cost, running packs included."""
        done = self.done_cost + sum(cost * part for cost, part in list(self.running.values()))  # another thread adds
        return min(1.0, done / self.cost) if self.cost else 1.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go, None while nothing can be told."""
        elapsed = time.monotonic() - self.started
        return elapsed * (1 / self.fraction - 1) if self.fraction else None

    def line(self) -> str:
        """One line for people."""
        counts = f"{self.counts[Status.DIVERGED]} diverged, {self.counts[Status.FAILED]} failed"
        rate = f", {self.trials_per_second:.3g} trials/s" if self.trials_per_second else ""
        eta = f", {duration(self.eta_seconds)} to go" if self.eta_seconds is not None and self.fraction < 1 else ""
        return f"{self.done}/{self.planned} trials done, launch {self.fraction:.0%}, {counts}{rate}{eta}"


class Reporter:
    """Shows a tally while it changes: a bar on a terminal, a line every 10 s elsewhere, a heartbeat in the store."""

    def __init__(self, lease: Lease, tally: Tally, stream: TextIO | None = None) -> None:
        self.lease, self.tally = lease, tally
        self.stream = sys.stderr if stream is None else stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar = _bar(self.stream, tally) if self.stream.isatty() else None

    def __enter__(self) -> Reporter:
        self.lease.describe = self.content
        self.lease.beat(**self.content())
        if self._bar is not None:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._bar is not None:
            self._update_bar()
            self._bar.stop()

    def say(self, text: str) -> None:
        """A message for people: to the terminal and to the log."""
        text = escaped(text, keep="\n\t")
        if self._bar is not None:
            self._bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)
        self.log(text)

    def log(self, text: str) -> None:
        """A line of the sweep's log, harmless to whoever prints it."""
        with suppress(OSError, StoreError):  # which must not end the launch: running packs may still commit
            self.lease.log(escaped(text, keep="\n\t"))

    def _print(self, text: str) -> None:
        with suppress(OSError):  # nobody reads any more
            print(text, file=self.stream, flush=True)

    def content(self) -> dict[str, Any]:
        """What the heartbeat says, for `isoratio status`."""
        return {
            "running_packs": sorted(self.tally.running),
            "trials_done": self.tally.done,
            "trials_per_second": self.tally.trials_per_second,
            "eta_seconds": self.tally.eta_seconds,
        }

    def _watch(self) -> None:
        every = LOGGED_SECONDS if self.lease.storage.is_remote else LINE_SECONDS
        next_line = time.monotonic() + 1.0
        while not self._over.wait(BAR_SECONDS):
            now = time.monotonic()
            if self._bar is not None:
                self._update_bar()
            if now >= next_line:
                next_line = now + every
                self.log(self.tally.line())
                if self._bar is None:
                    self._print(self.tally.line())

    def _update_bar(self) -> None:
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=self.tally.fraction, line=self.tally.line())


def count_pack(sweep: SweepStore, pack_id: str) -> Mapping[str, int]:
    """Trials of a pack by how they ended: as committed, or failed."""
    ended: dict[str, str] = {}
    for name in sweep.storage.names("failures"):  # of several attempts, where one was cut off
        if name.startswith(f"{pack_id}."):
            failed = sweep.read_table(f"failures/{name}")
            ended |= dict.fromkeys(failed["trial_id"].to_pylist(), Status.FAILED)
    if sweep.storage.exists(rows_name(pack_id)):
        rows = sweep.read_table(rows_name(pack_id))
        ended |= zip(rows["trial_id"].to_pylist(), rows["status"].to_pylist(), strict=True)
    return Counter(ended.values())


def _bar(stream: TextIO, tally: Tally) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    text = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True))
    bar = Progress(BarColumn(bar_width=10), text, console=Console(file=stream), transient=True)
    bar.add_task("", total=1.0, line=tally.line())
    return bar


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
