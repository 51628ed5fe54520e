import math

import numpy as np
import pyarrow as pa
import pytest
from planted import bent, cells, grid, made, table
from scipy import stats
from test_verdict import broken, spoil

from analysis.contrasts import contrasts
from analysis.decision import ALPHA, Outcome, decide
from analysis.grid import Grid
from analysis.sequential import at_looks, judge_looks, planned_looks
from analysis.verdict import judge

M = math.log(1.1)
LOOKS = (8, 16, 32)
LR, B = (np.array(column, dtype=float) for column in zip(*cells(), strict=True))


def test_every_seed_buys_an_equal_share_of_the_error():
    looks = planned_looks(LOOKS)
    assert [look.spent for look in looks] == pytest.approx([0.0125, 0.025, 0.05])
    assert [look.level for look in looks] == pytest.approx([0.0125, 0.0125, 0.025])
    assert planned_looks([8])[0].level == ALPHA


@pytest.mark.parametrize("wrong", [[], [3, 8], [8, 8], [16, 8]])
def test_looks_must_grow_from_four(wrong):
    with pytest.raises(ValueError, match="growing numbers of seeds are needed, from at least 4"):
        planned_looks(wrong)


def test_at_five_percent_it_is_the_rule_of_a_single_look():
    rng = np.random.default_rng(0)
    for _ in range(300):
        found = made(rng.normal(0, 0.1, 5), sd=rng.uniform(0.01, 0.2, 5), n=8, spoiled=rng.random(5) < 0.05)
        blocked = bool(found.spoiled.any())
        assert decide(found, M, blocked, ALPHA) is decide(found, M, blocked)


def test_a_smaller_level_asks_for_more():
    near = made([0.04], sd=0.06, n=8)
    assert decide(near, M, False, 0.05) is Outcome.EQUIVALENT
    assert decide(near, M, False, 0.001) is Outcome.INCONCLUSIVE
    beyond = made([0.2], sd=0.1, n=8)
    assert decide(beyond, M, False, 0.05) is Outcome.DIFFERENT
    assert decide(beyond, M, False, 0.001) is Outcome.INCONCLUSIVE


def errors(shift, sd, repetitions, looks=LOOKS, seed=0):
    """How often each verdict is the first that any look reaches, over whole grids of planted data."""
    n, rng, counts = looks[-1], np.random.default_rng(seed), dict.fromkeys(Outcome, 0)
    clean = np.zeros(n * len(LR), dtype=bool)
    numbers = np.tile(np.arange(n), len(LR))
    parts = [(look, numbers < look.seeds) for look in planned_looks(looks)]
    grids = [Grid.of(np.repeat(LR, n)[p], np.repeat(B, n)[p], numbers[p]) for _, p in parts]
    for _ in range(repetitions):
        y = (shift[:, None] + rng.normal(0, 0.2, n) + rng.normal(0, sd, (len(LR), n))).ravel()
        for (look, part), there in zip(parts, grids, strict=True):
            found = contrasts(there, y[part], np.full(part.sum(), 1e-3), clean[part], clean[part])
            outcome = decide(found, M, False, look.level)
            if outcome is not Outcome.INCONCLUSIVE:
                break
        counts[outcome] += 1
    return counts


def most(repetitions, rate=ALPHA):
    return stats.binom.isf(1e-4, repetitions, rate)


REPETITIONS = [1500, pytest.param(20_000, marks=pytest.mark.long)]


@pytest.mark.parametrize("repetitions", REPETITIONS)
def test_wrongly_equivalent_over_three_looks_where_one_cell_is_at_the_margin(repetitions):
    shift = np.where(np.isclose(LR, 0.128) & (B == 64), -M, 0.0)
    wrong = errors(shift, 0.02, repetitions)[Outcome.EQUIVALENT]
    assert 0 < wrong <= most(repetitions)


@pytest.mark.parametrize("repetitions", REPETITIONS)
def test_wrongly_different_over_three_looks_where_every_cell_is_at_the_margin(repetitions):
    wrong = errors(np.where(B > 8, M, 0.0), 0.03, repetitions)[Outcome.DIFFERENT]
    assert 0 < wrong <= most(repetitions)


