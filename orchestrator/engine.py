"""Which engine trains a pack: a fixed rule, decided once and written into the plan."""

from __future__ import annotations

from trainables.registry import can_fuse
from trainables.trial import Trial


def engine_of(arch: str, loss: str, call: str | None, wanted: str) -> str:
    """``call`` for a trial of the user's own, the engine wanted, ``fused`` where it applies, else ``auto``."""
    if call is not None:
        return "call"
    if wanted != "auto":
        return wanted
    return "fused" if can_fuse(arch, loss) else "auto"


def settle(arch: str, dataset: str, loss: str, precision: str) -> str:
    """What ``auto`` means for these plug-ins: tries them out, with torch."""
    from trainables.engines import choose_engine

    return choose_engine(
        Trial.model_validate(
            {"arch": arch, "dataset": dataset, "loss": loss, "precision": precision, "lr": 1e-3, "batch_size": 1}
        )
    )
