import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from analysis.firth import Counts, Fit

LIMIT = stats.chi2.ppf(0.95, 1)
LR, B = (np.repeat(np.arange(5.0) - 2, 4), np.tile(np.arange(4.0) - 1.5, 5))
DESIGN = np.column_stack([np.ones(20), LR, B])


def fit(events, trials=8.0, design=DESIGN):
    rows = len(design)
    return Fit.of(Counts(design, np.asarray(events, dtype=float), np.broadcast_to(float(trials), rows)))


def drawn(beta, trials, rng, design=DESIGN):
    return rng.binomial(trials, special.expit(design @ beta)).astype(float)


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_table_of_two_by_two_has_half_an_event_added_to_each_cell(first, second):
    design = np.array([[1.0, 0.0], [1.0, 1.0]])
    found = fit([first, second], 9, design).beta
    odds = [math.log((y + 0.5) / (9 - y + 0.5)) for y in (first, second)]
    assert found == pytest.approx([odds[0], odds[1] - odds[0]], abs=1e-7)


def test_an_intercept_alone():
    found = fit([3.0], 10, np.ones((1, 1)))
    assert found.beta == pytest.approx([math.log(3.5 / 7.5)])
    _, low, high = found.coefficient(0)
    top = 3.5 * math.log(3.5 / 11) + 7.5 * math.log(7.5 / 11)  # Jeffreys' prior is half an event on either side
    for end in (low, high):
        loss = top - 3.5 * special.log_expit(end) - 7.5 * special.log_expit(-end)
        assert 2 * loss == pytest.approx(LIMIT, abs=1e-5)


def test_where_trials_are_many_the_penalty_vanishes():
    events = drawn(np.array([-0.3, 0.8, -0.4]), 20_000, np.random.default_rng(1))
    reference = sm.GLM(np.column_stack([events, 20_000 - events]), DESIGN, family=sm.families.Binomial()).fit()
    found = fit(events, 20_000)
    assert found.beta == pytest.approx(reference.params, abs=2e-4)
    for k, ends in enumerate(reference.conf_int()):
        assert found.coefficient(k)[1:] == pytest.approx(ends, abs=5e-4)


def test_rows_of_counts_are_rows_of_trials():
    events = drawn(np.array([-0.3, 0.8, -0.4]), 6, np.random.default_rng(2))
    single = np.repeat(DESIGN, 6, axis=0)
    outcome = (np.tile(np.arange(6), 20) < np.repeat(events, 6)).astype(float)
    found, again = fit(events, 6), fit(outcome, 1, single)
    assert again.beta == pytest.approx(found.beta, abs=1e-8)
    assert again.coefficient(1) == pytest.approx(found.coefficient(1), abs=1e-4)


def test_the_estimate_and_profile_are_those_of_a_general_optimiser():
    found = fit(drawn(np.array([0.5, 1.0, -0.6]), 3, np.random.default_rng(3)), 3)
    best = optimize.minimize(lambda b: -found.counts.value(b), np.zeros(3), tol=1e-12)
    assert found.beta == pytest.approx(best.x, abs=1e-5)
    held = optimize.minimize(lambda b: -found.counts.value(np.array([b[0], 0.2, b[1]])), np.zeros(2), tol=1e-12)
    assert found.deviance(np.array([0.0, 1.0, 0.0]), 0.2) == pytest.approx(2 * (held.fun - best.fun), abs=1e-6)


@settings(derandomize=True, max_examples=30)
@given(st.floats(0.1, 10), st.floats(-3, 3), st.floats(-2, 2), st.integers(0, 2**31))
def test_affine_changes_of_x_change_nothing_else(factor, shift, shear, seed):
    events = drawn(np.array([0.0, 1.0, -0.5]), 4, np.random.default_rng(seed))
    other = np.column_stack([np.ones(20), factor * LR + shift, B + shear * LR])
    found, moved = fit(events, 4), fit(events, 4, other)
    assert other @ moved.beta == pytest.approx(DESIGN @ found.beta, abs=1e-5)
    assert moved.counts.value(moved.beta) - found.counts.value(found.beta) == pytest.approx(
        math.log(abs(factor)), abs=1e-6
    )
    slope, scaled = found.coefficient(2), moved.coefficient(2)  # the slope in B at equal lr
    assert scaled == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("threshold", [-2.5, -1, 0.2, 1.1])
def test_perfect_separation_has_finite_estimates_and_intervals(threshold):
    found = fit(np.where(threshold < LR - 0.5 * B, 8.0, 0.0))
    for k in range(3):
        assert np.isfinite(found.coefficient(k)).all()
    assert found.coefficient(1).low > 0
    assert np.isfinite(found.beta).all()


def test_intervals_end_where_the_deviance_reaches_the_limit():
    found = fit(drawn(np.array([-0.5, 1.2, -0.6]), 8, np.random.default_rng(4)))
    lr, batch = np.eye(3)[1:]
    for k, c in ((1, lr), (2, batch)):
        value, low, high = found.coefficient(k)
        assert low < value < high
        assert [found.deviance(c, v) for v in (low, value, high)] == pytest.approx([LIMIT, 0, LIMIT], abs=1e-4)
    value, low, high = found.root(batch, lr)
    assert value == pytest.approx(-found.beta[2] / found.beta[1])
    assert [found.deviance(batch + q * lr, 0) for q in (low, high)] == pytest.approx([LIMIT, LIMIT], abs=1e-4)


def test_a_root_along_no_slope_is_unbounded():
    found = fit(np.full(20, 4.0))
    value, low, high = found.root(np.eye(3)[2], np.eye(3)[1])
    assert math.isnan(value)
    assert (low, high) == (-math.inf, math.inf)


@pytest.mark.parametrize("repetitions", [600, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(("beta", "trials"), [((-1.0, 1.5, -0.7), 4), ((-2.5, 1.0, 0.0), 8)])
def test_coverage_of_profile_intervals(beta, trials, repetitions):
    """An interval covers the truth when the deviance there is below its limit."""
    rng, beta, hits = np.random.default_rng(5), np.array(beta), np.zeros(3)
    lr, batch = np.eye(3)[1:]
    exponent = batch - beta[2] / beta[1] * lr
    for _ in range(repetitions):
        found = fit(drawn(beta, trials, rng), trials)
        truths = [(lr, beta[1]), (batch, beta[2]), (exponent, 0.0)]
        hits += [found.deviance(c, value) <= LIMIT for c, value in truths]
    low, high = stats.binom.ppf(5e-5, repetitions, 0.945), stats.binom.isf(5e-5, repetitions, 0.96)
    assert (low <= hits).all()
    assert (hits <= high).all()
