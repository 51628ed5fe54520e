"""The verdict on a stored sweep: for which quantities only lr / batch_size matters, and up to which learning rate."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML

from analysis.database import COLUMNS, MEASURED, connect, fetch, quoted
from analysis.predictors import PEAK
from analysis.sample import error_column
from analysis.scales import default_margin
from analysis.sequential import at_looks
from analysis.verdict import Verdict, judge
from trainables.schema import STATISTICS
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.store import Store
from trainables.trial import FIELDS

_NOT_METRICS = {*COLUMNS["trials"], PEAK} - {*MEASURED, "stability"}
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
    trials, chosen = asked(store, sweep, metrics, margins)
    verdicts = judge(trials, chosen)
    if looks := stated(store, sweep).get("looks"):
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
) -> tuple[pa.Table, dict[str, float | None]]:
    """The trials of a sweep, and metric -> margin, as :func:`invariance` takes them; beside: see :func:`read_trials`.

    Raises:
        ValueError: for an unknown sweep or metric, or a margin that is not a positive number.
    """
    trials = read_trials(store, sweep, metrics, beside)
    known = metric_columns(trials.column_names)
    own = stated(store, sweep).get("margins") or {}
    named = {*own, *(margins if isinstance(margins, Mapping) else ())}
    wanted = list(dict.fromkeys(metrics or _measured(trials, known, named)))
    return trials, margins_of(wanted, known, own, margins)


def read_trials(
    store: str | Path, sweep: str, metrics: Sequence[str] | None = None, beside: Sequence[str] = ()
) -> pa.Table:
    """What verdicts and heat maps rest on, in one SELECT: fields, status, metrics (by default all) and their errors.

    Args:
        store: directory of the store.
        sweep: name of the sweep.
        metrics: columns of `trials`.
        beside: further ones, as far as they are there; `lambda_max_peak` is the largest of a trial over training.

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
            query = f"SELECT {columns}, {PEAK} FROM trials LEFT JOIN ({_PEAKS}) USING (trial_id)"
        return fetch(connection, query, [files.sweep(sweep)])


_PEAKS = f"SELECT trial_id, max(value) AS {PEAK} FROM curves WHERE statistic = 'lambda_max' GROUP BY trial_id"


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
    suffix, text = Store(store).sweep(sweep).sweep_file() or (".yaml", "")
    content = tomllib.loads(text) if suffix == ".toml" else YAML(typ="safe").load(text)
    return dict(content or {})


def check_known(what: str, names: Iterable[str], known: Sequence[str], holding: str) -> None:
    """Raises ValueError for names that are not known, each with the nearest one."""
    problems = []
    for name in names:
        if name not in known:
            hint = get_close_matches(name, known, 1)
            problems.append(f"unknown {what} {name!r}" + (f": did you mean {hint[0]!r}?" if hint else ""))
    if problems:
        raise ValueError(f"{'; '.join(problems)} ({holding} {', '.join(known) or 'none'})")
