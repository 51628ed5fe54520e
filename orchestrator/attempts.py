"""How often a pack runs again in one launch, by what has ended it."""

from __future__ import annotations

import math
from collections import Counter

BUDGETS = {"crash": 1, "preemption": 20, "memory": math.inf, "exception": 2}
"""How often a launch runs a pack again after each cause, as it is, before its trials count as failed.

- ``crash``: its process died. Once may be chance; what crashes twice is tried trial by trial, as ``retries`` says.
- ``preemption``: its machine was taken away, which says nothing about the trials.
- ``memory``: it took more than there is. Each time it is cut in half, so that it is never tried the same way, and this
  ends where nothing is left to cut.
- ``exception``: neither crash nor trial, but the store or the machine: its errors are often short.

What a trial's own code raises is recorded at once, and tried again ``retries`` times as the sweep file says.
"""


class Attempts:
    """Counts of one launch; the next one starts afresh, for a person has looked at it."""

    def __init__(self) -> None:
        self.spent: Counter[tuple[str, str]] = Counter()

    def again(self, pack_id: str, cause: str) -> bool:
        """Whether a pack may run once more after this."""
        self.spent[pack_id, cause] += 1
        return self.spent[pack_id, cause] <= BUDGETS[cause]
