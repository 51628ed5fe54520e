from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.lanczos import Spectrum, lanczos
from trainables.streams import Purpose, rademacher
from trainables.trace import hutchinson


class Matrices:
    """Symmetric matrices, shape (trials, d, d), as operators."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices
        self.shape = (matrices.shape[0], matrices.shape[1])
        self.products = 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1
        return torch.stack([m @ v for m, v in zip(self.matrices, vectors, strict=True)])


def signs(operator: Matrices, index: int) -> Tensor:
    trials, d = operator.shape
    drawn = [rademacher(t, Purpose.LANCZOS, d, 0, index) for t in range(trials)]
    return torch.from_numpy(np.stack(drawn)).to(operator.matrices.dtype)


def ends(operator: Matrices, top: int = 3, tolerance: float = 1e-10, max_iterations: int = 100) -> Spectrum:
    return lanczos(
        operator,
        signs(operator, 0),
        lambda j: signs(operator, j + 1),
        top=top,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


def with_spectrum(eigenvalues: list[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return ((q * torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8), min_size=1, max_size=3)
)
def test_small_spectra_are_exact_at_both_ends(spectra: list[list[float]]) -> None:
    """Indefinite, repeated, zero: with d iterations the whole space is spanned, multiplicities included."""
    operator = Matrices(torch.stack([with_spectrum(s, i) for i, s in enumerate(spectra)]))
    found = ends(operator, tolerance=1e-14)
    for i, eigenvalues in enumerate(spectra):
        ordered = sorted(eigenvalues, reverse=True)
        np.testing.assert_allclose(found.top[i], ordered[:3], atol=1e-9)
        np.testing.assert_allclose(found.bottom[i], ordered[-1], atol=1e-9)


def test_the_residual_bounds_the_error_and_is_the_true_one() -> None:
    """There is an eigenvalue within the bound, and for isolated ones the error is about its square."""
    spectrum = [*np.geomspace(0.01, 1, 195), 3.0, 5.0, 8.0, -2.0, -4.0]
    operator = Matrices(with_spectrum(spectrum)[None])
    loose = ends(operator, tolerance=1e-2)
    for value, bound in zip(loose.top[0], loose.top_residual[0], strict=True):
        assert np.abs(np.array(spectrum) - float(value)).min() <= float(bound) + 1e-12
    assert float(loose.top_residual[0].max()) <= 1e-2 * 8
    assert abs(float(loose.bottom[0]) + 4) <= float(loose.bottom_residual[0]) + 1e-12


def test_no_ghosts_in_single_precision() -> None:
    """Ten outliers, n = 1500, float32, 100 steps: without reorthogonalisation the largest appears many times over."""
    outliers = [float(v) for v in np.geomspace(10, 1000, 10)]
    operator = Matrices(with_spectrum([*np.linspace(0, 1, 1490), *outliers], dtype=torch.float32)[None])
    found = ends(operator, top=10, tolerance=1e-7, max_iterations=100)
    np.testing.assert_allclose(found.top[0], sorted(outliers, reverse=True), rtol=1e-4)


def test_each_trial_stops_by_itself_and_neighbours_never_matter() -> None:
    easy, hard = with_spectrum([100.0] + [0.0] * 99), with_spectrum(list(np.linspace(0, 1, 100)), 1)
    together = ends(Matrices(torch.stack([easy, hard])), top=1, max_iterations=90)
    assert together.num_matvecs[0] < together.num_matvecs[1]
    alone = ends(Matrices(easy[None]), top=1, max_iterations=90)
    assert torch.equal(alone.top[0], together.top[0])
    assert alone.num_matvecs[0] == together.num_matvecs[0]


@pytest.mark.parametrize("d", [1, 2])
def test_fewer_dimensions_than_asked_for_leave_the_rest_unknown(d: int) -> None:
    found = ends(Matrices(torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))[None]))
    assert found.top[0, :d].tolist() == pytest.approx(list(range(d, 0, -1)))
    assert found.top[0, d:].isnan().all()
    assert found.bottom[0] == pytest.approx(1)


def test_a_zero_operator_and_a_non_finite_one() -> None:
    operator = Matrices(torch.stack([torch.zeros(6, 6), torch.full((6, 6), torch.nan), torch.eye(6)]).double())
    found = ends(operator)
    assert found.top[0].tolist() == [0, 0, 0]
    assert found.top[1].isnan().all()
    assert found.bottom[1].isnan()
    assert found.top[2].tolist() == pytest.approx([1, 1, 1])


def test_hutchinson_is_unbiased_with_honest_standard_errors() -> None:
    """Var = 2 (||H||_F^2 - sum H_ii^2) / m, and t-intervals cover as they should."""
    matrix = with_spectrum([*np.linspace(-1, 1, 30), 5.0, 9.0])
    d, m, repetitions = 32, 30, 2000
    generator = torch.Generator().manual_seed(0)
    operator = Matrices(matrix.expand(repetitions, d, d))
    draws = torch.randint(0, 2, (m, repetitions, d), generator=generator).double() * 2 - 1
    found = hutchinson(operator, lambda k: draws[k], m)
    truth = float(torch.trace(matrix))
    variance = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum()) / m
    assert float(found.trace.mean()) == pytest.approx(truth, abs=4 * (variance / repetitions) ** 0.5)
    assert float(found.trace.var()) == pytest.approx(variance, rel=0.15)
    assert float(found.trace_se.square().mean()) == pytest.approx(variance, rel=0.05)
    covered = ((found.trace - truth).abs() <= 2.045 * found.trace_se).double().mean()  # t, 29 degrees of freedom
    assert 0.93 <= float(covered) <= 0.97
    norm = float(matrix.norm())
    assert float(found.frobenius.square().mean()) == pytest.approx(norm**2, rel=0.03)


def test_hutchinson_from_one_probe_has_no_error_and_from_enough_is_exact() -> None:
    matrix = with_spectrum([3.0, -1.0, 2.0, 0.5])
    operator = Matrices(matrix[None])
    one = hutchinson(operator, lambda k: torch.ones(1, 4, dtype=torch.float64), 1)
    assert one.trace_se.isnan().all()
    assert one.frobenius_se.isnan().all()
    exact = hutchinson(operator, lambda k: torch.ones(1, 4, dtype=torch.float64), 4)
    assert float(exact.trace) == pytest.approx(4.5)
    assert float(exact.frobenius) == pytest.approx(float(matrix.norm()))
    assert exact.trace_se.tolist() == exact.frobenius_se.tolist() == [0]
