import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import bent, grid, table

from analysis.decision import Outcome
from analysis.sample import error_column
from analysis.verdict import judge
from trainables.statistics import ERROR_COLUMN

KEYS = [
    *["metric", "scale", "group", "n_trials", "n_diverged", "n_seeds", "n_contrasts", "verdict", "margin"],
    *["effect", "effect_low", "effect_high", "effect_cell", "slope_ratio", "slope_ratio_low", "slope_ratio_high"],
    *["slope_batch", "slope_batch_low", "slope_batch_high", "exponent", "exponent_low", "exponent_high"],
    *["frontier", "note", "noise", "floor", "sensitivity"],
]


def broken(lr, batch_size):
    """Invariant up to lr 0.064, and less than half of that at 0.512."""
    return bent(lr, batch_size) - 0.5 * math.log(max(lr / 0.064, 1))


def only(trials, metric="lambda_max", margin=0.1):
    (verdict,) = judge(trials, {metric: margin})
    return verdict


def replaced(trials, name, values):
    """The same trials with another column."""
    values = pa.array(values, trials.schema.field(name).type)
    return trials.set_column(trials.column_names.index(name), name, values)


def spoil(trials, rows, **changes):
    """The same trials with some values changed in some rows."""
    records = trials.to_pylist()
    for row in rows:
        records[row] |= changes
    return pa.Table.from_pylist(records, schema=trials.schema)


def test_an_invariant_grid():
    verdict = only(grid(bent))
    assert verdict.verdict is Outcome.EQUIVALENT
    assert (verdict.n_trials, verdict.n_diverged, verdict.n_seeds, verdict.n_contrasts) == (200, 0, 8, 20)
    assert verdict.frontier == (0.512, None)
    assert verdict.exponent.low < 1 < verdict.exponent.high
    assert verdict.note == ""


def test_a_broken_grid():
    verdict = only(grid(broken))
    assert verdict.verdict is Outcome.DIFFERENT
    assert verdict.frontier == (0.064, 0.128)
    assert verdict.effect.value == pytest.approx(-0.5 * math.log(8), abs=0.05)
    assert verdict.effect_cell.lr == 0.512
    assert (verdict.effect_cell.batch_size, verdict.effect_cell.reference_batch_size) == (128, 8)
    assert verdict.slope_batch.low < 0 < verdict.slope_batch.high  # inside the frontier


def test_rows_have_the_keys_of_the_contract_and_are_strict_json():
    row = only(grid(broken, label_noise=0.25)).as_row()
    assert list(row) == KEYS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["frontier"] == {"lr_low": 0.064, "lr_high": 0.128}
    assert row["effect_cell"] == {"ratio": 0.004, "lr": 0.512, "batch_size": 128, "reference_batch_size": 8}
    assert (row["scale"], row["verdict"], row["group"]) == ("log", "different", {})
    empty = only(grid(bent, batch_sizes=[8])).as_row()
    assert list(empty) == KEYS
    assert all(
        empty[k] is None for k in ["effect", "effect_high", "effect_cell", "slope_batch", "exponent", "frontier"]
    )


def test_groups_are_told_apart_by_the_fields_that_vary():
    fixed = {"arch": "mlp", "momentum": 0.9}
    trials = pa.concat_tables([grid(bent, label_noise=0.25, **fixed), grid(broken, label_noise=0.0, **fixed)])
    first, second = judge(trials, {"lambda_max": 0.1})
    assert (first.group, second.group) == ({"label_noise": 0.0}, {"label_noise": 0.25})
    assert (first.verdict, second.verdict) == ("different", "equivalent")


def test_missing_fields_are_a_group_of_their_own():
    trials = pa.concat_tables([grid(bent, call="a.b:c"), replaced(grid(bent, call="a.b:c"), "call", [None] * 200)])
    assert [v.group["call"] for v in judge(trials, {"lambda_max": 0.1})] == [None, "a.b:c"]


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (grid(bent, batch_sizes=[8]), "different batch sizes"),
        (grid(bent, seeds=1), "1 seed per contrast, at least 4"),
        (grid(bent, seeds=3), "3 seeds per contrast, at least 4"),
        (grid(bent, sd=0, seed_sd=0), "no difference varies"),
        (grid(bent, sd=0, seed_sd=1), "no difference varies"),
        (grid(broken, sd=0, seed_sd=1), "no difference varies"),
        (spoil(grid(bent), range(200), status="diverged", lambda_max=None), "no contrast has values"),
        (spoil(grid(bent), range(200), lambda_max=None), "no contrast has values"),
        (spoil(grid(bent), range(200), status="failed", lambda_max=None), "different batch sizes"),
    ],
)
def test_a_stated_non_answer_never_equivalent(trials, why):
    verdict = only(trials)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert why in verdict.note
    assert verdict.frontier is None


