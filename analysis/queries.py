"""Named queries: answers that researchers ask for often, as SQL files that say what they do.

A file in ``named/`` begins with comments: what it answers, ``-- $parameter = default: meaning`` for each parameter, and
what should be known to read the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.database import as_store, quoted
from analysis.known import check_known
from analysis.macros import CONDITIONS
from analysis.sql import QueryError, sql
from trainables.store import Store

_FOLDER = Path(__file__).with_name("named")
_PARAMETER = re.compile(r"^-- \$(\w+)(?: = (\w+))?: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Query:
    """A named query.

    Attributes:
        name: what it is asked for by.
        answers: one line that says what it answers.
        parameters: name -> default, None where there is none.
        text: the SQL, its comments included.
    """

    name: str
    answers: str
    parameters: dict[str, str | None]
    text: str


@cache
def queries() -> dict[str, Query]:
    """All named queries, by name."""
    return {file.stem: _read(file.stem, file.read_text("utf-8")) for file in sorted(_FOLDER.glob("*.sql"))}


def query(name: str) -> Query:
    """The query of that name.

    Raises:
        QueryError: naming those that there are.
    """
    check_known("named query", [name], queries(), "there are", QueryError)
    return queries()[name]


def named(store: str | Path | Store, name: str, sweep: str | None = None, metric: str | None = None) -> pa.Table:
    """Answers a named query.

    Example:
        >>> named("results", "collapse", "digits", "lambda_max").to_pandas()  # doctest: +SKIP

    Args:
        store: its directory.
        name: one of :func:`queries`.
        sweep: of which sweep; by default of all.
        metric: a column of `trials`, or for `training` a statistic of `curves`; by default what the query says.

    Raises:
        QueryError: for an unknown name, sweep or metric, or a parameter that the query does not have.
    """
    return sql(store, query(name).text, values(store, name, sweep, metric))


def values(store: str | Path | Store, name: str, sweep: str | None = None, metric: str | None = None) -> dict[str, Any]:
    """The parameters of a named query: as given, else its defaults; its conditions are what varies in the sweep.

    Raises:
        QueryError: see :func:`named`.
    """
    wanted = query(name).parameters
    if metric is not None and "metric" not in wanted:
        raise QueryError(f"the query {name} has no metric to choose")
    found: dict[str, Any] = {"sweep": sweep, "metric": metric or wanted.get("metric")}
    if sweep is not None:
        check_known("sweep", [sweep], as_store(store).sweeps(), "the store holds", QueryError)
    if metric is not None:
        check_known("metric", [metric], _metrics(store, name), "there are", QueryError)
    if "conditions" in wanted:
        found["conditions"] = varied(store, sweep)
    return {key: value for key, value in found.items() if key in wanted}


def varied(store: str | Path | Store, sweep: str | None = None) -> list[str]:
    """`sweep`, and the conditions that have more than one value in it (in any sweep, without one).

    Conditions are the configuration other than lr, batch_size and seeds.
    """
    several = ", ".join(
        f"min({c}) IS DISTINCT FROM max({c}) OR count({c}) NOT IN (0, count(*)) AS {c}" for c in map(quoted, CONDITIONS)
    )
    text = f"SELECT {several} FROM plan_or_trials WHERE sweep = coalesce($sweep, sweep)"
    both = ", ".join(map(quoted, ["sweep", *CONDITIONS]))
    rows = sql(
        store,
        f"WITH plan_or_trials AS (SELECT {both} FROM trials UNION ALL SELECT {both} FROM plan) {text}",
        {"sweep": sweep},
    ).to_pylist()
    return ["sweep", *(name for name, differs in rows[0].items() if differs)]


def _read(name: str, text: str) -> Query:
    answers = text.partition("\n")[0].removeprefix("-- ")
    return Query(name, answers, {p: default or None for p, default, _ in _PARAMETER.findall(text)}, text)


def _metrics(store: str | Path | Store, name: str) -> list[str]:
    if name == "training":
        return sorted(sql(store, "SELECT DISTINCT statistic FROM curves").column(0).to_pylist())
    described = sql(store, "DESCRIBE trials").to_pylist()
    return [row["column_name"] for row in described if row["column_type"] == "DOUBLE"]
