"""The spectrum of the Hessian: both ends with their eigenvectors, trace, Frobenius norm, density."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.eigenpairs import Top, with_copies
from trainables.findings import Finding, Rows, Value
from trainables.lanczos import Krylov, Wanted, lanczos
from trainables.settings import Density, Hessian
from trainables.streams import Purpose
from trainables.study import Study, Subspace
from trainables.trace import hutchinson, mean_and_error


def spectrum(study: Study, wanted: Hessian) -> Iterator[Finding]:
    """Extreme eigenvalues, trace, Frobenius norm, and how the gradient lies to the top eigenvectors."""
    ends = Wanted(wanted.top, wanted.bottom, wanted.tolerance)
    krylov = lanczos(study.hessian, study.signs(Purpose.LANCZOS, 0), wanted.max_iterations, ends)
    traces = hutchinson(study.hessian, krylov, lambda k: study.signs(Purpose.TRACE, k), wanted.trace_probes)
    top = Top.of(krylov, wanted.top)
    top, traces = with_copies(study.hessian, top, traces, wanted.tolerance, wanted.max_iterations)
    yield from _ends(krylov, top, wanted)
    yield Value("unseen_bound", traces.unseen, 0.0)
    yield Value("hessian_trace", traces.trace, traces.trace_se)
    yield Value("hessian_frobenius", traces.frobenius, traces.frobenius_se)
    yield from _directions(study, top, krylov)
    if wanted.density:
        yield from _density(study, krylov, wanted.density)


def _ends(krylov: Krylov, top: Top, wanted: Hessian) -> Iterator[Finding]:
    columns = {"index": torch.arange(wanted.top), "eigenvalue": top.values, "residual": top.residuals}
    yield Rows("eigenvalues", columns | {"products": top.products})
    yield Value("lambda_max", top.values[:, 0], top.residuals[:, 0])
    if wanted.bottom:
        theta, residual, _ = krylov.ritz
        place = krylov.size[:, None] - 1 - torch.arange(wanted.bottom, device=krylov.size.device)
        values, bounds = (
            torch.where(place >= 0, t.gather(1, place.clamp(min=0)), torch.nan) for t in (theta, residual)
        )
        products = krylov.size[:, None].expand_as(values)
        columns = {"index": -1 - torch.arange(wanted.bottom), "eigenvalue": values, "residual": bounds}
        yield Rows("eigenvalues", columns | {"products": products}, "bottom")
        yield Value("lambda_min", values[:, 0], bounds[:, 0])


def _directions(study: Study, top: Top, krylov: Krylov) -> Iterator[Value]:
    """Share of the gradient in the top subspace, and the overlap of that subspace with the one measured before."""
    theta, residual, _ = krylov.ritz
    k = top.values.shape[1]
    if theta.shape[1] > k:
        following = (theta[:, k] + residual[:, k]).nan_to_num(-torch.inf)
    else:
        following = torch.full_like(theta[:, 0], -torch.inf)
    size = top.residuals.nan_to_num(0).norm(dim=1)
    gap = (top.values.nan_to_num(torch.inf).amin(1) - following).clamp(min=0)
    study.top = Subspace(top.vectors, _sine(size, gap), _sine(top.residuals, _gaps(top.values, following)))
    fraction = study.top.share(study.train_gradient)
    yield Value("gradient_top_fraction", fraction, study.top.sine)
    if study.before is not None:
        overlap = torch.bmm(study.top.vectors, study.before.vectors.transpose(1, 2)).double().square().sum((1, 2))
        yield Value("subspace_overlap", overlap / k, (study.top.sine + study.before.sine).clamp(max=1))


def _sine(residual: Tensor, gap: Tensor) -> Tensor:
    return torch.where(residual > 0, residual / gap, 0).clamp(max=1)


def _gaps(values: Tensor, following: Tensor) -> Tensor:
    """Distance of each eigenvalue to its neighbours; shape (trials, k)."""
    steps = torch.cat(
        [torch.full_like(values[:, :1], torch.inf), -torch.cat([values, following[:, None]], 1).diff()], 1
    )
    return torch.minimum(steps[:, :-1], steps[:, 1:]).clamp(min=0)


def _density(study: Study, first: Krylov, wanted: Density) -> Iterator[Finding]:
    """Stochastic Lanczos quadrature (Ghorbani et al. 2019): nodes theta_i and weights s_1i^2 for each start vector."""
    dimension = study.hessian.shape[1]
    samples = []
    for probe in range(wanted.probes):
        krylov = lanczos(study.hessian, study.signs(Purpose.DENSITY, probe), wanted.steps) if probe else first
        theta, _, s = krylov.ritz
        weight = s[:, 0].square()
        n = theta.shape[1]
        yield Rows("density", {"probe": torch.full((n,), probe), "node": theta, "weight": weight}, profile=str(probe))
        positive = theta.clamp(min=0)
        terms = (weight * positive / (positive + wanted.z)).nan_to_num(0).sum(1)
        samples.append(torch.where(theta[:, 0].isnan(), torch.nan, dimension * terms))
    yield Value("effective_dimension", *mean_and_error(torch.stack(samples)))
