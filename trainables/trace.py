"""Trace and Frobenius norm of many symmetric operators from products with random signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from trainables.lanczos import Operator


@dataclass(frozen=True)
class Traces:
    """Estimates with standard errors; each of shape (trials,). A standard error from one probe is NaN, an exact one 0.

    Attributes:
        trace: Tr H.
        trace_se: its standard error.
        frobenius: ||H||_F.
        frobenius_se: its standard error, by the delta method.
        num_matvecs: products used, the same for all trials.
    """

    trace: Tensor
    trace_se: Tensor
    frobenius: Tensor
    frobenius_se: Tensor
    num_matvecs: int


def hutchinson(operator: Operator, probe: Callable[[int], Tensor], probes: int) -> Traces:
    """Hutchinson's estimator (1990): E[v' H v] = Tr H and E[||H v||^2] = ||H||_F^2 for random signs v.

    With at least as many probes as dimensions the unit vectors are used instead, and the results are exact.

    Args:
        operator: shape (trials, d).
        probe: index -> signs, shape (trials, d).
        probes: m, how many.
    """
    trials, dimension = operator.shape
    if probes >= dimension:
        return _exact(operator, probe(0).new_ones(1))
    quadratic = torch.zeros(probes, trials, dtype=torch.float64)
    squared = torch.zeros_like(quadratic)
    for k in range(probes):
        v = probe(k)
        product = operator @ v
        quadratic[k] = (v * product).double().sum(1)
        squared[k] = product.double().square().sum(1)
    frobenius = squared.mean(0).sqrt()
    return Traces(
        quadratic.mean(0),
        _standard_error(quadratic),
        frobenius,
        torch.where(frobenius > 0, _standard_error(squared) / (2 * frobenius), _standard_error(squared)),
        probes,
    )


def _exact(operator: Operator, like: Tensor) -> Traces:
    trials, dimension = operator.shape
    trace, squared = torch.zeros(2, trials, dtype=torch.float64)
    for i in range(dimension):
        unit = like.new_zeros(trials, dimension)
        unit[:, i] = 1
        column = (operator @ unit).double()
        trace += column[:, i].cpu()
        squared += column.square().sum(1).cpu()
    zero = torch.zeros_like(trace)
    return Traces(trace, zero, squared.sqrt(), zero, dimension)


def _standard_error(samples: Tensor) -> Tensor:
    """Of the mean over the first dimension; NaN from one sample."""
    if len(samples) == 1:
        return torch.full_like(samples[0], torch.nan)
    return torch.as_tensor(samples.std(0) / sqrt(len(samples)))
