"""The command `isoratio doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from orchestrator.options import STORE, AddressOption, RootOption, StoreOption
from orchestrator.terminal import Exit, Format, FormatOption, fail, print_rows, say, show

if TYPE_CHECKING:
    from orchestrator.health import Check

app = typer.Typer(rich_markup_mode=None)


@app.command()
def doctor(
    address: AddressOption = None,
    data_root: RootOption = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Look for what keeps trials from running: on this machine, or on a cluster and each of its nodes.

    Example: isoratio doctor --address auto --store /scratch/me/results
    """
    from orchestrator.diagnosis import doctor as examined
    from orchestrator.health import State

    found = examined(store, address=address, data_root=data_root)
    if format is Format.TABLE:
        show("\n".join(_lines(found)))
    else:
        print_rows([vars(each) for each in found], format)
    if wrong := sum(each.status is State.WRONG for each in found):
        fail(f"{wrong} of {len(found)} checks found something wrong", Exit.USAGE)
    say(f"{len(found)} checks found nothing wrong")


def _lines(found: list[Check]) -> Iterator[str]:
    """For people: machine by machine, what to do under what is not as it should be."""
    for where, rows in groupby(found, lambda row: row.where):
        yield where
        for row in rows:
            yield f"  {row.status:<8}{row.check}: {row.found}"
            if row.advice:
                yield f"{'':12}→ {row.advice}"
