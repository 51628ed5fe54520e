"""What training and measuring costs, before anything has run: for the order of packs and the time estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.registry import Teacher, resolve, train_size
from trainables.settings import Measure

SECONDS_PER_COST = 0.035
"""Seconds per unit of cost, 1e9 multiply-adds, on one CPU core: used until packs of the store tell better."""

STEP_OVERHEAD = {"fused": 0.0, "vmap": 2e6, "loop": 1e7}
"""What an engine adds to each step of each trial, in multiply-adds that would take as long."""

LANCZOS_PRODUCTS = 40
"""Hessian products that the extreme eigenvalues usually take."""

UNKNOWN_SIZE = 10_000
UNKNOWN_PARAMETERS = 100_000
UNKNOWN_CALL = 1.0


def pack_costs(packs: pa.Table, measure: Measure) -> NDArray[np.float64]:
    """Relative cost of each pack, in 1e9 multiply-adds: training, and all its measurements.

    Args:
        packs: trials, engine, arch, dataset, batch_size and epochs.
        measure: what is measured of every trial.
    """
    n = per_distinct(packs, ["dataset"], lambda dataset: train_size(dataset) or UNKNOWN_SIZE)
    parameters = per_distinct(packs, ["arch", "dataset"], _parameters)
    moments = per_distinct(packs, ["epochs"], lambda epochs: len(measure.moments(epochs, 1000, 1)))
    overhead = per_distinct(packs, ["engine"], lambda engine: STEP_OVERHEAD.get(engine, STEP_OVERHEAD["vmap"]))
    epochs, batch_size = packs["epochs"].to_numpy(), packs["batch_size"].to_numpy()
    training = epochs * n * (3 * parameters + overhead / batch_size)
    measuring = moments * parameters * (4 * n + 6 * _products(measure) * np.minimum(n, _examples(measure)))
    is_call = per_distinct(packs, ["engine"], lambda engine: engine == "call")
    costs: NDArray[np.float64] = packs["trials"].to_numpy() * np.where(
        is_call, UNKNOWN_CALL, (training + measuring) / 1e9
    )
    return costs


def per_distinct(packs: pa.Table, names: Sequence[str], function: Callable[..., Any]) -> NDArray[Any]:
    """A function of some columns, called once per distinct combination of their values."""
    key = np.zeros(packs.num_rows, np.int64)
    for name in names:
        codes = packs[name].combine_chunks().dictionary_encode(null_encoding="encode")
        key = key * len(codes.dictionary) + codes.indices.to_numpy()
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    values = [function(*(packs[name][int(i)].as_py() for name in names)) for i in first]
    return np.array(values)[inverse]


def _products(measure: Measure) -> int:
    """Hessian products of one measurement."""
    if not measure.hessian:
        return 0
    return min(LANCZOS_PRODUCTS, measure.hessian.max_iterations) + measure.hessian.trace_probes


def _examples(measure: Measure) -> int:
    return measure.hessian.examples if measure.hessian else 0


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
