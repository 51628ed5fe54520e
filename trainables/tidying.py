"""Removes what no longer says anything: plans and leases that later ones have replaced."""

from __future__ import annotations

from trainables.lease import FOLDER
from trainables.store import FIRST_PLAN, SweepStore

KEPT_PLANS = 2
OF_FORMAT_1 = (FIRST_PLAN, "log/launch.json", "log/launch.lock", "log/stop")


def tidy(sweep: SweepStore, launch: int) -> None:
    """To be called by the launch of this number once it has written its plan."""
    storage = sweep.storage
    for name in storage.names("plan")[:-KEPT_PLANS]:
        storage.delete(f"plan/{name}")
    for name in OF_FORMAT_1:
        storage.delete(name)
    old = {f"{number:06d}" for number in range(launch)}
    for name in storage.names(FOLDER):
        if name.partition(".")[0] in old:
            storage.delete(f"{FOLDER}/{name}")
    for name in storage.names("log"):
        number, _, suffix = name.partition(".")
        if number in old and suffix in {"json", "stop"}:
            storage.delete(f"log/{name}")
