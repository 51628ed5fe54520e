"""Thousands of schedules of launches, crashes, lost answers, stale holders, compaction and damage; see `simulation`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest
from simulated_processes import Fault, ViolationError
from simulated_world import QuickStorage, reconciled, sweep_file, in_memory
from simulation import SWEEP, TOLERATED, Sweep, Witness, play, replay

from analysis import discarding
from analysis.database import connect
from orchestrator import launching
from orchestrator.reconcile import Reconciliation, reconcile
from trainables import lease, packs
from trainables.manifest import read_manifest
from trainables.store import (
    Listing,
    Store,
    SweepStore,
    checksum,
    hashed,
    parquet_bytes,
    rows_name,
    side_name,
    sums_name,
)

QUICK, LONG = 2_000, 50_000

Fired = Counter[tuple[str, str, str, Fault | None]]

COMMIT = [("create", folder) for folder in ("curves", "endpoints", "sums", "trials", "failures")]
COMPACTION = [("create", "merged"), ("create", "manifest"), ("replace", "manifest")]
COMPACTION += [("delete", folder) for folder in ("trials", "curves", "sums")]
LAUNCH = [("create", "lease"), ("create", "plan"), ("replace", ""), ("delete", "lease"), ("replace", "log")]


@pytest.fixture
def simulated() -> Iterator[pytest.MonkeyPatch]:
    with in_memory() as patch:
        yield patch


def played(seeds: range, *, accident: bool = False) -> Fired:
    """Plays schedules; returns what happened in them, and how often."""
    fired: Fired = Counter()
    for seed in seeds:
        fired += play(seed, accident=accident).play.fired()
    return fired


def check_that_faults_fired(fired: Fired) -> None:
    """At every step of a commit, a compaction and a launch each kind of fault has struck, crashes on both sides."""
    steps = [("worker", *step) for step in COMMIT]
    steps += [("compact", *step) for step in COMPACTION] + [("launch", *step) for step in LAUNCH]
    missing = [(*step, str(fault)) for step in steps for fault in Fault if not fired[*step, fault]]
    assert not missing
    by_kind = {(kind, fault) for kind, _, _, fault in fired}
    assert by_kind >= {(kind, fault) for kind in ("duplicate", "verify", "reader", "stop") for fault in Fault}
    assert fired["worker", "delete", "curves", None], "no attempt has lost"
    assert fired["worker", "read", "checkpoints", None], "no pack has gone on from a checkpoint"


@pytest.mark.usefixtures("simulated")
def test_nothing_is_lost_whatever_fails() -> None:
    check_that_faults_fired(played(range(QUICK)))


@pytest.mark.long
@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("start", range(QUICK, QUICK + LONG, LONG // 10))
def test_nothing_is_lost_in_a_great_many_schedules(start: int) -> None:
    check_that_faults_fired(played(range(start, start + LONG // 10)))
