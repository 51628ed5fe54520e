"""Short trials in which plug-ins show how they behave, and what :mod:`trainables.contract` compares of them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isclose, isnan

import numpy as np
import torch
from torch import Tensor

from trainables.engines import choose_engine
from trainables.packs import Pack, run_through
from trainables.probe import Probe
from trainables.schema import Status
from trainables.settings import Measure
from trainables.training import Training, reproducible
from trainables.trial import Trial

TOLERANCE = 1e-9
"""Between numbers that are equal but for the order of additions in float64, relative to the largest."""

CURVATURE = Measure.model_validate({"at": [], "hessian": {"top": 1, "trace_probes": 1, "examples": 16}})
_LOSSES = Measure(at=[], hessian=False, gradient_noise=False, endpoints=True)


def trained(trials: Sequence[Trial], engine: str, measure: Measure = _LOSSES, physical: int | None = None) -> Training:
    """A pack at its endpoint.

    Raises:
        AssertionError: a trial has diverged.
    """
    with reproducible(1):
        training = Training(trials, engine, measure, torch.device("cpu"), physical)
        for _ in training.go():
            pass
    for trial, step in zip(trials, training.run.diverged_at, strict=True):
        assert step < 0, f'diverged at step {step} with lr {trial.lr}; set train = {{"lr": ...}} to a smaller one'
    return training


def endpoints(trials: Sequence[Trial], engine: str, physical: int | None = None) -> Tensor:
    """Parameters and buffers after training; shape (trials, all of them)."""
    kept = trained(trials, engine, physical=physical).run.endpoints
    return torch.stack([torch.cat([flat(tensors) for tensors in kept[slot]]) for slot in sorted(kept)])


def probes(trials: Sequence[Trial]) -> list[Probe]:
    """One for each trial of a pack, after training."""
    training = trained(trials, choose_engine(trials[0]))
    snapshot = training.stepper.snapshot(training.done)
    return [Probe.of(snapshot.take([i])) for i in range(len(trials))]


def called(trials: Sequence[Trial]) -> list[dict[str, float]]:
    """What whole trials of the user's own return, run one after the other.

    Raises:
        AssertionError: a trial has failed, or returned a number that is not finite.
    """
    n = len(trials)
    outcome = run_through(Pack("rehearsal", "call", Measure(), (0,) * n, ({},) * n, tuple(trials)))
    assert not outcome.failures, f"failed:\n{next(iter(outcome.failures.values()))}"
    for row in outcome.trials.values():
        assert row["status"] == Status.FINISHED, f"{row['error']}; such a trial counts as diverged"
    curves = outcome.side["curves"]
    return [{r["statistic"]: r["value"] for r in curves if r["slot"] == slot} for slot in range(n)]


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All numbers of some tensors, in the order of their names, as one float64 vector."""
    parts = [tensor.detach().double().flatten() for _, tensor in sorted(tensors.items())]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def differ(found: Tensor, expected: Tensor) -> bool:
    """By more than rounding."""
    return not bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def agree(some: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether names and values are the same, up to rounding; NaN is NaN."""
    return some.keys() == other.keys() and all(
        isclose(a, other[name], rel_tol=TOLERANCE, abs_tol=1e-12) or (isnan(a) and isnan(other[name]))
        for name, a in some.items()
    )


@contextmanager
def watched() -> Iterator[None]:
    """Looks for changes of what all code of a process shares.

    Raises:
        AssertionError: naming what has changed.
    """
    before = _global_state()
    yield
    changed = [what for what, value in _global_state().items() if value != before[what]]
    assert not changed, f"changes what all code shares: {', '.join(changed)}; use a torch.Generator of its own"


def _global_state() -> dict[str, object]:
    return {
        "Python's random state": random.getstate(),
        "numpy's random state": pickle.dumps(np.random.get_state()),  # noqa: NPY002  (to see whether it is used)
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's default type": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
    }
