"""Names that are known, and the nearest one to a name that is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def check_known(
    what: str, names: Iterable[str], known: Collection[str], holding: str, error: type[ValueError] = ValueError
) -> None:
    """Raises an error for names that are not known, each with the nearest one."""
    problems = []
    for name in names:
        if name not in known:
            hint = get_close_matches(name, known, 1)
            problems.append(f"unknown {what} {name!r}" + (f": did you mean {hint[0]!r}?" if hint else ""))
    if problems:
        raise error(f"{'; '.join(problems)} ({holding} {', '.join(known) or 'none'})")
