"""What training and measuring costs, before anything has run: for the order of packs and the time estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.sizes import size
from trainables.registry import example_shape
from trainables.registry import train_size as known_size
from trainables.schedules import Timeline, timeline
from trainables.settings import GROUPS, GradientNoise, Hessian, Measure

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

_LENGTH = ("dataset", "train_size", "batch_size", "epochs", "max_steps", "schedule")

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
        multiply_adds = per_distinct(packs, ["arch", "dataset"], _multiply_adds)
        overhead = per_distinct(packs, ["engine"], lambda engine: STEP_OVERHEAD.get(engine, STEP_OVERHEAD["vmap"]))
        steps, examples = per_distinct(packs, [*_LENGTH, "sampler"], _steps_and_examples).reshape(-1, 2).T
        training = TRAINING * multiply_adds * examples + overhead * steps
        measuring = per_distinct(packs, [*_LENGTH, "engine"], lambda *of: _measuring(measure, *of))
        is_call = per_distinct(packs, ["engine"], lambda engine: engine == "call")
        unit = packs["trials"].to_numpy() / 1e9
        return cls(
            np.where(is_call, UNKNOWN_CALL * packs["trials"].to_numpy(), unit * training),
            np.where(is_call, 0.0, unit * multiply_adds)[:, None] * measuring.reshape(-1, len(PARTS)),
        )

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


def _timeline(
    dataset: str, train_size: int | None, batch_size: int, epochs: float | None, max_steps: int | None, schedule: str
) -> Timeline:
    """Of a trial; of a data set of unknown size a guess."""
    n = train_size or known_size(dataset) or max(UNKNOWN_SIZE, batch_size, ceil(batch_size / (epochs or 1)))
    return timeline(schedule, batch_size, n, epochs, max_steps)


def largest_batch(kind: Mapping[str, Any]) -> int:
    """Examples in the largest step of a trial."""
    time = _timeline(*(kind[name] for name in _LENGTH))
    if kind["sampler"] == "full":
        return time.train_size
    return time.largest_batch


def _steps_and_examples(*length_and_sampler: Any) -> tuple[int, int]:
    """Steps of a trial, and examples in all their passes."""
    *length, sampler = length_and_sampler
    time = _timeline(*length)
    return time.steps, time.steps * time.train_size if sampler == "full" else time.examples(time.steps)


def _measuring(measure: Measure, *length_and_engine: Any) -> list[float]:
    """Passes of one example of each of PARTS, for one trial."""
    *length, engine = length_and_engine
    time = _timeline(*length)
    moments = measure.moments(time).values()
    once = _at_once(measure, time.train_size, time.batch(0), engine)
    return [cost * sum(part == "losses" or bool(getattr(m.due, part)) for m in moments) for part, cost in once.items()]


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
