import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from analysis.contrasts import Contrasts, contrasts, without_each_seed
from analysis.grid import Grid


def compare(lr, batch_size, seed, y, h=1e-12, diverged=()) -> Contrasts:
    lost = np.isin(np.arange(len(y)), diverged)
    values = np.where(lost, np.nan, y)
    grid = Grid.of(np.array(lr, float), np.array(batch_size, float), np.array(seed))
    return contrasts(grid, values, np.broadcast_to(h, len(y)).astype(float), lost, lost)


def two_cells(first, second, **options) -> Contrasts:
    n, k = len(first), len(second)
    seed = options.pop("seed", [*range(n), *range(k)])
    return compare([0.1] * n + [0.2] * k, [8] * n + [16] * k, seed, [*first, *second], **options)


def test_paired_contrast_by_hand():
    found = two_cells([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 4.0, 5.5])  # differences .5, 0, 1, 1.5
    sd = math.sqrt((0.25**2 + 0.75**2 + 0.25**2 + 0.75**2) / 3)
    assert found.n.tolist() == [4]
    assert found.estimate[0] == pytest.approx(0.75)
    assert found.sd[0] == pytest.approx(sd)
    assert found.reach[0] == pytest.approx(2.353363 * sd / 2, rel=1e-6)  # t(3) at .95
    assert (found.lr[0], found.batch_size[0], found.reference_batch_size[0]) == (0.2, 16, 8)


def test_every_cell_of_a_line_is_compared_with_its_smallest_batch_size():
    lr, size, y = [0.1, 0.2, 0.4, 0.05, 0.1, 0.3], [8, 16, 32, 8, 16, 7], [1.0, 2.0, 4.0, 10.0, 20.0, 99.0]
    found = compare(lr * 4, size * 4, np.repeat(range(4), 6), y * 4)
    assert sorted(zip(found.lr, found.estimate, strict=True)) == [(0.1, 10.0), (0.2, 1.0), (0.4, 3.0)]


def test_equal_ratios_are_one_line_whatever_their_last_bits():
    assert 0.35 / 5 != 0.14 / 2
    assert len(compare([0.35, 0.14], [5, 2], [0, 0], [1.0, 2.0])) == 1
    assert len(compare([0.35, 0.14002], [5, 2], [0, 0], [1.0, 2.0])) == 0


values = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=4, max_size=12)


