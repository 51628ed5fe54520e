"""Rows of the many Parquet files of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from trainables.schema import TABLES
from trainables.store import DamagedStoreError, SweepStore


def count_ended(sweep: SweepStore, measure_id: str) -> dict[str, int]:
    """Committed trials by status, as far as they were measured in this way."""
    query = f"SELECT status, count(DISTINCT trial_id) AS n FROM rows WHERE measure_id = '{measure_id}' GROUP BY status"
    with duckdb.connect() as connection:
        return {r["status"]: r["n"] for r in select(connection, query, sweep.files("trials"), "trials").to_pylist()}


def select(
    connection: duckdb.DuckDBPyConnection, query: str, files: Sequence[Path], table: str, *, widest: bool = False
) -> pa.Table:
    """What a query finds in ``rows``: all rows of some files of a table; without files there are none.

    Args:
        connection: may hold other tables that the query names.
        query: reads ``rows``.
        files: see :meth:`trainables.store.SweepStore.files`.
        table: whose schema there is without files.
        widest: with the columns of plug-in metrics of every file, which take long to find.

    Raises:
        DamagedStoreError: a file cannot be read.
    """
    connection.register("nothing", TABLES[table].empty_table())
    rows = "read_parquet($files, union_by_name => $widest)" if files else "nothing"
    parameters = {"files": [str(f) for f in files], "widest": widest} if files else {}
    try:
        return connection.sql(f"WITH rows AS (FROM {rows}) {query}", params=parameters).to_arrow_table()
    except duckdb.Error as error:
        if not files:
            raise
        what = str(error).partition("\n")[0]
        raise DamagedStoreError(f"{files[0].parent}: {what}; `isoratio verify` finds what is damaged") from error