def single(truth, repetitions, levels, looks=LOOKS, seed=1):
    """The same for one contrast of spread 0.1, all repetitions at once: shares of equivalent and different."""
    draws = np.random.default_rng(seed).normal(truth, 0.1, (repetitions, looks[-1]))
    still, equivalent, different = np.ones(repetitions, dtype=bool), 0, 0
    for n, level in zip(looks, levels, strict=True):
        part = draws[:, :n]
        mean, se = part.mean(axis=1), part.std(axis=1, ddof=1) / n**0.5
        inside = still & (np.abs(mean) + stats.t.ppf(1 - level, n - 1) * se < M)
        p = stats.t.sf((np.abs(mean) - M) / se, n - 1) + stats.t.sf((np.abs(mean) + M) / se, n - 1)
        outside = still & (p <= level / 2)
        still &= ~(inside | outside)
        equivalent, different = equivalent + inside.sum(), different + outside.sum()
    return equivalent, different


def test_a_single_contrast_at_the_margin_and_why_the_error_has_to_be_shared():
    repetitions = 200_000
    levels = [look.level for look in planned_looks(LOOKS)]
    equivalent, different = single(M, repetitions, levels)
    assert 0.03 * repetitions < equivalent <= most(repetitions)
    assert 0.015 * repetitions < different <= most(repetitions, ALPHA / 2)
    seen_before, _ = single(M, repetitions, [ALPHA, *levels[1:]])
    assert seen_before == pytest.approx(0.071 * repetitions, rel=0.03)  # planned once a verdict at 5% was seen
    naive, _ = single(M, repetitions, [ALPHA] * 3)
    assert naive > 0.08 * repetitions  # what looking at 5% each time would do


def test_the_first_look_that_decides_stands():
    trials = grid(broken, seeds=32, sd=0.02)
    (found,) = judge_looks(trials, {"lambda_max": 0.1}, LOOKS)
    assert (found.verdict, found.look, found.n_seeds, found.open) == ("different", 1, 8, False)
    assert found.spent == pytest.approx(0.0125)
    first = judge_looks(trials.filter(np.asarray(trials["seed"]) < 8), {"lambda_max": 0.1}, LOOKS)
    assert [found.as_row()] == [v.as_row() for v in first]


def test_open_until_a_look_decides_and_closed_after_the_last():
    trials = grid(bent, seeds=32, sd=0.09)
    seed = np.asarray(trials["seed"])
    steps = [judge_looks(trials.filter(seed < n), {"lambda_max": 0.1}, LOOKS)[0] for n in (4, 8, 12, 16, 32)]
    assert [v.look for v in steps] == [0, 1, 1, 2, 3]
    assert [v.open for v in steps] == [True, True, True, True, False]
    assert {v.verdict for v in steps[:4]} == {"inconclusive"}
    assert steps[-1].verdict == "equivalent" or "undecided at the last look" in steps[-1].note


def test_verdicts_as_the_looks_have_them():
    trials = grid(bent, seeds=8, sd=0.035)
    (alone,) = judge(trials, {"lambda_max": 0.1})
    (looked,) = at_looks([alone], trials, LOOKS)
    assert (alone.verdict, looked.verdict) == ("equivalent", "inconclusive")  # at 1.25%, not 5%
    assert looked.note == "look 1 of 3, 8 seeds, error spent 0.0125 of 0.05"
    assert looked.effect == alone.effect
    (early,) = at_looks([alone], trials, [12, 24])
    assert early.verdict == "inconclusive"
    assert early.note == "no look yet, the first is at 12 seeds; what stands beside it is of all seeds so far"


def test_what_stands_beside_a_verdict_is_of_the_seeds_of_its_look():
    """Invariant in the first 8 seeds, broken in the later ones: the row does not contradict itself."""
    calm = grid(bent, seeds=8, sd=0.01, rng=1).to_pylist()
    wild = [{**row, "seed": row["seed"] + 8} for row in grid(broken, seeds=24, sd=0.01, rng=2).to_pylist()]
    wild[0] |= {"status": "failed", "lambda_max": None}
    for trials in (calm + wild, wild + calm):
        trials = table(trials)
        (looked,) = at_looks(judge(trials, {"lambda_max": 0.1}), trials, LOOKS)
        (alone,) = judge(table(calm), {"lambda_max": 0.1})
        assert looked.verdict == alone.verdict == "equivalent"
        assert looked.as_row() | {"note": ""} == alone.as_row() | {"note": ""}
        assert looked.seeds_needed is None
        assert looked.note.split("; ") == [
            "look 1 of 3, 8 seeds, error spent 0.0125 of 0.05",
            "later seeds do not count: 24",
        ]


