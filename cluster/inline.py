"""Runs items one after the other in this process: for debugging, and where Ray is not wanted."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from cluster.executor import Cause, Event, Failed, Finished, Item, Progress, Started, Work


class InlineExecutor:
    """An :class:`~cluster.executor.Executor` without any machinery; a crash takes this process with it."""

    def __enter__(self) -> Self:
        """Nothing: there is nothing to keep."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: a run leaves nothing behind."""

    def run(
        self,
        work: Work[Item],
        items: Sequence[Item],
        *,
        on_event: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        """See :meth:`cluster.executor.Executor.run`."""
        for index, item in enumerate(items):
            if stop():
                return
            on_event(Started(index))
            for event in _settle(work, index, item):
                on_event(event)


def _settle(work: Work[Item], index: int, item: Item) -> Iterator[Event]:
    """Progress, then how it ended. Only what ``work`` raises is a failure: the events are handled outside."""
    try:
        fractions = iter(work(item))
    except (Exception, SystemExit) as error:
        yield _failed(index, error)
        return
    while True:
        try:
            fraction = float(next(fractions))
        except StopIteration:
            yield Finished(index)
            return
        except (Exception, SystemExit) as error:
            yield _failed(index, error)
            return
        yield Progress(index, fraction)


def _failed(index: int, error: BaseException) -> Failed:
    cause = Cause.PREEMPTION if isinstance(error, InterruptedError) else Cause.EXCEPTION
    return Failed(index, cause, "".join(traceback.format_exception(error)))
