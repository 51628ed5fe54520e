"""What training and measuring costs, before anything has run: for the order of packs and the time estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.registry import Teacher, resolve, train_size
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
"""Multiply-adds per parameter and example: of a pass, a training step, products with H and with C, and a step of the
search for another class.
"""

DEVIATIONS = {"fused": 9, "vmap": 70, "loop": 70}
"""The same of the gradients' distances from their mean; only the fused engine need not write each gradient down."""

PARTS = ("losses", *GROUPS)
"""What measuring consists of: what is always measured, and each group of statistics."""

UNKNOWN_SIZE = 10_000
UNKNOWN_PARAMETERS = 100_000
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
            packs: trials, engine, arch, dataset, batch_size and epochs.
            measure: what is measured of every trial.
        """
        n = per_distinct(packs, ["dataset"], _train_size)
        parameters = per_distinct(packs, ["arch", "dataset"], _parameters)
        overhead = per_distinct(packs, ["engine"], lambda engine: STEP_OVERHEAD.get(engine, STEP_OVERHEAD["vmap"]))
        epochs, batch_size = packs["epochs"].to_numpy(), packs["batch_size"].to_numpy()
        training = epochs * n * (TRAINING * parameters + overhead / batch_size)

        def passes(dataset: str, *rest: Any) -> list[float]:
            return _measuring(measure, _train_size(dataset), *rest)

        measuring = per_distinct(packs, ["dataset", "batch_size", "epochs", "engine"], passes).reshape(-1, len(PARTS))
        is_call = per_distinct(packs, ["engine"], lambda engine: engine == "call")
        unit = packs["trials"].to_numpy() / 1e9
        return cls(
            np.where(is_call, UNKNOWN_CALL * packs["trials"].to_numpy(), unit * training),
            np.where(is_call, 0.0, unit * parameters)[:, None] * measuring,
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
        key = key * len(codes.dictionary) + codes.indices.to_numpy()
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    values = [function(*(packs[name][int(i)].as_py() for name in names)) for i in first]
    return np.array(values)[inverse]


def _measuring(measure: Measure, n: int, batch_size: int, epochs: float, engine: str) -> list[float]:
    """Multiply-adds per parameter of each of PARTS, for one trial."""
    moments = measure.moments(epochs, n, batch_size).values()
    once = _at_once(measure, n, batch_size, engine)
    return [cost * sum(part == "losses" or bool(getattr(m.due, part)) for m in moments) for part, cost in once.items()]


def _at_once(measure: Measure, n: int, batch_size: int, engine: str) -> dict[str, float]:
    """Multiply-adds per parameter of each of PARTS at one moment."""
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


def _train_size(dataset: str) -> int:
    return train_size(dataset) or UNKNOWN_SIZE


def _parameters(arch: str, dataset: str) -> float:
    """Parameters of a built-in net; a round number for any other."""
    net, (inputs, classes) = resolve("arch", arch).identity, _shape(dataset)
    if net["name"] == "linear":
        return (inputs + 1) * classes
    if net["name"] != "mlp":
        return UNKNOWN_PARAMETERS
    width: int = net["width"]
    depth: int = net["depth"]
    return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * classes


def _shape(dataset: str) -> tuple[int, int]:
    """Inputs and classes."""
    resolved = resolve("dataset", dataset)
    if resolved.identity["name"] == "teacher":
        teacher = Teacher(**resolved.parameters)
        return teacher.dimension, teacher.classes
    return 64, 10
