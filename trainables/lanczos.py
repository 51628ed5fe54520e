"""Extreme eigenvalues of many symmetric matrices at once, from products alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Protocol, Self

import torch
from torch import Tensor

ROUNDING = 32
"""What rounding adds to a residual, in units of the largest magnitude and the precision; 3 to 23 was seen."""

CHECK_EVERY = 5  # iterations between tests for convergence, the same for every trial


class Operator(Protocol):
    """Symmetric matrices, one per trial, of shape (trials, dimension)."""

    shape: tuple[int, int]

    def __matmul__(self, vectors: Tensor) -> Tensor: ...

    def take(self, part: list[int]) -> Self:
        """Those of some of the trials."""
        ...


@dataclass(frozen=True)
class Wanted:
    """When a trial has what it is asked for.

    Attributes:
        top: how many of the largest eigenvalues.
        bottom: how many of the smallest.
        tolerance: of each residual, relative to the largest magnitude.
    """

    top: int
    bottom: int = 0
    tolerance: float = 1e-3

    def reached(self, theta: Tensor, residual: Tensor) -> Tensor:
        """Whether all have converged, by trial; Ritz values (ascending) and residuals of shape (trials, j)."""
        j = theta.shape[1]
        if j < self.top + self.bottom:
            return theta.isnan().any(1)
        ends = torch.cat([residual[:, : self.bottom], residual[:, j - self.top :]], 1)
        return (ends <= self.tolerance * theta.abs().amax(1, keepdim=True)).all(1) | theta.isnan().any(1)


@dataclass(frozen=True)
class Krylov:
    """What Lanczos' method leaves of each trial: H Q = Q T + beta q e', exactly so where the space is exhausted.

    Attributes:
        alpha: diagonal of T; shape (trials, steps), float64.
        beta: beta[:, j] couples vectors j and j + 1; the last one of a trial is the length of what is left over.
        basis: Q; shape (trials, steps, dimension).
        size: steps that each trial took, its number of products; what lies beyond is 0. Shape (trials,).
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor
    size: Tensor

    @cached_property
    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, descending, shape (trials, steps), NaN beyond a trial's size; residuals; T's eigenvectors.

        The residual of each is ||H y - theta y|| of its Ritz vector y, and some eigenvalue lies within it: in exact
        arithmetic |beta_j s_ji|, and what rounding adds to it.
        """
        trials, steps = self.alpha.shape
        theta = self.alpha.new_full((trials, steps), torch.nan)
        residual, vectors = torch.full_like(theta, torch.nan), self.alpha.new_zeros(trials, steps, steps)
        for size in self.size.unique().tolist():  # a few, since tests for convergence are CHECK_EVERY steps apart
            of = self.size == size
            values, bound, s = _ritz(self.alpha[of, :size], self.beta[of, :size])
            theta[of, :size], residual[of, :size] = values.flip(1), bound.flip(1)
            vectors[of, :size, :size] = s.flip(2)
        rounding = ROUNDING * torch.finfo(self.basis.dtype).eps * theta.abs().nan_to_num(0).amax(1, keepdim=True)
        return theta, torch.hypot(residual, rounding.expand_as(residual)), vectors

    def vectors(self, columns: Tensor) -> Tensor:
        """Ritz vectors, shape (trials, k, dimension), of columns of T's eigenvectors, shape (trials, steps, k)."""
        return torch.bmm(columns.transpose(1, 2).to(self.basis), self.basis)

    def complement(self, vectors: Tensor) -> Tensor:
        """What is orthogonal to the basis of each trial's vectors; shape (trials, count, dimension)."""
        return complement(vectors, self.basis)


def complement(vectors: Tensor, basis: Tensor) -> Tensor:
    """What is orthogonal to each trial's orthonormal ``basis`` (trials, k, d) of its vectors (trials, count, d)."""
    for _ in range(2):  # the second time takes what rounding left
        vectors = torch.baddbmm(vectors, torch.bmm(vectors, basis.mT), basis, alpha=-1)
    return vectors


def lanczos(operator: Operator, start: Tensor, max_iterations: int, wanted: Wanted | None = None) -> Krylov:
    """Lanczos' method with full reorthogonalisation (Parlett 1998, ch. 13).

    Every vector is orthogonalised against its two neighbours, then against all before, and once more where much was
    taken away ("twice is enough"). A trial stops at the first test at which it has what is wanted; its numbers never
    depend on its neighbours. Where an invariant subspace is exhausted, a trial goes on with a fresh direction. Where
    d <= max_iterations the whole space is spanned, and all is exact. Once half of the trials have stopped, products are
    formed for the others alone.

    Args:
        operator: shape (trials, d).
        start: first directions, shape (trials, d), no zero rows.
        max_iterations: most products per trial.
        wanted: when to stop before; None: never.
    """
    trials, dimension = operator.shape
    run = _Run(operator, start, min(max_iterations, dimension))
    finished: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for j in range(run.steps):
        run.advance(j)
        last = j + 1 == run.steps
        if last or (wanted and run.steps < dimension and (j + 1) % CHECK_EVERY == 0):
            stopping = run.stopping(j + 1, wanted, last=last)
            for i in stopping.nonzero()[:, 0].tolist():
                if run.members[i] not in finished:
                    finished[run.members[i]] = run.result(i, j + 1)
            if len(finished) == trials:
                break
            run.shrink([i for i, member in enumerate(run.members) if member not in finished])
    return _padded([finished[i] for i in range(trials)])


