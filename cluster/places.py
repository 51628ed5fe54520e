"""How many items may be under way at a time, on a cluster whose machines come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from cluster.executor import ClusterError
from cluster.messages import Need

LOOK_EVERY = 1.0
"""Seconds between two looks at the machines."""
AHEAD = 8
"""Where machines come by themselves, so many more items are asked for than twice what there is room for.

So a cluster that is empty grows to any size in a few steps. An item that waits is an entry in Ray's tables, no process.
"""


class Places:
    """How many items may run, or wait for a machine.

    Attributes:
        need: of one item.
        most: never more than this.
    """

    def __init__(self, need: Need, most: int) -> None:
        self.need, self.most = need, most
        self._count = 0
        self._next_look = 0.0

    def check(self) -> None:
        """Refuses what can never run.

        Raises:
            ClusterError: no machine has what an item needs, and none that does may come.
        """
        nodes = machines()
        if not any(room(self.need, node) for node in nodes) and not autoscales():
            there = "; ".join(map(described, nodes))
            raise ClusterError(f"an item needs {self.need}, but no machine has that: {there}")

    def count(self) -> int:
        """At least one, so that a machine that joins late is used even where all others are lost."""
        if time.monotonic() >= self._next_look:
            self._count = sum(room(self.need, node) for node in machines())
            self._count += self._count + AHEAD if autoscales() else 0
            self._next_look = time.monotonic() + LOOK_EVERY
        return max(1, min(self._count, self.most))


def machines() -> list[dict[str, float]]:
    """What each machine of the cluster has in all, under Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(need: Need, machine: Mapping[str, float]) -> int:
    """How many items a machine can run at a time. A GPU is shared, but an item's share is never split over two."""
    fits = [int(machine.get("CPU", 0) / need.cpus + 1e-9)] if need.cpus else []
    if need.gpus:
        gpus = machine.get("GPU", 0)
        fits.append(int(gpus) * int(1 / need.gpus + 1e-9) if need.gpus < 1 else int(gpus / need.gpus + 1e-9))
    if need.accelerator and f"accelerator_type:{need.accelerator}" not in machine:
        return 0
    return min(fits)


def described(machine: Mapping[str, float]) -> str:
    """A machine in an error."""
    kinds = [name.partition(":")[2] for name in machine if name.startswith("accelerator_type:")]
    kind = f" ({', '.join(kinds)})" if kinds else ""
    return f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs{kind}"


def autoscales() -> bool:
    """Whether Ray starts further machines when something waits for them."""
    if is_autoscaler_v2():
        return True
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    kinds = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(not kind.startswith("node_") for kind in kinds.values())  # so it calls machines that it only watches
