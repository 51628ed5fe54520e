import math

import numpy as np
import pytest
from scipy import stats

from analysis.resampling import SeedBootstrap, by_seed, with_interval


def test_by_seed_means_the_trials_of_a_seed_in_a_cell():
    cell, seed = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    found = by_seed(cell, seed, np.array([1.0, 3.0, np.nan, 5.0]), 2)
    np.testing.assert_array_equal(found, [[2.0, np.nan], [np.nan, 5.0]])


def test_resamples_are_centred_on_the_mean_and_spread_as_student_t():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 6))
    drawn = SeedBootstrap.of(6, 200_000, rng).means(values)[:, 0]
    se = values.std(ddof=1) / math.sqrt(6)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02 * se)
    assert drawn.var() == pytest.approx(se**2 * 5 / 3, rel=0.1)  # variance of t with 5 degrees of freedom


def test_all_cells_share_a_resample():
    values = np.random.default_rng(1).normal(size=(1, 8))
    drawn = SeedBootstrap.of(8, 50, np.random.default_rng(2)).means(np.vstack([values, 3 - 2 * values]))
    assert drawn[:, 1] == pytest.approx(3 - 2 * drawn[:, 0])


def test_missing_values_do_not_count():
    values = np.array([[1.0, np.nan, np.nan, np.nan], [np.nan] * 4, [2.0, 2.0, 2.0, np.nan]])
    drawn = SeedBootstrap.of(4, 100, np.random.default_rng(3)).means(values)
    np.testing.assert_array_equal(drawn[:, 0], 1.0)
    assert np.isnan(drawn[:, 1]).all()
    assert drawn[:, 2] == pytest.approx(2.0)


def test_the_interval_is_of_the_resamples_alone():
    found = with_interval(np.array([7.0, *np.linspace(0, 1, 1001), np.nan]))
    assert found == pytest.approx((7, 0.025, 0.975))
    assert with_interval(np.array([7.0, np.nan]))[0] == 7


@pytest.mark.parametrize("repetitions", [2000, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("seeds", [4, 8, 16])
def test_how_often_a_null_difference_is_named(seeds, repetitions):
    """At 95% a plain bootstrap of 4 seeds names one in 8, of 8 one in 12; widened, about the one in 20 that it says."""
    rng = np.random.default_rng(seeds)
    draws = (SeedBootstrap.of(seeds, 400, rng).means(rng.normal(size=(1, seeds))) for _ in range(repetitions))
    named = sum((drawn > 0).mean() >= 0.95 for drawn in draws)
    assert stats.binom.ppf(1e-4, repetitions, 0.045) <= named <= stats.binom.isf(1e-4, repetitions, 0.06)
