"""What noise does, and what chance does, told by control trials."""

import math

import numpy as np
import pyarrow as pa
import pytest
from planted import BATCH_SIZES, RATIOS, bent, grid
from scipy import stats

from analysis import controls
from analysis.verdict import judge
from trainables.trial import AGAIN

M = math.log(1.1)


def descent(noise, seeds=8, sd=0.03, rng=1, **fields):
    """Gradient descent at the smallest batch size of each line: SGD without what noise does there."""
    return grid(
        lambda lr, b: bent(lr, b) - noise(lr / b),
        seeds,
        sd,
        rng=rng,
        batch_sizes=BATCH_SIZES[:1],
        sampler="full",
        **fields,
    )


def sgd(**options):
    return grid(bent, sampler="stream", **options)


def only(*tables, margin=0.1):
    (verdict,) = judge(pa.concat_tables(tables, promote_options="permissive"), {"lambda_max": margin})
    return verdict


def test_lines_where_noise_does_something_are_told_from_those_of_training_time():
    effect = dict(zip(RATIOS, (0.0, 0.0, 0.03, 0.4, -0.8), strict=True))
    trials = sgd(seed_sd=0)
    control = descent(lambda ratio: effect[min(RATIOS, key=lambda r: abs(math.log(r / ratio)))], seed_sd=0)
    verdict = only(trials, control)
    assert [line.informative for line in verdict.noise] == [False, False, False, True, True]
    assert [line.ratio for line in verdict.noise] == pytest.approx(RATIOS)
    assert {(line.batch_size, line.n) for line in verdict.noise} == {(8, 8)}
    alone = only(trials)
    assert alone.noise == ()
    assert (alone.verdict, alone.effect, alone.frontier, alone.note) == (
        verdict.verdict,
        verdict.effect,
        verdict.frontier,
        verdict.note,
    ), "controls change no verdict"


def test_what_neither_margin_nor_interval_settles_is_not_told():
    (line,) = only(sgd(ratios=RATIOS[:1], seeds=4), descent(lambda ratio: 0.2, 4, ratios=RATIOS[:1])).noise
    assert line.nu.low < M < line.nu.high
    assert line.informative is None


def test_a_control_of_one_seed_elsewhere_is_not_a_sweep():
    """As where a condition leaves out the smallest batch size of one seed."""
    control = descent(lambda ratio: 0.2).to_pylist()
    moved = [r | {"lr": r["lr"] * 4, "batch_size": 32} if r["seed"] == 3 else r for r in control]
    assert len(only(sgd(), pa.Table.from_pylist(moved)).noise) == 5


def of_file(trials, **content):
    return controls.of_file(trials, {"name": "digits", **content})


def test_controls_that_moved_with_a_grid_that_grew_are_not_a_sweep():
    """Those of an earlier smallest batch size are there as well; the sweep file says that none were swept."""
    old = grid(lambda lr, b: bent(lr, b) + 5, rng=5, batch_sizes=(32,), sampler="full")
    new = descent(lambda ratio: 0.5)
    both = pa.concat_tables([sgd(), new, old])
    (verdict,) = judge(of_file(both), {"lambda_max": 0.1})
    assert (verdict.group, verdict.n_trials) == ({}, 200)
    assert verdict.noise == only(sgd(), new).noise
    for content in ({"grid": {"sampler": ["stream", "full"]}}, {"train": {"sampler": "full"}}):
        assert len(judge(of_file(both, **content), {"lambda_max": 0.1})) == 2
    assert len(judge(controls.of_file(both, {}), {"lambda_max": 0.1})) == 2, "imported: by the trials themselves"


def test_new_controls_count_once_they_have_as_many_seeds():
    old = grid(lambda lr, b: bent(lr, b) - 0.5, rng=5, batch_sizes=(32,), sampler="full")
    new = descent(lambda ratio: -0.5)
    part = new.filter(np.asarray(new["seed"]) < 7)
    for added, nu in ((part, 0.5), (new, -0.5)):
        (verdict,) = judge(of_file(pa.concat_tables([sgd(), added, old])), {"lambda_max": 0.1})
        assert [line.n for line in verdict.noise] == [8] * 5
        assert all(line.nu.value == pytest.approx(nu, abs=0.2) for line in verdict.noise)


