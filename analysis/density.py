"""The spectral density of the Hessian as a curve, from the quadrature rules that are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analysis.database import connect, naming_damage, select_sweeps
from analysis.scales import FloatArray
from trainables.store import Store

NARROW = 0.01
"""Default width of the Gaussians, in units of the largest node in magnitude."""

_TAILS = 5  # widths that a curve reaches beyond its nodes
_SAME_EPOCH = 1e-5  # relatively: what is left of an epoch in six digits


class Curve(NamedTuple):
    """Spectral density at some points, with its standard error over the probes, NaN where there is one probe."""

    density: FloatArray
    error: FloatArray


def smooth(nodes: Sequence[FloatArray], weights: Sequence[FloatArray], at: FloatArray, width: float) -> Curve:
    """Quadrature rules as a density, every node a Gaussian: the mean over probes of Σₖ wₖ N(at; nodeₖ, width²).

    It estimates the spectral density (1/d) Σᵢ N(at; λᵢ, width²), which integrates to 1.

    Source: Lin, Saad and Yang 2016, arXiv:1308.5467; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159.

    Example:
        >>> smooth([np.array([0.0])], [np.array([1.0])], np.array([0.0]), 1.0).density.round(4)
        array([0.3989])

    Args:
        nodes: of each probe, shape (steps,).
        weights: of each probe, shape (steps,), adding up to 1.
        at: eigenvalues at which the density is wanted, shape (points,).
        width: standard deviation of the Gaussians, in the unit of the nodes.

    Raises:
        ValueError: for a width that is not a positive number.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width: {width!r} is not a positive number")
    at = np.asarray(at)
    rules = np.array([w @ _gaussian(at - n[:, None], width) for n, w in zip(nodes, weights, strict=True)])
    spread = rules.std(axis=0, ddof=1) if len(rules) > 1 else np.full(at.shape, np.nan)
    return Curve(rules.mean(axis=0), spread / math.sqrt(len(rules)))


def spectral_density(
    store: str | Path | Store,
    sweep: str,
    trial_id: str,
    *,
    epoch: float | None = None,
    points: int = 1000,
    width: float | None = None,
) -> pa.Table:
    """The spectral density of one trial's Hessian: eigenvalue, density and error at evenly spaced points.

    Example:
        >>> spectral_density("results", "digits", "0f1e...", epoch=5)  # doctest: +SKIP

    Args:
        store: its directory.
        sweep: name of the sweep.
        trial_id: a trial measured with ``measure.hessian.density``.
        epoch: when; None: the last time that it was measured.
        points: how many, from five widths below the smallest node to five above the largest.
        width: of the Gaussians, see :func:`smooth`; None: a hundredth of the largest node in magnitude.

    Raises:
        ValueError: for an unknown trial or epoch, or a trial without a stored density.
        StoreError: for an unknown sweep or a damaged file.
    """
    rows = _at_epoch(_rules(store, sweep, trial_id), epoch, trial_id)
    probe, node, weight = (rows[name].to_numpy() for name in ("probe", "node", "weight"))
    largest = float(np.abs(node).max())
    width = (NARROW * largest or NARROW) if width is None else width
    at = np.linspace(node.min() - _TAILS * width, node.max() + _TAILS * width, points)
    of_probe = [probe == k for k in np.unique(probe)]
    curve = smooth([node[k] for k in of_probe], [weight[k] for k in of_probe], at, width)
    error = pa.array(curve.error, from_pandas=True)  # NaN is NULL
    return pa.table({"eigenvalue": at, "density": curve.density, "error": error})


def _rules(store: str | Path | Store, sweep: str, trial_id: str) -> pa.Table:
    query = "SELECT epoch, probe, node, weight FROM density WHERE trial_id = ? ORDER BY step, probe, node"
    with connect(store, sweep) as connection, naming_damage(select_sweeps(store, sweep)):
        rules = connection.sql(query, params=[trial_id]).to_arrow_table()
        known = connection.sql("FROM trials WHERE trial_id = ?", params=[trial_id]).fetchall()
    if not known:
        raise ValueError(f"no trial {trial_id!r} in sweep {sweep!r}: column trial_id of `trials` has them")
    if not len(rules):
        raise ValueError(
            f"trial {trial_id} has no spectral density: `measure: {{hessian: {{density: true}}}}` stores it"
        )
    return rules


def _at_epoch(rules: pa.Table, epoch: float | None, trial_id: str) -> pa.Table:
    epochs = rules["epoch"].to_numpy()
    chosen = epochs == epochs[-1] if epoch is None else np.isclose(epochs, epoch, rtol=_SAME_EPOCH, atol=0)
    if not chosen.any():
        measured = ", ".join(f"{e:g}" for e in np.unique(epochs))
        raise ValueError(f"trial {trial_id} has no spectral density at epoch {epoch:g}: it has some at {measured}")
    return rules.filter(chosen)


def _gaussian(x: FloatArray, width: float) -> FloatArray:
    density: FloatArray = np.exp(-0.5 * (x / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return density
