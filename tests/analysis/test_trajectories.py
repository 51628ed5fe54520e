import json
import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import bent, grid
from scipy import stats
from test_invariance import stored
from test_verdict import spoil

from analysis.alignment import Curves
from analysis.decision import Outcome
from analysis.grid import Grid
from analysis.permutation import beyond_margin, line_tests, sign_patterns
from analysis.scales import Scale
from analysis.trajectories import trajectory
from trainables.schema import CURVES
from trainables.store import Store, table

M = math.log(1.1)
N = 1024  # training examples


def curves_of(trials: pa.Table, value, every=2.0, epochs=8.0) -> list[dict]:
    """A point of train_loss at round(e N / B) steps for e = 0, every, 2 every, ..., in every trial."""
    points = []
    for row in trials.to_pylist():
        b = row["batch_size"]
        for e in np.arange(0, epochs + every / 2, every):
            step = round(e * N / b)
            epoch = step * b / N
            y = value(row, epoch)
            points.append({"row": row, "step": step, "epoch": epoch, "statistic": "train_loss", "value": y})
    return points


def study(root, value, seeds=6, name="digits", changed=lambda trials: trials, rng=0, **options):
    """A stored sweep whose curves follow value(row, epoch), with the statuses of the trials as changed."""
    trials = changed(grid(bent, seeds=seeds, rng=rng, ratios=(1e-3, 4e-3), batch_sizes=(8, 32, 128)))
    stored(root, trials, name)
    sweep = Store(root).sweep(name)
    ids = {
        (r["lr"], r["batch_size"], r["seed"]): (r["trial_id"], r["pack_id"])
        for file in (root / name / "trials").iterdir()
        for r in sweep.read_table(f"trials/{file.name}").to_pylist()
    }
    for pack in ("even", "odd"):
        rows = []
        for point in curves_of(trials, value, **options):
            row = point.pop("row")
            trial, at = ids[row["lr"], row["batch_size"], row["seed"]]
            if at == pack and row["status"] != "failed" and point["value"] is not None:
                rows.append(point | {"sweep": name, "trial_id": trial, "pack_id": pack, "attempt": "a"})
        from trainables.store import parquet_bytes, side_name

        sweep.storage.create(side_name("curves", pack, "a"), parquet_bytes(table(rows, CURVES)))
    return root


def noisy(sd, shift=lambda row, epoch: 0.0, rng=1):
    """exp(-lr / batch_size * time + effect of the seed + noise of the trial), the noise growing from the start."""
    draw = np.random.default_rng(rng)
    noise, effect = {}, draw.normal(0, 0.2, 100)

    def value(row, epoch):
        key = (row["lr"], row["batch_size"], row["seed"])
        own = noise.setdefault(key, draw.normal(0, sd))
        decay = -100 * row["lr"] / row["batch_size"] * epoch
        return math.exp(decay + effect[row["seed"]] + own * min(epoch / 4, 1) + shift(row, epoch))

    return value


def both(root, **options):
    return trajectory(root, "digits", "train_loss", **options)


def test_equal_trajectories_are_equivalent_in_epochs_and_differ_in_steps(tmp_path):
    by_epoch, by_step = both(study(tmp_path, noisy(0.01), every=0.25))
    assert (by_epoch.verdict, by_step.verdict) == ("equivalent", "different")
    assert (by_epoch.axis, by_epoch.n_times, by_epoch.n_contrasts, by_epoch.n_seeds) == ("epoch", 33, 4, 6)
    assert by_epoch.effect.high < M
    assert by_step.p_different == 2 / 64
    assert by_step.effect.low < -M  # at equal steps a larger batch has been trained for longer
    assert (by_epoch.note, by_epoch.margin) == ("", 0.1)
    assert "EQUIVALENT (4 contrasts at 33 times, 6 seeds" in by_epoch.text()


