"""From the store to tables, statistics and the report.

>>> import analysis
>>> store = analysis.open("results")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.opening import open  # noqa: A004

__all__ = ["open"]


def __getattr__(name: str) -> Any:
    if name == "open":  # imported when first used, so that no command pays for it
        from analysis.opening import open  # noqa: A004

        return open
    raise AttributeError(f"module 'analysis' has no attribute {name!r}; it has {', '.join(__all__)}")
