import json
import math

import numpy as np
import pyarrow as pa
import pytest
from planted import bent, grid, table
from scipy import stats

from analysis.predictors import predict_frontier

M = math.log(1.1)


def measured(trials, metric="test_loss", rng=0, **columns):
    """The same trials with further columns: functions of lr and batch size, with a spread of 2%."""
    rng = np.random.default_rng(rng)
    lr, size = trials["lr"].to_numpy(), trials["batch_size"].to_numpy()
    for name, f in columns.items():
        trials = trials.append_column(name, pa.array(f(lr, size) * np.exp(rng.normal(0, 0.02, len(lr)))))
    return trials


def breaking(beyond, sd=0.02, seeds=8, rng=0, **settings):
    """Invariant where `beyond` is below 1; above, off by twice the margin and more."""

    def truth(lr, b):
        return bent(lr, b) - 2 * M * beyond(lr, b) * (beyond(lr, b) > 1)

    return grid(truth, sd=sd, seeds=seeds, rng=rng, metric="test_loss", **settings)


def sharpness(lr, size):
    """Falls where the ratio is high."""
    return 12 * (lr / size / 2.5e-4) ** -0.6


def noise_scale(lr, size):
    return 30 * (lr / size / 2.5e-4) ** 0.6


COLUMNS = {"lambda_max": sharpness, "noise_scale": noise_scale}
BEYOND = {
    "lr": lambda lr, b: lr / 0.09,
    "batch_size": lambda lr, b: b / 48,
    "stability": lambda lr, b: lr * sharpness(lr, b) / 2 / 0.25,
    "noise_ratio": lambda lr, b: b / noise_scale(lr, b) / 0.9,
}
THRESHOLD = {"lr": 0.09, "batch_size": 48, "stability": 0.25, "noise_ratio": 0.9}


def only(trials, margin=0.1, **settings):
    (found,) = predict_frontier(trials, "test_loss", margin, **settings)
    return found


@pytest.mark.parametrize("predictor", BEYOND)
def test_the_planted_predictor_is_named(predictor):
    found = only(measured(breaking(BEYOND[predictor]), **COLUMNS))
    assert found.best == predictor
    assert found.note == ""
    assert (found.n_cells, found.n_seeds, found.margin) == (20, 8, 0.1)
    best, *rest = found.predictions
    assert best.predictor == predictor
    assert best.auc == (1, 1, 1)
    assert best.accuracy.value > 0.85
    assert best.threshold.value == pytest.approx(THRESHOLD[predictor], rel=0.5)
    assert all(p.auc.value < 1 for p in rest)
    assert sum(p.probability for p in found.predictions) == pytest.approx(1)


def test_the_area_is_that_of_pairs_on_different_lines():
    found = only(measured(breaking(BEYOND["lr"]), **COLUMNS))
    points = [(r, b, r * b > 0.09) for r in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3) for b in (16, 32, 64, 128)]
    pairs = [(b, c) for r, b, bad in points for q, c, worse in points if bad and not worse and not math.isclose(r, q)]
    expected = np.mean([(b > c) + 0.5 * (b == c) for b, c in pairs])
    (area,) = (p.auc.value for p in found.predictions if p.predictor == "batch_size")
    assert area == pytest.approx(expected)


def test_the_area_agrees_with_that_of_mann_and_whitney():
    """Where lines have one contrast each, all pairs are on different lines."""
    trials = measured(breaking(lambda lr, b: lr / 0.03, batch_sizes=(8, 32)), **COLUMNS)
    found = only(trials)
    lr = np.array([2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]) * 32
    score = lr * sharpness(lr, 32.0)
    statistic = stats.mannwhitneyu(score[lr > 0.03], score[lr < 0.03]).statistic
    (area,) = (p.auc.value for p in found.predictions if p.predictor == "stability")
    assert area == pytest.approx(statistic / (lr > 0.03).sum() / (lr < 0.03).sum())


