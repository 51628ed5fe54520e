"""What a trial is, how it trains, what it measures and records.

``from trainables import Dataset, Probe`` gives the types that a plug-in needs; nothing here imports torch before it
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.data import Dataset
    from trainables.probe import Probe

__all__ = ["Dataset", "Probe"]

_HOME = {"Dataset": "trainables.data", "Probe": "trainables.probe"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'trainables' has no attribute {name!r}; it has {', '.join(__all__)}")