def test_a_bump_that_is_gone_at_the_endpoint_is_found_with_its_cell_and_time(tmp_path):
    def bump(row, epoch):
        return 0.3 if epoch == 4 and row["batch_size"] == 128 and row["lr"] > 0.2 else 0.0

    (found,) = both(study(tmp_path, noisy(0.01, bump)), axes=["epoch"])
    assert found.verdict is Outcome.DIFFERENT
    assert found.effect_time == 4.0
    assert (found.effect_cell.batch_size, found.effect_cell.reference_batch_size) == (128, 8)
    assert found.effect_cell.lr == pytest.approx(0.512)
    assert found.effect.low < 0.3 < found.effect.high
    assert found.friedman_p > 0.05  # cells agree at the endpoint
    assert "Largest contrast ×1.3" in found.text()
    assert "from batch size 8 to 128 at ratio 0.004, epoch 4" in found.text()
    json.dumps(found.as_row(), allow_nan=False)


def test_inconclusive_with_the_reason(tmp_path):
    (found,) = both(study(tmp_path, noisy(0.15)), axes=["epoch"])
    assert found.verdict is Outcome.INCONCLUSIVE
    assert found.note == "all contrasts are within the margin at 1 of 5 times"
    (few,) = both(study(tmp_path / "few", noisy(0.01), seeds=3), axes=["epoch"])
    assert few.note == "at least 4 seeds per contrast are needed, there are 3"
    (four,) = both(study(tmp_path / "four", noisy(0.2), seeds=4), axes=["epoch"])
    assert "4 shared seeds cannot show a difference by sign flips, at least 6 are needed" in four.note
    (still,) = both(study(tmp_path / "still", noisy(0.0)), axes=["epoch"])
    assert still.verdict is Outcome.INCONCLUSIVE
    assert "no difference varies over the seeds" in still.note


def test_divergence_and_missing_values_block_equivalence(tmp_path):
    def spoiled(root, value=None, **change):
        changed = (lambda trials: spoil(trials, [0], **change)) if change else (lambda trials: trials)
        (found,) = both(study(root, value or noisy(0.01), changed=changed), axes=["epoch"])
        return found

    diverged = spoiled(tmp_path / "a", status="diverged")
    assert (diverged.verdict, diverged.n_diverged) == ("inconclusive", 1)
    assert "diverged trials: 1" in diverged.note
    calm = noisy(0.01)
    first = lambda row: (row["batch_size"], row["seed"]) == (8, 0)  # noqa: E731
    infinite = spoiled(tmp_path / "b", lambda row, e: math.inf if first(row) and e == 4 else calm(row, e))
    assert infinite.verdict is Outcome.INCONCLUSIVE
    assert "trials with values that are not usable: 2" in infinite.note
    failed = spoiled(tmp_path / "c", status="failed")
    assert failed.verdict is Outcome.EQUIVALENT
    assert "failed trials, left out: 1" in failed.note


def test_times_without_a_measurement_nearby_are_left_out(tmp_path):
    calm = noisy(0.01)

    def sparse(row, epoch):  # the smallest batch size was not measured in the middle
        return None if row["batch_size"] == 8 and epoch == 4 else calm(row, epoch)

    (found,) = both(study(tmp_path, sparse), axes=["epoch"])
    assert (found.verdict, found.n_times) == ("equivalent", 4)
    assert "times without a measurement nearby in every trial, left out: 1" in found.note


def test_margins_and_names(tmp_path):
    root = study(tmp_path, noisy(0.01))
    assert {v.margin for v in both(root)} == {0.1}
    assert both(root, margin=0.5)[0].margin == 0.5
    with pytest.raises(ValueError, match=r"unknown statistic 'train_los': did you mean 'train_loss'\?"):
        trajectory(root, "digits", "train_los")
    with pytest.raises(ValueError, match="unknown sweep 'digit'"):
        trajectory(root, "digit", "train_loss")
    with pytest.raises(ValueError, match="is not a positive number"):
        both(root, margin=-1)


def lists(*trials):
    """One row per trial from (epochs, values)."""
    rows = [{"epoch": e, "step": [int(1000 * t) for t in e], "value": v, "error": [None] * len(v)} for e, v in trials]
    number = pa.list_(pa.float64())
    schema = pa.schema({"epoch": number, "step": pa.list_(pa.int64()), "value": number, "error": number})
    return pa.Table.from_pylist(rows, schema)


