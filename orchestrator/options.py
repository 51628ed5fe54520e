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
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="A running Ray: on a node auto or HOST:PORT, from anywhere http://HOST:8265. Default: start one here.",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="http://HOST:8265 of a cluster that sees the store, if not seen here."
    ),
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Replace a launch that holds the sweep, without waiting for it.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Go on in the background; look in with `status`, `logs`.")]
ExecutorOption = Annotated[ExecutorName, typer.Option(help="ray, or inline: in this process, for debugging.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Stop after the pack that completes so many trials.")]
ConcurrentOption = Annotated[
    int | None, typer.Option("--max-concurrent", min=1, metavar="N", help="Run so many packs at a time at most.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-hours",
        min=0.0,
        metavar="H",
        help="Stop once packs have taken so many GPU-hours (CPU-hours where they take no GPU).",
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file, YAML or TOML.", show_default=False)]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep.", show_default=False)]

STORE = "results"
