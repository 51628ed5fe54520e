"""What the commands of every file share: exit codes, the form of rows, messages."""

from __future__ import annotations

import sys
from enum import IntEnum, StrEnum
from typing import Annotated, Any, NoReturn

import typer


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
    """Rows to standard output, a table as wide as the terminal."""
    from analysis.formats import render

    sys.stdout.write(render(rows, format.value, width=width()))


def width() -> int:
    """Columns of the terminal."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def say(text: str) -> None:
    """A message to standard error."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str, code: int, *, name: bool = True) -> NoReturn:
    """Says what is wrong, after the program's name, and ends with an exit code."""
    say(f"isoratio: {text}" if name else text)
    raise SystemExit(code)
