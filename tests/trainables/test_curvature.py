from __future__ import annotations

import numpy as np
import pytest
import torch
from packs import SMALL_TEACHER, engine_for, run, trial

from trainables.datasets import load_dataset
from trainables.findings import Measurements
from trainables.settings import Measure

TINY = '{"depth":1,"name":"mlp","width":4}'
EVERYTHING = {"examples": 1000, "tolerance": 1e-10}


def moments(pack: list, **hessian: object) -> list[Measurements]:
    settings = Measure(at=[1], hessian=EVERYTHING | hessian, gradient_noise=False)
    return [moment.found for moment in run(pack, settings=settings).moments]


def test_both_ends_have_rows_of_their_own() -> None:
    found = moments([trial(seed=s) for s in range(2)], top=3, bottom=2)[-1]
    top, bottom = found.rows["eigenvalues", ""], found.rows["eigenvalues", "bottom"]
    assert top["index"].tolist() == [[0, 1, 2]] * 2
    assert bottom["index"].tolist() == [[-1, -2]] * 2
    assert (np.diff(top["eigenvalue"]) <= 0).all()
    assert (bottom["eigenvalue"][:, 0] <= bottom["eigenvalue"][:, 1]).all()
    np.testing.assert_array_equal(found.values["lambda_max"], top["eigenvalue"][:, 0])
    np.testing.assert_array_equal(found.values["lambda_min"], bottom["eigenvalue"][:, 0])
    np.testing.assert_array_equal(found.errors["lambda_min"], bottom["residual"][:, 0])
    assert (top["products"] > 0).all()


def test_without_a_lower_end_fewer_products_and_no_smallest_eigenvalue() -> None:
    pack = [trial(seed=s, arch='{"depth":2,"name":"mlp","width":20}') for s in range(2)]
    with_, without = (moments(pack, top=1, bottom=b, tolerance=1e-3)[-1] for b in (1, 0))
    assert "lambda_min" not in without.values
    assert ("eigenvalues", "bottom") not in without.rows
    products = [m.rows["eigenvalues", ""]["products"].sum() for m in (with_, without)]
    assert products[0] > products[1]


def test_the_density_is_a_quadrature_of_the_spectrum() -> None:
    """Weights of a rule add up to 1; its first two moments are those of H in the direction of the probe."""
    found = moments([trial(arch=TINY), trial(arch=TINY, seed=1)], density={"probes": 3, "steps": 7, "z": 0.5})[-1]
    for probe in range(3):
        rows = found.rows["density", str(probe)]
        assert (rows["probe"] == probe).all()
        np.testing.assert_allclose(np.nansum(rows["weight"], 1), 1, rtol=1e-9)
    assert found.rows["density", "1"]["node"].shape == (2, 7)


def test_effective_dimension_and_trace_from_many_probes() -> None:
    """d times the mean of a quadrature is the trace of a function of H, within its standard error."""
    found = moments([trial(arch=TINY)], density={"probes": 100, "steps": 90, "z": 0.5})[-1]
    eigenvalues = found.rows["density", "0"]["node"][0]  # the first rule is that of Lanczos, over the whole space
    eigenvalues = eigenvalues[np.isfinite(eigenvalues)]
    positive = eigenvalues.clip(0)
    truth = (positive / (positive + 0.5)).sum()
    value, error = found.values["effective_dimension"][0], found.errors["effective_dimension"][0]
    assert error < 0.1 * truth
    assert value == pytest.approx(truth, abs=4 * error)
    d = len(eigenvalues)
    rules = [found.rows["density", str(p)] for p in range(100)]
    traces = [d * np.nansum(r["weight"][0] * r["node"][0]) for r in rules]
    assert np.mean(traces) == pytest.approx(eigenvalues.sum(), abs=4 * np.std(traces) / 10)
    assert found.values["hessian_trace"][0] == pytest.approx(eigenvalues.sum(), rel=1e-8)


def test_one_probe_of_the_density_has_no_error() -> None:
    found = moments([trial(arch=TINY)], density={"probes": 1})[-1]
    assert found.values["effective_dimension"][0] > 0
    assert np.isnan(found.errors["effective_dimension"][0])


