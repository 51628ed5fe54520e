"""Every experimental condition: packed equals alone equals the plain loop, and an interruption leaves no trace."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import CPU, drive, endpoint, run, trial

from trainables.registry import can_fuse
from trainables.settings import Measure
from trainables.training import Run, Training
from trainables.trial import Trial

IMAGES = json.dumps({"name": "teacher", "shape": [3, 4, 4], "classes": 4, "train_size": 24, "test_size": 8})
NETS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"depth": 2, "width": 6},
    "simple-cnn": {},
    "alexnet-small": {"width": 4},
    "resnet": {"depth": 8, "width": 2},
    "vgg11": {},
}
LARGE = ("simple-cnn", "alexnet-small", "vgg11")  # a step takes long on a CPU
NORMS: list[dict[str, Any]] = [
    {"norm": "none"},
    {"norm": "batch"},
    {"norm": "batch", "ghost_batch": 4},
    {"norm": "group"},
    {"norm": "layer"},
]
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "nesterov": True},
    {"name": "sgd", "decoupled": True},
    {"name": "adam"},
    {"name": "adam", "decoupled": True},
    {"name": "nudged_sgd", "top": 2, "every": 2, "factor": 0.1, "examples": 12},
]
SCHEDULES: list[Any] = [
    "constant",
    *(
        parts | {"of": of}
        for of in ("lr", "batch_size")
        for parts in (
            {"warmup": {"epochs": 1.0}},
            {"step": {"at": [1.0], "factor": 0.5}},
            {"cosine": {"to": 0.1}},
            {"cyclic": {"period": 1.0}},
            {"cyclic": {"period": 1.0, "shape": "triangular"}},
        )
    ),
]

TIGHT = {"rtol": 4e-9, "atol": 1e-9}  # 1e-9 for what is near 1; quotients of small numbers lose a little more
ADAM = {"rtol": 1e-7, "atol": 1e-7}  # whose step makes rounding of a vanishing gradient, 1e-16, 1 / eps times as large

text = partial(json.dumps, sort_keys=True, separators=(",", ":"))


@st.composite
def conditions(draw: st.DrawFn, nets: tuple[str, ...] = ("linear", "mlp", "resnet")) -> list[Trial]:
    """A pack of three trials: a net and its norm, an optimizer, a schedule, every kind of noise."""
    name = draw(st.sampled_from(nets))
    norm = {} if name == "linear" else draw(st.sampled_from(NORMS))
    dropout = draw(st.sampled_from([{}, {"dropout": 0.3}])) if name != "linear" else {}
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    schedule = draw(st.sampled_from(SCHEDULES))
    shared = {
        "dataset": IMAGES,
        "arch": text({"name": name, **NETS[name], **norm, **dropout}),
        "optimizer": text(optimizer),
        "schedule": schedule if schedule == "constant" else text(schedule),
        "sampler": draw(st.sampled_from(["stream", "replacement", "full"])),
        "pixel_shuffle": draw(st.sampled_from(["none", "fixed", "per_image"])),
        "augment": draw(st.sampled_from(["none", "crop_flip"])),
        "train_size": draw(st.sampled_from([None, 20])),
        "batch_size": 8,
        "epochs": 2,
    }
    has_momentum = optimizer["name"] != "adam" and draw(st.booleans())
    noisy = draw(st.booleans())
    return [
        trial(
            **shared,
            lr=lr,
            seed=seed,
            weight_decay=0.01 * seed,
            momentum=0.5 + 0.1 * seed if has_momentum else 0.0,
            label_noise=0.3 * seed * noisy,
            input_noise=0.2 * seed * noisy,
            gradient_noise=0.05 * seed * noisy,
        )
        for lr, seed in ((0.01, 0), (0.003, 1), (0.01, 2))
    ]


def compare(pack: list[Trial], alone: list[int]) -> None:
    fusable = can_fuse(pack[0].arch, pack[0].loss)
    tolerance = ADAM if '"adam"' in pack[0].optimizer else TIGHT
    for engine in ("fused", "vmap") if fusable else ("vmap",):
        packed = endpoint(pack, engine)
        for i in alone:
            for other in {engine, "loop"}:
                member = endpoint([pack[i]], other)
                assert member.keys() == packed.keys()
                for name, value in packed.items():
                    np.testing.assert_allclose(member[name][0], value[i], err_msg=name, **tolerance)


quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(quick, max_examples=25, derandomize=True)  # the long one below looks further
@given(conditions())
def test_packed_equals_alone_equals_the_plain_loop(pack: list[Trial]) -> None:
    compare(pack, [1, 2])


@pytest.mark.parametrize("name", [*LARGE[:2], pytest.param("vgg11", marks=pytest.mark.long)])
def test_large_nets_packed_equal_alone(name: str) -> None:
    arch = text({"name": name, **NETS[name], "norm": "group", "dropout": 0.2})
    shared = {"dataset": IMAGES, "arch": arch, "epochs": 0.7, "batch_size": 8, "momentum": 0.9, "augment": "flip"}
    compare([trial(**shared, lr=0.01, seed=s) for s in range(2)], [1])


@pytest.mark.long
@pytest.mark.timeout(3600)  # ten minutes on a quiet machine
@settings(quick, max_examples=400)
@given(conditions())
def test_packed_equals_alone_over_many_conditions(pack: list[Trial]) -> None:
    compare(pack, [1, 2])


def interrupted(pack: list[Trial], engine: str, measure: Measure, after: int) -> Run:
    """Trains so far, gives what was saved to another process's worth of objects, and goes on there."""
    first = Training(pack, engine, measure, CPU)
    going = first.go()
    for _ in range(after):
        next(going, None)
    saved = first.saved()
    for _ in range(2):  # what goes on must not touch what was saved
        next(going, None)
    second = Training(pack, engine, measure, CPU)
    second.restore(saved)
    return drive(second.go())


OFTEN = Measure(at={"every": 0.5}, hessian={"top": 2, "trace_probes": 2, "examples": 12}, endpoints=True)


def same(a: Run, b: Run) -> None:
    """Bit for bit."""
    assert (a.diverged_at, a.reached_at) == (b.diverged_at, b.reached_at)
    assert [(m.step, m.epoch, m.slots) for m in a.moments] == [(m.step, m.epoch, m.slots) for m in b.moments]
    for mine, its in zip(a.moments, b.moments, strict=True):
        for name, values in mine.found.values.items():
            np.testing.assert_array_equal(its.found.values[name], values, err_msg=name)
    assert a.endpoints.keys() == b.endpoints.keys()
    for slot, tensors in a.endpoints.items():
        for mine, its in zip(tensors, b.endpoints[slot], strict=True):
            assert all(torch.equal(mine[name], its[name]) for name in its)


@settings(quick, max_examples=8)
@given(conditions(), st.integers(1, 6), st.booleans())
def test_an_interrupted_pack_ends_equal_bit_for_bit(pack: list[Trial], after: int, loop: bool) -> None:
    """Wherever it was interrupted, in the middle of an epoch too."""
    fused = can_fuse(pack[0].arch, pack[0].loss)
    engine = "loop" if loop else "fused" if fused else "vmap"
    same(run(pack, engine, OFTEN), interrupted(pack, engine, OFTEN, after))
