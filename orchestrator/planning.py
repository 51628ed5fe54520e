"""What a launch would do: trials, packs, what is done already, and how long the rest takes. Writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from orchestrator.accounting import Estimate
from orchestrator.controls import Controls
from orchestrator.cost import PARTS, SECONDS_PER_COST, Costs
from orchestrator.grid import distinct_size, expand, size
from orchestrator.parquet import select
from orchestrator.progress import duration
from orchestrator.reconcile import Reconciliation, reconcile
from orchestrator.sweepfile import SweepFile, load
from trainables.store import REUSED, Store, SweepStore

SAMPLED_PACKS = 64
"""How many committed packs tell how fast this machine is."""


@dataclass(frozen=True)
class Plan:
    """A sweep file compared with the store.

    Attributes:
        sweep: the sweep file.
        found: what is done and what is to do.
        workers: packs that run at the same time.
        seconds_per_cost: what a unit of cost takes one worker.
        is_measured: whether that comes from packs that have run, or is a guess.
    """

    sweep: SweepFile
    found: Reconciliation
    workers: int
    seconds_per_cost: float
    is_measured: bool

    def rows(self) -> list[dict[str, Any]]:
        """One row per pack, longest first; its time and the share of measuring are NULL when it is not to run."""
        costs = Costs.of(self.found.overview, self.sweep.measure)
        shares = (costs.measuring.sum(axis=1) / costs.total).tolist()
        return [
            pack
            | {"estimated_seconds": pack["cost"] * self.seconds_per_cost if pack["to_run"] else None}
            | {"measuring_share": share if pack["to_run"] else None}
            for pack, share in zip(self.found.overview.to_pylist(), shares, strict=True)
        ]

    @property
    def seconds(self) -> float:
        """Estimated wall time: packs run longest first, so the rest is spread evenly over the workers."""
        costs = self.found.packs["cost"].to_numpy()
        return self.seconds_per_cost * float(max(costs.sum() / self.workers, costs.max(initial=0.0)))

    @property
    def estimate(self) -> Estimate:
        """What is to run takes of a cluster, without what failed attempts, and processes that wait, take beside it."""
        seconds = self.seconds_per_cost * float(self.found.packs["cost"].to_numpy().sum())
        return Estimate.of(seconds, self.sweep.resources, self.sweep.prices)

    @property
    def measuring(self) -> dict[str, float]:
        """Estimated share of the time, for what is always measured and each group of statistics, largest first."""
        costs = Costs.of(self.found.packs, self.sweep.measure)
        spent = sorted(zip(costs.measuring.sum(axis=0).tolist(), PARTS, strict=True), reverse=True)
        return {part: cost / float(costs.total.sum()) for cost, part in spent if cost}

    def summary(self) -> str:
        """The plan in a few lines, for people."""
        found, trials = self.found, self.found.grid.num_rows
        every, distinct = size(self.sweep.axes), distinct_size(self.sweep.axes)
        none = Controls()
        swept = trials
        if self.sweep.controls != none:
            swept = expand(self.sweep.model_copy(update={"controls": none})).num_rows
        engines = Counter(found.packs["engine"].to_pylist())
        lines = [
            f"{self.sweep.name}: {trials:,} trials in {found.overview.num_rows:,} packs",
            f"  grid     {every:,} points, {every - distinct:,} coincide, {distinct - swept:,} left out by `where`",
            f"  done     {found.done:,}",
            f"  to run   {found.packs['trials'].to_numpy().sum():,} in {found.packs.num_rows:,} packs"
            + "".join(f", {n:,} {engine}" for engine, n in sorted(engines.items())),
        ]
        lines += [f"  controls {trials - swept:,} more"] if trials > swept else []
        lines += [f"  reused   {len(r.trial_ids):,} from {r.sweep}" for r in found.reuse]
        if found.packs.num_rows:
            guess = "as CPU cores would take" if self.sweep.resources.gpu else "a guess"
            basis = "from packs that have run" if self.is_measured else f"{guess}: nothing has run yet"
            lines.append(f"  time     about {duration(self.seconds)} with {self.workers} workers ({basis})")
            lines.append(f"  cost     about {self.estimate.text()}")
        if shares := self.measuring:
            parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
            lines.append(f"  measuring about {sum(shares.values()):.0%} of the time: {parts}")
        return "\n".join(lines)


def plan(file: str | Path, store: str | Path = "results", *, workers: int | None = None) -> Plan:
    """Reads a sweep file and compares it with the store.

    Args:
        file: see :func:`orchestrator.sweepfile.load`.
        store: directory of the store.
        workers: packs that run at the same time; None: as many as this machine's cores have room for.

    Raises:
        SweepFileError: the file is wrong.
        SweepChangedError: the store has another sweep of this name.
        DamagedStoreError: a file of the store cannot be read.
    """
    sweep, held = load(file), Store(store)
    found = reconcile(sweep, held, retry_failed=True, settle_engines=False)
    rates = (_measured_rate(held.sweep(name)) for name in dict.fromkeys([sweep.name, *held.sweeps()]))
    rate = next((r for r in rates if r is not None), None)
    return Plan(
        sweep=sweep,
        found=found,
        workers=workers or max(1, int((os.cpu_count() or 1) / max(sweep.resources.cpu, 1))),
        seconds_per_cost=rate or SECONDS_PER_COST,
        is_measured=rate is not None,
    )


def _measured_rate(files: SweepStore) -> float | None:
    """Seconds per unit of cost in some packs of a sweep, or None where none has run."""
    listing = files.listing("plan", "trials")
    committed = [name for name in listing.tables["trials"] if not name.startswith(f"trials/{REUSED}")][:SAMPLED_PACKS]
    listing = replace(listing, tables={**listing.tables, "trials": committed})
    with duckdb.connect() as connection:
        query = "SELECT pack_id, sum(seconds) AS seconds FROM rows GROUP BY pack_id"
        connection.register("spent", select(connection, query, listing, "trials"))
        query = "SELECT DISTINCT pack_id, cost FROM rows WHERE cost > 0"
        connection.register("planned", select(connection, query, listing, "plan"))
        query = "SELECT sum(seconds) / sum(cost) FROM spent JOIN planned USING (pack_id)"
        rate: float | None = connection.sql(query).fetchall()[0][0]
    return rate
