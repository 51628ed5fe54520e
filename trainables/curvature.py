"""The spectrum of the Hessian: both ends, trace, Frobenius norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trainables.findings import Finding, Rows, Value
from trainables.lanczos import lanczos
from trainables.settings import Hessian
from trainables.streams import Purpose
from trainables.study import Study
from trainables.trace import hutchinson


def spectrum(study: Study, wanted: Hessian) -> Iterator[Finding]:
    """Extreme eigenvalues, trace and Frobenius norm."""
    hessian = study.hessian
    found = lanczos(
        hessian,
        study.signs(Purpose.LANCZOS, 0),
        lambda j: study.signs(Purpose.LANCZOS, j + 1),
        top=wanted.top,
        tolerance=wanted.tolerance,
        max_iterations=wanted.max_iterations,
    )
    yield Rows(
        "eigenvalues",
        {
            "index": torch.arange(wanted.top),
            "eigenvalue": found.top,
            "residual": found.top_residual,
            "products": found.num_matvecs[:, None].expand_as(found.top),
        },
    )
    yield Value("lambda_max", found.top[:, 0], found.top_residual[:, 0])
    yield Value("lambda_min", found.bottom, found.bottom_residual)
    traces = hutchinson(hessian, lambda k: study.signs(Purpose.TRACE, k), wanted.trace_probes)
    yield Value("hessian_trace", traces.trace, traces.trace_se)
    yield Value("hessian_frobenius", traces.frobenius, traces.frobenius_se)
