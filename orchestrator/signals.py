"""What Ctrl-C and SIGTERM mean while a launch runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from trainables.lease import StopKind


class StoppedAtOnce(BaseException):
    """A second signal; no KeyboardInterrupt, which Typer takes for itself."""

    def __init__(self, number: int) -> None:
        self.number = number


_SAID = {
    "finish": b"\nstopping once the running packs are committed; once more saves them as they are\n",
    "checkpoint": b"\nstopping once the running packs are saved as they are; once more stops at once\n",
}


@contextmanager
def signals() -> Iterator[list[int]]:
    """Ctrl-C asks to stop after committing, twice to save running packs as they are, three times stops at once.

    SIGTERM, which comes with preemption, begins at the second.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if wish(received) == "checkpoint":
            raise StoppedAtOnce(number)
        received.append(number)
        os.write(2, _SAID["finish" if wish(received) == "finish" else "checkpoint"])

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wish(received: list[int]) -> StopKind | None:
    """What the signals so far ask for."""
    if signal.SIGTERM in received or len(received) > 1:
        return "checkpoint"
    return "finish" if received else None
