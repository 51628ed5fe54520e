import math

import numpy as np
import pytest
from planted import made

from analysis.frontier import frontier

HOLDS, OPEN, BROKEN = 0.0, 0.22, 0.9  # with m = 0.2 and intervals of ±0.06


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        ([HOLDS, HOLDS, HOLDS], (3, None)),
        ([HOLDS, HOLDS, BROKEN], (2, 3)),
        ([HOLDS, OPEN, BROKEN], (1, 3)),
        ([HOLDS, OPEN, HOLDS, BROKEN], (1, 4)),
        ([HOLDS, BROKEN, HOLDS], (1, None)),
        ([BROKEN, BROKEN, BROKEN], (None, 1)),
        ([BROKEN, HOLDS, BROKEN], (None, 3)),
    ],
)
def test_up_while_all_hold_and_down_while_some_is_broken(estimates, expected):
    assert frontier(made(estimates), 0.2) == expected


def test_no_bound_no_frontier():
    assert frontier(made([OPEN, OPEN]), 0.2) is None
    assert frontier(made([]), 0.2) is None
    assert frontier(made([HOLDS]), math.nan) is None
    assert frontier(made([HOLDS, HOLDS], constant=np.array([True, True])), 0.2) is None
    assert frontier(made([HOLDS, HOLDS], n=3), 0.2) is None


def test_all_contrasts_of_one_learning_rate_count():
    lr = [1.0, 2.0, 2.0 * (1 + 1e-12), 4.0]
    assert frontier(made([HOLDS, HOLDS, BROKEN, BROKEN], lr=lr), 0.2) == (1, 2)
    assert frontier(made([HOLDS, HOLDS, HOLDS, OPEN], lr=lr), 0.2) == (2, None)


def test_divergence_ends_it_and_a_cell_that_always_diverges_is_broken():
    spoiled, extinct = np.array([False, True, True]), np.array([False, False, True])
    assert frontier(made([HOLDS, HOLDS, HOLDS], spoiled=spoiled), 0.2) == (1, None)
    nothing = [HOLDS, HOLDS, math.nan]
    assert frontier(made(nothing, n=[9, 9, 0], spoiled=extinct, extinct=extinct), 0.2) == (2, 3)


def test_a_learning_rate_without_enough_seeds_is_passed_over_on_the_way_down_only():
    assert frontier(made([HOLDS, BROKEN, HOLDS], n=[9, 9, 3]), 0.2) == (1, 2)
    assert frontier(made([HOLDS, HOLDS, HOLDS], n=[9, 3, 9]), 0.2) == (1, None)
