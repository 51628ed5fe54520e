"""Smoothed spectral densities: of spectra that are known, and of what is stored."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.density import smooth, spectral_density
from trainables.schema import DENSITY, TRIALS
from trainables.storage import StoreError
from trainables.store import table

numbers = st.floats(-50, 50, allow_nan=False)
rules = st.lists(st.lists(st.tuples(numbers, st.floats(0.01, 1)), min_size=1, max_size=6), min_size=1, max_size=5)


def gaussian(x, width):
    return np.exp(-0.5 * (x / width) ** 2) / (width * math.sqrt(2 * math.pi))


def split(drawn):
    """Nodes and weights of each probe, the weights of a probe adding up to 1; rules need not be equally long."""
    nodes = [np.array([node for node, _ in rule]) for rule in drawn]
    weights = [np.array([weight for _, weight in rule]) for rule in drawn]
    return nodes, [weight / weight.sum() for weight in weights]


@settings(deadline=None)
@given(rules, st.floats(0.05, 5))
def test_it_integrates_to_1_with_the_moments_of_the_rules(drawn, width):
    nodes, weights = split(drawn)
    at = np.linspace(-50 - 8 * width, 50 + 8 * width, 20_000)
    density = smooth(nodes, weights, at, width).density
    mean = np.mean([w @ n for n, w in zip(nodes, weights, strict=True)])
    square = np.mean([w @ n**2 for n, w in zip(nodes, weights, strict=True)])
    assert np.trapezoid(density, at) == pytest.approx(1)
    assert np.trapezoid(density * at, at) == pytest.approx(mean, abs=1e-6)
    assert np.trapezoid(density * at**2, at) == pytest.approx(square + width**2, rel=1e-6)


def test_a_planted_spectrum_is_recovered():
    """The rule of a Rademacher probe on a diagonal matrix has its eigenvalues as nodes and equal weights: no error."""
    spectrum = np.array([-1.0, 0.0, 0.0, 0.5, 9.0])
    at = np.linspace(-3, 11, 500)
    curve = smooth([spectrum] * 3, [np.full(5, 0.2)] * 3, at, 0.3)
    assert curve.density == pytest.approx(gaussian(at[:, None] - spectrum, 0.3).mean(1))
    assert curve.error == pytest.approx(0, abs=1e-15)


def test_the_error_is_the_standard_error_over_probes():
    """Weights of Gaussian probes are squares of unit vectors: mean 1/d, variance 2 (d - 1) / (d^2 (d + 2))."""
    d, probes, width, rng = 6, 400, 0.01, np.random.default_rng(0)
    spectrum = np.arange(d) * 1.0
    vectors = rng.normal(size=(probes, d))
    weights = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) ** 2
    curve = smooth([spectrum] * probes, list(weights), spectrum, width)
    peak = gaussian(0.0, width)
    true_error = peak * math.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / probes)
    assert curve.error == pytest.approx(np.full(d, true_error), rel=0.2)
    assert np.abs(curve.density - peak / d).max() < 3 * true_error
    assert curve.error * math.sqrt(probes) == pytest.approx((peak * weights).std(0, ddof=1))


def test_one_probe_has_no_error():
    curve = smooth([np.zeros(1)], [np.ones(1)], np.zeros(2), 1.0)
    assert np.isnan(curve.error).all()
    assert curve.density == pytest.approx([1 / math.sqrt(2 * math.pi)] * 2)


@pytest.mark.parametrize("width", [0.0, -1.0, math.inf, math.nan])
def test_a_width_is_a_positive_number(width):
    with pytest.raises(ValueError, match="is not a positive number"):
        smooth([np.zeros(1)], [np.ones(1)], np.zeros(1), width)


@pytest.fixture
def stored(build):
    """A trial measured at epochs 0 and 5, with two rules of unequal length, beside one measured without."""
    point = {"sweep": "digits", "trial_id": "t", "pack_id": "p", "attempt": "a"}
    later = point | {"step": 900, "epoch": 5.0}
    rows = [point | {"step": 0, "epoch": 0.0, "probe": k, "node": 2.0, "weight": 1.0} for k in (0, 1)]
    rows += [later | {"probe": 0, "node": node, "weight": 0.5} for node in (-1.0, 10.0)]
    rows += [later | {"probe": 1, "node": 10.0, "weight": 1.0}]
    trials = [build.measured(key) | {"pack_id": "p", "attempt": "a", "slot": n} for n, key in enumerate("tu")]
    assert build.sweep().commit("p", "a", table(trials, TRIALS), {"density": table(rows, DENSITY)})
    return build.store


def test_the_density_of_a_stored_trial(stored):
    found = spectral_density(stored, "digits", "t")
    at, density, error = (found[name].to_numpy() for name in ("eigenvalue", "density", "error"))
    width = 0.1  # a hundredth of 10
    assert (len(at), at[0], at[-1]) == (1000, pytest.approx(-1 - 5 * width), pytest.approx(10 + 5 * width))
    assert density == pytest.approx(0.25 * gaussian(at + 1, width) + 0.75 * gaussian(at - 10, width))
    assert error == pytest.approx(np.abs(0.25 * gaussian(at + 1, width) - 0.25 * gaussian(at - 10, width)))
    assert np.trapezoid(density, at) == pytest.approx(1, abs=1e-5)


def test_epoch_points_and_width_can_be_chosen(stored):
    found = spectral_density(stored, "digits", "t", epoch=0, points=7, width=0.5)
    at = found["eigenvalue"].to_numpy()
    assert at == pytest.approx(np.linspace(-0.5, 4.5, 7))
    assert found["density"].to_numpy() == pytest.approx(gaussian(at - 2, 0.5))
    assert found["error"].to_pylist() == [0.0] * 7


def test_one_stored_probe_has_no_error_and_a_flat_net_has_a_width(build):
    row = {"sweep": "digits", "trial_id": "t", "pack_id": "p", "attempt": "a", "step": 0, "epoch": 0.0}
    rules = table([row | {"probe": 0, "node": 0.0, "weight": 1.0}], DENSITY)
    trials = table([build.measured("t") | {"pack_id": "p", "attempt": "a", "slot": 0}], TRIALS)
    assert build.sweep().commit("p", "a", trials, {"density": rules})
    found = spectral_density(build.store, "digits", "t", points=5)
    assert found["error"].null_count == 5
    assert found["density"].to_pylist()[2] == pytest.approx(gaussian(0.0, 0.01))


def test_what_is_not_there_is_said(stored):
    with pytest.raises(ValueError, match="no trial 'x' in sweep 'digits'"):
        spectral_density(stored, "digits", "x")
    with pytest.raises(ValueError, match=r"trial u has no spectral density: `measure: {hessian: {density: true}}`"):
        spectral_density(stored, "digits", "u")
    with pytest.raises(ValueError, match=r"trial t has no spectral density at epoch 3: it has some at 0, 5"):
        spectral_density(stored, "digits", "t", epoch=3)
    with pytest.raises(StoreError, match="no sweep 'other'"):
        spectral_density(stored, "other", "t")
