from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import Matrices, run, signs, with_spectrum
from torch import Tensor

from trainables.eigenpairs import Top, with_copies
from trainables.lanczos import Wanted
from trainables.streams import Purpose
from trainables.trace import hutchinson


def largest(
    matrices: Tensor, k: int = 5, probes: int = 32, tolerance: float = 1e-8, bottom: int = 1
) -> tuple[Top, Tensor]:
    operator = Matrices(matrices)
    krylov = run(operator, 100, Wanted(k, bottom, tolerance))
    traces = hutchinson(operator, krylov, lambda i: signs(operator, Purpose.TRACE, i), probes)
    top, traces = with_copies(operator, Top.of(krylov, k), traces, tolerance, 100)
    return top, traces.unseen


def assert_eigenpairs(matrix: Tensor, top: Top, i: int) -> None:
    y, theta = top.vectors[i].double(), top.values[i]
    torch.testing.assert_close(y @ y.T, torch.eye(len(y), dtype=torch.float64), atol=1e-6, rtol=0)
    true = (y @ matrix.double() - theta[:, None] * y).norm(dim=1)
    assert (true <= top.residuals[i] * (1 + 1e-6) + 1e-10 * theta.abs().max()).all()


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_repeated_eigenvalues_are_found_as_often_as_they_are_there(copies: int) -> None:
    """As for K outputs with squared error, whose Hessian is I (x) X'X/N: each eigenvalue K times."""
    distinct = [*np.linspace(0, 0.5, 60), 2.0, 3.0, 5.0, 8.0]
    matrix = with_spectrum([v for v in distinct for _ in range(copies)])
    top, unseen = largest(matrix[None])
    expected = sorted([v for v in distinct for _ in range(copies)], reverse=True)[:5]
    np.testing.assert_allclose(top.values[0], expected, rtol=1e-7)
    assert_eigenpairs(matrix, top, 0)
    assert float(unseen[0]) > 0


def test_a_cluster_is_resolved() -> None:
    cluster = [10 - 1e-4 * i for i in range(6)]
    matrix = with_spectrum([*np.linspace(0, 1, 300), *cluster])
    top, _ = largest(matrix[None])
    np.testing.assert_allclose(top.values[0], cluster[:5], rtol=1e-7)
    assert_eigenpairs(matrix, top, 0)


def test_only_those_trials_go_on_that_lack_something() -> None:
    simple = with_spectrum([*np.linspace(0, 0.5, 120), 2.0, 3.0, 5.0, 8.0, 9.0])
    double = with_spectrum([*np.linspace(0, 0.2, 120), 4.0, 6.0, 9.0, 9.0, 9.0])
    both, _ = largest(torch.stack([simple, double]), k=3, tolerance=1e-3, bottom=0)
    alone, _ = largest(simple[None], k=3, tolerance=1e-3, bottom=0)
    assert torch.equal(both.values[0], alone.values[0])
    assert torch.equal(both.products[0], alone.products[0])
    np.testing.assert_allclose(both.values[1], [9, 9, 9], rtol=1e-4)
    assert both.products[1].max() > both.products[1].min()  # what was found later took more products


def test_a_wide_bulk_is_no_reason_to_go_on() -> None:
    """The bound leaves room for more, but nothing proves it: the answer is Lanczos' own, with the bound beside it."""
    matrix = with_spectrum(list(np.linspace(-1, 1, 400)))
    operator = Matrices(matrix[None])
    top, unseen = largest(matrix[None], k=3, tolerance=1e-4)
    assert float(unseen[0]) > float(top.values[0, 2])
    assert torch.equal(top.values, Top.of(run(operator, 100, Wanted(3, 1, 1e-4)), 3).values)


def test_few_probes_say_nothing_of_copies() -> None:
    matrix = with_spectrum([*np.linspace(0, 0.3, 150), 5.0, 5.0, 3.0])
    top, _ = largest(matrix[None], k=2, probes=4, tolerance=1e-3, bottom=0)
    np.testing.assert_allclose(top.values[0], [5, 3], rtol=1e-4)
    top, _ = largest(matrix[None], k=2, probes=8, tolerance=1e-3, bottom=0)
    np.testing.assert_allclose(top.values[0], [5, 5], rtol=1e-4)
