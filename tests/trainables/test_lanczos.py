from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import Matrices, run, with_spectrum

from trainables.eigenpairs import Top
from trainables.lanczos import Krylov, Wanted

TIGHT = Wanted(3, 1, 1e-10)


def smallest(krylov: Krylov) -> torch.Tensor:
    return krylov.ritz[0].gather(1, krylov.size[:, None] - 1)[:, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8), min_size=1, max_size=3)
)
def test_small_spectra_are_exact_throughout(spectra: list[list[float]]) -> None:
    """Indefinite, repeated, zero: with d iterations the whole space is spanned, multiplicities included."""
    krylov = run(Matrices(torch.stack([with_spectrum(s, i) for i, s in enumerate(spectra)])), wanted=TIGHT)
    for i, eigenvalues in enumerate(spectra):
        np.testing.assert_allclose(krylov.ritz[0][i], sorted(eigenvalues, reverse=True), atol=1e-9)


def test_each_residual_is_the_true_one_and_bounds_the_error() -> None:
    """||H y - theta y|| of the Ritz vectors, and some eigenvalue lies within it; at both ends."""
    spectrum = [*np.geomspace(0.01, 1, 195), 3.0, 5.0, 8.0, -2.0, -4.0]
    matrix = with_spectrum(spectrum)
    krylov = run(Matrices(matrix[None]), wanted=Wanted(3, 2, 1e-2))
    theta, residual, s = krylov.ritz
    for j in (0, 1, 2, int(krylov.size[0]) - 1, int(krylov.size[0]) - 2):
        y = krylov.vectors(s[:, :, j : j + 1])[0, 0]
        assert float(y.norm()) == pytest.approx(1, abs=1e-12)
        assert float((matrix @ y - theta[0, j] * y).norm()) == pytest.approx(float(residual[0, j]), abs=1e-10)
        assert np.abs(np.array(spectrum) - float(theta[0, j])).min() <= float(residual[0, j]) + 1e-12
        assert float(residual[0, j]) <= 1e-2 * 8


def test_the_basis_is_orthonormal_and_satisfies_lanczos_recurrence() -> None:
    matrix = with_spectrum([*np.linspace(0, 1, 290), *np.geomspace(2, 500, 10)], dtype=torch.float32)
    krylov = run(Matrices(matrix[None]), max_iterations=60)
    q = krylov.basis[0].double()
    assert float((q @ q.T - torch.eye(60)).abs().max()) < 1e-5
    projected = q @ matrix.double() @ q.T
    expected = torch.diag(krylov.alpha[0]) + torch.diag(krylov.beta[0, :-1], 1) + torch.diag(krylov.beta[0, :-1], -1)
    assert float((projected - expected).abs().max()) < 1e-4 * 500


def test_no_ghosts_in_single_precision() -> None:
    """Ten outliers, n = 1500, float32, 100 steps: without reorthogonalisation the largest appears many times over."""
    outliers = [float(v) for v in np.geomspace(10, 1000, 10)]
    operator = Matrices(with_spectrum([*np.linspace(0, 1, 1490), *outliers], dtype=torch.float32)[None])
    theta, _, _ = run(operator, 100).ritz
    np.testing.assert_allclose(theta[0, :10], sorted(outliers, reverse=True), rtol=1e-4)
    assert float(theta[0, 10]) < 1.001


def test_each_trial_stops_by_itself_and_neighbours_never_matter() -> None:
    easy, hard = with_spectrum([100.0] + [0.0] * 99), with_spectrum(list(np.linspace(0, 1, 100)), 1)
    wanted = Wanted(1, 1, 1e-10)
    together = run(Matrices(torch.stack([easy, hard, easy + 0, hard + 0])), 90, wanted)
    assert together.size[0] < together.size[1]
    alone = run(Matrices(easy[None]), 90, wanted)
    size = int(alone.size[0])
    assert size == int(together.size[0])
    assert torch.equal(alone.ritz[0][0], together.ritz[0][0, :size])
    assert not together.basis[0, size:].any()
    np.testing.assert_allclose(together.ritz[0][1, [0]], [1], rtol=1e-9)  # went on alone once half had stopped
    assert together.size[3] >= together.size[1] - 10


@pytest.mark.parametrize("d", [1, 2])
def test_fewer_dimensions_than_asked_for_leave_the_rest_unknown(d: int) -> None:
    krylov = run(Matrices(torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))[None]), wanted=TIGHT)
    top = Top.of(krylov, 3)
    assert top.values[0, :d].tolist() == pytest.approx(list(range(d, 0, -1)))
    assert top.values[0, d:].isnan().all()
    assert not top.vectors[0, d:].any()
    assert smallest(krylov)[0] == pytest.approx(1)


@pytest.mark.parametrize("d", [6, 200])
def test_a_zero_operator_a_non_finite_one_and_rank_one(d: int) -> None:
    v = torch.nn.functional.normalize(torch.arange(1.0, d + 1, dtype=torch.float64), dim=0)
    matrices = [torch.zeros(d, d), torch.full((d, d), torch.nan), torch.eye(d), 7 * torch.outer(v, v)]
    krylov = run(Matrices(torch.stack([m.double() for m in matrices])), wanted=TIGHT)
    top = Top.of(krylov, 3)
    assert top.values[0].tolist() == [0, 0, 0]
    assert top.values[1].isnan().all()
    assert top.values[2].tolist() == pytest.approx([1, 1, 1])
    assert top.values[3].tolist() == pytest.approx([7, 0, 0], abs=1e-12)
    assert top.residuals[[0, 2, 3]].abs().max() < 1e-10
    assert smallest(krylov)[[0, 2, 3]].tolist() == pytest.approx([0, 1, 0], abs=1e-12)


def test_without_a_goal_it_takes_every_step() -> None:
    krylov = run(Matrices(with_spectrum(list(np.linspace(0, 1, 50)))[None]), 20)
    assert krylov.size.tolist() == [20]


def test_in_single_precision_the_residual_has_what_rounding_adds() -> None:
    """Converged far beyond float32: the reported residual is not 0 and not below the true one."""
    matrix = with_spectrum([*np.linspace(0, 1, 290), *np.geomspace(2, 500, 10)])
    krylov = run(Matrices(matrix.float()[None]), 60)
    theta, residual, s = krylov.ritz
    y = krylov.vectors(s[:, :, :5])[0].double()
    true = (y @ matrix.float().double() - theta[0, :5, None] * y).norm(dim=1)
    assert (residual[0, :5] >= true).all()
    assert (residual[0, :5] <= 1e-5 * 500).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(1, 4), st.integers(0, 500))
def test_an_exhausted_space_is_left_for_the_rest(d: int, distinct: int, seed: int) -> None:
    """Multiples of the identity and the like, in few dimensions: random signs soon lie in the span of what is known."""
    eigenvalues = [float(1 + i % distinct) for i in range(d)]
    krylov = run(Matrices(torch.stack([with_spectrum(eigenvalues, seed), torch.eye(d, dtype=torch.float64)])))
    np.testing.assert_allclose(krylov.ritz[0][0], sorted(eigenvalues, reverse=True), atol=1e-9)
    np.testing.assert_allclose(krylov.ritz[0][1], 1, atol=1e-9)
    for q in krylov.basis:
        torch.testing.assert_close(q @ q.T, torch.eye(d, dtype=torch.float64), atol=1e-9, rtol=0)
