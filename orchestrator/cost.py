"""What training and measuring costs, before anything has run: for the order of packs and the time estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.sizes import size
from trainables.parameters import NudgedSGD
from trainables.registry import example_shape, resolve
from trainables.registry import train_size as known_size
from trainables.schedules import timeline
from trainables.settings import GROUPS, GradientNoise, Hessian, Measure
from trainables.stopping import parse

SECONDS_PER_COST = 0.035
"""Seconds per unit of cost, 1e9 multiply-adds, on one CPU core: used until packs of the store tell better."""

STEP_OVERHEAD = {"fused": 0.0, "vmap": 2e6, "loop": 1e7}
"""What an engine adds to each step of each trial, in multiply-adds that would take as long."""

TOP_PRODUCTS, BOTTOM_PRODUCTS = 25, 10
"""Products that the largest eigenvalues usually take, and how many more the smallest."""

ALONG_E1 = 9
"""Passes over the curvature examples for the loss along e1."""

TEST_SHARE = 0.25
"""Usual size of a test set, in training sets."""

FORWARD, TRAINING, HESSIAN, COVARIANCE, SEARCH = 1, 3, 6, 5, 3
"""Passes over an example that take as long: a forward pass, a training step, products with H and with C, and a step of
the search for another class.
"""

DEVIATIONS = {"fused": 9, "vmap": 70, "loop": 70}
"""The same of the gradients' distances from their mean; only the fused engine need not write each gradient down."""

_LENGTH = ("sampler", "dataset", "train_size", "batch_size", "epochs", "max_steps", "schedule")

PARTS = ("losses", *GROUPS)
"""What measuring consists of: what is always measured, and each group of statistics."""

UNKNOWN_SIZE = 10_000
UNKNOWN_MULTIPLY_ADDS = 100_000
UNKNOWN_CALL = 1.0


@dataclass(frozen=True)
class Costs:
    """What packs cost, in 1e9 multiply-adds.

    Attributes:
        training: shape (packs,).
        measuring: each of PARTS, all its moments together; shape (packs, parts).
    """

    training: NDArray[np.float64]
    measuring: NDArray[np.float64]

    @classmethod
    def of(cls, packs: pa.Table, measure: Measure) -> Costs:
        """Counts them.

        Args:
            packs: trials, engine, and the settings that they share.
            measure: what is measured of every trial.
        """
        training = UNKNOWN_CALL * packs["trials"].to_numpy().astype(float)
        measuring = np.zeros((packs.num_rows, len(PARTS)))
        counted = pc.is_null(packs["call"])  # what a trial of the user's own does is not known
        ours, at = packs.filter(counted), np.flatnonzero(counted.to_numpy())
        multiply_adds = per_distinct(ours, ["arch", "dataset"], _multiply_adds)
        overhead = per_distinct(ours, ["engine"], lambda engine: STEP_OVERHEAD.get(engine, STEP_OVERHEAD["vmap"]))
        of_training = per_distinct(ours, ["optimizer", "until", *_LENGTH], lambda *of: _training(measure, *of))
        of_measuring = per_distinct(ours, ["engine", *_LENGTH], lambda *of: _measuring(measure, *of))
        steps, passes = of_training.reshape(-1, 2).T
        unit = ours["trials"].to_numpy() / 1e9
        training[at] = unit * (multiply_adds * passes + overhead * steps)
        measuring[at] = (unit * multiply_adds)[:, None] * of_measuring.reshape(-1, len(PARTS))
        return cls(training, measuring)

    @property
    def total(self) -> NDArray[np.float64]:
        """Shape (packs,)."""
        return np.asarray(self.training + self.measuring.sum(axis=1))


def per_distinct(packs: pa.Table, names: Sequence[str], function: Callable[..., Any]) -> NDArray[Any]:
    """A function of some columns, called once per distinct combination of their values."""
    key = np.zeros(packs.num_rows, np.int64)
    for name in names:
        codes = packs[name].combine_chunks().dictionary_encode(null_encoding="encode")
        _, key = np.unique(key * len(codes.dictionary) + codes.indices.to_numpy(), return_inverse=True)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    values = [function(*(packs[name][int(i)].as_py() for name in names)) for i in first]
    return np.array(values)[inverse]


@dataclass(frozen=True)
class _Run:
    """What the costs of a trial need to know of its timeline, which may be long.

    Attributes:
        train_size: N.
        steps: how many there are.
        end: epochs.
        examples: in all steps.
        first_batch: examples of the first step.
        largest_batch: those of the largest.
        moments: at how many each of PARTS is measured.
    """

    train_size: int
    steps: int
    end: float
    examples: int
    first_batch: int
    largest_batch: int
    moments: tuple[int, ...]


