import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.streams import Purpose, examples, label_noise, normals, permutation, rademacher, uniforms, words

SEEDS = st.integers(0, 2**63 - 1)


@given(SEEDS, st.integers(0, 2**40), st.integers(1, 300))
def test_a_permutation_visits_every_example_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(permutation(seed, epoch, n)) == list(range(n))


@given(SEEDS, st.integers(1, 60), st.integers(0, 200), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_the_stream_does_not_depend_on_the_batch_size(seed, n, start, first, second, replacement) -> None:
    """Reading first + second positions at once, or one after the other, gives the same examples."""
    whole = examples(seed, start, start + first + second, n, replacement=replacement)
    parts = [
        examples(seed, start, start + first, n, replacement=replacement),
        examples(seed, start + first, start + first + second, n, replacement=replacement),
    ]
    assert len(whole) == first + second
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_every_epoch_of_the_stream_is_a_permutation() -> None:
    stream = examples(3, 0, 50, 10, replacement=False).reshape(5, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in stream)
    assert len({tuple(epoch) for epoch in stream}) == 5


def test_the_replacement_sampler_draws_uniformly() -> None:
    counts = np.bincount(examples(1, 0, 200_000, 10, replacement=True), minlength=10)
    assert abs(counts - 20_000).max() < 5 * np.sqrt(20_000)


def test_streams_of_other_seeds_purposes_blocks_and_indices_are_unrelated() -> None:
    streams = [
        words(0, Purpose.ORDER, 64),
        words(1, Purpose.ORDER, 64),
        words(0, Purpose.TRACE, 64),
        words(0, Purpose.ORDER, 64, block=1),
        words(0, Purpose.ORDER, 64, index=1),
    ]
    assert len({int(w) for s in streams for w in s}) == 5 * 64


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (1, 2), (3, 13), (4, 8), (7, 13), (13, 13)])
def test_a_stream_can_be_drawn_in_parts(start: int, stop: int) -> None:
    whole = words(5, Purpose.DATA, 13, block=2, index=1)
    assert words(5, Purpose.DATA, stop - start, 2, 1, start).tolist() == whole[start:stop].tolist()
    numbers = normals(5, Purpose.DATA, 13, block=2, index=1)
    assert normals(5, Purpose.DATA, 13, 2, 1, start, stop).tolist() == numbers[start:stop].tolist()


def test_words_are_the_published_philox_output() -> None:
    """Pinned, since stored trials can only be repeated while these never change."""
    assert words(0, Purpose.ORDER, 2).tolist() == np.random.Philox(key=[0, 2], counter=0).random_raw(2).tolist()
    assert permutation(0, 0, 8).tolist() == PERMUTATION


PERMUTATION = [6, 7, 2, 1, 3, 5, 0, 4]


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_label_noise_redraws_the_given_fraction_uniformly(p: float) -> None:
    labels = np.zeros(100_000, dtype=np.int64)
    noisy = label_noise(5, p, labels, 10)
    expected = p * 0.9  # one redrawn label in ten stays what it was
    assert (
        abs((noisy != labels).mean() - expected) < 5 * np.sqrt(max(expected * (1 - expected), 1e-12) / 100_000) + 1e-12
    )
    if p:
        counts = np.bincount(noisy, minlength=10)[1:]
        assert counts.max() - counts.min() < 8 * np.sqrt(counts.mean())


def test_more_noise_redraws_a_superset_to_the_same_labels() -> None:
    labels = np.arange(1000) % 10
    less, more = (label_noise(2, p, labels, 10) for p in (0.2, 0.5))
    changed = less != labels
    np.testing.assert_array_equal(less[changed], more[changed])


def test_rademacher_signs_are_balanced_and_uniforms_in_the_unit_interval() -> None:
    signs = rademacher(0, Purpose.TRACE, 100_001, block=3)
    assert signs.shape == (100_001,)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.astype(float).mean()) < 5 / np.sqrt(100_001)
    u = uniforms(words(0, Purpose.DATA, 10_000))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 10_000)


@pytest.mark.parametrize("n", [1, 30, 100])
def test_label_noise_of_a_part_is_that_of_the_whole(n: int) -> None:
    labels = np.arange(100) % 10
    whole = label_noise(3, 0.5, labels, 10)
    np.testing.assert_array_equal(label_noise(3, 0.5, labels[:n], 10, whole=100), whole[:n])
