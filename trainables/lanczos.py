"""Extreme eigenvalues of many symmetric operators at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

CHECK_EVERY = 5  # iterations between tests for convergence, the same for every trial


class Operator(Protocol):
    """Symmetric operators, one per trial, of shape (trials, dimension)."""

    shape: tuple[int, int]

    def __matmul__(self, vectors: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Spectrum:
    """Both ends of each trial's spectrum.

    Attributes:
        top: largest eigenvalues, descending; shape (trials, k).
        top_residual: bound ||H v - theta v|| of each, so an eigenvalue lies within it; shape (trials, k).
        bottom: smallest (algebraic) eigenvalue; shape (trials,).
        bottom_residual: its bound; shape (trials,).
        num_matvecs: products after which the trial stopped; shape (trials,).
    """

    top: Tensor
    top_residual: Tensor
    bottom: Tensor
    bottom_residual: Tensor
    num_matvecs: Tensor


def lanczos(
    operator: Operator,
    start: Tensor,
    fresh: Callable[[int], Tensor],
    *,
    top: int,
    tolerance: float,
    max_iterations: int,
) -> Spectrum:
    """Lanczos with full two-pass reorthogonalisation (Parlett 1998, ch. 13; "twice is enough").

    A trial's numbers are fixed at the first test at which its own ``top`` largest and its smallest Ritz value have
    residuals of at most ``tolerance * max|theta|``: they never depend on its neighbours. One start vector finds each
    distinct eigenvalue once; when an invariant subspace is exhausted the trial goes on with a fresh direction, so
    multiplicities appear as far as iterations reach. Where d <= max_iterations the whole space is spanned, and all is
    exact. Where d < top, missing eigenvalues are NaN; a trial with non-finite products is NaN throughout.

    Args:
        operator: shape (trials, d).
        start: first directions, shape (trials, d), no zero rows.
        fresh: iteration -> new directions, shape (trials, d).
        top: k, how many of the largest.
        tolerance: relative residual at which to stop.
        max_iterations: most products per trial.
    """
    trials, dimension = operator.shape
    steps = min(max_iterations, dimension)
    basis = start.new_empty(trials, steps, dimension)
    alpha = torch.zeros(trials, steps, dtype=torch.float64, device=start.device)
    beta = torch.zeros_like(alpha)  # beta[:, j] couples vectors j and j + 1
    found = _Found(trials, top, start.device)
    basis[:, 0] = start / start.norm(dim=1, keepdim=True)
    for j in range(steps):
        w = operator @ basis[:, j]
        alpha[:, j] = (w * basis[:, j]).sum(1)
        w = _orthogonalise(w, basis[:, : j + 1])
        beta[:, j] = w.norm(dim=1)
        exhausted = ~(beta[:, j] > _negligible(alpha, beta, j, start.dtype, dimension))
        last = j + 1 == steps
        if last and steps == dimension:
            beta[:, j] = 0  # the whole space is spanned
        beta[:, j] = beta[:, j].masked_fill(exhausted, 0)
        if last or (steps < dimension and (j + 1) % CHECK_EVERY == 0):
            found.update(*_ritz(alpha[:, : j + 1], beta[:, : j + 1]), tolerance, j + 1, last=last)
            if found.complete():
                break
        if not last:
            if exhausted.any():
                w = torch.where(exhausted[:, None], _orthogonalise(fresh(j), basis[:, : j + 1]), w)
            basis[:, j + 1] = w / w.norm(dim=1, keepdim=True)
    return found.spectrum()


class _Found:
    """What each trial reported when it stopped."""

    def __init__(self, trials: int, top: int, device: torch.device) -> None:
        self.count = top
        self.done = torch.zeros(trials, dtype=torch.bool, device=device)
        self.values = torch.full((trials, top + 1), torch.nan, dtype=torch.float64, device=device)
        self.residuals = torch.full_like(self.values, torch.nan)
        self.matvecs = torch.zeros(trials, dtype=torch.int64, device=device)

    def update(self, theta: Tensor, residual: Tensor, tolerance: float, products: int, *, last: bool) -> None:
        """Takes over the Ritz values (ascending) of trials that have just converged, or of all at the last step."""
        ends = torch.cat([theta.flip(1)[:, : self.count], theta[:, :1]], 1)
        bounds = torch.cat([residual.flip(1)[:, : self.count], residual[:, :1]], 1)
        reached = (bounds <= tolerance * theta.abs().amax(1, keepdim=True)).all(1) & (theta.shape[1] >= self.count)
        now = ~self.done & (reached | last | theta.isnan().any(1))
        wide = torch.full_like(self.values, torch.nan)
        for target, source in ((self.values, ends), (self.residuals, bounds)):
            wide[:, : ends.shape[1] - 1] = source[:, :-1]
            wide[:, -1] = source[:, -1]
            target[now] = wide[now]
        self.matvecs[now] = products
        self.done |= now

    def complete(self) -> bool:
        return bool(self.done.all())

    def spectrum(self) -> Spectrum:
        return Spectrum(
            self.values[:, :-1],
            self.residuals[:, :-1],
            self.values[:, -1],
            self.residuals[:, -1],
            self.matvecs,
        )


def _orthogonalise(w: Tensor, basis: Tensor) -> Tensor:
    row = w[:, None]  # products with rows run at memory speed, those with columns up to 7 times slower
    for _ in range(2):
        coefficients = torch.bmm(row, basis.transpose(1, 2))
        row = torch.baddbmm(row, coefficients, basis, alpha=-1)
    return row[:, 0]


def _negligible(alpha: Tensor, beta: Tensor, j: int, dtype: torch.dtype, dimension: int) -> Tensor:
    """Size below which the next vector is rounding error, relative to the products seen so far."""
    scale = alpha[:, : j + 1].abs().amax(1)
    if j:
        scale = torch.maximum(scale, beta[:, :j].amax(1))
    return 10 * torch.finfo(dtype).eps * sqrt(dimension) * scale


def _ritz(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values, ascending, and their residuals |beta_j s_ji|; each of shape (trials, j)."""
    tridiagonal = torch.diag_embed(alpha)
    if alpha.shape[1] > 1:
        off = torch.diag_embed(beta[:, :-1], 1)
        tridiagonal = tridiagonal + off + off.transpose(1, 2)
    finite = tridiagonal.isfinite().all(dim=(1, 2))
    theta, s = torch.linalg.eigh(torch.where(finite[:, None, None], tridiagonal, 0))
    residual: Tensor = beta[:, -1:].abs() * s[:, -1].abs()
    return torch.where(finite[:, None], theta, torch.nan), torch.where(finite[:, None], residual, torch.nan)