def test_no_margin_no_answer_but_the_effect_is_there():
    verdict = only(grid(bent, metric="hessian_trace"), "hessian_trace", None)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "state one" in verdict.note
    assert verdict.margin is None
    assert verdict.effect.low < verdict.effect.value < verdict.effect.high


def test_one_diverged_trial_blocks_equivalent_and_is_counted():
    verdict = only(spoil(grid(bent), [199], status="diverged", lambda_max=None))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.n_diverged == 1
    assert verdict.n_trials == 200
    assert verdict.frontier == (0.256, None)
    assert verdict.seeds_needed is None
    assert "diverged trials: 1" in verdict.note
    assert "rule out 'equivalent' at any number of seeds" in verdict.note


def test_values_of_diverged_trials_do_not_count():
    plain = only(spoil(grid(broken), [199], status="diverged", lambda_max=None))
    assert only(spoil(grid(broken), [199], status="diverged", lambda_max=1e30)) == plain


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_values_that_the_scale_cannot_take_block_equivalent_and_are_counted(value):
    verdict = only(spoil(grid(bent), [3, 50], lambda_max=value))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "values not finite or not positive, left out: 2" in verdict.note


def test_failed_and_unmeasured_trials_are_left_out_and_counted():
    verdict = only(spoil(grid(bent), [3, 50], status="failed", lambda_max=None))
    assert verdict.verdict is Outcome.EQUIVALENT
    assert verdict.n_trials == 198
    assert verdict.note == "failed trials, left out: 2"
    verdict = only(spoil(grid(bent), [3, 50], lambda_max=None))
    assert verdict.verdict is Outcome.EQUIVALENT
    assert (verdict.n_trials, verdict.n_measured) == (200, 198)
    assert verdict.note == "finished trials without the metric: 2"


def test_a_cell_of_three_seeds_blocks_equivalent_and_is_counted():
    verdict = only(spoil(grid(bent), range(195, 200), status="failed", lambda_max=None))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "contrasts of fewer than 4 seeds, not tested: 1" in verdict.note


def test_seeds_that_would_decide():
    verdict = only(grid(bent, seeds=4, sd=0.1))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.seeds_needed > 4
    assert f"about {verdict.seeds_needed} seeds per cell" in verdict.note


def test_trials_without_seeds_are_independent_samples():
    trials = grid(bent, seeds=16, seed_sd=0.03)
    verdict = only(replaced(trials, "seed", [None] * len(trials)))
    assert verdict.verdict is Outcome.EQUIVALENT
    assert "without shared seeds, compared as independent samples: 20" in verdict.note
    assert "exponent unidentified" in verdict.note
    assert verdict.n_seeds == 400


def test_several_orders_of_one_seed_are_one_cluster():
    trials = pa.concat_tables([grid(bent, seeds=3, order_seed=k, rng=k) for k in range(5)])
    verdict = only(trials)
    assert verdict.group == {}
    assert verdict.n_seeds == 3
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "averaged: 300" in verdict.note


def test_the_solvers_error_bounds_the_spread():
    trials = grid(bent, seeds=4, sd=1e-4)
    errors = pa.array(np.full(len(trials), 0.5))
    rough = trials.append_column("lambda_max_residual", errors).append_column("other_se", errors)
    reach = [only(t).effect.high - only(t).effect.value for t in (trials, rough)]
    assert reach[0] < 0.001
    assert reach[1] == pytest.approx(2.353363 * resolution_sd(only(rough)) / 2, rel=1e-5)


@pytest.mark.parametrize(("metric", "column"), [*ERROR_COLUMN.items(), ("mine", "mine_se"), ("mine", "mine_residual")])
def test_every_error_is_found_beside_its_metric(metric, column):
    columns = ["lr", metric, column] if column else ["lr", metric]
    assert error_column(metric, columns) == column
    assert error_column(metric, ["lr", metric]) is None


def resolution_sd(verdict):
    """h / sqrt 6 where h = 0.5 / lambda_max differs by trial: root mean square over both cells and all seeds."""
    cell, trials = verdict.effect_cell, grid(bent, seeds=4, sd=1e-4).to_pylist()
    lrs = [cell.lr, cell.lr * cell.reference_batch_size / cell.batch_size]
    h = [0.5 / t["lambda_max"] for t in trials for lr in lrs if math.isclose(t["lr"], lr) and on_line(t, cell.ratio)]
    return math.sqrt(np.mean(np.square(h)) / 6)


