import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import bent, grid, made
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower
from test_invariance import stored

from analysis.decision import Outcome, beyond
from analysis.design import Design, upper_limit
from analysis.noncentral import difference_power, equivalence_power
from analysis.power import power, power_of_pilot

MARGINS = (0.5, 1, 1.5, 2, 3)


def one(size, n, m, *, level=None, alpha=0.05, df=None):
    """Power of a contrast of spread 1 with n paired seeds."""
    arrays = np.array([float(size)]), np.array([n**-0.5]), np.array([float(df or n - 1)])
    if level is None:
        return equivalence_power(*arrays, m, alpha)[0]
    return difference_power(*arrays, m, np.array([level]))[0]


def table(contrasts=1, arms=1):
    """Seeds for 80% and 90% at true difference 0, at each margin / spread."""
    shape = np.ones(contrasts)
    designs = [Design(0 * shape, arms**0.5 * shape, arms * shape, 0.025 * shape, m) for m in MARGINS]
    return [tuple(d.seeds(target, least=2) for target in (0.8, 0.9)) for d in designs]


def test_the_published_table():
    assert table() == [(36, 45), (11, 13), (6, 7), (4, 5), (3, 4)]
    assert table(arms=2) == [(70, 88), (18, 23), (9, 11), (6, 7), (3, 4)]  # at 69 the power is 0.7985
    assert [eighty for eighty, _ in table(contrasts=20)] == [72, 19, 10, 7, 4]


@pytest.mark.parametrize(("size", "n", "m"), [(0, 4, 1.0), (0.2, 4, 1.0), (0.3, 8, 0.8), (0.9, 30, 1.0), (0, 500, 0.1)])
def test_equivalence_power_is_the_integral_over_the_spread(size, n, m):
    t, se, df = stats.t.ppf(0.95, n - 1), n**-0.5, n - 1

    def given(u):
        room = m - t * se * u
        inside = stats.norm.cdf((room - size) / se) - stats.norm.cdf((-room - size) / se)
        return inside * stats.chi.pdf(u * df**0.5, df) * df**0.5

    high = m / (se * t)
    breaks = [min(1.0, 0.9 * high)]
    assert one(size, n, m) == pytest.approx(integrate.quad(given, 0, high, points=breaks, limit=500)[0], abs=1e-8)


@pytest.mark.parametrize("n", [2, 4, 8, 30])
@pytest.mark.parametrize("size", [0.0, 0.3, 1.2])
def test_without_a_margin_it_is_the_power_of_a_t_test(n, size):
    wanted = TTestPower().power(size, n, 0.05, alternative="two-sided")
    assert one(size, n, 0.0, level=0.05) == pytest.approx(wanted, abs=1e-5)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(3, 40), st.floats(0.01, 2), st.floats(0.01, 0.2))
def test_at_the_margin_each_test_has_its_level(n, m, level):
    """Exactly the level where the margin is wide; below it otherwise, by what the far side takes."""
    assert one(m, n, m, alpha=level) <= level + 1e-9
    assert one(m, n, m, level=level) <= level + 1e-6
    wide = 100.0
    assert one(wide, n, wide, alpha=level) == pytest.approx(level, abs=1e-6)
    assert one(wide, n, wide, level=level) == pytest.approx(level, abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.floats(0, 0.95), st.floats(1.05, 3), st.floats(0.5, 3))
def test_power_grows_with_seeds(inner, outer, sd):
    """Where there is any: else only a spread estimated too small decides, which few seeds do sooner."""
    for size in (inner, outer):
        design = Design(np.array([size]), np.array([sd]), np.ones(1), np.array([0.025]), 1.0)
        found = np.array([design.power(n) for n in (4, 6, 12, 30, 100, 1000)])
        assert (np.diff(found[found > 0.05]) > -1e-9).all()
        assert found[0] < found[-1]


@pytest.mark.parametrize(("size", "m", "n"), [(0.2, 1.0, 5), (1.5, 0.6, 8), (0.6, 0.05, 12)])
def test_power_against_simulation_of_the_rule_itself(size, m, n):
    repetitions, rng = 40_000, np.random.default_rng(n)
    draws = rng.normal(size, 1, (repetitions, n))
    found = made(draws.mean(axis=1), sd=draws.std(axis=1, ddof=1), n=n)
    for seen, wanted in [
        (found.inside(m), one(size, n, m)),
        (beyond(found, m) <= 0.025, one(size, n, m, level=0.025)),
    ]:
        low, high = stats.binom.interval(1 - 1e-4, repetitions, wanted)
        assert low <= seen.sum() <= high


