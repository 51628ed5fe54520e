"""One question in SQL, answered in a sandbox: no file, no network, no setting, no Python variable can be reached.

The gate lets through one statement that asks. It is not the wall: in DuckDB 2.0 ``WITH x AS (COPY ... TO 'file')
SELECT ...`` counts as a SELECT. The wall is that the connection has no file access at all; its rows come through
PyArrow data sets that were opened before, which can only be read.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from analysis.database import COLUMNS, connect, fetch, select_sweeps
from trainables.store import Store

_ASKS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI}  # MULTI: PIVOT

LOCK = """
SET python_enable_replacements = false;
SET allow_community_extensions = false;
SET memory_limit = '50%';
SET enable_external_access = false;
SET lock_configuration = true;
"""
"""Takes from a connection all but its views."""


class QueryError(ValueError):
    """A query that cannot be answered: its text, or what it asks for."""


def sql(store: str | Path | Store, query: str) -> pa.Table:
    """Answers one query over the views of :func:`analysis.database.connect`: `trials`, `curves`, ...

    Example:
        >>> sql("results", "SELECT ratio, avg(test_accuracy) FROM trials GROUP BY ratio")  # doctest: +SKIP

    Args:
        store: its directory; a missing one is an empty store.
        query: one statement that asks: SELECT, FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW, PIVOT or EXPLAIN.

    Raises:
        QueryError: for anything else, with DuckDB's reason.
        StoreError: naming the damaged file that the query met.
    """
    with connect(store) as connection:
        connection.execute(LOCK)
        try:
            _check_one_question(connection, query)
            return fetch(connection, query, select_sweeps(store))
        except duckdb.Error as error:
            raise QueryError(_explained(error)) from error


def _check_one_question(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = connection.extract_statements(query)
    if len(statements) != 1:
        raise QueryError(f"one statement is expected, {len(statements)} were given")
    kind = statements[0].type
    if kind not in _ASKS:
        raise QueryError(
            f"{kind.name} is not allowed: queries only read; allowed are SELECT, FROM, WITH, VALUES, DESCRIBE, "
            "SUMMARIZE, SHOW, PIVOT and EXPLAIN. `isoratio export` writes files"
        )


def _explained(error: duckdb.Error) -> str:
    text = str(error).strip()
    if isinstance(error, duckdb.PermissionException):
        return f"{text.splitlines()[0]}. Queries see the tables {', '.join(COLUMNS)} and no files"
    if isinstance(error, duckdb.CatalogException) and "Table with name" in text:
        return f"{text}\nTables: {', '.join(COLUMNS)}"
    return text
