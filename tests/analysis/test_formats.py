"""Rows as text: strict JSON, CSV that reads back, tables that never cut a number."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.formats import FORMATS, escaped, render

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20)
NAMES = st.text(min_size=1, max_size=12)
ROWS = st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, SCALARS)), min_size=1, max_size=5)
)


def strict(text: str) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(rows=ROWS)
@settings(max_examples=100, deadline=None)
def test_json_is_strict_and_keeps_every_value(rows):
    expected = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows
    ]
    text = render(rows, "json")
    assert strict(text) == expected
    assert all(" " <= c <= "~" or c == "\n" for c in text)  # no encoding and no terminal can make anything else of it


@given(rows=ROWS)
@settings(max_examples=100, deadline=None)
def test_csv_reads_back(rows):
    header, *lines = csv.reader(io.StringIO(render(rows, "csv"), newline=""))
    assert header == list(rows[0])
    for row, line in zip(rows, lines, strict=True):
        for value, field in zip((row[name] for name in header), line, strict=True):
            if isinstance(value, float):
                assert float(field) == value or math.isnan(value)
            elif isinstance(value, bool):
                assert field == ("true" if value else "false")
            else:
                assert field == ("" if value is None else str(value))


@given(rows=ROWS, width=st.none() | st.integers(10, 200))
@settings(max_examples=200, deadline=None)
def test_a_table_cuts_no_number_and_drives_no_terminal(rows, width):
    text = render(rows, "table", width)
    assert all(c.isprintable() or c == "\n" for c in text)
    for row in rows:
        for value in row.values():
            if isinstance(value, int) and not isinstance(value, bool):
                assert str(value) in text
            elif isinstance(value, float) and math.isfinite(value):
                assert any(float(word) == pytest.approx(value, rel=1e-5) for word in text.split() if is_number(word))


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def test_a_table():
    rows = [
        {"arch": "mlp", "lr": 0.016, "batch_size": 1_000_000, "ok": True, "loss": 1 / 3},
        {"arch": '{"name":"mlp"}', "lr": 2.5e-11, "batch_size": 8, "ok": None, "loss": math.nan},
    ]
    assert render(rows).splitlines() == [
        "arch                 lr  batch_size  ok        loss",
        "───────────────────────────────────────────────────",
        "mlp               0.016     1000000  true  0.333333",
        '{"name":"mlp"}  2.5e-11           8  -          nan',
    ]


def test_a_table_that_is_too_wide_becomes_blocks():
    rows = [{"lr": 0.016, "trial_id": "a" * 32}, {"lr": 0.5, "trial_id": "b" * 32}]
    assert render(rows, width=39).count("\n") == 4  # as wide as the terminal
    assert render(rows, width=38).splitlines() == [
        *["lr        0.016", f"trial_id  {'a' * 32}", "", "lr        0.5", f"trial_id  {'b' * 32}"]
    ]


def test_text_that_looks_like_markup_or_escapes_is_shown_as_it_is():
    rows = [{"[bold]name[/]": "[red]x[/red] \x1b[31m :smile: \n\t\u202e\x9b"}]
    text = render(rows)
    assert "[bold]name[/]" in text
    assert r"[red]x[/red] \x1b[31m :smile: \n\t\u202e\x9b" in text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum(a)", "\t=1", "\x1b[31m", "\u202e", "'=1"])
def test_csv_alters_no_text(text):
    """What begins a formula in a spreadsheet begins numbers and names, too."""
    (row,) = csv.DictReader(io.StringIO(render([{"a": text, "b": -1}], "csv"), newline=""))
    assert row == {"a": text, "b": "-1"}


UNSEEN = [
    *map(chr, range(32)),
    "\x7f",
    *map(chr, range(0x80, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068",
]
UNSEEN += [*"\u2069\u200b\u200d\u200e\u200f\u2028\u2029\u2060\ufeff\xad\ufff9\U000e0041", "\ud800", "\xa0"]


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
def test_what_cannot_be_seen_is_written_out(character):
    shown = escaped(f"a{character}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.encode().decode("unicode_escape") == f"a{character}b"
    assert escaped(f"a{character}b", keep=character) == f"a{character}b"


@given(text=st.text(st.characters(), max_size=30))
def test_escaping_leaves_what_is_seen(text):
    shown = escaped(text)
    assert shown.isprintable()
    assert escaped(shown) == shown
    assert text == shown or not text.isprintable()
    assert escaped("µ∝× 学習率 é 🙂 [red]") == "µ∝× 学習率 é 🙂 [red]"


def test_wide_characters_stay_aligned():
    lines = render([{"name": "学習率", "n": 1}, {"name": "lr", "n": 22}]).splitlines()
    assert lines[2:] == ["学習率   1", "lr      22"]


@pytest.mark.parametrize(("format_", "text"), [("json", "[]\n"), ("csv", ""), ("table", "no rows\n")])
def test_no_rows(format_, text):
    assert render([], format_) == text


@pytest.mark.parametrize(("format_", "text"), [("json", "[]\n"), ("csv", "a,b\n"), ("table", "no rows: a, b\n")])
def test_no_rows_of_known_columns(format_, text):
    assert render(pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}), format_) == text


def test_nested_values():
    rows = [{"group": {"label_noise": 0.25, "arch": "mlp"}, "bounds": [1, math.inf], "note": None}]
    assert strict(render(rows, "json")) == [
        {"group": {"label_noise": 0.25, "arch": "mlp"}, "bounds": [1, None], "note": None}
    ]
    canonical = '{"arch":"mlp","label_noise":0.25}'
    assert next(csv.DictReader(io.StringIO(render(rows, "csv")))) == {
        "group": canonical,
        "bounds": "[1,null]",
        "note": "",
    }
    assert canonical in render(rows)


def test_values_of_other_types():
    moment = datetime(2025, 1, 2, tzinfo=UTC)
    row = {
        "a": Decimal("3"),
        "b": Decimal("1.5"),
        "c": moment,
        "d": b"\x00\xff",
        "e": np.float64(0.5),
        "f": np.int64(7),
    }
    assert strict(render([row], "json")) == [
        {"a": 3, "b": 1.5, "c": "2025-01-02T00:00:00+00:00", "d": "00ff", "e": 0.5, "f": 7}
    ]


def test_csv_tells_null_from_empty_text():
    assert render([{"a": None, "b": ""}, {"a": "x,y", "b": 'say "hi"'}], "csv") == 'a,b\n,""\n"x,y","say ""hi"""\n'


def test_rows_that_lack_a_column():
    assert strict(render([{"a": 1}, {"b": 2}], "json")) == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_columns_of_one_name_stay_apart():
    rows = pa.Table.from_arrays([pa.array([k]) for k in range(4)], names=["a", "a", "a_1", "a"])
    assert strict(render(rows, "json")) == [{"a": 0, "a_1": 1, "a_1_1": 2, "a_2": 3}]


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="format 'xml': allowed are table, json, csv"):
        render([], "xml")
    assert FORMATS == ("table", "json", "csv")
