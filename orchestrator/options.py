"""Options and arguments that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

RootOption = Annotated[
    str | None,
    typer.Option("--data-root", envvar="ISORATIO_DATA", metavar="DIR", help="Directory of data files."),
]


class ExecutorName(StrEnum):
    """Where packs run."""

    RAY = "ray"
    INLINE = "inline"


StoreOption = Annotated[
    str, typer.Option("--store", envvar="ISORATIO_STORE", metavar="DIR_OR_URL", help="The store: directory or URL.")
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray: auto or HOST:PORT. Default: start one here.")
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Replace a launch that holds the sweep, without waiting for it.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Go on in the background; look in with `status`, `logs`.")]
ExecutorOption = Annotated[ExecutorName, typer.Option(help="ray, or inline: in this process, for debugging.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Stop after the pack that completes so many trials.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file, YAML or TOML.", show_default=False)]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep.", show_default=False)]

STORE = "results"
