from __future__ import annotations

import pytest
import torch

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