@settings(deadline=None)
@given(values, st.integers(0, 2**32 - 1))
def test_paired_interval_is_scipys(first, seed):
    second = np.array(first) + np.random.default_rng(seed).normal(0.1, 1, len(first))
    found, expected = two_cells(first, second), stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.9)
    assert found.df[0] == expected.df
    assert found.interval(0) == pytest.approx((np.mean(second - first), *interval), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(values, values, st.integers(0, 2**32 - 1))
def test_without_shared_seeds_it_is_scipys_welch(first, second, seed):
    first = np.array(first) + np.random.default_rng(seed).normal(0, 1, len(first))
    found = two_cells(first, second, seed=range(len(first) + len(second)))
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert found.unpaired.all()
    assert found.n[0] == min(len(first), len(second))
    assert found.df[0] == pytest.approx(expected.df)
    assert found.interval(0)[1:] == pytest.approx(expected.confidence_interval(0.9), rel=1e-8, abs=1e-8)


@settings(deadline=None)
@given(values, st.integers(0, 2**32 - 1), st.floats(0.05, 2))
def test_inside_the_margin_is_statsmodels_tost(first, seed, m):
    second = np.array(first) + np.random.default_rng(seed).normal(0, 0.5, len(first))
    p = ttost_paired(second, np.array(first), -m, m)[0]
    assert two_cells(first, second).inside(m)[0] == (p < 0.05)


def test_spread_is_never_below_the_resolution():
    ties = two_cells([0.9] * 4, [0.91] * 4, h=0.01)
    assert ties.constant.all()
    assert ties.sd[0] == pytest.approx(0.01 / math.sqrt(6))
    assert two_cells([0.1, 0.5, 0.3, 0.7], [0.5, 0.1, 0.9, 0.2], h=0.01).sd[0] > 0.4
    apart = two_cells([0.9] * 4, [0.91] * 4, h=0.01, seed=range(8))
    assert apart.se[0] == pytest.approx(0.01 / math.sqrt(6) / 2)
    assert apart.df[0] == pytest.approx(6)


def test_only_shared_seeds_count():
    found = two_cells([50, 1, 2, 3, 4], [1, 3, 3, 6, 99], seed=[*range(5), *range(1, 6)])
    assert found.n.tolist() == [4]
    assert found.estimate[0] == pytest.approx(0.75)  # of 0, 1, 0, 2


def test_trials_that_repeat_a_seed_are_averaged_not_counted_twice():
    once = two_cells([1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 4.0, 6.0])
    twice = compare(
        [0.1] * 4 + [0.2] * 8,
        [8] * 4 + [16] * 8,
        [*range(4), *range(4), *range(4)],
        [1.0, 2.0, 3.0, 4.0, 1.0, 1.5, 3.0, 5.0, 3.0, 3.5, 5.0, 7.0],
    )
    assert twice.n.tolist() == [4]
    assert twice.interval(0) == pytest.approx(once.interval(0))


def test_divergence_spoils_the_contrasts_of_its_cell():
    y = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert not two_cells(y, y).spoiled.any()
    of_cell, of_reference = two_cells(y, y, diverged=[7]), two_cells(y, y, diverged=[0])
    assert of_cell.spoiled.all()
    assert of_reference.spoiled.all()
    assert of_cell.n.tolist() == [4]
    assert not of_cell.extinct.any()


def test_a_cell_that_always_diverges_is_broken_unless_its_reference_does_too():
    y = [1.0, 2.0, 3.0, 4.0]
    assert two_cells(y, y, diverged=range(4, 8)).outside(0.1).all()
    assert not two_cells(y, y, diverged=range(3, 8)).outside(0.1).any()
    assert not two_cells(y[:3], y[:3], diverged=range(3, 6)).outside(0.1).any()


def test_no_trials_no_contrasts():
    assert len(compare([], [], [], [])) == 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0), st.sampled_from([0.0, 0.2]), st.booleans())
def test_without_each_seed_is_a_grid_that_never_had_it(number: int, kept: float, lost: float, outlier: bool) -> None:
    """Cells may lack seeds, share none with their reference, hold a seed twice or only diverged trials."""
    rng = np.random.default_rng(number)
    ratio, size, seed = (a.ravel() for a in np.meshgrid([0.1, 0.2], [8.0, 16.0, 32.0], np.arange(7), indexing="ij"))
    chosen = rng.choice(len(ratio), int(kept * len(ratio)), replace=False)
    chosen = np.concatenate([chosen, chosen[:3]])
    lr, size, seed = (ratio * size)[chosen], size[chosen], seed[chosen].astype(np.int64)
    y, h = rng.normal(size=len(chosen)), np.full(len(chosen), 1e-3)
    y[0] += 1e9 * outlier
    diverged = rng.random(len(chosen)) < lost
    y[diverged] = np.nan
    whole = Grid.of(lr, size, seed)
    found, blocked = without_each_seed(whole, y, h, diverged, diverged)
    for place, left_out in enumerate(np.unique(seed)):
        own = seed != left_out
        alone = contrasts(Grid.of(lr[own], size[own], seed[own]), y[own], h[own], diverged[own], diverged[own])
        assert blocked[place] == diverged[own].any()
        for k in range(len(alone)):
            sizes = found.batch_size == alone.batch_size[k], found.reference_batch_size == alone.reference_batch_size[k]
            same = (found.lr == alone.lr[k]) & sizes[0] & sizes[1]
            if not same.any():  # its reference had no other seed
                continue
            (j,) = np.flatnonzero(same)
            for name in ("n", "estimate", "sd", "df", "unpaired", "spoiled", "extinct", "constant"):
                got, wanted = getattr(found, name)[place, j], getattr(alone, name)[k]
                if name in {"sd", "df"} and alone.n[k] < 2:
                    continue
                assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9, nan_ok=True), name
