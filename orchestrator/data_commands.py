"""The commands `isoratio data ...`: what data sets there are, their downloads, their checksums."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.options import RootOption
from orchestrator.terminal import Exit, Format, FormatOption, fail, print_rows, say

NAME = "mnist, fashion-mnist, cifar10 or cifar100."

app = typer.Typer(help="List, download and check data sets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(data_root: RootOption = None, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Show the built-in data sets and whether their files are there and right.

    Example: isoratio data list
    """
    from orchestrator import data

    print_rows([vars(row) for row in data.list(data_root)], format)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help=NAME, show_default=False)],
    data_root: RootOption = None,
) -> None:
    """Download data sets; nothing else ever does.

    Example: isoratio data fetch mnist cifar10
    """
    from orchestrator import data

    for name, fetched in data.fetch(names, data_root, _progress()).items():
        say(f"{name}: " + (f"downloaded {', '.join(map(str, fetched))}" if fetched else "was there already"))


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]", help=f"{NAME} Default: all here.")] = None,
    data_root: RootOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Check the files of data sets against their published checksums.

    Example: isoratio data verify mnist
    """
    from orchestrator import data

    bad = data.verify(names, data_root)
    if bad or format is not Format.TABLE:
        print_rows([vars(row) for row in bad], format)
    if bad:
        fail(f"files damaged or missing: {len(bad)}", Exit.STORE)
    say("every file that is here is what was published")


def _progress() -> Callable[[str, int, int | None], None] | None:
    """One line that counts up, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(file: str, received: int, total: int | None) -> None:
        end = "\n" if received == total else ""
        of = f" of {total / 1e6:.1f}" if total else ""
        print(f"\r{file}: {received / 1e6:.1f}{of} MB", end=end, file=sys.stderr, flush=True)

    return show
