"""The decision rule: equivalent, different or inconclusive, and how many seeds would decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import numpy as np

from analysis.contrasts import LEAST_SEEDS, Contrasts, t_upper
from analysis.noncentral import difference_power, equivalence_power
from analysis.scales import BoolArray, FloatArray

ALPHA = 0.05
"""Chance of a wrong "equivalent", and of a wrong "different"."""

POWER = 0.8
"""Chance of a decision that `seeds_needed` asks for."""

MOST_SEEDS = 10_000


class Outcome(StrEnum):
    """What the data say about equal lr / batch_size."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"


def decide(contrasts: Contrasts, m: float, blocked: bool, alpha: float = ALPHA) -> Outcome:
    """The verdict on a grid.

    - equivalent: every contrast's 90% interval lies inside ±m (intersection-union: no correction) and no trial of the
      grid diverged.
    - different: beyond ±m with p ≤ 0.025 at the highest learning rate, or with K min p ≤ 0.025 over K contrasts.
    - inconclusive: otherwise, and always without a margin, without contrasts of 4 seeds or without any spread.

    Args:
        contrasts: of the grid.
        m: margin on the scale; NaN where none is given.
        blocked: whether any trial of the grid diverged or ended with an unusable value.
        alpha: chance of each wrong answer; a planned look has a share of the 5% (see :mod:`analysis.sequential`).
    """
    return decide_each(contrasts, m, np.array([blocked]), alpha)[0]


def decide_each(contrasts: Contrasts, m: float, blocked: BoolArray, alpha: float = ALPHA) -> list[Outcome]:
    """Verdicts on S grids of the same cells: contrasts of shape (S, K), blocked (S,); else as :func:`decide`."""
    tested = contrasts.testable
    known = tested.any(-1) & ~contrasts.motionless & (not math.isnan(m))
    different = known & (tested & (beyond(contrasts, m) <= judged_at(contrasts, tested, alpha))).any(-1)
    equivalent = known & ~blocked & ~different
    if equivalent.any():
        equivalent &= contrasts.inside(m, alpha).all(-1)
    return [
        Outcome.DIFFERENT if differs else Outcome.EQUIVALENT if equals else Outcome.INCONCLUSIVE
        for differs, equals in zip(np.atleast_1d(different), equivalent, strict=True)
    ]


def beyond(contrasts: Contrasts, m: float) -> FloatArray:
    """P value of each contrast for "the true difference is within ±m", shape (K,) or (S, K).

    p = P(T > (|d| - m) / se) + P(T > (|d| + m) / se), which is 1 for d = 0 = m.
    """
    size = np.abs(contrasts.estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (size - m) / contrasts.se, (size + m) / contrasts.se
    return t_upper(contrasts.df, near) + t_upper(contrasts.df, far)


def furthest(contrasts: Contrasts) -> int | None:
    """Which contrast reaches furthest from 0, |d| + t se; one of at least 4 seeds where there is any."""
    reach = np.abs(contrasts.estimate) + contrasts.reach
    candidates = contrasts.testable if contrasts.testable.any() else np.isfinite(reach)
    return int(np.argmax(np.where(candidates, reach, -np.inf))) if candidates.any() else None


def seeds_needed(contrasts: Contrasts, m: float, blocked: bool) -> int | None:
    """Seeds per cell for a decision with probability 0.8, were the differences and spreads seen the true ones.

    Asks for "equivalent" where all differences are within the margin (contrasts counted as independent), for
    "different" otherwise. None where no number up to 10,000 brings it, as for "equivalent" in a grid that is blocked.
    """
    known = contrasts.n > 1
    if math.isnan(m) or contrasts.motionless or not known.any():
        return LEAST_SEEDS if (contrasts.n == 1).any() and not known.any() else None
    within = bool((np.abs(contrasts.estimate[known]) < m).all())
    if within and blocked:
        return None
    power = _power_equivalent if within else _power_different
    return _first(lambda n: power(contrasts, m, n) >= POWER)


def judged_at(contrasts: Contrasts, tested: BoolArray, alpha: float = ALPHA) -> FloatArray:
    """Level at which each tested contrast is judged: half of alpha for the leading one, half shared by all."""
    share = np.repeat(alpha / 2 / np.maximum(tested.sum(-1, keepdims=True), 1), len(contrasts), axis=-1)
    if len(contrasts):
        place = np.argsort(np.lexsort((contrasts.ratio, contrasts.lr_level)))
        leading = np.argmax(np.where(tested, place, -1), axis=-1, keepdims=True)
        np.put_along_axis(share, leading, alpha / 2, axis=-1)
    return share


def _planned(contrasts: Contrasts, n: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Size, standard error and degrees of freedom of the contrasts with n seeds, where the spread is known."""
    known = contrasts.n > 1
    df = contrasts.df[known] * (n - 1) / (contrasts.n[known] - 1)
    return np.abs(contrasts.estimate[known]), contrasts.sd[known] / math.sqrt(n), df


def _power_equivalent(contrasts: Contrasts, m: float, n: int) -> float:
    return float(np.prod(equivalence_power(*_planned(contrasts, n), m, ALPHA)))


def _power_different(contrasts: Contrasts, m: float, n: int) -> float:
    known = contrasts.n > 1
    return float(difference_power(*_planned(contrasts, n), m, judged_at(contrasts, known)[known]).max())


def _first(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds for which `enough` holds, taken to stay true from there on."""
    if not enough(MOST_SEEDS):
        return None
    low, high = LEAST_SEEDS - 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
