"""The verdict on a stored sweep: for which quantities only lr / batch_size matters, and up to which learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.controls import is_full, of_file
from analysis.database import COLUMNS, MEASURED, connect, fetch, quoted
from analysis.known import check_known
from analysis.predictors import LAST, PEAK
from analysis.sample import error_column
from analysis.scales import default_margin
from analysis.sequential import at_looks
from analysis.stated import stated_in
from analysis.verdict import Verdict, judge
from trainables.schema import STATISTICS
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.store import Store
from trainables.trial import FIELDS

_NOT_METRICS = {*COLUMNS["trials"], PEAK, LAST} - {*MEASURED, "stability"}
_NOT_BY_DEFAULT = {"stability", *ERROR_COLUMN, *OF_ENDPOINT} - {*STATISTICS}
"""Judged when asked for, or given a margin: proportional to lr, so never equal on a line, or of secondary interest."""


def invariance(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | float | None = None,
) -> list[Verdict]:
    """Judges whether trials of equal lr / batch_size agree: one verdict per metric and group.

    Args:
        store: directory of the store.
        sweep: name of the sweep.
        metrics: columns of `trials`; by default all that were measured, in every group where they were.
        margins: equivalence margins: one number for all metrics, or by metric; 0.1 means a factor 1.1 for metrics on
            the log scale. Where none is given the sweep file's applies, then the default of the metric.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.

    Example:
        >>> for verdict in invariance("results", "digits", ["lambda_max"]):  # doctest: +SKIP
        ...     print(verdict.group, verdict.verdict, verdict.frontier)
    """
    content = stated(store, sweep)
    trials, chosen = asked(store, sweep, metrics, margins, content=content)
    verdicts = judge(trials, chosen)
    if looks := content.get("looks"):
        verdicts = at_looks(verdicts, trials, looks)
    if metrics:
        return verdicts
    return [v for v in verdicts if v.n_measured or v.n_diverged == v.n_trials]


def asked(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None,
    margins: Mapping[str, float] | float | None,
    beside: Sequence[str] = (),
    content: Mapping[str, Any] | None = None,
) -> tuple[pa.Table, dict[str, float | None]]:
    """The trials of a sweep, and metric -> margin, as :func:`invariance` takes them; the rest: see :func:`read_trials`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    content = stated(store, sweep) if content is None else content
    trials = read_trials(store, sweep, metrics, beside, content)
    known = metric_columns(trials.column_names)
    own = content.get("margins") or {}
    named = {*own, *(margins if isinstance(margins, Mapping) else ())}
    wanted = list(dict.fromkeys(metrics or _measured(trials, known, named)))
    return trials, margins_of(wanted, known, own, margins)


def read_trials(
    store: str | Path,
    sweep: str,
    metrics: Sequence[str] | None = None,
    beside: Sequence[str] = (),
    content: Mapping[str, Any] | None = None,
) -> pa.Table:
    """What verdicts and heat maps rest on, in one SELECT: fields, status, metrics (by default all) and their errors.

    Args:
        store: directory of the store.
        sweep: name of the sweep.
        metrics: columns of `trials`.
        beside: further ones, as far as they are there; :data:`PEAK` and :data:`LAST` come from `curves`.
        content: of the sweep file, see :func:`stated`; None: it is read where it is needed.

    Raises:
        ValueError: for an unknown sweep or metric.
    """
    files = Store(store)
    check_known("sweep", [sweep], files.sweeps(), f"{files.url} holds")
    with closing(connect(files, sweep)) as connection:
        view = connection.sql("FROM trials")
        doubles = [name for name, kind in zip(view.columns, view.types, strict=True) if kind == "DOUBLE"]
        known = metric_columns(doubles)
        check_known("metric", metrics or (), known, "known are")
        chosen = metrics or known
        errors = [c for m in chosen if (c := error_column(m, doubles))]
        further = [name for name in beside if name in view.columns]
        columns = ", ".join(map(quoted, dict.fromkeys([*FIELDS, "status", *chosen, *errors, *further])))
        query = f"SELECT {columns} FROM trials"
        if PEAK in beside:
            query = f"SELECT {columns}, {PEAK}, {LAST} FROM trials LEFT JOIN ({_COURSE}) USING (trial_id)"
        trials = fetch(connection, query, [files.sweep(sweep)])
    if not is_full(trials).any():
        return trials  # and the sweep file need not be read
    return of_file(trials, stated(store, sweep) if content is None else content)


_COURSE = f"""
    SELECT trial_id, max(value) FILTER (statistic = 'lambda_max') AS {PEAK},
        arg_max(value, step) FILTER (statistic = 'noise_scale') AS {LAST}
    FROM curves WHERE statistic IN ('lambda_max', 'noise_scale') AND isfinite(value) GROUP BY trial_id"""


def metric_columns(columns: Sequence[str]) -> list[str]:
    """The columns that hold a metric: no configuration, no bookkeeping, no error of another column."""
    errors = {error_column(name, columns) for name in columns}
    return [c for c in columns if c not in _NOT_METRICS | errors]


def _measured(trials: pa.Table, known: Sequence[str], named: Collection[str]) -> list[str]:
    """Metrics with any value; where no trial lived to have one, the training loss stands for all."""
    wanted = [c for c in known if c in named or c not in _NOT_BY_DEFAULT]
    found = [c for c in wanted if trials[c].null_count < len(trials)]
    return found or [c for c in known if c == "train_loss" and len(trials)]


def margins_of(
    metrics: Sequence[str],
    known: Sequence[str],
    own: Mapping[str, float],
    given: Mapping[str, float] | float | None,
) -> dict[str, float | None]:
    """Metric -> margin: as given, else as stated in the sweep file, else the default."""
    if not isinstance(given, Mapping):
        given = {} if given is None else dict.fromkeys(metrics, given)
    check_known("metric", given, known, "margins can be given for")
    chosen = {m: given.get(m, own.get(m, default_margin(m))) for m in metrics}
    for metric, margin in chosen.items():
        if margin is not None and not 0 < margin < math.inf:
            raise ValueError(f"margin of {metric}: {margin!r} is not a positive number")
    return chosen


def stated(store: str | Path, sweep: str) -> dict[str, Any]:
    """What the sweep file in a store says, as it was launched last; nothing where it was imported."""
    return stated_in(Store(store).sweep(sweep)) or {}
