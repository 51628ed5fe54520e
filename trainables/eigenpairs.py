"""The largest eigenvalues with their eigenvectors, repeated ones included."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from trainables.lanczos import Krylov, Operator, Wanted, complement, lanczos
from trainables.trace import Traces

ENOUGH_PROBES = 8
"""With fewer nothing is said of eigenvalues that Lanczos may have missed."""


@dataclass(frozen=True)
class Top:
    """The largest eigenvalues; each of shape (trials, k), NaN where a matrix has fewer than k.

    Attributes:
        values: descending.
        residuals: ||H y - theta y|| of each.
        products: Hessian products after which it was final.
        vectors: Ritz vectors y, orthonormal; shape (trials, k, d), zero where there is none.
    """

    values: Tensor
    residuals: Tensor
    products: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, krylov: Krylov, k: int) -> Top:
        """The first Ritz values."""
        theta, residual, s = krylov.ritz
        short = max(0, k - theta.shape[1])
        values, residuals = (pad(t[:, :k], (0, short), value=torch.nan) for t in (theta, residual))
        vectors = pad(krylov.vectors(s[:, :, :k]), (0, 0, 0, short))
        return cls(values, residuals, krylov.size[:, None].expand(-1, k), vectors)

    def merge(self, other: Top, part: list[int]) -> Top:
        """With the eigenvalues of ``other``, found for some of the trials in the complement of what is here."""
        k, where = self.values.shape[1], torch.tensor(part, device=self.values.device)
        values = torch.cat([self.values[part], other.values], 1).nan_to_num(-torch.inf)
        order = values.sort(stable=True, dim=1, descending=True).indices[:, :k]

        def merged(mine: Tensor, its: Tensor) -> Tensor:
            both = torch.cat([mine[part], its], 1)
            return mine.index_copy(0, where, both.take_along_dim(order.view(*order.shape, *[1] * (both.ndim - 2)), 1))

        return Top(
            merged(self.values, other.values),
            merged(self.residuals, other.residuals),
            merged(self.products, other.products),
            merged(self.vectors, other.vectors),
        )


def with_copies(
    operator: Operator, top: Top, traces: Traces, tolerance: float, max_iterations: int
) -> tuple[Top, Traces]:
    """Adds eigenvalues that Lanczos cannot see: one start vector finds each distinct eigenvalue once.

    Where the bound on the unseen leaves room for an eigenvalue above the k-th, one product with the direction in which
    the probes found most tells: a Rayleigh quotient above the k-th eigenvalue, orthogonal to all k, proves that one is
    missing. Then Lanczos goes on from there, in the complement of what is known.
    """
    if traces.products.shape[1] < ENOUGH_PROBES:
        return top, traces
    for _ in range(top.values.shape[1] - 1):
        missing = _proven_missing(operator, top, traces)
        if not missing:
            break
        known = top.vectors[missing]
        inner = _Complement(operator.take(missing), known)
        start = inner.project(traces.unseen_direction[missing])
        krylov = lanczos(inner, start, max_iterations, Wanted(1, 0, tolerance))
        found = Top.of(krylov, 1)
        # what is left of H y in the span of the known is at most their own residual
        residual = (found.residuals.square() + top.residuals[missing].square().sum(1, keepdim=True)).sqrt()
        products = found.products + top.products[missing].amax(1, keepdim=True) + 1
        top = top.merge(replace(found, residuals=residual, products=products), missing)
        traces = traces.without(found.vectors, missing)
    return top, traces


def _proven_missing(operator: Operator, top: Top, traces: Traces) -> list[int]:
    last = top.values[:, -1]
    possible = (traces.unseen >= last).nonzero()[:, 0].tolist()
    if not possible:
        return []
    inner = _Complement(operator.take(possible), top.vectors[possible])
    v = normalize(inner.project(traces.unseen_direction[possible]), dim=1)
    quotient = (v * (inner @ v)).double().sum(1)
    proven = quotient > last[possible] + top.residuals[possible, -1]
    return [i for i, yes in zip(possible, proven.tolist(), strict=True) if yes]


class _Complement:
    """PHP, with P the projection on what is orthogonal to known vectors."""

    def __init__(self, operator: Operator, known: Tensor) -> None:
        self.operator, self.known, self.shape = operator, known, operator.shape

    def project(self, vectors: Tensor) -> Tensor:
        return complement(vectors[:, None], self.known)[:, 0]

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.project(self.operator @ vectors)

    def take(self, part: list[int]) -> _Complement:
        return _Complement(self.operator.take(part), self.known[part])
