"""Answers batch by batch are what they are all at once."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.formats import render
from analysis.sql import QueryError, Rows
from analysis.streaming import cut, texts, write_parquet

VALUES = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-(2**40), 2**40),
        "x": st.none() | st.floats(),
        "t": st.none() | st.text(st.characters(codec="utf-8"), max_size=6),
        "l": st.none() | st.lists(st.booleans(), max_size=2),
    }
)
SCHEMA = pa.schema([("n", pa.int64()), ("x", pa.float64()), ("t", pa.string()), ("l", pa.list_(pa.bool_()))])


def in_batches(table: pa.Table, sizes: list[int]) -> Rows:
    """The table in batches of these sizes, the rest in one."""
    batches, start = [], 0
    for size in [*sizes, len(table)]:
        batches += table[start : start + size].to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
        start += size
    return Rows(table.schema, iter(batches))


@given(values=st.lists(VALUES, max_size=12), sizes=st.lists(st.integers(0, 5), max_size=4))
def test_text_does_not_depend_on_the_batches(values, sizes):
    table = pa.Table.from_pylist(values, SCHEMA)
    assert "".join(texts(in_batches(table, sizes), "csv")) == render(table, "csv")
    assert "".join(texts(in_batches(table, sizes), "json")) == render(table, "json")
    assert "".join(texts(in_batches(table, sizes), "markdown")) == "".join(texts(in_batches(table, []), "markdown"))


@given(values=st.lists(VALUES, max_size=12), sizes=st.lists(st.integers(0, 5), max_size=4))
def test_what_is_written_is_read(values, sizes):
    table = pa.Table.from_pylist(values, SCHEMA)
    file = io.BytesIO()
    write_parquet(in_batches(table, sizes), file)
    assert repr(pq.read_table(file).to_pylist()) == repr(table.to_pylist())
    assert (
        json.loads("".join(texts(in_batches(table.select(["n", "t"]), sizes), "json")))
        == table.select(["n", "t"]).to_pylist()
    )


def test_column_names_may_be_odd():
    table = pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=['a,"\n', 'a,"\n'])
    text = "".join(texts(in_batches(table, [1]), "csv"))
    assert list(csv.reader(io.StringIO(text))) == [['a,"\n', 'a,"\n_1'], ["1", "3"], ["2", "4"]]
    file = io.BytesIO()
    write_parquet(in_batches(table, [1]), file)
    assert pq.read_table(file).to_pydict() == {'a,"\n': [1, 2], 'a,"\n_1': [3, 4]}


def test_markdown():
    table = pa.table({"a|b": ["x|y", "<b>*z*</b>\x1b\n"], "n": [1.0, None], "x": [1 / 3, float("nan")]})
    assert "".join(texts(in_batches(table, []), "markdown")) == (
        "| a\\|b | n | x |\n"
        "| --- | ---: | ---: |\n"
        "| x\\|y | 1 | 0.333333 |\n"
        "| &lt;b&gt;\\*z\\*&lt;/b&gt;\\\\x1b\\\\n | - | nan |\n"
    )


@given(n=st.integers(0, 12), most=st.integers(1, 12), sizes=st.lists(st.integers(0, 5), max_size=4))
def test_cutting_counts_all(n, most, sizes):
    kept, count = cut(in_batches(pa.table({"a": range(n)}), sizes), most)
    assert (kept.to_pydict(), count) == ({"a": list(range(n))[:most]}, n)


def test_parquet_refuses_what_it_does_not_have():
    table = pa.table({"a": pa.array([pa.MonthDayNano([1, 2, 3])])})
    with pytest.raises(QueryError, match="Parquet cannot hold this"):
        write_parquet(in_batches(table, []), io.BytesIO())
