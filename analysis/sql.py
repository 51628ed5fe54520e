"""One question in SQL, answered in a sandbox: no file, no network, no setting, no Python variable can be reached.

The gate lets through one statement that asks. It is not the wall: in DuckDB 2.0 ``WITH x AS (COPY ... TO 'file')
SELECT ...`` counts as a SELECT. The wall is that the connection has no file access at all; its rows come through
PyArrow data sets that were opened before, which can only be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from analysis.database import COLUMNS, connect, naming_damage, select_sweeps
from analysis.macros import MACROS
from trainables.storage import StoreError
from trainables.store import Store

_ASKS = {"SELECT", "EXPLAIN", "MULTI"}  # MULTI: PIVOT

LOCK = """
SET python_enable_replacements = false;
SET allow_community_extensions = false;
SET memory_limit = '50%';
SET enable_external_access = false;
SET lock_configuration = true;
"""
"""Takes from a connection all but its views and macros."""

_BATCH = 50_000
"""Rows of a batch of :func:`stream`, the last one but."""

Answer = TypeVar("Answer")


class QueryError(ValueError):
    """A query that cannot be answered: its text, or what it asks for."""


@dataclass(frozen=True)
class Rows:
    """An answer of any size as it comes."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def sql(
    store: str | Path | Store,
    query: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
) -> pa.Table:
    """Answers one query over the views of :func:`analysis.database.connect`, `trials`, `curves`, ..., as they are now.

    Ctrl-C ends a query that runs. One that meets a file which is gone, as after `compact`, is asked again once.

    Example:
        >>> sql("results", "SELECT avg(test_accuracy) FROM trials WHERE lr < $lr", {"lr": 0.1})  # doctest: +SKIP

    Args:
        store: its directory; a missing one is an empty store.
        query: one statement that asks: SELECT, FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW, PIVOT or EXPLAIN.
        parameters: values of ``$name`` in the query.
        timeout: seconds after which the query is given up.

    Raises:
        QueryError: for anything else, with DuckDB's reason.
        StoreError: naming the damaged file that the query met.
    """

    def ask() -> pa.Table:
        with _sandbox(store) as connection, _saying_why(store):
            _check_one_question(connection, query, parameters or {})
            return _interruptible(connection, lambda: _ask(connection, query, parameters).to_arrow_table(), timeout)

    return _asked_again_once(ask)


@contextmanager
def stream(store: str | Path | Store, query: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Rows]:
    """Like :func:`sql`, batch by batch: an answer of any size needs the memory of a few batches.

    Example:
        >>> with stream("results", "FROM curves") as rows:  # doctest: +SKIP
        ...     print(sum(len(batch) for batch in rows.batches))
    """

    def start() -> tuple[ExitStack, Rows]:
        with ExitStack() as stack:
            connection = stack.enter_context(_sandbox(store))
            with _saying_why(store):
                _check_one_question(connection, query, parameters or {})
                asked = lambda: _ask(connection, query, parameters).to_arrow_reader(_BATCH)  # noqa: E731
                reader = _interruptible(connection, asked)
            batches = _batches(store, connection, reader)
            first = list(islice(batches, 1))  # here, so that it is asked again where that helps
            return stack.pop_all(), Rows(reader.schema, chain(first, batches))
        raise AssertionError  # nothing above swallows an exception

    opened, rows = _asked_again_once(start)
    with opened:
        yield rows


@contextmanager
def _sandbox(store: str | Path | Store) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(store) as connection:
        connection.execute(MACROS)
        connection.execute(LOCK)
        yield connection


@contextmanager
def _saying_why(store: str | Path | Store) -> Iterator[None]:
    """Turns what DuckDB raises into QueryError, and a failure to read a stored file into StoreError."""
    try:
        with naming_damage(select_sweeps(store)):
            yield
    except duckdb.Error as error:
        if "reading the stream" in str(error):
            raise StoreError(f"the store changed while the query read it: ask again ({error})") from error
        raise QueryError(explained(error)) from error