def test_nu_is_the_paired_difference_with_its_t_interval():
    trials, control = sgd(ratios=RATIOS[:1]), descent(lambda ratio: 0.2, ratios=RATIOS[:1])
    (line,) = only(trials, control).noise
    first = np.log(trials["lambda_max"].to_numpy()[trials["batch_size"].to_numpy() == 8])
    paired = first - np.log(control["lambda_max"].to_numpy())
    low, high = stats.ttest_1samp(paired, 0).confidence_interval(0.9)
    assert line.nu == pytest.approx((paired.mean(), low, high))


def test_without_a_margin_or_with_few_seeds_nothing_is_concluded():
    control = descent(lambda ratio: 1.0)
    assert {line.informative for line in only(sgd(), control, margin=None).noise} == {None}
    few = only(sgd(seeds=3), descent(lambda ratio: 1.0, seeds=3)).noise
    assert {(line.n, line.informative) for line in few} == {(3, None)}


def test_of_several_learning_rates_without_noise_the_nearest_counts():
    near, far = descent(lambda ratio: 0.2), grid(lambda lr, b: 9.0, batch_sizes=[128], sampler="full")
    _, beside = judge(pa.concat_tables([sgd(), near, far]), {"lambda_max": 0.1})
    assert beside.group == {"sampler": "stream"}
    assert beside.noise == only(sgd(), near).noise


def test_controls_belong_to_the_group_that_they_are_like():
    tables = [sgd(momentum=m, rng=int(10 * m)) for m in (0.0, 0.9)]
    control = descent(lambda ratio: 0.5, momentum=0.9)
    plain, heavy = judge(pa.concat_tables([*tables, control]), {"lambda_max": 0.1})
    assert (plain.group, heavy.group) == ({"momentum": 0.0}, {"momentum": 0.9})
    assert plain.noise == ()
    assert len(heavy.noise) == 5


def test_gradient_descent_that_was_swept_is_judged_as_well():
    both = judge(pa.concat_tables([sgd(), grid(bent, sampler="full", rng=3)]), {"lambda_max": 0.1})
    assert [(v.group, len(v.noise)) for v in both] == [({"sampler": "full"}, 0), ({"sampler": "stream"}, 5)]
    assert both[0].n_contrasts == 20


def test_the_floor_is_the_root_mean_square_of_equal_trials():
    trials = sgd(batch_sizes=BATCH_SIZES, order_seed=None)
    again = sgd(batch_sizes=BATCH_SIZES[:1], order_seed=0, rng=7)
    order = pa.array(again["seed"].to_numpy() ^ AGAIN)
    again = again.set_column(again.column_names.index("order_seed"), "order_seed", order)
    trials = trials.set_column(trials.column_names.index("order_seed"), "order_seed", pa.nulls(len(trials), pa.int64()))
    verdict = only(trials, again)
    pairs = [
        (a["lambda_max"], b["lambda_max"])
        for a in again.to_pylist()
        for b in trials.to_pylist()
        if (a["lr"], a["batch_size"], a["seed"]) == (b["lr"], b["batch_size"], b["seed"])
    ]
    spread = math.sqrt(np.mean([math.log(a / b) ** 2 for a, b in pairs]))
    assert (verdict.floor.spread, verdict.floor.n) == (pytest.approx(spread), 40)
    assert verdict.effect == only(trials).effect
    assert verdict.n_trials == 200


def test_rows_hold_what_controls_say():
    row = only(sgd(seeds=2), descent(lambda ratio: 0.5, seeds=1)).as_row()
    assert [line["informative"] for line in row["noise"]] == [None] * 5
    assert row["noise"][0]["nu_low"] is None
    assert row["floor"] is None


@pytest.mark.parametrize("truth", [M, -M])
def test_noise_at_the_margin_is_rarely_called_informative(truth):
    """At most 5%, by the interval of 90%."""
    found = 0
    for rng in range(300):
        trials, control = (
            sgd(ratios=RATIOS[:1], rng=2 * rng, seeds=6),
            descent(lambda r: truth, 6, rng=2 * rng + 1, ratios=RATIOS[:1]),
        )
        found += bool(only(trials, control).noise[0].informative)
    assert found <= stats.binom.isf(1e-4, 300, 0.05)