def sharpest(member, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top eigenvectors and the gradient at the start by plain autograd."""
    dataset = load_dataset(SMALL_TEACHER)
    net = engine_for([member], dataset, "loop").module
    names, values = zip(*net.named_parameters(), strict=True)
    flat = torch.cat([v.detach().reshape(-1) for v in values])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        pieces = [p.view_as(v) for p, v in zip(vector.split([v.numel() for v in values]), values, strict=True)]
        out = torch.func.functional_call(net, dict(zip(names, pieces, strict=True)), (dataset.train_inputs,))
        return torch.nn.functional.cross_entropy(out, dataset.train_targets)

    _, vectors = torch.linalg.eigh(torch.func.hessian(loss)(flat).detach())
    return vectors[:, -k:], torch.func.grad(loss)(flat).detach()


def test_the_share_of_the_gradient_in_the_top_subspace() -> None:
    member = trial(arch=TINY)
    u, g = sharpest(member, 3)
    found = moments([member], top=3)[0]
    expected = float((u.T @ g).square().sum() / g.square().sum())
    assert found.values["gradient_top_fraction"][0] == pytest.approx(expected, rel=1e-7)
    assert found.errors["gradient_top_fraction"][0] < 1e-6


def test_the_bound_of_davis_and_kahan_holds_for_loose_eigenvectors() -> None:
    member = trial(arch='{"depth":2,"name":"mlp","width":24}')
    u, g = sharpest(member, 2)
    exact = float((u.T @ g).square().sum() / g.square().sum())
    for tolerance in (0.3, 0.1, 0.03, 0.01):
        found = moments([member], top=2, tolerance=tolerance, bottom=0)[0]
        off = abs(found.values["gradient_top_fraction"][0] - exact)
        assert off <= found.errors["gradient_top_fraction"][0] + 1e-9


def test_the_overlap_with_the_measurement_before() -> None:
    """1 where nothing moved, in between else, unknown at the start; each trial with its own past."""
    pack = [trial(seed=0, lr=1e-12), trial(seed=1, lr=0.05)]
    first, second, third = moments(pack, top=2)
    assert "subspace_overlap" not in first.values
    for found in (second, third):
        assert found.values["subspace_overlap"][0] == pytest.approx(1, abs=1e-6)
        assert 0 < found.values["subspace_overlap"][1] < 1 - 1e-6
    alone = moments([pack[1]], top=2)[-1]
    assert alone.values["subspace_overlap"][0] == pytest.approx(third.values["subspace_overlap"][1], rel=1e-7)


def test_linear_regression_has_each_eigenvalue_as_often_as_outputs() -> None:
    """H = (2/K) I (x) X'X/N with K = 2 outputs, in more dimensions than Lanczos takes steps."""
    member = trial(dataset="plugins:wide_regression", arch="linear", loss="mse")
    dataset = load_dataset("plugins:wide_regression")
    x = torch.cat([dataset.train_inputs, torch.ones(len(dataset.train_inputs), 1, dtype=torch.float64)], 1)
    expected = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
    found = moments([member], top=4, tolerance=1e-6, max_iterations=20)[0]
    np.testing.assert_allclose(
        found.rows["eigenvalues", ""]["eigenvalue"][0], expected[[0, 0, 1, 1]].numpy(), rtol=1e-5
    )
    trace, error = found.values["hessian_trace"][0], found.errors["hessian_trace"][0]
    assert trace == pytest.approx(2 * float(expected.sum()), abs=5 * error)


def test_a_float32_pack_agrees_with_float64() -> None:
    packs = [[trial(seed=s, precision=p) for s in range(3)] for p in ("float32", "float64")]
    single, double = (moments(p, top=3, tolerance=1e-5)[-1] for p in packs)
    for name in ("lambda_max", "lambda_min", "hessian_trace", "hessian_frobenius"):
        np.testing.assert_allclose(single.values[name], double.values[name], rtol=1e-3, atol=1e-4)
