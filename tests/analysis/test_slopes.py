import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted import BATCH_SIZES, RATIOS, cells
from scipy import stats

from analysis.frontier import Frontier
from analysis.grid import Grid
from analysis.slopes import exponent, inside, natural_spline, slopes, within


def planted(a, gamma, seeds=4, sd=0.0, points=None, bend=0.0):
    points, rng = points or cells(RATIOS, BATCH_SIZES), np.random.default_rng(0)
    lr, size, seed = (np.array(c, float) for c in zip(*[(*p, s) for s in range(seeds) for p in points], strict=True))
    x = np.log(lr / size)
    y = a * x + bend * x**2 + gamma * np.log(size) + seed + rng.normal(0, sd, len(lr))
    return Grid.of(lr, size, seed.astype(int)), y


def test_exact_slopes_are_found():
    grid, y = planted(a=-0.6, gamma=-0.3)
    found = slopes(grid, y, np.ones(25, dtype=bool))
    assert found.ratio == pytest.approx((-0.6,) * 3)
    assert found.batch == pytest.approx((-0.3,) * 3)
    assert found.exponent == pytest.approx((0.5,) * 3)  # the square-root rule
    assert not found.model_based


def test_slopes_within_a_seed_are_statsmodels_with_missing_cells():
    grid, y = planted(-0.6, -0.1, seeds=3, sd=0.2)
    y[[3, 30, 31, 60]] = np.nan
    value = grid.point_means(y)
    data = {
        "y": value,
        "logb": np.log(grid.batch_size)[grid.point_cell],
        "logr": np.log(grid.ratio)[grid.point_cell],
        "line": grid.line[grid.point_cell],
        "size": grid.batch_size[grid.point_cell],
    }
    sizes = np.unique(data["size"], return_inverse=True)[1]
    batch = within(value, data["logb"], data["line"], grid.point_seed)
    ratio = within(value, data["logr"], sizes, grid.point_seed)
    for s in range(3):
        chosen = pd.DataFrame(data)[(grid.point_seed == s) & np.isfinite(value)]
        assert batch[s] == pytest.approx(smf.ols("y ~ C(line) + logb", chosen).fit().params["logb"])
        assert ratio[s] == pytest.approx(smf.ols("y ~ C(size) + logr", chosen).fit().params["logr"])


def test_intervals_are_students_over_seeds():
    grid, y = planted(-0.6, 0.0, seeds=5, sd=0.2)
    found = slopes(grid, y, np.ones(25, dtype=bool)).batch
    sizes = np.log(grid.batch_size)[grid.point_cell]
    by_seed = within(grid.point_means(y), sizes, grid.line[grid.point_cell], grid.point_seed)
    assert found[1:] == pytest.approx(stats.ttest_1samp(by_seed, 0).confidence_interval(0.95))


def test_only_the_cells_asked_for_count():
    grid, y = planted(-0.6, 0.0)
    far = grid.lr > 0.0641
    y += 5.0 * far[grid.cell]
    where, remark = inside(grid, Frontier(0.064, 0.128))
    assert where.tolist() == (~far).tolist()
    assert remark == ""
    assert slopes(grid, y, where).batch == pytest.approx((0.0,) * 3, abs=1e-12)


def test_without_a_frontier_the_remark_says_so():
    grid, _ = planted(-0.6, 0.0)
    assert inside(grid, None)[0].all()
    assert "all cells" in inside(grid, None)[1]
    assert "all cells" in inside(grid, Frontier(None, 0.004))[1]  # no contrast lies below
    below, remark = inside(grid, Frontier(None, 0.064))
    assert grid.lr[below].max() == pytest.approx(0.032)
    assert "not shown to be broken" in remark


def test_unidentified_slopes():
    one_size, y = planted(-0.6, 0.0, points=cells(RATIOS, [8]))
    found = slopes(one_size, y, np.ones(5, dtype=bool))
    assert found.ratio.value == pytest.approx(-0.6)
    assert math.isnan(found.batch.value)
    assert math.isnan(found.exponent.value)
    one_ratio, y = planted(-0.6, 0.3, points=cells([1e-3], BATCH_SIZES))
    found = slopes(one_ratio, y, np.ones(5, dtype=bool))
    assert found.batch.value == pytest.approx(0.3)
    assert math.isnan(found.ratio.value)
    assert math.isnan(found.exponent.value)


def test_one_seed_has_slopes_but_no_intervals():
    grid, y = planted(-0.6, -0.3, seeds=1)
    found = slopes(grid, y, np.ones(25, dtype=bool))
    assert found.exponent.value == pytest.approx(0.5)
    assert math.isnan(found.exponent.low)
    assert math.isnan(found.batch.high)


def test_a_grid_without_lines_has_a_model_based_slope():
    points = [(lr, b) for lr in (0.01, 0.03, 0.1, 0.3) for b in (8, 20, 50, 128)]
    grid, y = planted(-0.6, -0.2, points=points)
    assert len(grid.contrasted) == 0
    found = slopes(grid, y, np.ones(16, dtype=bool))
    assert found.model_based
    assert found.batch == pytest.approx((-0.2,) * 3)
    bent, y = planted(-0.6, -0.2, points=points, bend=-0.05)
    assert slopes(bent, y, np.ones(16, dtype=bool)).batch.value == pytest.approx(-0.2, abs=0.03)
    few, y = planted(-0.6, -0.2, points=points[:5])
    assert math.isnan(slopes(few, y, np.ones(5, dtype=bool)).batch.value)


def test_natural_spline_is_smooth_and_straight_outside():
    x = np.linspace(0, 1, 2001)
    basis = natural_spline(x)
    assert np.linalg.matrix_rank(basis) == 4
    bend = np.diff(basis, n=2, axis=0)
    assert np.abs(bend[(x[1:-1] < 0.049) | (x[1:-1] > 0.951)]).max() < 1e-12
    assert np.abs(np.diff(bend, axis=0)).max() < 0.01 * np.abs(bend).max()


slope_lists = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=8)


@settings(deadline=None)
@given(slope_lists, st.floats(-20, 20))
def test_fieller_set_is_what_the_t_test_accepts(pairs, rho):
    gamma, a = np.array(pairs).T
    assume(abs(a.mean()) > 1e-3)
    assume(np.ptp(gamma) > 1e-3)
    assume(np.ptp(a) > 1e-3)
    found = exponent(gamma, a)
    difference = gamma - rho * a
    se = difference.std(ddof=1) / math.sqrt(len(a))
    slack = stats.t.isf(0.025, len(a) - 1) * se - abs(difference.mean())
    assume(abs(slack) > 1e-6)
    assert found.value == pytest.approx(1 - gamma.mean() / a.mean())
    told_from_zero = abs(a.mean()) > stats.t.isf(0.025, len(a) - 1) * a.std(ddof=1) / math.sqrt(len(a))
    assert told_from_zero == math.isfinite(found.low) == math.isfinite(found.high)
    if told_from_zero:
        assert (slack > 0) == (found.low < 1 - rho < found.high)


def test_exponent_is_unbounded_where_the_ratio_does_nothing():
    rng = np.random.default_rng(1)
    found = exponent(rng.normal(0.3, 0.01, 8), rng.normal(0, 0.1, 8))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_exponent_is_unidentified_without_both_slopes():
    assert math.isnan(exponent(np.array([np.nan, 1.0]), np.array([1.0, np.nan])).value)
    assert math.isnan(exponent(np.zeros(4), np.zeros(4)).value)
