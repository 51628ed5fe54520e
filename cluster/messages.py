"""What the launching process and the one that holds the connection to Ray say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.executor import ClusterError, Event


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        pickled: the pair (work, items).
        count: how many items.
        directory: the working directory of the work.
        cpus: CPU cores set aside for an item.
        gpus: GPUs set aside for an item.
    """

    pickled: bytes
    count: int
    directory: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Asked:
    """Shall no further item start? The answer is a bool."""


@dataclass(frozen=True)
class Ended:
    """All items that started are settled."""


Message = Event | Asked | Ended | ClusterError
"""To the launching process, which says a :class:`Job`, or a bool when asked."""