def test_the_peak_counts_where_it_is_known():
    peak = measured(breaking(BEYOND["stability"]), lambda_max_peak=sharpness, lambda_max=lambda lr, b: 1 / lr)
    found = only(peak)
    assert found.best == "stability"
    assert "noise_ratio unknown: no noise_scale" in found.note


def test_without_curvature_lr_and_batch_size_are_left():
    found = only(breaking(BEYOND["lr"]))
    assert {p.predictor for p in found.predictions} == {"lr", "batch_size"}
    assert "stability unknown: no lambda_max" in found.note
    assert found.best == "lr"


def test_predictors_that_tell_alike_share_the_probability():
    found = only(measured(breaking(BEYOND["lr"]), lambda_max=lambda lr, b: 5 + 0 * lr))
    assert found.best is None
    assert "undecided: lr, stability tell the cells alike" in found.note
    assert sorted(p.probability for p in found.predictions) == pytest.approx([0, 0.5, 0.5], abs=0.01)


def spoiled(trials, chosen, **changes):
    return table([{**row, **(changes if chosen(row) else {})} for row in trials.to_pylist()])


def test_cells_that_always_diverge_are_broken():
    gone = spoiled(breaking(lambda lr, b: 0.5), lambda row: row["lr"] > 0.2, status="diverged", test_loss=None)
    found = only(gone)
    assert found.best == "lr"
    assert found.n_broken == 3


def by_name(found):
    return {p.predictor: p for p in found.predictions}


def test_predictors_are_compared_on_the_cells_that_have_all_and_what_each_lacks_is_counted():
    trials = spoiled(measured(breaking(BEYOND["lr"]), **COLUMNS), lambda row: row["lr"] > 0.5, lambda_max=None)
    found = only(trials)
    assert (found.n_cells, found.n_compared) == (20, 19)
    assert {name: p.n_unknown for name, p in by_name(found).items()} == {
        "lr": 0,
        "batch_size": 0,
        "stability": 1,
        "noise_ratio": 0,
    }
    assert found.note == "unknown in some cells: stability (1); compared on the 19 cells that have all"
    assert found.best == "lr"


def test_cells_in_which_all_diverged_count_where_a_predictor_is_known():
    """They are the most broken of all; what was not measured in them is unknown, lr and batch size are not."""
    gone = {"status": "diverged", "test_loss": None, "lambda_max": None, "noise_scale": None}
    sound = measured(breaking(lambda lr, b: lr / 0.05), **COLUMNS)
    found = only(spoiled(sound, lambda row: row["lr"] > 0.2, **gone))
    assert (found.n_cells, found.n_broken, found.n_compared) == (20, 10, 17)
    named = by_name(found)
    assert {name: p.n_unknown for name, p in named.items()} == {
        "lr": 0,
        "batch_size": 0,
        "stability": 3,
        "noise_ratio": 3,
    }
    whole = by_name(only(sound))
    assert named["lr"].auc.value == whole["lr"].auc.value == 1.0
    assert named["batch_size"].auc.value == whole["batch_size"].auc.value != named["stability"].auc.value
    assert sum(p.probability for p in found.predictions) == pytest.approx(1)


def test_a_predictor_that_no_broken_cell_has_is_not_compared():
    gone = {"status": "diverged", "test_loss": None, "noise_scale": None}
    found = only(spoiled(measured(breaking(lambda lr, b: 0.5), **COLUMNS), lambda row: row["lr"] > 0.1, **gone))
    assert (found.n_cells, found.n_broken, found.n_compared, found.best) == (20, 6, 20, "lr")
    row = next(p for p in found.as_row()["predictions"] if p["predictor"] == "noise_ratio")
    assert (row["n_unknown"], row["probability"], row["auc"]) == (6, None, None)
    assert by_name(found)["stability"].n_unknown == 0
    assert found.note.startswith("unknown in some cells: noise_ratio (6); compared on the 20 cells that have all but")
    json.dumps(found.as_row(), allow_nan=False)


