"""What the launching process and the one that holds the connection to Ray say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.executor import ClusterError, Event


@dataclass(frozen=True)
class Need:
    """What Ray sets aside for an item.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; below 1, a share of one.
        accelerator: the kind of GPU, as Ray names it, such as H100; None: any.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    accelerator: str | None = None

    def __str__(self) -> str:
        """For people."""
        kind = f" of type {self.accelerator}" if self.accelerator else ""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs{kind}"

    def resources(self) -> dict[str, float]:
        """Under Ray's names."""
        kind = {f"accelerator_type:{self.accelerator}": 0.001} if self.accelerator else {}
        return {"cpu": self.cpus, "gpu": self.gpus, **kind}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        pickled: the pair (work, items).
        count: how many items.
        directory: the working directory of the work.
        need: of each item.
        max_concurrent: so many items run at a time at most; None: as many as there is room for.
    """

    pickled: bytes
    count: int
    directory: str
    need: Need
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Asked:
    """Shall no further item start? The answer is a bool."""


@dataclass(frozen=True)
class Ended:
    """All items that started are settled."""


Message = Event | Asked | Ended | ClusterError
"""To the launching process, which says a :class:`Job`, or a bool when asked."""
