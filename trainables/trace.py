"""Trace and Frobenius norm of many symmetric matrices from products with random signs, and what Lanczos left unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import torch
from scipy.stats import chi2
from torch import Tensor

from trainables.lanczos import Krylov, Operator, complement

CONFIDENCE = 0.999
"""With which the bound on unseen eigenvalues holds."""

BLOCK = 16
"""Probes that are taken off the basis together: one pass over it for all of them."""

MOST_KEPT = 64
"""Products that are kept for that bound; more sharpen it little."""


@dataclass(frozen=True)
class Traces:
    """Estimates with standard errors; each of shape (trials,). A standard error from one probe is NaN, an exact one 0.

    Attributes:
        trace: Tr H.
        trace_se: its standard error.
        frobenius: ||H||_F.
        frobenius_se: its standard error, by the delta method.
        products: PHPV from which it follows, for the first probes; shape (trials, m, d).
    """

    trace: Tensor
    trace_se: Tensor
    frobenius: Tensor
    frobenius_se: Tensor
    products: Tensor

    @cached_property
    def _largest(self) -> tuple[Tensor, Tensor]:
        """Largest singular value of the products, and its direction."""
        gram = torch.bmm(self.products, self.products.transpose(1, 2)).double()
        finite = gram.isfinite().all(dim=(1, 2))
        values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], gram, 0))
        direction = torch.bmm(vectors[:, None, :, -1].to(self.products), self.products)[:, 0]
        return torch.where(finite, values[:, -1].clamp(min=0).sqrt(), torch.nan), direction

    @property
    def unseen(self) -> Tensor:
        """Bound on |v'Hv| for unit vectors v orthogonal to the Lanczos basis; shape (trials,).

        So it bounds any eigenvalue that Lanczos did not see, such as a second copy. It holds with 99.9%.
        """
        count = self.products.shape[1]
        if not count:
            return torch.zeros_like(self.trace)
        return self._largest[0] / sqrt(chi2.ppf(1 - CONFIDENCE, count))

    @property
    def unseen_direction(self) -> Tensor:
        """Direction in which the probes found most of the unseen; shape (trials, d)."""
        return self._largest[1]

    def without(self, vectors: Tensor, part: list[int]) -> Traces:
        """The same once eigenvectors in the complement are known, of shape (trials of part, k, d)."""
        products = self.products.clone()
        products[part] = complement(products[part], vectors)
        return replace(self, products=products)


def hutchinson(operator: Operator, krylov: Krylov, probe: Callable[[int], Tensor], probes: int) -> Traces:
    """Hutchinson's estimator (1990) on what is orthogonal to a Lanczos basis.

    With Q the basis, P = I - QQ' and HQ = QT + beta q e': Tr H = Tr T + Tr PHP and ||H||_F^2 = ||T||_F^2 + beta^2 +
    ||HP||_F^2. The first terms are known, and random signs v give E[v'PHPv] = Tr PHP and E[||HPv||^2] = ||HP||_F^2, of
    much smaller variance since the basis holds the outliers of the spectrum (Hutch++; Meyer et al. 2021). Where the
    basis or the probes span the whole space, all is exact.

    An eigenvector u of PHP of eigenvalue lambda has ||PHPV|| >= |lambda| ||u'V||, and ||u'V||^2 is close to chi-squared
    with as many degrees of freedom as V has columns: hence the bound on the unseen (Dixon 1983).

    Args:
        operator: shape (trials, d).
        krylov: of the same operator, with independent start vectors.
        probe: index -> signs, shape (trials, d).
        probes: m, how many.
    """
    trials, dimension = operator.shape
    seen, squares = _of_basis(krylov)
    zero, none = torch.zeros_like(seen), krylov.basis.new_zeros(trials, 0, dimension)
    if krylov.basis.shape[1] == dimension:
        return Traces(seen, zero, squares.sqrt(), zero, none)
    if probes >= dimension:
        trace, squares = _by_columns(operator, krylov.basis[:, 0])
        return Traces(trace, zero, squares.sqrt(), zero, none)
    quadratic, squared, kept = [], [], []
    for first in range(0, probes, BLOCK):
        block = range(first, min(first + BLOCK, probes))
        v = krylov.complement(torch.stack([probe(k).to(none) for k in block], 1))
        product = torch.stack([operator @ v[:, i] for i in range(len(block))], 1)
        quadratic.append((v * product).sum(2, dtype=torch.float64))
        squared.append(product.square().sum(2, dtype=torch.float64))
        if first < MOST_KEPT:
            kept.append(krylov.complement(product))
    trace, trace_se = mean_and_error(torch.cat(quadratic, 1).T)
    square, square_se = mean_and_error(torch.cat(squared, 1).T)
    frobenius = (squares + square).sqrt()
    return Traces(
        seen + trace,
        trace_se,
        frobenius,
        torch.where(frobenius > 0, square_se / (2 * frobenius), square_se),
        torch.cat(kept, 1),
    )


def _of_basis(krylov: Krylov) -> tuple[Tensor, Tensor]:
    """Tr T, and ||HQ||_F^2 = ||T||_F^2 + beta^2."""
    last = krylov.size[:, None] - 1
    return krylov.alpha.sum(1), krylov.alpha.square().sum(1) + 2 * krylov.beta.square().sum(1) - (
        krylov.beta.gather(1, last).square()[:, 0]
    )


def _by_columns(operator: Operator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Trace and squared Frobenius norm from the product with every unit vector."""
    trials, dimension = operator.shape
    trace, squared = like.new_zeros(2, trials, dtype=torch.float64)
    for i in range(dimension):
        unit = torch.zeros_like(like)
        unit[:, i] = 1
        column = (operator @ unit).double()
        trace += column[:, i]
        squared += column.square().sum(1)
    return trace, squared


def mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension and its standard error, NaN from one sample."""
    if len(samples) == 1:
        return samples[0], torch.full_like(samples[0], torch.nan)
    return samples.mean(0), samples.std(0) / sqrt(len(samples))
