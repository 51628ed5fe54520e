import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import trial
from scipy import stats
from torch import Tensor

from trainables import Dataset, inputs
from trainables.inputs import PADDING, Inputs

SHAPES = st.sampled_from([(6,), (4, 2), (1, 3, 4), (3, 4, 2)])
NOISE = st.sampled_from([0.0, 0.3, 1.0])
SHUFFLES = st.sampled_from(["none", "fixed", "per_image"])
KINDS = ["flip", "crop", "crop_flip"]


def dataset(shape: tuple[int, ...] = (2, 3, 4), n: int = 20, dtype: torch.dtype = torch.float64) -> Dataset:
    """Inputs of which no two numbers are equal, and none is zero; real-valued targets."""
    size = math.prod(shape)
    numbers = torch.arange(1, 2 * n * size + 1, dtype=dtype)
    train, test = numbers.view(2, n, *shape)
    return Dataset(train, torch.zeros(n, 1, dtype=dtype), test, torch.zeros(n, 1, dtype=dtype), 1)


def augmentation(shape: tuple[int, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from(["none", *KINDS] if len(shape) == 3 else ["none"])


def halves(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return x[..., :n], x[..., n:]


# Sharing


def test_inputs_that_all_trials_see_alike_are_views() -> None:
    data = dataset()
    seen = Inputs.of(data, [trial(seed=s) for s in range(3)])
    for found, source in ((seen.training, data.train_inputs), (seen.test, data.test_inputs)):
        part = found(slice(5, 9))
        assert (part.shape, part.stride(0)) == ((3, 4, 2, 3, 4), 0)
        assert part.data_ptr() == source[5].data_ptr()
        chosen = found(torch.tensor([7, 7, 2]))
        assert chosen.stride(0) == 0
        assert torch.equal(chosen[1], source[[7, 7, 2]])


def test_a_minibatch_has_the_examples_of_each_trial() -> None:
    data, examples = dataset(), torch.tensor([[3, 1], [0, 19], [5, 5]])
    x = Inputs.of(data, [trial(seed=s) for s in range(3)]).minibatch(examples, torch.tensor([0, 1]))
    assert torch.equal(x, data.train_inputs[examples])


@settings(max_examples=60, deadline=None)
@given(st.data(), SHAPES, NOISE, SHUFFLES, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 8))
def test_a_trial_sees_the_same_in_any_pack_and_chunk(data, shape, noise, shuffle, dtype, cut) -> None:
    source, kind = dataset(shape, dtype=dtype), data.draw(augmentation(shape))
    levels = [(0, noise), (1, noise), (2**62, 0.0)]
    trials = [trial(seed=s, input_noise=p, pixel_shuffle=shuffle, augment=kind) for s, p in levels]
    pack = Inputs.of(source, trials)
    examples = torch.tensor([[4, 0, 19, 7, 7, 2, 11, 3], [5, 5, 1, 0, 2, 3, 18, 6], range(8)])
    positions = torch.arange(1000, 1008)
    batch, training, tests = pack.minibatch(examples, positions), pack.training(slice(2, 10)), pack.test(slice(2, 10))
    assert batch.dtype == training.dtype == tests.dtype == dtype
    parts = zip(halves(examples, cut), halves(positions, cut), strict=True)
    assert torch.equal(batch, torch.cat([pack.minibatch(e, p) for e, p in parts], 1))
    assert torch.equal(training, torch.cat([pack.training(e) for e in halves(torch.arange(2, 10), cut)], 1))
    for i, alone in enumerate(trials):
        for single in (Inputs.of(source, [alone]), pack.take([i])):
            assert torch.equal(single.minibatch(examples[i : i + 1], positions)[0], batch[i])
            assert torch.equal(single.training(torch.arange(2, 10)[None])[0], training[i])
            assert torch.equal(single.test(torch.arange(2, 10))[0], tests[i])


def test_the_data_set_stays_as_it_is() -> None:
    data = dataset()
    before = data.sha256()
    for changes in ({"input_noise": 1.0}, {"pixel_shuffle": "fixed"}, {"augment": "crop_flip"}):
        Inputs.of(data, [trial(**changes)]).minibatch(slice(None), torch.arange(20)).zero_()
        assert data.sha256() == before


# Noise


@given(st.integers(0, 2**63 - 1), st.floats(0, 1), st.floats(0, 1))
def test_inputs_replaced_at_less_noise_are_among_those_at_more(seed: int, one: float, other: float) -> None:
    trials = [trial(seed=seed, input_noise=p) for p in (min(one, other), max(one, other))]
    less, more = Inputs.of(dataset(), trials).replaced
    assert not (less & ~more).any()


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_each_input_is_replaced_with_the_probability_asked_for(probability: float) -> None:
    n, seeds = 500, 20
    trials = [trial(seed=s, input_noise=probability) for s in range(seeds)]
    replaced = Inputs.of(dataset((1,), n), trials).replaced
    assert replaced.shape == (seeds, n)
    assert stats.binomtest(int(replaced.sum()), seeds * n, probability).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_mean_and_deviation_of_the_training_inputs(dtype: torch.dtype) -> None:
    data = dataset((5, 10, 10), 40, dtype)
    seen = Inputs.of(data, [trial(seed=s, input_noise=0.5) for s in range(3)])
    x = seen.training(slice(None))
    assert torch.equal(x[~seen.replaced], data.train_inputs.expand_as(x)[~seen.replaced])
    noise = x[seen.replaced]
    mean, std = data.train_inputs.mean(), data.train_inputs.std(correction=0)
    standardised = (noise - mean) / std
    assert stats.kstest(standardised.flatten().numpy(), "norm").pvalue > 1e-4
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)  # every image, of every seed, its own


def test_noise_is_independent_of_what_is_replaced_and_of_other_trials_settings() -> None:
    trials = [trial(seed=4, input_noise=p, lr=lr) for p, lr in ((0.5, 0.1), (1.0, 0.2))]
    seen = Inputs.of(dataset(), trials)
    half, whole = seen.training(slice(None))
    assert torch.equal(half[seen.replaced[0]], whole[seen.replaced[0]])


def test_noise_made_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Inputs.of(dataset(), [trial(seed=s, input_noise=0.7) for s in range(2)])
    whole = seen.training(slice(None))
    monkeypatch.setattr(inputs, "BLOCK", 50)
    assert torch.equal(seen.training(slice(None)), whole)


def test_test_inputs_are_never_noise() -> None:
    data = dataset()
    assert torch.equal(Inputs.of(data, [trial(input_noise=1.0)]).test(slice(None))[0], data.test_inputs)


# Pixels


def order_of(shuffled: Tensor, original: Tensor) -> Tensor:
    """Which pixel of ``original`` each pixel of ``shuffled`` is, if all channels agree; shape (pixels,)."""
    same = shuffled.flatten(1)[:, :, None] == original.flatten(1)[:, None, :]
    assert torch.equal(same.sum(2), torch.ones_like(same.sum(2)))
    assert (same == same[0]).all()
    return same[0].int().argmax(1)


@pytest.mark.parametrize("shape", [(12,), (3, 2, 6), (1, 3, 4)])
def test_a_fixed_shuffle_is_one_permutation_of_all_images(shape: tuple[int, ...]) -> None:
    data = dataset(shape)
    seen = Inputs.of(data, [trial(seed=s, pixel_shuffle="fixed") for s in range(3)])
    channels = shape[0] if len(shape) == 3 else 1
    pairs = [(seen.training(slice(None)), data.train_inputs), (seen.test(slice(None)), data.test_inputs)]
    orders = set()
    for i in range(3):
        of_trial = {
            tuple(order_of(new.view(channels, -1), old.view(channels, -1)).tolist())
            for seen_inputs, source in pairs
            for new, old in zip(seen_inputs[i], source, strict=True)
        }
        assert len(of_trial) == 1
        orders |= of_trial
    assert len(orders) == 3
    assert all(sorted(order) == list(range(12)) for order in orders)


def test_random_pixels_are_a_permutation_for_each_training_image() -> None:
    data = dataset((2, 3, 4))
    seen = Inputs.of(data, [trial(seed=s, pixel_shuffle="per_image") for s in range(2)])
    x = seen.training(slice(None))
    orders = [order_of(new, old) for mine in x for new, old in zip(mine, data.train_inputs, strict=True)]
    assert len({tuple(order.tolist()) for order in orders}) == 2 * 20
    assert all(torch.equal(order.sort().values, torch.arange(12)) for order in orders)
    assert torch.equal(seen.test(slice(None))[1], data.test_inputs)


def test_random_pixels_are_uniform_and_independent_between_images() -> None:
    pixels, n = 6, 600
    x = Inputs.of(dataset((pixels,), n), [trial(pixel_shuffle="per_image")]).training(slice(None))[0]
    source = (x - 1) % pixels  # which pixel came to each place
    counts = [torch.bincount(column.long(), minlength=pixels) for column in source.T]
    assert all(stats.chisquare(row).pvalue > 1e-4 for row in counts)
    place = source.argsort(1).double()
    between = torch.corrcoef(torch.cat([place[:-1].T, place[1:].T]))[:pixels, pixels:]
    assert float(between.abs().max()) < 5 / n**0.5


def test_noise_is_not_shuffled() -> None:
    data = dataset()
    plain, shuffled = (Inputs.of(data, [trial(input_noise=0.5, pixel_shuffle=kind)]) for kind in ("none", "per_image"))
    x, y, noise = plain.training(slice(None))[0], shuffled.training(slice(None))[0], plain.replaced[0]
    assert torch.equal(x[noise], y[noise])
    assert not (x[~noise] == y[~noise]).flatten(1).all(1).any()


# Augmentation


def crop(image: np.ndarray, down: int, right: int, flipped: bool) -> np.ndarray:
    """Number by number: shifted by (down, right) with zeros from outside, then flipped left to right."""
    channels, height, width = image.shape
    result = np.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + down, (width - 1 - x if flipped else x) + right
                if 0 <= row < height and 0 <= column < width:
                    result[c, y, x] = image[c, row, column]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_every_crop_and_flip_is_equally_likely(kind: str) -> None:
    data, n = dataset((2, 5, 6), 2), 8100
    x = Inputs.of(data, [trial(seed=3, augment=kind)]).minibatch(torch.ones(1, n, dtype=torch.int64), torch.arange(n))
    offsets = range(-PADDING, PADDING + 1) if "crop" in kind else [0]
    image = data.train_inputs[1].numpy()
    expected = {
        crop(image, down, right, flipped).tobytes(): 0
        for down in offsets
        for right in offsets
        for flipped in ([False, True] if "flip" in kind else [False])
    }
    for made in x[0].numpy():
        expected[made.tobytes()] += 1  # a KeyError where it is none of them
    assert len(expected) == {"flip": 2, "crop": 81, "crop_flip": 162}[kind]
    assert stats.chisquare(list(expected.values())).pvalue > 1e-4


def test_augmentation_follows_seed_and_stream_position_whatever_the_batch_size() -> None:
    data, n = dataset((1, 8, 8)), 24
    order, position = torch.arange(n) % 20, torch.arange(n)
    seen = Inputs.of(data, [trial(seed=s, augment="crop_flip") for s in (1, 1, 2)])
    whole = seen.minibatch(order.expand(3, n), position)
    for batch in (1, 4, 8):
        steps = [seen.minibatch(order[p].expand(3, -1), p) for p in position.split(batch)]
        assert torch.equal(torch.cat(steps, 1), whole)
    assert torch.equal(seen.minibatch(order.expand(3, n), position.expand(3, n)), whole)
    assert torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], seen.minibatch(order.expand(3, n), position + n)[0])


