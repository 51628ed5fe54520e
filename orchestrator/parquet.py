"""Rows of the many Parquet files of a sweep."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from analysis.database import further_columns, naming_damage
from trainables.schema import TABLES
from trainables.store import Listing


def select(
    connection: duckdb.DuckDBPyConnection, query: str, listing: Listing, table: str, *, widest: bool = False
) -> pa.Table:
    """What a query finds in ``rows``: all rows of a table; without files there are none.

    Args:
        connection: may hold other tables that the query names.
        query: reads ``rows``.
        listing: which files hold the table.
        table: its name.
        widest: with the columns of plug-in metrics of every file, which take long to find.

    Raises:
        DamagedStoreError: a file cannot be read.
    """
    schema = TABLES[table]
    if widest and table == "trials":
        schema = pa.schema([*schema, *(pa.field(name, pa.float64()) for name in further_columns([listing]))])
    connection.register("rows", listing.dataset(table, schema))
    with naming_damage([listing.sweep]):
        return connection.sql(query).to_arrow_table()
