import json
import math

import numpy as np
import pyarrow.compute as pc
import pytest
from planted import RATIOS, bent, cells, grid, table
from scipy import optimize, stats

from analysis.collapse import Curve, without_seeds
from analysis.rules import compare_rules

N = 1437  # the training set of digits
X = {
    "ratio": lambda lr, b: lr / b,
    "square_root": lambda lr, b: lr / math.sqrt(b),
    "finite_n": lambda lr, b: lr * (1 / b - 1 / N),
}


def curve(x):
    """Bent in log x, as lambda_max on digits is."""
    return 2 - 0.3 * math.log(4000 * x) - 0.04 * math.log(4000 * x) ** 2


def following(rule, **settings):
    return grid(
        lambda lr, b: curve(X[rule](lr, b)), **{"dataset": "digits", "epochs": 20.0, "momentum": 0.0} | settings
    )


def swept(y, settings, seeds=8, sd=0.03, rng=0):
    """exp(y + seed effect + noise) for each cell under each setting, the seeds shared by all."""
    rng = np.random.default_rng(rng)
    effect = rng.normal(0, 0.2, seeds)
    rows = [
        {"lr": lr, "batch_size": b, "seed": s, "dataset": "digits", "momentum": 0.0, "epochs": 20.0, **fields}
        for fields in settings
        for lr, b in cells(RATIOS, (8, 32, 128))
        for s in range(seeds)
    ]
    return table([{**row, "lambda_max": math.exp(y(row) + effect[row["seed"]] + rng.normal(0, sd))} for row in rows])


def only(trials, **settings):
    (found,) = compare_rules(trials, "lambda_max", **settings)
    return found


@pytest.mark.parametrize("rule", X)
def test_the_planted_rule_is_named(rule):
    found = only(following(rule))
    assert found.best == rule
    assert found.note == ""
    assert (found.n_trials, found.n_cells, found.n_seeds) == (200, 25, 8)
    best, *rest = found.rules
    assert best.rule == rule
    assert best.misfit.value < 0.015
    assert best.explained.value > 0.999
    assert all(fit.misfit.value > best.misfit.value for fit in rest)
    assert sum(fit.probability for fit in found.rules) == pytest.approx(1)


def test_rules_that_are_powers_of_each_other_are_one():
    best = only(following("ratio")).rules[0]
    assert (best.rule, best.same_as) == ("ratio", ("time", "momentum"))


def test_momentum_tells_its_rule_from_the_ratio():
    momenta = [{"momentum": m} for m in (0.0, 0.5, 0.9)]
    corrected = only(swept(lambda r: curve(r["lr"] / r["batch_size"] / (1 - r["momentum"]) / 3), momenta))
    assert corrected.best == "momentum"
    assert corrected.pooled == ("momentum",)
    assert corrected.group == {}
    assert only(swept(lambda r: curve(r["lr"] / r["batch_size"]), momenta)).best == "ratio"


def test_the_length_of_training_tells_time_from_the_ratio():
    lengths = [{"epochs": e} for e in (5.0, 10.0, 20.0)]
    found = only(swept(lambda r: curve(r["lr"] * r["epochs"] / r["batch_size"] / 10), lengths))
    assert found.best == "time"
    assert found.rules[0].same_as == ()
    assert only(swept(lambda r: curve(r["lr"] / r["batch_size"]), lengths)).best == "ratio"


def test_at_a_fixed_number_of_steps_time_is_the_learning_rate():
    fixed = [{"epochs": None, "max_steps": 1000}]
    assert only(swept(lambda r: curve(r["lr"] / 30), fixed)).best == "time"
    taken = swept(lambda r: curve(r["lr"] / 30), [{"steps": 1000}])
    assert only(taken).best == "time"


def test_other_fields_make_families_of_their_own():
    trials = swept(lambda r: curve(r["lr"] / r["batch_size"]), [{"label_noise": x} for x in (0.0, 0.25)])
    assert [found.group for found in compare_rules(trials, "lambda_max")] == [
        {"label_noise": 0.0},
        {"label_noise": 0.25},
    ]


def test_seeds_without_effect_on_the_answer_have_none():
    """Adding a constant to each seed, some trials missing, changes no number."""
    rows = following("finite_n").to_pylist()
    kept = [row for k, row in enumerate(rows) if k % 37]
    shifted = [{**row, "lambda_max": row["lambda_max"] * 3 ** row["seed"]} for row in kept]
    first, second = only(table(kept)), only(table(shifted))
    for one, other in zip(first.rules, second.rules, strict=True):
        assert other.misfit == pytest.approx(one.misfit, abs=1e-9)
        assert other.probability == one.probability


def test_without_seeds_is_the_residual_of_least_squares():
    rng = np.random.default_rng(0)
    y = np.where(rng.random((6, 5)) < 0.2, np.nan, rng.normal(size=(6, 5)))
    cell, seed = np.nonzero(np.isfinite(y))
    design = np.column_stack([np.eye(6)[cell], np.eye(5)[seed]])
    fitted = np.linalg.lstsq(design, y[cell, seed], rcond=None)[0]
    expected = np.eye(6)[cell] @ fitted[:6]
    means = np.nanmean(without_seeds(y), axis=1)
    assert np.diff(means[cell]) == pytest.approx(np.diff(expected))


@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 9])
def test_a_cell_is_predicted_from_all_others(distinct):
    rng = np.random.default_rng(distinct)
    x, y = np.repeat(np.sort(rng.normal(size=distinct)), 3), rng.normal(size=3 * distinct)
    fitted, everywhere = Curve.of(x), np.ones(len(x), dtype=bool)
    errors = []
    for k in range(len(x)):
        others = np.arange(len(x)) != k
        solution = np.linalg.lstsq(fitted.q[others], y[others], rcond=None)[0]
        errors.append(y[k] - fitted.q[k] @ solution)
    assert fitted.q.shape[1] == min(distinct, 4)
    assert fitted.mean_square(y, everywhere) == pytest.approx(np.mean(np.square(errors)))


