"""What packs take of a cluster, and what that costs. Imports neither torch nor ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from trainables.settings import STRICT

HOUR = 3600.0
"""Seconds."""

Price = Annotated[float, Field(ge=0)]


PACK_MEMORY = 4.0
"""GiB that the trials of a pack keep during a step, where the sweep file does not say."""
GPU_MEMORY = {
    "P100": 15,
    "V100": 15,
    "T4": 14,
    "L4": 22,
    "A10G": 22,
    "L40S": 44,
    "A100": 39,
    "A100-40G": 39,
    "A100-80G": 79,
    "H20": 95,
    "H100": 78,
    "H200": 139,
    "B200": 178,
}
"""Kind of GPU, as Ray names it -> GiB that programs can use; of kinds of several sizes the smallest."""
BESIDES = 2.0
"""GiB that a process takes of a GPU besides what the trials of its pack keep: CUDA itself, data, room to breathe."""


def with_gpus(given: Any, memory: float) -> Any:
    """``resources`` of a sweep file, with ``gpu: auto`` written out: the share of a GPU that has room for one pack.

    Args:
        given: the section.
        memory: GiB that the trials of a pack keep.

    Raises:
        ValueError: the kind of GPU is not given, or not known.
    """
    if not isinstance(given, Mapping) or given.get("gpu") != "auto":
        return given
    if not isinstance(kind := given.get("accelerator"), str) or kind not in GPU_MEMORY:
        known = f"accelerator as one of {', '.join(GPU_MEMORY)}"
        raise ValueError(f"gpu: auto needs {known}; of other kinds give gpu as a number, such as 0.25 for 4 packs each")
    packs = max(1, int(GPU_MEMORY[kind] / (memory + BESIDES)))
    return {**given, "gpu": int(1e4 / packs) / 1e4}  # Ray counts in steps of 0.0001: rounded up, one pack less fits


class Resources(BaseModel):
    """What one pack takes of a cluster; fractions share a device."""

    model_config = STRICT
    cpu: Annotated[float, Field(ge=0)] = 1.0
    gpu: Annotated[float, Field(ge=0)] = 0.0
    accelerator: Annotated[str, Field(pattern="^[A-Za-z0-9._-]+$")] | None = None  # kind of GPU, as Ray names it

    @model_validator(mode="after")
    def _can_be_set_aside(self) -> Self:
        if self.gpu > 1 and not self.gpu.is_integer():
            raise ValueError(f"gpu: {self.gpu:g} should be a whole number, or below 1 to share a GPU")
        if not self.cpu and not self.gpu:
            raise ValueError("one of cpu and gpu should be above 0")
        if self.accelerator and not self.gpu:
            raise ValueError(f"accelerator: {self.accelerator!r} is a kind of GPU, and gpu is 0")
        return self


ANY = "any"
"""Stands for every kind of GPU that has no price of its own."""


def _for_any(value: Any) -> Any:
    return {ANY: value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Prices(BaseModel):
    """What an hour costs: of a GPU, one price or by the name of its kind, and of a CPU core.

    A name means every GPU whose own name has it as whole words: L4 is not L40S. The longest such name counts.
    """

    model_config = STRICT
    gpu: Annotated[dict[str, Price], BeforeValidator(_for_any)] = {}
    cpu: Price | None = None
    currency: str = ""

    def of_gpu(self, device: str) -> float | None:
        """An hour of a GPU of this name; None where no price is given."""
        names = [name for name in self.gpu if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", device, re.IGNORECASE)]
        return self.gpu[max(names, key=len)] if names else self.gpu.get(ANY)

    def range_of_gpu(self, accelerator: str | None) -> tuple[float, float] | None:
        """The lowest and the highest price of an hour on GPUs that a pack may get; None where none is given."""
        if accelerator is not None and (price := self.of_gpu(accelerator)) is not None:
            return price, price
        return (min(self.gpu.values()), max(self.gpu.values())) if self.gpu else None


@dataclass(frozen=True)
class Usage:
    """What packs have taken of a cluster: what was set aside for them, for as long as they ran.

    Attributes:
        gpu_hours: hours times GPUs.
        cpu_hours: hours times CPU cores.
        cost: at the prices given; None where one is missing.
    """

    gpu_hours: float
    cpu_hours: float
    cost: float | None


def usage(seconds: Mapping[str, float], resources: Resources, prices: Prices) -> Usage:
    """What packs have used that ran so long on each device.

    The device of a pack that failed is not known, and "cpu": where prices differ, it costs the mean of the others.

    Args:
        seconds: name of a GPU, or "cpu" -> seconds of packs.
        resources: of a pack.
        prices: without one for CPU cores, those beside a GPU come with it.
    """
    hours = sum(seconds.values()) / HOUR
    on_gpus, on_cpus = _gpu_cost(seconds, resources, prices), _cpu_cost(hours, resources, prices)
    cost = None if on_gpus is None or on_cpus is None else on_gpus + on_cpus
    return Usage(hours * resources.gpu, hours * resources.cpu, cost)


def _gpu_cost(seconds: Mapping[str, float], resources: Resources, prices: Prices) -> float | None:
    if not resources.gpu:
        return 0.0
    cost = known = 0.0
    for device, spent in seconds.items():
        price = prices.of_gpu(device) if device != "cpu" else 0.0
        if price is None:
            return None
        cost, known = cost + spent * price, known + (spent if device != "cpu" else 0.0)
    everything = sum(seconds.values())
    if known or not everything:
        mean = cost / known if known else 0.0
    elif len(set(prices.gpu.values())) == 1:
        (mean,) = set(prices.gpu.values())
    else:
        return None
    return mean * everything / HOUR * resources.gpu


def _cpu_cost(hours: float, resources: Resources, prices: Prices) -> float | None:
    if prices.cpu is None:
        return 0.0 if resources.gpu else None
    return hours * resources.cpu * prices.cpu


def of_sweep_file(content: Mapping[str, Any]) -> tuple[Resources, Prices]:
    """The resources and prices that a sweep file gives."""
    resources = with_gpus(content.get("resources") or {}, (content.get("pack") or {}).get("memory", PACK_MEMORY))
    return Resources.model_validate(resources), Prices.model_validate(content.get("prices") or {})