def on_line(trial, ratio):
    return math.isclose(trial["lr"] / trial["batch_size"], ratio)


def accuracies(metric, values, **fields):
    """Two cells of four seeds."""
    points = [(lr, b, s) for lr, b in [(0.1, 8), (0.2, 16)] for s in range(4)]
    keys = ("lr", "batch_size", "seed")
    return table([dict(zip(keys, p, strict=True)) | fields | {metric: v} for p, v in zip(points, values, strict=True)])


@pytest.mark.parametrize(
    ("metric", "dataset", "h"),
    [
        ("train_accuracy", "digits", 1 / 1437),
        ("memorized", "digits", 1 / (0.25 * 1437)),
        ("recovered", "digits", 1 / (0.25 * 1437)),
        ("clean_accuracy", "digits", 1 / (0.75 * 1437)),
        ("train_accuracy", '{"name":"teacher","train_size":100}', 0.01),
        ("train_accuracy", "my.data:load", 0.001),
        ("test_accuracy", "digits", 0.001),
        ("train_accuracy", "", 0.001),
    ],
)
def test_resolution_of_fractions(metric, dataset, h):
    """Known from the data set, else the smallest step that shows."""
    values = [0.9, 0.9, 0.9, 0.901, 0.95, 0.95, 0.95, 0.951]
    verdict = only(accuracies(metric, values, dataset=dataset, label_noise=0.25), metric, 0.5)
    spread = max(np.std([0.05] * 4, ddof=1), h / math.sqrt(6))
    assert verdict.effect.value == pytest.approx(0.05)
    assert verdict.verdict is Outcome.INCONCLUSIVE  # nothing varies
    assert verdict.effect.high - 0.05 == pytest.approx(2.353363 * spread / 2, rel=1e-5)


def test_a_grid_without_lines_is_model_based_and_never_equivalent():
    lrs, sizes, rng = (0.01, 0.03, 0.1, 0.3), (8, 20, 50, 128), np.random.default_rng(0)
    points = [{"lr": lr, "batch_size": b, "seed": s} for lr in lrs for b in sizes for s in range(6)]
    values = [(p["lr"] / p["batch_size"]) ** -0.5 * rng.lognormal(0, 0.01) for p in points]
    verdict = only(table([p | {"lambda_max": v} for p, v in zip(points, values, strict=True)]))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.n_contrasts == 0
    assert "model-based" in verdict.note
    assert verdict.slope_batch.low < 0 < verdict.slope_batch.high
    assert verdict.exponent.low < 1 < verdict.exponent.high


def close(first, second):
    """Equal rows, up to rounding."""
    a, b = first.as_row(), second.as_row()
    numbers = [k for k, v in a.items() if isinstance(v, float)]
    rest = [k for k in KEYS if k not in numbers]
    return [a[k] for k in rest] == [b[k] for k in rest] and np.allclose(
        [a[k] for k in numbers], [b[k] for k in numbers], rtol=1e-7, atol=1e-9
    )


random_grid = st.builds(
    lambda key, seeds, sd, truth: grid(truth, seeds=seeds, sd=sd, rng=key),
    st.integers(0, 10**6),
    st.integers(2, 6),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.sampled_from([bent, broken]),
)


@settings(max_examples=30, deadline=None)
@given(random_grid, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(trials, random):
    order = list(range(len(trials)))
    random.shuffle(order)
    assert close(only(trials), only(trials.take(order)))


@settings(max_examples=30, deadline=None)
@given(random_grid, st.permutations([3, 10, 11, 500, 2**62, 7]))
def test_the_names_of_seeds_do_not_matter(trials, names):
    renamed = [names[s] for s in trials["seed"].to_pylist()]
    assert close(only(trials), only(replaced(trials, "seed", renamed)))


@settings(max_examples=30, deadline=None)
@given(random_grid, st.floats(1e-3, 1e3))
def test_the_unit_of_a_metric_on_the_log_scale_does_not_matter(trials, unit):
    scaled = trials["lambda_max"].to_numpy() * unit
    assert close(only(trials), only(replaced(trials, "lambda_max", scaled)))


@settings(max_examples=30, deadline=None)
@given(random_grid, st.floats(0.02, 0.5))
def test_a_wider_margin_never_turns_equivalent_into_anything_else(trials, margin):
    order = [Outcome.DIFFERENT, Outcome.INCONCLUSIVE, Outcome.EQUIVALENT]
    assert order.index(only(trials, margin=margin).verdict) <= order.index(only(trials, margin=2 * margin).verdict)
