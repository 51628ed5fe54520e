import json
import math

import numpy as np
import pytest
from planted import bent, grid, table
from scipy import special

from analysis.divergence import divergence, given_survival

SIZES = (8, 16, 32, 64, 128)


def swept(logit, lrs=tuple(0.01 * 2.0**k for k in range(6)), sizes=SIZES, seeds=8, rng=0, **fields):
    """Trials of which those diverge that a coin of this log odds says; an infinite one leaves no chance."""
    rng = np.random.default_rng(rng)
    points = [(lr, b, s) for lr in lrs for b in sizes for s in range(seeds)]
    lost = [rng.random() < special.expit(logit(math.log(lr), math.log(b))) for lr, b, _ in points]
    return table(
        [
            {"lr": lr, "batch_size": b, "seed": s, "status": "diverged" if gone else "finished", **fields}
            for (lr, b, s), gone in zip(points, lost, strict=True)
        ]
    )


def only(trials):
    (found,) = divergence(trials)
    return found


def test_slopes_exponent_and_the_learning_rate_where_half_diverge():
    found = only(swept(lambda lr, b: 3 * (lr - math.log(0.05)) - 1.5 * (b - math.log(32)), seeds=100, rng=1))
    assert found.slope_lr.low < 3 < found.slope_lr.high
    assert found.slope_batch.low < -1.5 < found.slope_batch.high
    assert found.exponent.low < 0.5 < found.exponent.high
    assert found.exponent.value == pytest.approx(0.5, abs=0.05)
    assert [half.batch_size for half in found.lr_half] == list(SIZES)
    for half in found.lr_half:
        truth = 0.05 * (half.batch_size / 32) ** 0.5
        assert half.lr.value == pytest.approx(truth, rel=0.1)
        assert half.lr.low < truth < half.lr.high
    assert found.note == ""


def test_a_perfect_threshold_is_found_and_said():
    found = only(swept(lambda lr, b: math.inf if lr - 0.5 * b > math.log(0.01) else -math.inf))
    assert found.exponent.low < 0.5 < found.exponent.high
    assert all(math.isfinite(x) for half in found.lr_half for x in half.lr)
    assert "separated" in found.note


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (swept(lambda lr, b: -math.inf), "not estimated: none of 240 trials diverged"),
        (swept(lambda lr, b: math.inf), "not estimated: all of 240 trials diverged"),
        (table([{**row, "status": "failed"} for row in swept(lambda lr, b: 0.0).to_pylist()]), "none of 0 trials"),
        (swept(lambda lr, b: 0.0, lrs=(0.01,)), "not estimated: one learning rate"),
    ],
)
def test_stated_non_answers(trials, why):
    found = only(trials)
    assert why in found.note
    row = found.as_row()
    assert row["lr_half"] == []
    assert all(row[f"{name}{end}"] is None for name in ("slope_lr", "exponent") for end in ("", "_low", "_high"))


def test_one_batch_size_has_no_exponent():
    found = only(swept(lambda lr, b: 3 * (lr - math.log(0.05)), sizes=(32,), seeds=50))
    assert math.isnan(found.exponent.value)
    assert math.isnan(found.slope_batch.value)
    (half,) = found.lr_half
    assert half.lr.low < 0.05 < half.lr.high
    assert found.note == "one batch size"


def test_one_line_has_a_slope_along_it():
    lines = [swept(lambda lr, b: 3 * (lr - math.log(0.05)), lrs=(lr,), sizes=(int(lr * 1600),)) for lr in (0.02, 0.08)]
    found = only(table([row for line in lines for row in line.to_pylist()]))
    assert "vary together" in found.note
    assert found.lr_half == ()
    assert math.isfinite(found.slope_lr.value)


def test_no_effect_of_lr_leaves_it_unidentified():
    found = only(swept(lambda lr, b: 0.0))
    assert math.isnan(found.lr_half[0].lr.value)
    assert "unidentified" in found.note
    row = found.as_row()
    assert row["exponent"] is None
    assert row["lr_half"][0] == {"batch_size": 8, "lr": None, "lr_low": None, "lr_high": None}


def test_what_lies_beyond_the_learning_rates_tried_is_said():
    found = only(swept(lambda lr, b: 3 * (lr - math.log(0.05)) - 1.5 * (b - math.log(2)), seeds=100))
    assert "beyond the learning rates tried at batch size" in found.note
    assert "128" in found.note
    assert "8," not in found.note


def test_each_group_has_its_model_and_failed_trials_do_not_count():
    calm, wild = swept(lambda lr, b: -math.inf, momentum=0.0), swept(lambda lr, b: 3 * lr + 10, momentum=0.9)
    rows = calm.to_pylist() + wild.to_pylist()
    rows[0]["status"] = "failed"
    first, second = divergence(table(rows))
    assert (first.group, second.group) == ({"momentum": 0.0}, {"momentum": 0.9})
    assert (first.n_trials, first.n_diverged, first.n_seeds) == (239, 0, 8)
    assert second.slope_lr.low > 0


def test_rows_are_strict_json():
    for trials in (swept(lambda lr, b: 3 * lr + 10), swept(lambda lr, b: -math.inf)):
        row = only(trials).as_row()
        assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_given_survival_the_rest_is_judged_as_usual():
    rows = grid(bent).to_pylist()
    for row in rows[195:198]:
        row |= {"status": "diverged", "lambda_max": None}
    (verdict,) = given_survival(table(rows), {"lambda_max": 0.1})
    assert verdict.verdict == "equivalent"
    assert verdict.n_trials == 197
    assert verdict.note.startswith("given survival: 3 diverged trials left out")


def test_given_survival_only_where_some_diverged_and_some_did_not():
    rows = [row for noise in (0.0, 0.25, 0.5) for row in grid(bent, seeds=4, label_noise=noise, rng=1).to_pylist()]
    for row in (*rows[100:200], rows[-1]):
        row |= {"status": "diverged", "lambda_max": None}
    (verdict,) = given_survival(table(rows), {"lambda_max": 0.1})
    assert (verdict.group, verdict.n_trials) == ({"label_noise": 0.5}, 99)
    assert verdict.note.startswith("given survival: 1 diverged trial left out")