@lru_cache(maxsize=4096)
def _run_of(
    measure: str,
    sampler: str,
    dataset: str,
    train_size: int | None,
    batch_size: int,
    epochs: float | None,
    max_steps: int | None,
    schedule: str,
) -> _Run:
    """Of a trial; of a data set of unknown size a guess. ``measure`` is the JSON of what is measured."""
    n = train_size or known_size(dataset) or max(UNKNOWN_SIZE, batch_size, ceil(batch_size / (epochs or 1)))
    time = timeline(schedule, batch_size, n, epochs, max_steps)
    due = [moment.due for moment in Measure.model_validate_json(measure).moments(time).values()]
    moments = tuple(sum(part == "losses" or bool(getattr(d, part)) for d in due) for part in PARTS)
    if sampler == "full":
        return _Run(n, time.steps, time.end, time.steps * n, n, n, moments)
    return _Run(n, time.steps, time.end, time.examples(time.steps), time.batch(0), time.largest_batch, moments)


def _run(measure: Measure, length: Sequence[Any]) -> _Run:
    return _run_of(measure.model_dump_json(), *length)


def largest_batch(kind: Mapping[str, Any], measure: Measure) -> int:
    """Examples in the largest step of a trial.

    Args:
        kind: its settings.
        measure: what is measured of it; changes nothing, but the answer is then known from counting the costs.
    """
    return _run(measure, [kind[name] for name in _LENGTH]).largest_batch


def _training(measure: Measure, optimizer: str, until: str | None, *length: Any) -> tuple[int, float]:
    """Steps of a trial, and the passes of one example that they and what belongs to them take."""
    run = _run(measure, length)
    return run.steps, TRAINING * run.examples + _nudging(optimizer, run) + _looking(until, run)


def _nudging(optimizer: str, run: _Run) -> int:
    """Passes to measure the top eigenvectors of the Hessian now and then."""
    resolved = resolve("optimizer", optimizer)
    if resolved.name != "nudged_sgd":
        return 0
    nudged = NudgedSGD(**resolved.parameters)
    return HESSIAN * TOP_PRODUCTS * min(nudged.examples, run.train_size) * ceil(run.steps / nudged.every)


def _looking(until: str | None, run: _Run) -> int:
    """Passes to see whether the trial may stop, at the latest after its last step."""
    looks = min(ceil(run.end / parse(until).every), run.steps) if until else 0
    return FORWARD * run.train_size * looks


def _measuring(measure: Measure, engine: str, *length: Any) -> list[float]:
    """Passes of one example of each of PARTS, for one trial."""
    run = _run(measure, length)
    once = _at_once(measure, run.train_size, run.first_batch, engine)
    return [once[part] * moments for part, moments in zip(PARTS, run.moments, strict=True)]


def _at_once(measure: Measure, n: int, batch_size: int, engine: str) -> dict[str, float]:
    """Passes of one example of each of PARTS at one moment."""
    hessian, noise, critical = measure.hessian, measure.gradient_noise, measure.critical_samples
    examples = min(n, (hessian or Hessian()).examples)
    return {
        "losses": TRAINING * n + FORWARD * (TEST_SHARE * n + 2 * examples),
        "hessian": _hessian(hessian, examples, batch_size) if hessian else 0.0,
        "gradient_noise": _gradient_noise(noise, hessian, examples, engine) if noise else 0.0,
        "critical_samples": float(SEARCH * critical.iterations * critical.examples) if critical else 0.0,
    }


def _hessian(wanted: Hessian, examples: int, batch_size: int) -> float:
    ends = min(TOP_PRODUCTS + (BOTTOM_PRODUCTS if wanted.bottom else 0), wanted.max_iterations)
    density = (
        (wanted.density.probes - 1) * wanted.density.steps if wanted.density else 0
    )  # the first is that of the ends
    steps = TRAINING * wanted.sgd_steps * batch_size
    profile = FORWARD * ALONG_E1 * examples if wanted.sgd_steps else 0
    return HESSIAN * (ends + wanted.trace_probes + density) * examples + steps + profile


def _gradient_noise(wanted: GradientNoise, hessian: Hessian | Literal[False], examples: int, engine: str) -> float:
    deviations = DEVIATIONS.get(engine, DEVIATIONS["vmap"])
    largest = COVARIANCE * TOP_PRODUCTS if wanted.lambda_max else 0
    alignment = (COVARIANCE + HESSIAN) * (wanted.probes + hessian.top) if wanted.probes and hessian else 0
    return float((deviations + largest + alignment) * examples)


def _multiply_adds(arch: str, dataset: str) -> float:
    """Of a forward pass of one example; a round number for plug-ins."""
    example = example_shape(dataset)
    net = size(arch, *example) if example else None
    return net.multiply_adds if net else UNKNOWN_MULTIPLY_ADDS
