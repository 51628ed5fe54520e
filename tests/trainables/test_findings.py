"""What is found of trials that are measured group by group."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.findings import Measurements, Rows, Value

NAN = float("nan")


def test_values_come_to_the_trials_they_are_of() -> None:
    found = Measurements(3)
    found.add(Value("x", torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])), [2, 0])
    found.add(Value("x", torch.tensor([3.0]), 0.0), [1])
    found.add(Value("y", torch.tensor([4.0]), 0.0), [1])
    assert found.values["x"].tolist() == [2, 3, 1]
    assert found.errors["x"] == pytest.approx([0.2, 0, 0.1])
    np.testing.assert_array_equal(found.values["y"], [NAN, 4, NAN])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_groups_may_have_rows_of_unequal_number(order: list[int]) -> None:
    parts = {0: [1.0], 1: [2.0, 3.0, 4.0], 2: [5.0, 6.0]}
    found = Measurements(3)
    for trial in order:
        node = torch.tensor([parts[trial]])
        found.add(Rows("density", {"probe": torch.zeros(node.shape[1]), "node": node}, "0"), [trial])
    rows = found.rows["density", "0"]
    np.testing.assert_array_equal(rows["node"], [[1, NAN, NAN], [2, 3, 4], [5, 6, NAN]])
    np.testing.assert_array_equal(rows["probe"], [[0, NAN, NAN], [0, 0, 0], [0, 0, NAN]])


def test_a_trial_may_stand_for_several() -> None:
    found = Measurements(2)
    found.add(Value("x", torch.tensor([1.0, 2.0]), 0.0), [0, 1])
    found.add(Rows("profiles", {"x": torch.arange(2), "value": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, "f"), [0, 1])
    spread = found.spread([1, 0, 1])
    assert spread.values["x"].tolist() == [2, 1, 2]
    assert spread.rows["profiles", "f"]["value"].tolist() == [[3, 4], [1, 2], [3, 4]]
    assert spread.rows["profiles", "f"]["x"].tolist() == [[0, 1]] * 3
