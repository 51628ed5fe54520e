"""Answers of any size as text or Parquet, written batch by batch."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.formats import cell, distinct, from_arrow, is_number, render
from analysis.sql import QueryError, Rows


def texts(rows: Rows, format: str) -> Iterator[str]:  # noqa: A002
    """``csv``, ``json`` or ``markdown``: the pieces of all rows as text, as in :func:`analysis.formats.render`."""
    return {"csv": _csv, "json": _json, "markdown": _markdown}[format](rows)


def write_parquet(rows: Rows, file: BinaryIO) -> None:
    """Writes Parquet, compressed with zstd; of two columns of one name, the second is called ``name_1``.

    Raises:
        QueryError: a column has a type that Parquet does not have.
    """
    schema = pa.schema(
        [field.with_name(name) for field, name in zip(rows.schema, distinct(rows.schema.names), strict=True)]
    )
    try:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in rows.batches:
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    except pa.ArrowNotImplementedError as error:
        raise QueryError(f"Parquet cannot hold this: {error}") from error


def cut(rows: Rows, most: int) -> tuple[pa.Table, int]:
    """The first rows, and how many there are."""
    kept: list[pa.RecordBatch] = []
    n = 0
    for batch in rows.batches:
        if n < most:
            kept.append(batch[: most - n])
        n += len(batch)
    return pa.Table.from_batches(kept, rows.schema), n


def _csv(rows: Rows) -> Iterator[str]:
    header = render(rows.schema.empty_table(), "csv")
    yield header
    for batch in rows.batches:
        yield render(pa.Table.from_batches([batch]), "csv")[len(header) :]


def _json(rows: Rows) -> Iterator[str]:
    before = "[\n"
    for batch in (batch for batch in rows.batches if len(batch)):
        yield before + render(pa.Table.from_batches([batch]), "json").removeprefix("[\n").removesuffix("\n]\n")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _markdown(rows: Rows) -> Iterator[str]:
    """Numbers to 6 significant digits, as in a table; what Markdown or HTML would take for its own is escaped."""
    names, _ = from_arrow(rows.schema.empty_table())
    yield _line(map(_literal, names))
    yield _line("---:" if _is_numeric(field.type) else "---" for field in rows.schema)
    for batch in rows.batches:
        _, values = from_arrow(pa.Table.from_batches([batch]))
        yield "".join(_line(cell(v) if is_number(v) else _literal(cell(v)) for v in row) for row in values)


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _literal(text: str) -> str:
    return "".join("\\" + c if c in r"\`*_[]|~" else c for c in html.escape(text, quote=False))


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