def aligned(points, times, axis="epoch"):
    return Curves.of(points, np.arange(len(points)), axis, Scale.ABSOLUTE).at(np.array(times))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True), min_size=1, max_size=4), st.data())
def test_interpolation_is_numpy_s_between_a_trial_s_own_points_and_nothing_beyond(moments, data):
    runs = [(sorted(t / 4 for t in own), [math.sin(t) for t in sorted(own)]) for own in moments]
    times = sorted(data.draw(st.sets(st.sampled_from(range(41)), min_size=1)))
    found = aligned(lists(*runs), [t / 4 for t in times])
    for i, (t, v) in enumerate(runs):
        wanted = np.interp(np.array(times) / 4, t, v, left=np.nan, right=np.nan)
        np.testing.assert_allclose(found.y[:, i], wanted, atol=1e-12)
        nearest = [min(abs(x / 4 - own) for own in t) for x in times]
        known = np.isfinite(wanted)
        np.testing.assert_allclose(found.distance[known, i], np.array(nearest)[known], atol=1e-12)


def test_a_trial_without_points_and_values_that_are_not_numbers():
    points = lists(([0.0, 1.0, 2.0], [1.0, math.nan, 3.0]), ([], []), ([0.0, 2.0], [0.0, 4.0]))
    found = aligned(points, [0.0, 1.0, 1.5, 2.0])
    np.testing.assert_array_equal(found.y[:, 0], [1.0, math.nan, math.nan, 3.0])
    assert np.isnan(found.y[:, 1]).all()
    np.testing.assert_array_equal(found.y[:, 2], [0.0, 2.0, 3.0, 4.0])


def test_common_times_stay_within_what_all_trials_cover():
    curves = Curves.of(lists(([0, 1, 2.0], [0] * 3), ([0, 0.98, 2.02], [0] * 3)), np.arange(2), "epoch", Scale.ABSOLUTE)
    every, coarse = np.array([True, True]), np.array([False, True])
    assert curves.common_times(every, coarse).tolist() == [0, 0.98, 2.0]
    assert curves.common_times(np.array([False, False]), coarse).tolist() == []
    assert curves.step_length == pytest.approx(1e-3)


def test_sign_patterns_are_all_of_them_or_a_seeded_sample():
    assert {tuple(row) for row in sign_patterns(4)} == set(product([1.0, -1.0], repeat=4))
    assert (sign_patterns(4)[0] == 1).all()
    many = sign_patterns(20)
    assert many.shape == (4096, 20)
    assert (many[0] == 1).all()
    assert (many == sign_patterns(20)).all()
    assert abs(many.mean()) < 0.02


def test_the_max_t_test_by_enumeration():
    """One column, without a margin: the permutation t-test of scipy; several: the largest, by brute force."""
    rng = np.random.default_rng(0)
    one = rng.normal(0.5, 1, (8, 1))
    statistic = lambda x, axis: np.abs(stats.ttest_1samp(x, 0, axis=axis).statistic)  # noqa: E731
    wanted = stats.permutation_test(
        (one[:, 0],), statistic, permutation_type="samples", alternative="greater", vectorized=True
    )
    assert beyond_margin(one, 0.0) == pytest.approx(wanted.pvalue)
    many, m = rng.normal(0.3, 1, (6, 5)), 0.2
    tops = []
    for signs in product([1, -1], repeat=6):
        both_sides = np.hstack([many - m, -many - m]) * np.array(signs)[:, None]
        tops.append(stats.ttest_1samp(both_sides, 0).statistic.max())
    assert beyond_margin(many, m) == pytest.approx(np.mean(np.array(tops) >= tops[0] - 1e-9))


def test_missing_differences_and_none():
    d = np.random.default_rng(1).normal(3, 1, (8, 3))
    d[2, 1] = np.nan
    assert beyond_margin(d, 0.1) == 2 / 256
    assert beyond_margin(np.vstack([d, np.full(3, np.nan)]), 0.1) == 2 / 256
    assert math.isnan(beyond_margin(np.full((4, 2), np.nan), 0.1))
    assert beyond_margin(np.full((8, 2), 0.5), 0.1) == 2 / 256  # the same for every seed


