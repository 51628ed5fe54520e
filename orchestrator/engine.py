"""How a pack is computed: fixed rules, decided once and written into the plan."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from orchestrator.cost import SECONDS_PER_COST, largest_batch
from orchestrator.sizes import Size, size
from orchestrator.sweepfile import SweepFile
from trainables import stacking
from trainables.registry import BUILT_IN, batch_statistics, can_fuse, example_shape

KEPT = 3
"""What a step keeps of every number that modules put out: itself, its gradient, and what its backward pass needs."""

COPIES = 4
"""Parameters, their gradient, and what an optimizer remembers."""

MADE = 4
"""Copies of an input while it is augmented or shuffled, the integers behind it counted as two."""

LOOP_SECONDS = 30
"""Trials that go one after the other gain nothing from company: packs of them are about so long."""


@dataclass(frozen=True)
class Computation:
    """How the packs of one kind of trials are computed.

    Attributes:
        engine: loop, vmap, fused, or call; auto where that is yet to be tried out.
        physical_batch_size: most examples of a trial in one forward pass; None: the whole minibatch.
        max_trials: most trials of a pack.
    """

    engine: str
    physical_batch_size: int | None
    max_trials: int


def computation(kind: dict[str, Any], sweep: SweepFile, *, settle: bool) -> Computation:
    """Decides it for trials of one kind.

    Args:
        kind: the settings that they share, the ``cost`` of one of them in the loop, see :mod:`orchestrator.cost`, and
            whether it is ``alone``.
        sweep: its ``pack``, ``resources`` and ``measure``.
        settle: try out plug-ins, with torch.
    """
    most = sweep.pack.max_trials
    if kind["call"] is not None:
        return Computation("call", None, most)
    example = example_shape(kind["dataset"])
    net = size(kind["arch"], *example) if example else None
    batch = largest_batch(kind, sweep.measure)
    engine: str = sweep.pack.engine
    if engine == "auto":
        engine = _engine(kind, net, batch, on_gpu=sweep.resources.gpu > 0, settle=settle)
    width = 8 if kind["precision"] == "float64" else 4
    memory = sweep.pack.memory * 2**30
    per_example = KEPT * width * net.activations if net else 0
    physical = sweep.pack.physical_batch_size or _physical(kind["arch"], batch, memory, per_example)
    per_trial = _gathered(kind, example[0], batch) * width if example else 0
    if engine == "loop":
        most = min(most, ceil(LOOP_SECONDS / (kind["cost"] * SECONDS_PER_COST)))
    elif net is not None:
        per_trial += min(batch, physical or batch) * per_example + COPIES * width * net.parameters
    return Computation(engine, physical, max(1, min(most, int(memory // per_trial) if per_trial else most)))


def _gathered(kind: dict[str, Any], shape: tuple[int, ...], batch: int) -> int:
    """Numbers that the inputs of a minibatch take; a trial that sees the whole training set as it is takes none."""
    is_made = kind["augment"] != "none" or kind["pixel_shuffle"] != "none"
    if kind["sampler"] == "full" and not is_made:
        return 0
    return batch * prod(shape) * (MADE if is_made else 1)


def _engine(kind: dict[str, Any], net: Size | None, batch: int, *, on_gpu: bool, settle: bool) -> str:
    if can_fuse(kind["arch"], kind["loss"]):
        return "fused"
    if net is None or kind["loss"] not in BUILT_IN["loss"]:
        return _settled(kind, batch, on_gpu=on_gpu) if settle else "auto"
    if net.convolves and kind["alone"] and not on_gpu:
        return "loop"
    return "vmap" if stacking.pays(net.multiply_adds * batch, convolves=net.convolves, on_gpu=on_gpu) else "loop"


def _physical(arch: str, batch: int, memory: float, per_example: int) -> int | None:
    """Examples in a pass that fit memory: all, or as few as must be; a multiple of ghost batches."""
    if batch * per_example <= memory:
        return None
    coupled = batch_statistics(arch)
    if coupled is None:
        return None
    return max(1, int(memory // per_example) // coupled) * coupled


def _settled(kind: dict[str, Any], batch: int, *, on_gpu: bool) -> str:
    """The engine that a plug-in turns out to allow."""
    from trainables.engines import choose_engine
    from trainables.trial import Trial

    given = {name: kind[name] for name in ("arch", "dataset", "loss", "precision")}
    trial = Trial.model_validate(given | {"lr": 1e-3, "batch_size": batch})
    return choose_engine(trial, on_gpu=on_gpu)
