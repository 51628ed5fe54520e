import math

import numpy as np
import pytest
from planted import made
from scipy import stats

from analysis.decision import Outcome, beyond, decide, furthest, seeds_needed


def test_p_value_of_a_difference_beyond_the_margin():
    found = made([-0.3], sd=0.2, n=4)  # se .1
    sample = -0.3 + 0.2 * math.sqrt(3 / 4) * np.array([1, 1, -1, -1])
    assert beyond(found, 0.1)[0] == pytest.approx(stats.t.sf(2, 3) + stats.t.sf(4, 3))
    assert beyond(found, 0.0)[0] == pytest.approx(stats.ttest_1samp(sample, 0).pvalue)
    assert beyond(made([0.0]), 0.0)[0] == pytest.approx(1)


def test_equivalent_needs_every_interval_inside():
    reach = 1.833113 * 0.1 / math.sqrt(10)
    assert decide(made([0.0, 0.05]), 0.051 + reach, False) is Outcome.EQUIVALENT
    assert decide(made([0.0, 0.05]), 0.049 + reach, False) is Outcome.INCONCLUSIVE


def test_one_divergence_blocks_equivalent():
    assert decide(made([0.0, 0.0]), 0.2, False) is Outcome.EQUIVALENT
    assert decide(made([0.0, 0.0]), 0.2, True) is Outcome.INCONCLUSIVE
    assert decide(made([0.0, 0.9]), 0.2, True) is Outcome.DIFFERENT


def significant(level):
    """A difference whose p value for the margin 0.2 is just below `level`, with sd .1 and 10 seeds."""
    return 0.2 + stats.t.isf(level, 9) * 0.1 / math.sqrt(10) + 1e-4


def test_the_highest_lr_is_tested_alone_and_the_others_share():
    alone, shared = significant(0.025), significant(0.025 / 4)
    assert decide(made([0, 0, 0, alone]), 0.2, False) is Outcome.DIFFERENT
    assert decide(made([0, 0, alone, 0]), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([0, 0, shared, 0]), 0.2, False) is Outcome.DIFFERENT
    assert decide(made([0, 0, shared - 2e-3, 0]), 0.2, False) is Outcome.INCONCLUSIVE


def test_among_the_highest_lr_the_highest_ratio_leads():
    lr, ratio = [1.0, 2.0, 2.0 * (1 + 1e-12)], [0.1, 0.2, 0.1]
    alone = significant(0.025)
    assert decide(made([0, alone, 0], lr=lr, ratio=ratio), 0.2, False) is Outcome.DIFFERENT
    assert decide(made([0, 0, alone], lr=lr, ratio=ratio), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([0, 0, alone], lr=[1.0, 2.0, 4.0], ratio=ratio), 0.2, False) is Outcome.DIFFERENT


def test_three_seeds_decide_nothing():
    assert decide(made([0.0, 0.0], sd=1e-6, n=3), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([9.0, 9.0], sd=1e-6, n=3), 0.2, False) is Outcome.INCONCLUSIVE


def test_a_contrast_of_three_seeds_blocks_equivalent_but_not_different():
    assert decide(made([0.0, 0.0], n=[10, 3]), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([9.0, 0.0], n=[10, 3]), 0.2, False) is Outcome.DIFFERENT


def test_no_contrast_no_margin_and_no_spread_decide_nothing():
    still = np.array([True, True])
    assert decide(made([]), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([0.0]), math.nan, False) is Outcome.INCONCLUSIVE
    assert decide(made([0.0, 0.0], constant=still), 0.2, False) is Outcome.INCONCLUSIVE
    assert decide(made([9.0, 9.0], constant=still), 0.2, False) is Outcome.INCONCLUSIVE


def test_effect_is_what_reaches_furthest():
    assert furthest(made([0.1, -0.2, 0.15], sd=[0.1, 0.1, 0.3])) == 2
    assert furthest(made([0.1, 0.2, -9.0], n=[10, 10, 3])) == 1
    assert furthest(made([0.1, 0.2], n=[3, 2])) == 1
    assert furthest(made([math.nan], n=0)) is None
    assert furthest(made([])) is None


@pytest.mark.parametrize(("margin", "seeds"), [(0.5, 36), (1, 11), (1.5, 6), (2, 4)])
def test_seeds_for_one_paired_contrast_at_true_difference_zero(margin, seeds):
    assert seeds_needed(made([0.0], sd=1.0, n=5), margin, False) == seeds  # the published table of two one-sided tests


@pytest.mark.parametrize("estimate", [0.0, 0.1, 0.5])
def test_seeds_needed_decide_with_probability_0_8(estimate):
    """Against simulation, where the difference and the spread seen are the true ones."""
    m, rng = 0.3, np.random.default_rng(5)
    n = seeds_needed(made([estimate], sd=0.3, n=4), m, False)
    draws = rng.normal(estimate, 0.3, (4000, n))
    found = made(draws.mean(axis=1), sd=draws.std(axis=1, ddof=1), n=n)
    right = found.inside(m) if estimate < m else beyond(found, m) <= 0.025
    assert 0.77 < right.mean() < 0.86


def test_seeds_needed_grow_with_the_number_of_contrasts_and_the_spread():
    needed = [seeds_needed(made([0.0] * k, sd=sd, n=4), 1.0, False) for k, sd in [(1, 1), (20, 1), (20, 2)]]
    assert needed == sorted(set(needed))


def test_no_number_of_seeds_is_promised_that_would_not_decide():
    assert seeds_needed(made([0.2], n=4), 0.2, False) is None  # exactly at the margin
    assert seeds_needed(made([0.0], n=4), 0.2, True) is None  # divergence blocks "equivalent"
    assert seeds_needed(made([0.0], n=4), math.nan, False) is None
    assert seeds_needed(made([0.0], constant=np.array([True])), 0.2, False) is None
    assert seeds_needed(made([0.0], n=1, sd=math.nan), 0.2, False) == 4
