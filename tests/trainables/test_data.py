from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables import Dataset
from trainables.datasets import load_dataset


def test_digits_are_the_real_ones_split_and_scaled() -> None:
    digits = load_dataset("digits")
    assert (digits.train_size, len(digits.test_inputs), digits.num_classes) == (1437, 360, 10)
    assert digits.input_shape == (64,)
    assert abs(float(digits.train_inputs.mean())) < 1e-12
    assert float(digits.train_inputs.std(correction=0)) == pytest.approx(1)
    labels = torch.cat([digits.train_targets, digits.test_targets])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = torch.cat([digits.train_inputs, digits.test_inputs])
    assert len(torch.unique(images, dim=0)) == 1797


def test_the_teacher_is_a_function_of_its_seed() -> None:
    a, b, other = (
        load_dataset(f'{{"dimension":5,"name":"teacher","seed":{s},"test_size":9,"train_size":2000{pad}}}')
        for s, pad in ((0, ""), (0, ',"width":32'), (1, ""))
    )
    assert a.sha256() == b.sha256() != other.sha256()
    assert abs(float(a.train_inputs.mean())) < 0.05
    assert float(a.train_inputs.std()) == pytest.approx(1, abs=0.03)
    assert len(a.train_targets.unique()) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_inputs": torch.zeros(3, 2, dtype=torch.int64)}, "train_inputs: floating point"),
        ({"train_targets": torch.tensor([0, 1])}, "train: 3 inputs but 2 targets"),
        ({"train_targets": torch.tensor([0, 1, 2])}, "train_targets: labels 0 to 1"),
        ({"test_targets": torch.tensor([-1])}, "test_targets: labels 0 to 1"),
        ({"train_targets": torch.zeros(3, 5)}, r"train_targets: real values need shape \(N, 2\)"),
        ({"test_inputs": torch.zeros(0, 2), "test_targets": torch.zeros(0, dtype=torch.int64)}, "at least one example"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(changes: dict[str, object], message: str) -> None:
    good = {
        "train_inputs": torch.zeros(3, 2),
        "train_targets": torch.tensor([0, 1, 1]),
        "test_inputs": torch.zeros(1, 2),
        "test_targets": torch.tensor([0]),
        "num_classes": 2,
    }
    Dataset(**good)
    with pytest.raises(ValueError, match=message):
        Dataset(**good | changes)


def _numbered(n: int) -> Dataset:
    """Input i is (i, -i), its label i mod 3."""
    i = torch.arange(n)
    inputs = torch.stack([i, -i], 1).double()
    return Dataset(inputs, i % 3, inputs[:2] + 0.5, i[:2], num_classes=3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.data())
def test_first_examples_are_nested_and_keep_their_labels(n: int, data: st.DataObject) -> None:
    whole = _numbered(n)
    few = data.draw(st.integers(1, n))
    more = data.draw(st.integers(few, n))
    small, large = whole.first(few), whole.first(more)
    assert (small.train_size, large.train_size) == (few, more)
    assert torch.equal(small.train_inputs, large.train_inputs[:few])
    assert torch.equal(small.train_targets, large.train_targets[:few])
    chosen = large.train_inputs[:, 0].long()
    assert len(set(chosen.tolist())) == more
    assert torch.equal(large.train_targets, chosen % 3)
    assert torch.equal(large.test_inputs, whole.test_inputs)


def test_the_first_examples_are_spread_over_the_set_and_fixed() -> None:
    whole = _numbered(10_000)
    chosen = whole.first(1000).train_inputs[:, 0]
    assert float(chosen.mean()) == pytest.approx(5000, abs=4 * 10_000 / 12**0.5 / 1000**0.5)
    assert torch.equal(chosen, _numbered(10_000).first(1000).train_inputs[:, 0])


@pytest.mark.parametrize("n", [0, 6])
def test_more_examples_than_there_are_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"train_size {n}: the training set has 5 examples: allowed are 1 to 5"):
        _numbered(5).first(n)


def test_moments_are_those_of_all_training_inputs_together() -> None:
    inputs = 1000 + torch.randn(700, 3, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset(inputs, torch.zeros(700, dtype=torch.int64), inputs[:1], torch.zeros(1, dtype=torch.int64), 1)
    exact = inputs.double()
    assert data.input_moments == pytest.approx((float(exact.mean()), float(exact.std(correction=0))), rel=1e-12)
    assert _numbered(3).input_moments == pytest.approx((0, (10 / 6) ** 0.5))


def test_the_hash_covers_types_shapes_and_bytes() -> None:
    data = _numbered(4)
    expected = hashlib.sha256()
    for tensor in (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets):
        array = tensor.numpy()
        expected.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    assert data.sha256() == expected.hexdigest()
    strided = torch.stack([data.train_inputs, data.train_inputs], 2)[..., 0]
    assert not strided.is_contiguous()
    assert Dataset(strided, data.train_targets, data.test_inputs, data.test_targets, 3).sha256() == data.sha256()
    assert data.first(4).sha256() != data.sha256()