def test_only_minibatches_are_augmented_and_noise_is_too() -> None:
    data, position = dataset((1, 8, 8)), torch.arange(20)
    changes = {"input_noise": 1.0, "pixel_shuffle": "per_image"}
    plain, augmented = (Inputs.of(data, [trial(augment=kind, **changes)]) for kind in ("none", "crop"))
    assert torch.equal(plain.training(slice(None)), augmented.training(slice(None)))
    assert torch.equal(plain.test(slice(None)), augmented.test(slice(None)))
    moved = augmented.minibatch(position[None], position)[0]
    noise = plain.training(slice(None))[0]
    assert all(
        set(new[new != 0].tolist()) <= set(old.flatten().tolist()) for new, old in zip(moved, noise, strict=True)
    )
    assert not torch.equal(moved, noise)


# Refusals


@pytest.mark.parametrize(
    ("field", "value", "shape", "allowed"),
    [
        ("augment", "crop", (64,), "(channels, height, width)"),
        ("augment", "flip", (8, 8), "(channels, height, width)"),
        ("pixel_shuffle", "fixed", (2, 2, 2, 2), "(n,), (height, width) or (channels, height, width)"),
        ("pixel_shuffle", "per_image", (), "(n,), (height, width) or (channels, height, width)"),
    ],
)
def test_inputs_without_such_pixels_are_refused(field: str, value: str, shape: tuple[int, ...], allowed: str) -> None:
    data, name = dataset(shape), "mine.data:load"
    Inputs.of(data, [trial(dataset=name)])
    with pytest.raises(ValueError, match=field) as error:
        Inputs.of(data, [trial(**{"dataset": name, field: value})])
    assert str(error.value) == (
        f'{field} "{value}": data set {name} has inputs of shape {shape}, allowed is {allowed}; '
        f'leave {field} at "none" or choose another data set'
    )
