"""Up to which learning rate invariance holds, and from which one it is broken."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from analysis.contrasts import Contrasts
from analysis.scales import BoolArray


class Frontier(NamedTuple):
    """The truth lies between the two; None where the data do not say.

    Attributes:
        lr_low: the largest lr such that all contrasts up to it are equivalent.
        lr_high: the lowest lr, coming down from the highest, while some contrast is outside the margin.
    """

    lr_low: float | None
    lr_high: float | None


def frontier(contrasts: Contrasts, m: float) -> Frontier | None:
    """Where equivalence within ±m ends, or None where neither bound is found.

    Going up stops at the first learning rate that fails, so `lr_low` is too high in at most 5% of studies. A learning
    rate without a contrast of enough seeds fails on the way up and is passed over on the way down.
    """
    if math.isnan(m) or not len(contrasts) or contrasts.motionless:
        return None
    level, inside, outside = contrasts.lr_level, contrasts.inside(m), contrasts.outside(m)
    holds = np.bincount(level[~inside], minlength=level.max() + 1) == 0
    low = _leading(holds)
    told = np.unique(level[contrasts.testable | contrasts.extinct])
    broken = np.isin(told, level[outside])
    high = told[len(told) - _leading(broken[::-1]) :]
    found = Frontier(
        float(contrasts.lr[level == low - 1][0]) if low else None,
        float(contrasts.lr[level == high[0]][0]) if len(high) else None,
    )
    return None if found == (None, None) else found


def _leading(marks: BoolArray) -> int:
    """How many at the start are true."""
    return len(marks) if marks.all() else int(np.argmin(marks))