REPETITIONS = [1000, pytest.param(20_000, marks=pytest.mark.long)]


@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize("case", ["all at the margin", "one at the margin", "just inside", "outliers"])
def test_the_family_error_of_the_max_t_test(case, repetitions):
    """8 seeds, 4 contrasts that share references, 10 times that are correlated like a random walk."""
    rng, n, m = np.random.default_rng(5), 8, 0.1
    mean = {
        "all at the margin": np.full(40, m),
        "one at the margin": np.where(np.arange(40) == 39, m, 0.0),
        "just inside": np.full(40, 0.8 * m),
        "outliers": np.full(40, m),
    }[case]
    wrong = 0
    for _ in range(repetitions):
        steps = rng.standard_t(2, (n, 5, 10)) if case == "outliers" else rng.normal(0, 1, (n, 5, 10))
        runs = 0.03 * steps.cumsum(axis=2)
        d = mean + (runs[:, 1:] - runs[:, :1]).reshape(n, 40)
        wrong += beyond_margin(d, m) <= 0.05
    assert wrong <= stats.binom.isf(1e-4, repetitions, 0.05)
    if case == "all at the margin":
        assert wrong > 0.015 * repetitions


def test_power_of_the_max_t_test():
    rng, found = np.random.default_rng(6), 0
    for _ in range(300):
        d = rng.normal(0, 0.05, (8, 40))
        d[:, 7] += 0.3
        found += beyond_margin(d, 0.1) <= 0.05
    assert found > 0.9 * 300


def block_grid(n, lines=((8, 16, 32),)):
    points = [(b * (k + 1) * 1e-3, b, s) for k, sizes in enumerate(lines) for b in sizes for s in range(n)]
    lr, b, seed = (np.array(column) for column in zip(*points, strict=True))
    return Grid.of(lr, b.astype(float), seed.astype(int))


def test_friedman_is_scipy_s_and_counts_the_lines():
    y = np.random.default_rng(2).normal(size=(3, 7))
    wanted = stats.friedmanchisquare(*y).pvalue
    assert line_tests(block_grid(7), y.ravel())[0] == pytest.approx(wanted)
    twice = np.concatenate([y.ravel(), np.random.default_rng(3).normal(size=21)])
    friedman, _ = line_tests(block_grid(7, ((8, 16, 32), (8, 16, 32))), twice)
    other = stats.friedmanchisquare(*twice[21:].reshape(3, 7)).pvalue
    assert friedman == pytest.approx(min(1, 2 * min(wanted, other)))


def test_the_within_seed_permutation_sees_what_independence_would_miss():
    rng = np.random.default_rng(4)
    y = (rng.normal(0, 5, 8) + np.array([[0.0], [0.1], [0.2]]) + rng.normal(0, 0.05, (3, 8))).ravel()
    friedman, permutation = line_tests(block_grid(8), y)
    assert stats.kruskal(*y.reshape(3, 8)).pvalue > 0.5
    assert friedman < 0.01
    assert permutation <= 0.001
    assert all(map(math.isnan, line_tests(block_grid(8), np.ones(24))))
    assert all(map(math.isnan, line_tests(block_grid(8, ((8,),)), np.ones(8))))


def test_a_noisy_line_does_not_hide_another_one():
    rng = np.random.default_rng(8)
    clear = np.array([[0.0], [0.1], [0.2]]) + rng.normal(0, 0.02, (3, 8))
    there = block_grid(8, ((8, 16, 32), (8, 16, 32)))
    assert line_tests(there, np.concatenate([clear.ravel(), rng.normal(0, 10, 24)]))[1] < 0.01


def test_the_within_seed_permutation_keeps_its_level():
    rng, there = np.random.default_rng(7), block_grid(6, ((8, 16, 32), (8, 16)))
    ps = [line_tests(there, rng.normal(size=30))[1] for _ in range(300)]
    assert sum(p <= 0.05 for p in ps) <= stats.binom.isf(1e-4, 300, 0.05)
    assert min(ps) < 0.1
