"""A store opened in Python or a notebook: its tables, named queries and verdicts, while a sweep may be running."""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.database import as_store
from analysis.formats import cell, escaped, from_arrow, render
from analysis.queries import named
from analysis.sql import sql
from analysis.status import status
from analysis.verdict import Verdict
from trainables.store import Store

_SHOWN = 40
"""Rows of an answer's representation."""


@dataclass(frozen=True, repr=False)
class Answer:
    """The rows of one query, as they were when it was asked.

    Iterating gives one dictionary per row. polars, DuckDB and whatever else speaks Arrow's
    PyCapsule interface take it as it is.

    Example:
        >>> answer = open("results").sql("SELECT lr, test_accuracy FROM trials")  # doctest: +SKIP
        >>> answer.pandas().plot.scatter("lr", "test_accuracy")  # doctest: +SKIP
    """

    table: pa.Table

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    def arrow(self) -> pa.Table:
        """As an Arrow table."""
        return self.table

    def pandas(self) -> Any:
        """As a pandas data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        _needed("pandas")
        return self.table.to_pandas()

    def polars(self) -> Any:
        """As a polars data frame.

        Raises:
            ImportError: polars is not installed.
        """
        return _needed("polars").from_arrow(self.table)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """As a list of tuples."""
        return list(zip(*(column.to_pylist() for column in self.table.columns), strict=True))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(1000):
            yield from batch.to_pylist()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return escaped(render(self.table[:_SHOWN], width=None), keep="\n") + _rest(self)

    def _repr_html_(self) -> str:
        names, rows = from_arrow(self.table[:_SHOWN])
        body = "".join(_html_row("td", [cell(value) for value in row]) for row in rows)
        head = _html_row("th", [escaped(name) for name in names])
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{_rest(self) or f'{len(self):,} rows'}</p>"


@dataclass(frozen=True)
class OpenStore:
    """A store to ask.

    Every call looks at the files of its moment, so that rows of a running sweep appear as they are committed. Nothing
    is held open between calls: leaving a ``with`` block is a matter of style.
    """

    store: Store

    def __enter__(self) -> OpenStore:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def sql(self, query: str, **parameters: Any) -> Answer:
        """Answers a query over `trials`, `curves`, ..., in the sandbox of :func:`analysis.sql.sql`.

        Example:
            >>> store.sql("SELECT avg(lambda_max) FROM trials WHERE lr < $lr", lr=0.1)  # doctest: +SKIP

        Args:
            query: one statement that asks.
            **parameters: values of ``$name`` in it.

        Raises:
            QueryError: the query cannot be answered.
            StoreError: a file of the store is damaged.
        """
        return Answer(sql(self.store, query, parameters))

    def named(self, name: str, sweep: str | None = None, metric: str | None = None) -> Answer:
        """Answers one of :func:`analysis.queries.queries`.

        Example:
            >>> store.named("collapse", sweep="digits", metric="lambda_max")  # doctest: +SKIP
        """
        return Answer(named(self.store, name, sweep, metric))

    def trials(self, sweep: str | None = None) -> Answer:
        """All trials, of one sweep or of all.

        Example:
            >>> store.trials("digits").pandas()  # doctest: +SKIP
        """
        return self.sql("FROM trials WHERE sweep = coalesce($sweep, sweep)", sweep=sweep)

    def curves(self, sweep: str | None = None, statistic: str | None = None) -> Answer:
        """Statistics over training, in the order of time.

        Example:
            >>> store.curves("digits", "train_loss").polars()  # doctest: +SKIP
        """
        query = (
            "FROM curves WHERE sweep = coalesce($sweep, sweep) AND statistic = coalesce($statistic, statistic) "
            "ORDER BY sweep, trial_id, statistic, step"
        )
        return self.sql(query, sweep=sweep, statistic=statistic)

    def invariance(
        self,
        sweep: str,
        metrics: Sequence[str] | None = None,
        margins: Mapping[str, float] | float | None = None,
    ) -> list[Verdict]:
        """Judges whether trials of equal lr / batch_size agree; see :func:`analysis.invariance.invariance`."""
        from analysis.invariance import invariance  # needs scipy, whose import takes longer than a query

        return invariance(self.store.url, sweep, metrics, margins)

    def status(self, sweep: str | None = None) -> Answer:
        """How far each sweep is; see :func:`analysis.status.status`."""
        return Answer(pa.Table.from_pylist(status(self.store, sweep)))


def open(store: str | Path | Store) -> OpenStore:  # noqa: A001
    """Opens a store to ask it in Python or a notebook.

    Example:
        >>> import analysis
        >>> store = analysis.open("results")
        >>> len(store.sql("FROM trials"))
        0

    Args:
        store: directory or URL; a missing one is an empty store.
    """
    return OpenStore(as_store(store))


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: `pip install {package}`, or use .arrow()") from error


def _rest(answer: Answer) -> str:
    more = len(answer) - _SHOWN
    return f"... and {more:,} more of {len(answer):,} rows" if more > 0 else ""


def _html_row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
