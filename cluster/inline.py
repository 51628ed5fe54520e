"""Runs items one after the other in this process: for debugging, and where Ray is not wanted."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence

from cluster.executor import Event, Failed, Finished, Item, Progress, Started, Work


class InlineExecutor:
    """An :class:`~cluster.executor.Executor` without any machinery; a crash takes this process with it."""

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
    except (Exception, SystemExit):
        yield Failed(index, "exception", traceback.format_exc())
        return
    while True:
        try:
            fraction = float(next(fractions))
        except StopIteration:
            yield Finished(index)
            return
        except (Exception, SystemExit):
            yield Failed(index, "exception", traceback.format_exc())
            return
        yield Progress(index, fraction)
