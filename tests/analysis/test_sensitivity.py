"""Verdicts by other means."""

import math

import numpy as np
import pytest
from planted import BATCH_SIZES, RATIOS, bent, grid
from scipy import stats
from test_verdict import broken, only, spoil

from analysis.decision import Outcome

EQUIVALENT, DIFFERENT, INCONCLUSIVE = Outcome.EQUIVALENT, Outcome.DIFFERENT, Outcome.INCONCLUSIVE
LINE = {"ratios": RATIOS[-1:], "batch_sizes": BATCH_SIZES[:2]}


def seen(trials, margin=0.1):
    return only(trials, margin=margin).sensitivity


def test_clear_answers_stay_what_they_are():
    for truth, outcome in ((bent, EQUIVALENT), (broken, DIFFERENT)):
        found = seen(grid(truth))
        assert (found.median, found.worst_rank, found.without_one) == (outcome, outcome, {outcome: 8})


def test_one_outlying_seed_decides_nothing():
    trials = grid(bent, sd=0.01)
    [row] = [i for i, r in enumerate(trials.to_pylist()) if (r["lr"], r["batch_size"], r["seed"]) == (0.512, 128, 3)]
    moved = spoil(trials, [row], lambda_max=trials["lambda_max"][row].as_py() * 3)
    verdict = only(moved)
    assert verdict.verdict is INCONCLUSIVE
    assert verdict.sensitivity.median is EQUIVALENT
    assert verdict.sensitivity.without_one == {INCONCLUSIVE: 7, EQUIVALENT: 1}


@pytest.mark.parametrize(("seeds", "median"), [(4, INCONCLUSIVE), (5, EQUIVALENT)])
def test_signs_of_four_seeds_cannot_say_equivalent(seeds, median):
    assert seen(grid(bent, seeds=seeds, sd=0.001)).median is median


def test_a_difference_by_signs_is_the_exact_sign_test():
    """Of one contrast, which has half of alpha as the leading one, and the other half for being the only one."""
    for seeds in range(4, 10):
        trials = grid(lambda lr, b: 0.3 * (b > 8), seeds=seeds, sd=1e-3, **LINE)
        p = stats.binomtest(seeds, seeds).pvalue
        assert (seen(trials).median is DIFFERENT) == (p <= 0.025)


def test_what_diverges_is_worse_than_all_else():
    trials = grid(bent, seeds=8)
    lost = [i for i, r in enumerate(trials.to_pylist()) if r["lr"] == 0.512]
    verdict = only(spoil(trials, lost, status="diverged", lambda_max=None))
    assert verdict.sensitivity.median is INCONCLUSIVE
    assert verdict.sensitivity.worst_rank is DIFFERENT
    line = [i for i, r in enumerate(trials.to_pylist()) if math.isclose(r["lr"] / r["batch_size"], 0.004)]
    assert seen(spoil(trials, line, status="diverged", lambda_max=None)).worst_rank is INCONCLUSIVE, "all are as bad"


def test_without_a_margin_nothing_is_decided():
    assert seen(grid(broken), None) == seen(grid(bent, seeds=1), None).__class__(
        INCONCLUSIVE, INCONCLUSIVE, {INCONCLUSIVE: 8}
    )


def test_many_seeds_are_not_left_out_one_by_one():
    assert seen(grid(bent, seeds=65, **LINE)).without_one == {}


@pytest.mark.parametrize("tails", [2.0, 30.0])
def test_wrongly_different_by_signs_stays_below_five_percent(tails):
    """At a median just at the margin, with tails that make means useless; and with nearly normal ones."""
    rng, wrong, times = np.random.default_rng(5), 0, 300
    for _ in range(times):
        trials = grid(lambda lr, b: 0.0, seeds=10, sd=1e-9, seed_sd=0, **LINE)
        shift = math.log(1.1) * (trials["batch_size"].to_numpy() > 8) + 0.03 * rng.standard_t(tails, len(trials))
        values = trials["lambda_max"].to_numpy() * np.exp(shift * (trials["batch_size"].to_numpy() > 8))
        moved = trials.set_column(trials.column_names.index("lambda_max"), "lambda_max", [values])
        wrong += seen(moved).median is not INCONCLUSIVE
    assert wrong <= stats.binom.isf(1e-4, times, 0.05)