def test_seeds_needed_are_those_of_the_look():
    trials = grid(bent, seeds=12, sd=0.09, rng=4)
    (looked,) = at_looks(judge(trials, {"lambda_max": 0.1}), trials, LOOKS)
    (first,) = judge_looks(trials, {"lambda_max": 0.1}, LOOKS)
    assert (looked.verdict, looked.n_seeds, looked.seeds_needed) == ("inconclusive", 8, first.seeds_needed)
    assert first.seeds_needed != judge(trials, {"lambda_max": 0.1})[0].seeds_needed


def test_each_group_stands_at_its_own_look():
    """Where one group alone has later seeds, and one alone has the first ones, rows are not mixed up."""
    steady = grid(bent, seeds=8, sd=0.01, label_noise=0.0, momentum=0.0)
    noisy = grid(bent, seeds=16, sd=0.12, label_noise=0.25, momentum=0.9)
    late = table([{**r, "seed": r["seed"] + 40, "label_noise": 0.5, "momentum": 0.9} for r in steady.to_pylist()])
    trials = pa.concat_tables([steady, noisy, late])
    found = at_looks(judge(trials, {"lambda_max": 0.1}), trials, LOOKS)
    assert [(v.group["label_noise"], v.n_seeds, v.n_trials) for v in found] == [
        (0.0, 8, 200),
        (0.25, 16, 400),
        (0.5, 8, 200),
    ]
    assert [v.note.partition(",")[0] for v in found] == ["look 1 of 3", "look 2 of 3", "no look yet"]


def test_failed_trials_of_later_seeds_do_not_stand_in_for_missing_ones():
    trials = grid(bent, seeds=12, sd=0.09).to_pylist()
    missing = [row for row in trials if row["seed"] != 3 or row["lr"] > 0.1]
    for row in missing:
        if row["seed"] >= 8:
            row |= {"status": "failed", "lambda_max": None}
    assert judge_looks(table(missing), {"lambda_max": 0.1}, LOOKS)[0].look == 0
    for row in trials:
        if row["seed"] == 3:
            row |= {"status": "failed", "lambda_max": None}
    assert judge_looks(table(trials), {"lambda_max": 0.1}, LOOKS)[0].look == 1


def test_a_look_waits_for_all_cells():
    trials = grid(bent, seeds=8, sd=0.01)
    whole = judge_looks(trials, {"lambda_max": 0.1}, LOOKS)[0]
    assert (whole.look, whole.verdict) == (1, "equivalent")
    partial = judge_looks(trials.slice(0, len(trials) - 1), {"lambda_max": 0.1}, LOOKS)[0]
    assert (partial.look, partial.verdict, partial.open) == (0, "inconclusive", True)
    failed = judge_looks(spoil(trials, [len(trials) - 1], status="failed", lambda_max=None), {"lambda_max": 0.1}, LOOKS)
    assert failed[0].look == 1  # it has ended, and is left out


def test_no_seeds_are_added_where_they_would_not_help():
    trials = grid(bent, seeds=8, sd=0.02)
    (nothing,) = judge_looks(trials, {"lambda_max": None}, LOOKS)
    assert (nothing.open, nothing.look) == (False, 0)
    assert "state one" in nothing.note
    (blocked,) = judge_looks(spoil(trials, [3], status="diverged", lambda_max=None), {"lambda_max": 0.1}, LOOKS)
    assert (blocked.verdict, blocked.open) == ("inconclusive", False)
    assert blocked.note == "32 seeds would decide it with a chance below 10%"
    small = {"ratios": (1e-3,), "batch_sizes": (8, 16)}
    (noisy,) = judge_looks(grid(bent, seeds=8, sd=0.4, rng=3, **small), {"lambda_max": 0.1}, LOOKS)
    assert not noisy.open
    assert noisy.note.startswith("32 seeds would decide it with a chance below 10%")


def test_groups_and_metrics_have_looks_of_their_own():
    clean = grid(bent, seeds=8, sd=0.01, label_noise=0.0)
    noisy = grid(bent, seeds=8, sd=0.12, label_noise=0.25)
    found = judge_looks(pa.concat_tables([clean, noisy]), {"lambda_max": 0.1}, LOOKS)
    assert [(v.group["label_noise"], v.verdict, v.open) for v in found] == [
        (0.0, "equivalent", False),
        (0.25, "inconclusive", True),
    ]