def test_the_curve_goes_through_any_parabola_up_to_three_distinct_values_and_any_line_beyond():
    for x in (np.repeat([0.0, 1.0, 3.0], 3), np.linspace(0, 5, 12)):
        y = 1 + 2 * x if len(np.unique(x)) > 3 else x**2
        assert Curve.of(x).mean_square(y, np.ones(len(x), dtype=bool)) == pytest.approx(0, abs=1e-20)


def spoiled(trials, rows, **changes):
    records = trials.to_pylist()
    for k in rows:
        records[k] |= changes
    return table(records)


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (following("ratio", seeds=3), "not compared: 0 cells of 4 seeds, at least 8 are needed"),
        (following("ratio", ratios=(1e-3, 2e-3), batch_sizes=(8, 16, 32)), "not compared: 6 cells of 4 seeds"),
        (following("ratio", batch_sizes=(8,), ratios=tuple(1e-4 * 2**k for k in range(9))), "indistinguishable here"),
        (spoiled(following("ratio"), range(200), status="diverged"), "not compared: 0 cells"),
        (spoiled(following("ratio"), range(200), seed=None), "do not share their seeds"),
        (spoiled(following("ratio"), range(200), status="failed"), "not compared: 0 cells"),
        (following("ratio", sd=0), "not compared: no difference varies over the seeds"),
        (following("ratio").slice(0, 0), None),
    ],
)
def test_stated_non_answers(trials, why):
    if why is None:
        assert compare_rules(trials, "lambda_max") == []
        return
    found = only(trials)
    assert found.best is None
    assert found.rules == ()
    assert why in found.note


def test_a_metric_that_does_not_vary_names_no_rule():
    found = only(grid(lambda lr, b: 2.0, dataset="digits"))
    assert found.best is None
    assert "undecided: no rule surely predicts cells better than their mean" in found.note


def test_noise_leaves_near_rules_undecided():
    found = only(following("finite_n", sd=0.15, seeds=4))
    assert found.best is None
    assert "undecided" in found.note
    assert {fit.rule for fit in found.rules if fit.probability > 0.05} == {"ratio", "finite_n"}


def test_the_best_of_bad_rules_is_said_to_be_bad():
    def broken(lr, b):
        return curve(lr / b) - 0.5 * math.log(max(lr / 0.064, 1))

    trials = grid(broken)
    assert only(trials).note.startswith("no rule holds within the margin: cells are off by 0.1")
    assert "within the margin" not in only(trials, margin=0.5).note
    assert only(trials.filter(pc.less(trials["lr"], 0.07))).best == "ratio"


def test_cells_with_divergence_are_left_out_and_counted():
    found = only(spoiled(following("ratio"), [199], status="diverged", lambda_max=None))
    assert found.n_cells == 24
    assert found.note == "cells with trials that diverged or have no usable value, left out: 1"


def test_rules_whose_numbers_are_unknown_are_said():
    found = only(grid(bent))
    assert {fit.rule for fit in found.rules} == {"ratio", "square_root"}
    assert "finite_n unknown: the size of the training set is not known" in found.note
    assert "time unknown" in found.note
    assert "momentum unknown" in found.note
    whole = only(following("ratio", train_size=128))
    assert "finite_n unknown" in whole.note


def test_the_same_seed_gives_the_same_numbers_and_rows_are_strict_json():
    trials = following("ratio", sd=0.1)
    row = only(trials, resamples=50).as_row()
    assert only(trials, resamples=50).as_row() == row
    assert only(trials, resamples=50, rng=1).as_row() != row
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def tied(rule):
    """The weight of a rule at which it and the ratio fit equally well without noise."""

    def lead(weight):
        smooth = following_between(rule, weight, sd=1e-6, seeds=4)
        misfit = {fit.rule: fit.misfit.value for fit in only(smooth, resamples=2).rules}
        return misfit[rule] - misfit["ratio"]

    return optimize.brentq(lead, 0.1, 0.9, xtol=1e-3)


def following_between(rule, weight, **settings):
    def between(lr, b):
        return (1 - weight) * math.log(X["ratio"](lr, b)) + weight * math.log(X[rule](lr, b))

    return grid(lambda lr, b: curve(math.exp(between(lr, b))), dataset="digits", **settings)


@pytest.mark.parametrize("repetitions", [150, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("seeds", [4, 8])
@pytest.mark.parametrize("rule", ["square_root", "finite_n"])
def test_of_two_equal_rules_each_is_seldom_named(rule, seeds, repetitions):
    """And the interval of the ratio's misfit holds what the misfit is without noise."""
    weight, rng = tied(rule), np.random.default_rng(7)
    smooth = only(following_between(rule, weight, sd=1e-6, seeds=4), resamples=2)
    truth, best, covered = ratio_misfit(smooth).value, [], 0
    for k in rng.integers(2**31, size=repetitions):
        found = only(following_between(rule, weight, seeds=seeds, sd=0.1, rng=rng), resamples=400, rng=int(k))
        best.append(found.best)
        _, low, high = ratio_misfit(found)
        covered += low <= truth <= high
    assert max(best.count(rule), best.count("ratio")) <= stats.binom.isf(1e-4, repetitions, 0.06)
    assert covered >= stats.binom.ppf(1e-4, repetitions, 0.95)


def ratio_misfit(found):
    return next(fit.misfit for fit in found.rules if fit.rule == "ratio")