def test_of_diverged_trials_the_last_noise_scale_before_counts():
    gone = {"status": "diverged", "test_loss": None, "noise_scale": None}
    trials = measured(breaking(BEYOND["noise_ratio"]), noise_scale_last=noise_scale, **COLUMNS)
    found = only(spoiled(trials, lambda row: BEYOND["noise_ratio"](row["lr"], row["batch_size"]) > 2, **gone))
    assert (found.best, found.note) == ("noise_ratio", "")
    late = spoiled(trials, lambda row: True, noise_scale=None)  # what finished without one lacks it all the same
    assert "noise_ratio" not in by_name(only(late))


@pytest.mark.parametrize(
    ("trials", "margin", "why"),
    [
        (breaking(lambda lr, b: 0.5), 0.1, "no cell is surely broken"),
        (breaking(lambda lr, b: 2.0 * (b > 8)), 0.1, "no cell is surely sound"),
        (breaking(BEYOND["lr"], sd=0), 0.1, "no difference varies over the seeds"),
        (spoiled(breaking(BEYOND["lr"]), lambda row: True, status="failed"), 0.1, "no contrast"),
        (breaking(BEYOND["lr"]), None, "no margin is given"),
        (breaking(BEYOND["lr"], seeds=3), 0.1, "no contrast of at least 4 seeds"),
        (breaking(BEYOND["lr"], batch_sizes=(8,)), 0.1, "no contrast"),
        (breaking(BEYOND["lr"], ratios=(4e-3,)), 0.1, "no broken and sound cells on different lines"),
        (spoiled(breaking(BEYOND["lr"]), lambda row: True, seed=None), 0.1, "do not share their seeds"),
    ],
)
def test_stated_non_answers(trials, margin, why):
    found = only(trials, margin)
    assert found.best is None
    assert found.predictions == ()
    assert found.note.startswith("not compared: ")
    assert why in found.note


def test_groups_apart_reproducible_and_strict_json():
    trials = pa.concat_tables([breaking(BEYOND[p], label_noise=x) for p, x in (("lr", 0.0), ("batch_size", 0.25))])
    first, second = predict_frontier(trials, "test_loss", 0.1, resamples=50)
    assert (first.group, second.group) == ({"label_noise": 0.0}, {"label_noise": 0.25})
    assert (first.best, second.best) == ("lr", "batch_size")
    rows = [found.as_row() for found in (first, second)]
    assert rows == [found.as_row() for found in predict_frontier(trials, "test_loss", 0.1, resamples=50)]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@pytest.mark.parametrize("repetitions", [200, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("seeds", [4, 8])
def test_of_two_equal_predictors_each_is_seldom_named(seeds, repetitions):
    """Of the studies in which they are compared, which is itself a matter of chance."""
    rng = np.random.default_rng(3)
    studies = [only(mirrored(seeds, rng), resamples=300, rng=int(rng.integers(2**31))) for _ in range(repetitions)]
    named = [found.best for found in studies if found.predictions]
    assert len(named) > 0.1 * repetitions
    for predictor in ("lr", "noise_ratio"):
        assert named.count(predictor) <= stats.binom.isf(1e-4, len(named), 0.05)


def mirrored(seeds, rng, sd=0.05):
    """Two lines of which the same contrasts break, and a rival that has the learning rates of the other line."""

    def shift(lr, b):
        return bent(lr, b) - 0.8 * M * math.log2(b / 8)

    trials = grid(
        shift, seeds=seeds, sd=sd, rng=rng, metric="test_loss", ratios=(1e-3, 1.5e-3), batch_sizes=(8, 16, 32, 64)
    )
    lr, size = trials["lr"].to_numpy(), trials["batch_size"].to_numpy()
    other = np.where(np.isclose(lr / size, 1e-3), 1.5e-3, 1e-3) * size
    return trials.append_column("noise_scale", pa.array(size / other))
