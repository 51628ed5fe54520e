"""The line through two stored endpoints: finds them, makes sure that they are comparable, and evaluates it."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.database import connect, fetch
from orchestrator.inspection import the_only
from trainables.endpoints import Endpoint, read
from trainables.packs import number
from trainables.schema import Status
from trainables.storage import StoreError
from trainables.store import ENDPOINTS, Store, SweepStore, side_name

if TYPE_CHECKING:
    from trainables.interpolation import Point

_NAME = re.compile(r"([^/]+)/([0-9a-f]+)")
_ALIKE = ("arch", "dataset", "precision", "loss")
_TOLERANCE = 1e-2  # relative; other devices and thread counts move the last digits, another net or data set all of them


@dataclass(frozen=True)
class _End:
    name: str  # as given
    row: dict[str, Any]  # of `trials`
    endpoint: Endpoint


def interpolate(
    a: str, b: str, store: str | Path = "results", *, points: int = 31, start: float = -1.0, stop: float = 2.0
) -> list[dict[str, Any]]:
    """Loss and accuracy of the nets with parameters (1 - alpha) A + alpha B, for two endpoints A and B.

    As in Goodfellow et al. 2015 (arXiv:1412.6544) and, with alpha from -1 to 2, Jastrzębski et al. 2017
    (arXiv:1711.04623). The training set is A's, its label noise included. BatchNorm's running statistics are
    interpolated like parameters: beyond the endpoints a variance may become negative, and the loss NULL.

    Args:
        a: SWEEP/TRIAL_ID; the first digits of the id suffice where no other trial has them.
        b: likewise, of any sweep.
        store: directory of the store.
        points: how many alphas, evenly spaced.
        start: the first of them.
        stop: the last.

    Returns:
        rows alpha, train_loss, train_accuracy, test_loss, test_accuracy; None where not finite.

    Raises:
        ValueError: the nets are not of one kind, or do not give the test loss that was stored with them.
        StoreError: no such endpoint, with the reason.
        DamagedStoreError: its file cannot be read.
    """
    if points < 2 or not (math.isfinite(start) and math.isfinite(stop) and start < stop):
        raise ValueError(f"{points} points from {start:g} to {stop:g}: two or more, upwards, are expected")
    first, second = (_find(Store(store), name) for name in (a, b))
    differing = [f for f in _ALIKE if getattr(first.endpoint.trial, f) != getattr(second.endpoint.trial, f)]
    if differing:
        each = [f"{f} {getattr(first.endpoint.trial, f)} and {getattr(second.endpoint.trial, f)}" for f in differing]
        raise ValueError(f"no line goes from {a} to {b}: {'; '.join(each)}")
    alphas = [round(float(alpha), 12) for alpha in np.linspace(start, stop, points)]
    at_a, at_b, *between = _line(first, second, [0.0, 1.0, *alphas])
    _check(first, at_a)
    _check(second, at_b)
    return [{name: number(value) for name, value in asdict(point).items()} for point in between]


def _line(a: _End, b: _End, alphas: list[float]) -> list[Point]:
    import torch

    from trainables.interpolation import line

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return line(a.endpoint, b.endpoint, a.row["engine"], alphas, device)


def _find(store: Store, name: str) -> _End:
    given = _NAME.fullmatch(name)
    if given is None:
        raise ValueError(f"{name!r}: SWEEP/TRIAL_ID is expected, such as digits/3f2a; SELECT trial_id FROM trials")
    sweep, digits = given.groups()
    there = store.existing(sweep)
    with connect(store, sweep) as connection:
        rows = fetch(connection, f"FROM trials WHERE starts_with(trial_id, '{digits}')", [there])
    (row,) = the_only(rows, digits, sweep, "trials").to_pylist()
    file = side_name(ENDPOINTS, row["pack_id"], row["attempt"])
    if reason := _why_none(row, file, there):
        raise StoreError(f"trial {name} has no endpoint: {reason}")
    return _End(name, row, read(there.storage, file, [row["trial_id"]])[row["trial_id"]])


def _why_none(row: dict[str, Any], file: str, sweep: SweepStore) -> str | None:
    if row["status"] != Status.FINISHED:
        return f"it {row['status']}"
    if row["engine"] == "import":
        return "it was imported"
    if row["call"] is not None:
        return f"it is a trial of your own, call {row['call']}"
    if sweep.storage.exists(file):
        return None
    return (
        f"they are not kept in sweep {sweep.name!r}; set `measure: {{endpoints: true}}` in its sweep file, "
        "give it another name and launch it"
    )


def _check(end: _End, now: Point) -> None:
    """That the net still is what was measured.

    The training loss is not compared: it is taken on A's targets, and B may have had others.
    """
    stored = end.row["test_loss"]
    if stored is not None and not math.isclose(now.test_loss, stored, rel_tol=_TOLERANCE, abs_tol=1e-6):
        raise ValueError(
            f"trial {end.name} now has a test loss of {now.test_loss:.6g}, but {stored:.6g} when it was trained: its "
            "data set, net or loss has changed since, or the net has state that is no parameter and no buffer, or the "
            "file of its endpoint is damaged, which `isoratio verify` tells"
        )
