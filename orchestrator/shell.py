"""The prompt of ``isoratio sql``: history, completion, dot commands; every query sees the rows of its moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from analysis.completion import Vocabulary, is_complete
from analysis.database import COLUMNS
from analysis.queries import queries, query, values
from analysis.sql import Rows, stream
from orchestrator.terminal import AnswerFormat, print_answer, say, show
from trainables.storage import StoreError

_HELP = """\
A query ends with a semicolon and may take several lines. Ctrl-C drops the line or ends the query, Ctrl-D leaves.

.tables                         tables, and macros that stand for one
.schema [TABLE]                 columns and their types
.macros                         what makes questions shorter
.named [NAME [SWEEP [METRIC]]]  queries that are there already; the answer of one
.show NAME                      its SQL
.format table|json|csv|markdown how rows come out
.quit"""

_MACROS = """
SELECT function_name || '(' || array_to_string(parameters, ', ') || ')' AS macro, comment AS means
FROM duckdb_functions() WHERE NOT internal ORDER BY ALL"""

_SCHEMA = """
SELECT table_name AS "table", column_name AS "column", data_type AS type
FROM duckdb_columns() WHERE NOT internal AND table_name IN $tables
ORDER BY list_position($tables, table_name), column_index"""

_HISTORY_LENGTH = 10_000  # lines


def answer(store: str, text: str, format: AnswerFormat, parameters: dict[str, object] | None = None) -> None:  # noqa: A002
    """Answers one query to standard output."""
    with stream(store, text, parameters) as rows:
        print_answer(rows, format)


def answer_named(
    store: str,
    name: str | None,
    sweep: str | None,
    metric: str | None,
    format: AnswerFormat,  # noqa: A002
) -> None:
    """Answers a named query to standard output; without a name, lists them."""
    if name is not None:
        answer(store, query(name).text, format, values(store, name, sweep, metric))
        return
    listed = pa.table({"name": list(queries()), "answers": [q.answers for q in queries().values()]})
    print_answer(Rows(listed.schema, iter(listed.to_batches())), format)


def show_named(name: str) -> None:
    """The SQL of a named query to standard output."""
    show(query(name).text.rstrip())


class Shell:
    """Reads queries and dot commands until the end of input.

    Attributes:
        store: directory or URL.
        format: how rows come out.
    """

    def __init__(self, store: str, format: AnswerFormat = AnswerFormat.TABLE) -> None:  # noqa: A002
        self.store = store
        self.format = format
        self._commands: dict[str, Callable[..., None]] = {
            "tables": self._tables,
            "schema": self._schema,
            "macros": self._macros,
            "named": self._named,
            "show": self._show,
            "format": self._set_format,
            "help": self._help,
        }

    def run(self) -> None:
        """Until Ctrl-D or ``.quit``."""
        say(f"{self.store}: queries end with a semicolon; .help, .tables, .named; Ctrl-D leaves")
        save = _with_history(self._complete)
        try:
            self._loop()
        finally:
            save()

    def _loop(self) -> None:
        text = ""
        while True:
            try:
                text += input("     ...> " if text else "isoratio> ") + "\n"
            except EOFError:
                return print()
            except KeyboardInterrupt:
                print()
                text = ""
                continue
            except UnicodeDecodeError:
                say("that was no text in UTF-8")
                text = ""
                continue
            if text.strip().lower().rstrip("; \n") in {"exit", "quit", ".exit", ".quit"}:
                return None
            text = self._take(text)

    def _take(self, text: str) -> str:
        """Answers what is complete; gives back what is not."""
        if not text.strip():
            return ""
        if text.startswith("."):
            self._guarded(lambda: self._command(text))
        elif is_complete(text):
            self._guarded(lambda: self._answer(text))
        else:
            return text
        return ""

    def _guarded(self, act: Callable[[], None]) -> None:
        """Whatever goes wrong is said, and the prompt stays."""
        try:
            act()
        except KeyboardInterrupt:
            say("\ninterrupted")
        except (ValueError, StoreError, OSError) as error:
            say(str(error))

    def _answer(self, text: str, parameters: dict[str, object] | None = None) -> None:
        answer(self.store, text, self.format, parameters)

    def _command(self, text: str) -> None:
        name, *arguments = text[1:].rstrip("; \n").split() or [""]
        if name not in self._commands:
            raise ValueError(f"no command .{name}: there are {', '.join(f'.{c}' for c in self._commands)}, .quit")
        try:
            self._commands[name](*arguments)
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise ValueError(f".{name}: too many or too few words; see .help") from None

    def _tables(self) -> None:
        show("\n".join(self._vocabulary.sources))

    def _schema(self, table: str | None = None) -> None:
        if table is not None and table not in COLUMNS:
            raise ValueError(f"no table {table}: there are {', '.join(COLUMNS)}")
        self._answer(_SCHEMA, {"tables": [table] if table else list(COLUMNS)})

    def _macros(self) -> None:
        self._answer(_MACROS)

    def _named(self, name: str | None = None, sweep: str | None = None, metric: str | None = None) -> None:
        answer_named(self.store, name, sweep, metric, self.format)

    def _show(self, name: str) -> None:
        show_named(name)

    def _set_format(self, name: str) -> None:
        allowed = [f.value for f in AnswerFormat if f is not AnswerFormat.PARQUET]
        if name not in allowed:
            raise ValueError(f"no format {name} here: there are {', '.join(allowed)}")
        self.format = AnswerFormat(name)

    def _help(self) -> None:
        show(_HELP)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.store)

    def _complete(self, before: str, word: str) -> list[str]:
        """What the word under the cursor may become."""
        if not before.startswith("."):
            return self._vocabulary.completions(before, word)
        choices = {
            ".": [*self._commands, "quit"],
            ".schema": list(COLUMNS),
            ".named": list(queries()),
            ".show": list(queries()),
            ".format": [f.value for f in AnswerFormat if f is not AnswerFormat.PARQUET],
        }
        return [c for c in choices.get(before.strip(), []) if c.startswith(word)]


def history_file() -> Path:
    """Where queries are kept: below ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "isoratio" / "sql_history"


def _with_history(complete: Callable[[str, str], list[str]]) -> Callable[[], None]:
    """Gives input() history and completion, where the platform has readline; returns what saves the history."""
    try:
        import readline
    except ImportError:
        return lambda: None
    file = history_file()
    with suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY_LENGTH)
    readline.set_completer_delims(" \t\n,()=<>+-*/;'\".")
    readline.set_completer(_completer(complete))
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def save() -> None:
        with suppress(OSError):  # history is a comfort
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)

    return save


def _completer(complete: Callable[[str, str], list[str]]) -> Callable[[str, int], str | None]:
    found: list[str] = []

    def nth(word: str, state: int) -> str | None:
        import readline

        if state == 0:
            try:
                found[:] = complete(readline.get_line_buffer()[: readline.get_begidx()], word)
            except (ValueError, StoreError, OSError):  # no completion is better than a prompt torn apart
                found[:] = []
        return found[state] if state < len(found) else None

    return nth
