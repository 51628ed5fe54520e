"""The covariance C of per-example gradients: its size, the noise scale, and how it lies to the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

import torch
from torch import Tensor

from trainables.eigenpairs import Top
from trainables.findings import Finding, Rows, Value
from trainables.lanczos import Wanted, lanczos
from trainables.operators import GradientCovariance
from trainables.per_example import squared_deviations
from trainables.settings import GradientNoise
from trainables.streams import Purpose
from trainables.study import Study, Subspace


def gradient_noise(study: Study, wanted: GradientNoise) -> Iterator[Finding]:
    """Tr C and the noise scale; where asked for, the largest eigenvalue of C and its alignment with the Hessian.

    One example has no covariance: nothing is said of it.
    """
    of = study.group
    if study.inputs.shape[1] == 1:
        return
    mean = study.by_parameter(study.curvature_gradient)
    squares = squared_deviations(of.engine, of.parameters, of.buffers, study.inputs, study.targets, mean)
    yield from _size(study, squares)
    if not (wanted.lambda_max or wanted.probes):
        return
    covariance = GradientCovariance(of.engine, of.parameters, of.buffers, study.inputs, study.targets, study.chunk)
    if wanted.lambda_max:
        yield from _largest(study, covariance, wanted)
    if wanted.probes and study.top is not None:
        yield from _alignment(study, covariance, study.top, squares.mean(1), wanted.probes)


def _size(study: Study, squares: Tensor) -> Iterator[Value]:
    """Tr C of the whole training set, from n of its N examples, and B_simple = tr C / ||G||^2.

    (N - 1)/N 1/(n - 1) sum ||g_i - g||^2 is unbiased for tr C; its standard error has the correction sqrt(1 - n/N) of a
    finite population, so both are exact where n = N.
    """
    n, total = squares.shape[1], study.group.data.dataset.train_size
    unbiased = squares * (n / (n - 1)) * ((total - 1) / total)
    trace, error = unbiased.mean(1), unbiased.std(1) * sqrt((1 - n / total) / n)
    norm = study.train_gradient.double().square().sum(1)
    yield Value("gradient_covariance_trace", trace, error)
    yield Value("noise_scale", trace / norm, error / norm)


def _largest(study: Study, covariance: GradientCovariance, wanted: GradientNoise) -> Iterator[Value]:
    start, one = study.signs(Purpose.COVARIANCE, 0), Wanted(1, 0, wanted.tolerance)
    top = Top.of(lanczos(covariance, start, wanted.max_iterations, one), 1)
    yield Value("covariance_lambda_max", top.values[:, 0], top.residuals[:, 0])


def _alignment(
    study: Study, covariance: GradientCovariance, top: Subspace, trace: Tensor, probes: int
) -> Iterator[Finding]:
    """Cosine of C and H, and the share of C along each of H's top eigenvectors U.

    With P = I - UU' and random signs v: Tr CH = Tr U'CHU + E[v'PCHPv], and likewise ||C||_F^2 and ||H||_F^2, of smaller
    variance than without U.
    """
    moments = torch.zeros(3, len(trace), dtype=torch.float64, device=trace.device)
    shares = []
    for i in range(top.vectors.shape[1]):
        u = top.vectors[:, i]
        c, h = covariance @ u, study.hessian @ u
        moments += _moments(c, h)
        shares.append((u * c).double().sum(1) / trace)
    share = torch.stack(shares, 1)
    columns = {"x": torch.arange(len(shares)), "value": share, "error": top.sines}
    yield Rows("profiles", columns, "covariance_along_eigenvectors")
    yield Value("covariance_top_fraction", share.sum(1), top.sine)
    samples = []
    for k in range(probes):
        z = top.project_out(study.signs(Purpose.ALIGNMENT, k))
        samples.append(_moments(covariance @ z, study.hessian @ z))
    sampled = torch.stack(samples)
    norm, error = _jackknife(lambda s: (moments + s)[1].sqrt(), sampled)
    yield Value("covariance_frobenius", norm, error)
    cosine, error = _jackknife(lambda s: _cosine(moments + s), sampled)
    yield Value("covariance_alignment", cosine, error)


def _moments(c: Tensor, h: Tensor) -> Tensor:
    """Cz.Hz, ||Cz||^2 and ||Hz||^2; shape (3, trials)."""
    return torch.stack([(a.double() * b.double()).sum(1) for a, b in ((c, h), (c, c), (h, h))])


def _cosine(moments: Tensor) -> Tensor:
    return moments[0] / (moments[1] * moments[2]).sqrt()


def _jackknife(function: Callable[[Tensor], Tensor], samples: Tensor) -> tuple[Tensor, Tensor]:
    """A function of means over the first dimension, and its jackknife standard error (Efron 1982); NaN from one."""
    m = len(samples)
    value = function(samples.mean(0))
    if m == 1:
        return value, torch.full_like(value, torch.nan)
    total = samples.sum(0)
    left_out = torch.stack([function((total - s) / (m - 1)) for s in samples])
    return value, left_out.std(0) * (m - 1) / sqrt(m)
