"""What measuring yields: numbers of each trial, and rows about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]


class Value(NamedTuple):
    """A statistic of every trial of a group; see :mod:`trainables.statistics`.

    Attributes:
        name: of the statistic.
        value: shape (trials,); NaN where it is not known.
        error: its error, shape (trials,) or one for all: 0 where exact, NaN where not known.
    """

    name: str
    value: Tensor
    error: Tensor | float


class Rows(NamedTuple):
    """Rows of a side table about every trial of a group.

    Attributes:
        table: eigenvalues, density or profiles.
        columns: each of shape (trials, n), or (n,) where trials share it; rows whose number is NaN are left out.
        profile: in `profiles`, the name of the function.
    """

    table: str
    columns: dict[str, Tensor]
    profile: str = ""


Finding = Value | Rows


@dataclass
class Measurements:
    """Statistics of all trials at one moment; NaN where not measured or not known.

    Attributes:
        trials: how many.
        values: statistic -> one number per trial; shape (trials,).
        errors: the statistic's error.
        rows: (table, profile) -> column -> numbers, shape (trials, n).
        failures: trial's position -> traceback of the plug-in metric that failed.
    """

    trials: int
    values: dict[str, Numbers] = field(default_factory=dict)
    errors: dict[str, Numbers] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, Numbers]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, finding: Finding, part: list[int]) -> None:
        """Takes over what was found for the trials at these positions."""
        if isinstance(finding, Value):
            for table, numbers in ((self.values, finding.value), (self.errors, finding.error)):
                table.setdefault(finding.name, self._unknown())[part] = _numpy(numbers)
            return
        columns = self.rows.setdefault((finding.table, finding.profile), {})
        for name, numbers in finding.columns.items():
            n, known = numbers.shape[-1], columns.get(name, self._unknown(0))
            if n > known.shape[1]:  # groups of trials may have rows of unequal number
                known = np.concatenate([known, self._unknown(n - known.shape[1])], 1)
            known[part, :n] = _numpy(numbers)
            columns[name] = known

    def spread(self, place: list[int]) -> Measurements:
        """The same for trials of which several may share a measured one: position -> measured position."""
        values, errors = ({n: v[place] for n, v in table.items()} for table in (self.values, self.errors))
        rows = {key: {n: v[place] for n, v in columns.items()} for key, columns in self.rows.items()}
        return Measurements(len(place), values, errors, rows, self.failures)

    def _unknown(self, *shape: int) -> Numbers:
        return np.full((self.trials, *shape), np.nan)


def _numpy(numbers: Tensor | float) -> Numbers | float:
    return numbers.detach().double().cpu().numpy() if isinstance(numbers, Tensor) else numbers