class _Run:
    """The trials that still iterate."""

    def __init__(self, operator: Operator, start: Tensor, steps: int) -> None:
        trials, self.dimension = operator.shape
        self.operator, self.steps = operator, steps
        self.members = list(range(trials))
        self.basis = start.new_empty(trials, steps, self.dimension)
        self.alpha = torch.zeros(trials, steps, dtype=torch.float64, device=start.device)
        self.beta = torch.zeros_like(self.alpha)
        self.next = start / start.norm(dim=1, keepdim=True)

    def advance(self, j: int) -> None:
        """One product, and the direction that it adds."""
        basis = self.basis
        basis[:, j] = self.next
        w = self.operator @ basis[:, j]
        self.alpha[:, j] = (w * basis[:, j]).sum(1)
        w = w - self.alpha[:, j, None].to(w) * basis[:, j]
        if j:
            w -= self.beta[:, j - 1, None].to(w) * basis[:, j - 1]
        w, length = _orthogonalise(w, basis[:, : j + 1])
        exhausted = ~(length > self._negligible(j, w.dtype))  # also where it is NaN
        whole = j + 1 == self.dimension
        self.beta[:, j] = length.double().masked_fill(exhausted & ~length.isnan() | whole, 0)
        if j + 1 == self.steps:
            return
        if exhausted.any():
            other, norm = _orthogonalise(_any_direction(w, j), basis[:, : j + 1])
            w, length = torch.where(exhausted[:, None], other, w), torch.where(exhausted, norm, length)
        self.next = w / length[:, None]

    def stopping(self, products: int, wanted: Wanted | None, *, last: bool) -> Tensor:
        if last or wanted is None:
            return torch.full((len(self.members),), last)
        theta, residual, _ = _ritz(self.alpha[:, :products], self.beta[:, :products])
        return wanted.reached(theta, residual).cpu()

    def result(self, i: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.alpha[i, :size], self.beta[i, :size], self.basis[i, :size]  # later steps do not touch these

    def shrink(self, active: list[int]) -> None:
        """Goes on with some of the trials alone, once they are at most half."""
        if 2 * len(active) > len(self.members):
            return
        self.members = [self.members[i] for i in active]
        self.operator = self.operator.take(active)
        self.alpha, self.beta, self.basis, self.next = (
            t[active] for t in (self.alpha, self.beta, self.basis, self.next)
        )

    def _negligible(self, j: int, dtype: torch.dtype) -> Tensor:
        """Size below which the next vector is rounding error, relative to the products seen so far."""
        scale = self.alpha[:, : j + 1].abs().amax(1)
        if j:
            scale = torch.maximum(scale, self.beta[:, :j].amax(1))
        return 10 * torch.finfo(dtype).eps * sqrt(self.dimension) * scale


def _orthogonalise(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the span of ``basis`` out of ``w``, twice where less than 0.7 of it is left; also returns its length."""
    row, length = w[:, None], w.norm(dim=1)  # products with rows run at memory speed, those with columns much slower
    again = torch.ones_like(length, dtype=torch.bool)
    for _ in range(2):
        coefficients = torch.bmm(row, basis.transpose(1, 2))
        row = torch.where(again[:, None, None], torch.baddbmm(row, coefficients, basis, alpha=-1), row)
        before, length = length, row[:, 0].norm(dim=1)
        again = ~(length > 0.7 * before)
        if not again.any():
            break
    return row[:, 0], length


def _any_direction(like: Tensor, index: int) -> Tensor:
    """Where to go on from an exhausted space, the same for every trial; normal, since signs may lie within it."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(like.shape[1], generator=generator, dtype=torch.float64).to(like).expand_as(like)


def _ritz(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values, ascending, and residuals |beta_j s_ji|, each (trials, j); T's eigenvectors s, (trials, j, j)."""
    tridiagonal = torch.diag_embed(alpha)
    if alpha.shape[1] > 1:
        off = torch.diag_embed(beta[:, :-1], 1)
        tridiagonal = tridiagonal + off + off.transpose(1, 2)
    finite = tridiagonal.isfinite().all(dim=(1, 2)) & beta.isfinite().all(1)
    theta, s = torch.linalg.eigh(torch.where(finite[:, None, None], tridiagonal, 0))
    residual = beta[:, -1:].abs() * s[:, -1].abs()
    known = finite[:, None]
    return torch.where(known, theta, torch.nan), torch.where(known, residual, torch.nan), s


def _padded(results: list[tuple[Tensor, Tensor, Tensor]]) -> Krylov:
    """Results of different sizes side by side, zero beyond each size."""
    alpha, beta, basis = (
        torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True) for tensors in zip(*results, strict=True)
    )
    return Krylov(alpha, beta, basis, torch.tensor([len(a) for a, _, _ in results], device=alpha.device))