def _ask(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None
) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(query, params=dict(parameters)) if parameters else connection.sql(query)
    except duckdb.Error:
        connection.execute(query, dict(parameters or {}))  # fails likewise, and says where in the query
        raise


def _asked_again_once(ask: Callable[[], Answer]) -> Answer:
    """A file that was listed may be gone when it is read, merged into another: the second time that one is listed."""
    try:
        return ask()
    except (StoreError, FileNotFoundError):
        return ask()


def _interruptible(
    connection: duckdb.DuckDBPyConnection, call: Callable[[], Answer], timeout: float | None = None
) -> Answer:
    """Calls in another thread, since DuckDB does not look for signals; Ctrl-C and the time limit end what it does."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call)
        try:
            if wait([answer], timeout).not_done:
                raise QueryError(f"given up after {timeout:g} seconds")
            return answer.result()
        except BaseException:
            while not answer.done():  # an interruption before the query has begun is lost
                connection.interrupt()
                wait([answer], 0.05)
            raise


def _batches(
    store: str | Path | Store, connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader
) -> Iterator[pa.RecordBatch]:
    while True:
        with _saying_why(store):
            batch = _interruptible(connection, lambda: _next(reader))
        if batch is None:
            return
        yield batch


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return next(reader, None)
    except OSError as error:  # DuckDB's, by way of Arrow
        raise duckdb.Error(str(error)) from error


def _check_one_question(connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any]) -> None:
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise QueryError(f"one statement is expected, {len(statements)} were given")
    kind = _kind(statements[0])
    if kind not in _ASKS:
        raise QueryError(
            f"{kind} is not allowed: queries only read; allowed are SELECT, FROM, WITH, VALUES, DESCRIBE, "
            "SUMMARIZE, SHOW, PIVOT and EXPLAIN. `isoratio export` writes files"
        )
    wanted = statements[0].named_parameters
    if missing := sorted(wanted - {*parameters}):
        raise QueryError(f"no value was given for {', '.join(f'${name}' for name in missing)}")
    if unknown := sorted({*parameters} - wanted):
        raise QueryError(f"the query has no parameter {', '.join(f'${name}' for name in unknown)}")


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # one that DuckDB's Python has no name for, such as UPDATE EXTENSIONS
        return "this kind of statement"


_MISSING = {
    "column": re.compile(r'Referenced column "(.+?)" (?:not found|was not found)'),
    "table": re.compile(r'(?:Table with name|Referenced table) "?(.+?)"? (?:does not exist|not found)'),
    "function": re.compile(r"[Ff]unction with name (.+?) does not exist"),
}
_CANDIDATES = re.compile(r"(?:Candidate \w+:|Did you mean) (.+)")
_PLACE = re.compile(r"^LINE \d+: .*\n *\^+", re.MULTILINE)


def explained(error: Exception) -> str:
    """What DuckDB says of a query, as one line, and the place in the query where it says that."""
    text = str(error).strip()
    place = _PLACE.search(text)
    line = _first_line(error, text)
    return f"{line}\n{place[0]}" if place else line


def _first_line(error: Exception, text: str) -> str:
    for what, pattern in _MISSING.items():
        if found := pattern.search(text):
            return _missing(what, found[1], text)
    line = text.splitlines()[0]
    if isinstance(error, duckdb.PermissionException):
        return f"{line}. Queries see the tables {', '.join(COLUMNS)} and no files"
    return line


def _missing(what: str, name: str, text: str) -> str:
    """``no column test_acuracy: did you mean test_accuracy?``."""
    candidates = _CANDIDATES.search(text)
    known = re.findall(r'"([^"]+)"', candidates[1]) if candidates else []
    near = get_close_matches(name, COLUMNS if what == "table" else known, 2)  # DuckDB has tables of its own
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    tables = f" (tables: {', '.join(COLUMNS)})" if what == "table" else ""
    return f"no {what} {name}{hint}{tables}"
