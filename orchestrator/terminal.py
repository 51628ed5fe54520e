"""What the commands of every file share: exit codes, the form of rows, messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from analysis.formats import escaped, render

if TYPE_CHECKING:
    from analysis.sql import Rows


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


class AnswerFormat(StrEnum):
    """How an answer of any size comes out."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    PARQUET = "parquet"


FormatOption = Annotated[Format, typer.Option("--format", help="How rows come out.")]
AnswerFormatOption = Annotated[AnswerFormat, typer.Option("--format", help="How rows come out; a table may be cut.")]

MOST_SHOWN = 200
"""Rows of a table on a terminal."""

MOST_IN_TABLE = 10_000
"""Rows of a table elsewhere: its layout needs all of them at once."""


def print_rows(rows: Any, format: Format) -> None:  # noqa: A002
    """Rows to standard output, a table as wide as the terminal; CSV on a terminal is for eyes and shown as such."""
    text = render(rows, format.value, width=width())
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()  # messages that follow are about them


def print_answer(rows: Rows, format: AnswerFormat) -> None:  # noqa: A002
    """Rows to standard output as they come; a long table is cut, and a message says so.

    Raises:
        ValueError: Parquet is to go to a terminal.
    """
    from analysis.streaming import cut, texts, write_parquet

    on_terminal = sys.stdout.isatty()
    if format is AnswerFormat.PARQUET:
        if on_terminal:
            raise ValueError("Parquet is not for a terminal: write it to a file with `> rows.parquet`")
        write_parquet(rows, sys.stdout.buffer)
    elif format is AnswerFormat.TABLE:
        kept, n = cut(rows, MOST_SHOWN if on_terminal else MOST_IN_TABLE)
        print_rows(kept, Format.TABLE)
        if n > len(kept):
            say(f"{n:,} rows, the first {len(kept):,} are shown; all with format csv, json, markdown or parquet")
    else:
        for text in texts(rows, format.value):
            sys.stdout.write(shown(text) if on_terminal else text)


class _NoPandas:
    """Finds no pandas; see :func:`without_pandas`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("not needed here", name=name)


@contextmanager
def without_pandas() -> Iterator[None]:
    """Spares a command that only asks the import of pandas, half of its time.

    ``pyarrow.dataset`` imports it where it is installed, to know its data frames when it meets one. PyArrow tries again
    when one is asked for.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        yield
    finally:
        sys.meta_path.remove(_NoPandas)


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
