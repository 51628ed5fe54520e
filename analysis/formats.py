"""Rows as text: a table to read, strict JSON, or CSV; and any text so that it cannot drive a terminal.

Imports nothing heavy before rows come: messages go through here, too, also those about a machine in trouble.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "json", "csv"]
FORMATS: tuple[str, ...] = get_args(Format)
Row = list[Any]


def render(
    rows: pa.Table | Iterable[Mapping[str, Any]],
    format: Format = "table",  # noqa: A002  (the name of the command's option)
    width: int | None = None,
) -> str:
    """Rows as text that ends with a newline.

    - ``json``: a list of objects, strict: NaN and infinities become null, no rows are ``[]``; in ASCII, safe anywhere.
    - ``csv``: a header and full precision; NULL is empty, lists and objects are canonical JSON. Text is as stored,
      also where it begins with ``=``, ``+``, ``-`` or ``@``, which a spreadsheet may take for a formula: numbers begin
      so, too, and a mark put before them would be read back as data.
    - ``table``: numbers to 6 significant digits (whole ones in full) and never cut, NULL as ``-``, control characters
      escaped. Where the columns do not fit into ``width``, each row becomes a block of lines ``name value``.

    Args:
        rows: an Arrow table, or mappings, whose columns appear in the order in which they are first met.
        format: one of :data:`FORMATS`.
        width: of the terminal, in columns; None where there is none.

    Raises:
        ValueError: for another format.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: allowed are {', '.join(FORMATS)}")
    import pyarrow as pa

    names, values = from_arrow(rows) if isinstance(rows, pa.Table) else _from_mappings(rows)
    if format == "json":
        return _json(names, values)
    return _csv(names, values) if format == "csv" else _table(names, values, width)


def escaped(text: str, keep: str = "") -> str:
    r"""Text in which characters that cannot be seen are written out: ``\n``, ``\x1b``, ``\u202e``, ...

    So whatever a configuration, a file name or an error holds, it neither drives a terminal nor hides or reorders what
    is shown. Written out is what :meth:`str.isprintable` denies: C0 and C1 controls, marks of direction, zero-width
    characters, separators other than the space, lone surrogates.

    Args:
        text: any.
        keep: characters that stay, such as the newlines of a message.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def from_arrow(rows: pa.Table) -> tuple[list[str], list[Row]]:
    """Names of the columns, made distinct, and rows of plain values."""
    columns = [[_plain(value) for value in column.to_pylist()] for column in rows.columns]
    return distinct(rows.column_names), [list(row) for row in zip(*columns, strict=True)]


def _from_mappings(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[Row]]:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [[_plain(row.get(name)) for name in names] for row in rows]


def distinct(names: list[str]) -> list[str]:
    """``SELECT 1 AS a, 2 AS a`` gives two columns of one name; the second becomes ``a_1``."""
    taken: list[str] = []
    for name in names:
        candidates = (name if k == 0 else f"{name}_{k}" for k in range(len(names) + 1))
        taken.append(next(c for c in candidates if c not in taken))
    return taken


def _plain(value: Any) -> Any:
    """A value as JSON has it; floats that are not finite stay."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time):
        return value.isoformat()
    return value.item() if hasattr(value, "item") else str(value)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list) else value


def _json(names: list[str], rows: list[Row]) -> str:
    objects = (json.dumps(dict(zip(names, _strict(row), strict=True)), allow_nan=False) for row in rows)
    return "[\n" + ",\n".join(objects) + "\n]\n" if rows else "[]\n"


def _csv(names: list[str], rows: list[Row]) -> str:
    lines = (",".join(map(_field, row)) or '""' for row in [names, *rows])  # an empty line would be no row
    return "".join(f"{line}\n" for line in lines) if names else ""


def _field(value: Any) -> str:
    """One field, quoted where needed: csv.writer leaves a lone carriage return bare (Python 3.11)."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else _text(value) or repr(value)
    return '"' + text.replace('"', '""') + '"' if not text or set(text) & set(',"\r\n') else text


def _text(value: Any) -> str | None:
    """Truth values and nested ones as JSON; None for a number."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, dict | list):
        return None
    from trainables.trial import canonical_json

    return canonical_json(_strict(value))


def _table(names: list[str], rows: list[Row], width: int | None) -> str:
    from rich.cells import cell_len

    if not rows:
        return f"no rows: {', '.join(map(escaped, names))}\n" if names else "no rows\n"
    cells = [[cell(value) for value in row] for row in rows]
    heads = [escaped(name) for name in names]
    widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
    needed = sum(widths) + 2 * (len(widths) - 1)
    if width is not None and needed > width:
        return _blocks(heads, cells)
    numeric = [all(v is None or is_number(v) for v in column) for column in zip(*rows, strict=True)]
    return _grid(heads, cells, numeric, needed)


def _grid(heads: list[str], cells: list[list[str]], numeric: list[bool], width: int) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for head, right in zip(heads, numeric, strict=True):
        table.add_column(Text(head), justify="right" if right else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(table)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _blocks(heads: list[str], cells: list[list[str]]) -> str:
    longest = max(map(len, heads))
    blocks = ("".join(f"{head:<{longest}}  {cell}\n" for head, cell in zip(heads, row, strict=True)) for row in cells)
    return "\n".join(blocks)


def is_number(value: Any) -> bool:
    """Whether a value is aligned as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> str:
    """A value as a table for people shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return f"{value:.0f}" if whole else f"{value:.6g}"
    return escaped(value) if isinstance(value, str) else _text(value) or str(value)