def test_assumed_spread():
    found = power(0.1, 0.1, contrasts=20, seeds=[3, 8, 19])
    assert (found.verdict, found.seeds_80, found.seeds_90) == (Outcome.EQUIVALENT, 19, 22)
    assert list(found.power) == [3, 8, 19]
    assert found.power[3] == 0.0  # fewer than four seeds decide nothing
    assert found.power[8] < 0.8 <= found.power[19]
    assert found.text() == (
        "assumed spread: equivalent within 0.1 takes 19 seeds for a chance of 80%, 22 seeds for 90%; spread 0.1; "
        "3 seeds: 0%; 8 seeds: 0%; 19 seeds: 80%. 20 contrasts counted as independent"
    )
    different = power(0.1, 0.1, difference=-0.2)
    assert different.verdict is Outcome.DIFFERENT
    assert different.seeds_80 == power(0.1, 0.1, difference=0.2, contrasts=20).seeds_80 == 10


def test_two_arms_take_about_twice_the_seeds():
    assert power(1.0, 0.5, paired=False).seeds_80 == 70
    assert power(1.0, 3.0, paired=False).seeds_80 == 4  # never below four


def test_a_difference_at_the_margin_is_never_decided():
    found = power(0.1, 0.1, difference=0.1)
    assert (found.seeds_80, found.seeds_90) == (None, None)
    assert "about the margin" in found.note


@pytest.mark.parametrize(
    "wrong", [{"sd": 0}, {"sd": math.nan}, {"margin": -1}, {"contrasts": 0}, {"difference": math.inf}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"is not a positive number|a number and at least 1 are needed"):
        power(**{"sd": 0.1, "margin": 0.1} | wrong)


@pytest.mark.parametrize("n", [4, 8, 24])
def test_the_upper_limit_of_a_spread_holds_in_four_of_five_pilots(n):
    repetitions = 20_000
    sd = np.random.default_rng(n).normal(0, 1, (repetitions, n)).std(axis=1, ddof=1)
    held = (sd * upper_limit(np.array([n - 1.0])) >= 1).sum()
    low, high = stats.binom.interval(1 - 1e-4, repetitions, 0.8)
    assert low <= held <= high


def test_a_pilot_gives_seeds_for_its_spread_and_for_its_upper_limit(tmp_path):
    (found,) = power_of_pilot(stored(tmp_path, grid(bent, seeds=4, sd=0.08)), "digits", seeds=[4, 16])
    assert (found.metric, found.verdict, found.n_seeds, found.n_contrasts) == ("lambda_max", "equivalent", 4, 20)
    assert found.sd < found.sd_high == pytest.approx(found.sd * upper_limit(np.array([3.0]))[0])
    assert found.seeds_80 < found.seeds_90 < found.seeds_90_high
    assert found.seeds_80 < found.seeds_80_high
    assert found.power[4] < found.power[16]
    json.dumps(found.as_row(), allow_nan=False)
    assert f"from 4 seeds, at its upper 80% limit {found.sd_high:.3g} it takes" in found.text()
    (seen,) = power_of_pilot(tmp_path, "digits", difference=None)
    assert seen.seeds_80 != found.seeds_80
    (far,) = power_of_pilot(tmp_path, "digits", difference=0.3)
    assert (far.verdict, far.n_contrasts) == ("different", 20)
    assert far.seeds_80 < found.seeds_80


def test_seeds_promised_by_a_pilot_decide(tmp_path):
    """With the true spread, as many seeds as asked for bring the verdict in about 80% of studies."""
    from analysis.verdict import judge

    sd, rng = 0.06, np.random.default_rng(3)
    needed = power(sd * 2**0.5, math.log(1.1), contrasts=20).seeds_80
    verdicts = [judge(grid(bent, seeds=needed, sd=sd, rng=rng), {"lambda_max": 0.1})[0].verdict for _ in range(100)]
    equivalent = verdicts.count(Outcome.EQUIVALENT)
    assert equivalent >= stats.binom.ppf(1e-4, 100, 0.8)  # contrasts of a line share their reference: a few more


def test_a_pilot_that_shows_no_spread_says_so(tmp_path):
    single = stored(tmp_path, grid(bent, seeds=1))
    (found,) = power_of_pilot(single, "digits")
    assert (found.seeds_80, found.verdict) == (None, None)
    assert "spread is unknown" in found.note
    assert found.text() == "lambda_max: no contrast has two seeds, so its spread is unknown"
    one_size = grid(bent, seeds=4, batch_sizes=(8,))
    (found,) = power_of_pilot(stored(tmp_path, one_size, "flat"), "flat")
    assert "no two trials" in found.note
    named = grid(bent, seeds=4, metric="my_metric")
    (found,) = power_of_pilot(stored(tmp_path, named, "own"), "own", ["my_metric"])
    assert "state one" in found.note
