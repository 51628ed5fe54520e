"""What the commands of every file share: exit codes, the form of rows, messages."""

from __future__ import annotations

import sys
from enum import IntEnum, StrEnum
from typing import Annotated, Any, NoReturn

import typer

from analysis.formats import escaped, render


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    TRIALS_FAILED = 1
    USAGE = 2
    STORE = 3
    HELD = 4
    INTERRUPTED = 130


class Format(StrEnum):
    """How rows come out."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("--format", help="How rows come out.")]


def print_rows(rows: Any, format: Format) -> None:  # noqa: A002
    """Rows to standard output, a table as wide as the terminal; CSV on a terminal is for eyes and shown as such."""
    text = render(rows, format.value, width=width())
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)


def shown(text: str) -> str:
    """Text for people, of one or more lines: what could drive their terminal or hide something is written out."""
    return escaped(text, keep="\n\t")


def show(text: str) -> None:
    """Text for people to standard output."""
    print(shown(text))


def width() -> int:
    """Columns of the terminal."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def say(text: str) -> None:
    """A message to standard error."""
    print(shown(text), file=sys.stderr, flush=True)


def fail(text: str, code: int, *, name: bool = True) -> NoReturn:
    """Says what is wrong, after the program's name, and ends with an exit code."""
    say(f"isoratio: {text}" if name else text)
    raise SystemExit(code)
