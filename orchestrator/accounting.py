"""What a sweep will cost, and how much of a cluster a launch may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.executor import Event, Progress, Started
from trainables.resources import HOUR, Prices, Resources


@dataclass(frozen=True)
class Estimate:
    """What packs will take of a cluster.

    Attributes:
        gpu_hours: hours times GPUs.
        cpu_hours: hours times CPU cores.
        cost: the least and the most, on the cheapest and the dearest GPUs that have a price; None where one is missing.
        currency: of the cost.
    """

    gpu_hours: float
    cpu_hours: float
    cost: tuple[float, float] | None
    currency: str = ""

    @classmethod
    def of(cls, seconds: float, resources: Resources, prices: Prices) -> Estimate:
        """For packs that run so long, all together."""
        gpu_hours, cpu_hours = seconds / HOUR * resources.gpu, seconds / HOUR * resources.cpu
        of_gpu = prices.range_of_gpu(resources.accelerator) if resources.gpu else (0.0, 0.0)
        of_cpu = prices.cpu if prices.cpu is not None or not resources.gpu else 0.0
        if of_gpu is None or of_cpu is None:
            return cls(gpu_hours, cpu_hours, None)
        low, high = (gpu_hours * price + cpu_hours * of_cpu for price in of_gpu)
        return cls(gpu_hours, cpu_hours, (low, high), prices.currency)

    def text(self) -> str:
        """``1.5 GPU-hours and 6 CPU-hours, 3 to 4.5 USD``."""
        used = [f"{_number(self.gpu_hours)} GPU-hours"] if self.gpu_hours else []
        used += [f"{_number(self.cpu_hours)} CPU-hours"] if self.cpu_hours else []
        if self.cost is None:
            return " and ".join(used)
        low, high = (_number(cost) for cost in self.cost)
        return f"{' and '.join(used)}, {low if low == high else f'{low} to {high}'} {self.currency}".rstrip()


def _number(value: float) -> str:
    """As people write it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.01 or not value else "less than 0.01"


@dataclass
class Budget:
    """How many GPU-hours the packs of a launch may take; CPU-hours where they take no GPU.

    A pack counts from its start to its end, however it ends, with what is set aside for it.

    Attributes:
        resources: of a pack.
        hours: what may be used; None: any.
        clock: seconds.
        ended: seconds of the packs that have ended.
        begun: when each pack that runs began.
    """

    resources: Resources
    hours: float | None = None
    clock: Callable[[], float] = time.monotonic
    ended: float = 0.0
    begun: dict[str, float] = field(default_factory=dict)

    def note(self, pack_id: str, event: Event) -> None:
        """Hears of every event."""
        if isinstance(event, Started):
            self.begun[pack_id] = self.clock()
        elif not isinstance(event, Progress):
            now = self.clock()
            self.ended += now - self.begun.pop(pack_id, now)

    @property
    def used(self) -> float:
        """Hours so far, packs that run included."""
        now = self.clock()
        seconds = self.ended + sum(now - begun for begun in self.begun.values())
        return seconds / HOUR * (self.resources.gpu or self.resources.cpu)

    @property
    def is_spent(self) -> bool:
        """Whether nothing further may run."""
        return self.hours is not None and self.used >= self.hours

    def text(self) -> str:
        """What to say once it is spent."""
        kind = "GPU" if self.resources.gpu else "CPU"
        running = f"; {len(self.begun)} running packs are saved as they are" if self.begun else ""
        return f"the budget of {self.hours:g} {kind}-hours is used up{running}"
