"""One pack on a worker: read its plan, run it, commit its rows."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from trainables.checkpoint import CHECKPOINT_SECONDS, NO_CHECKPOINTS, Checkpoints, Interrupted, Keeper, plugins
from trainables.endpoints import Endpoint, as_file
from trainables.lease import StopKind, latest, note, stop_request
from trainables.registry import batch_statistics, is_plugin, load, resolve, train_size
from trainables.schedules import timeline
from trainables.schema import (
    FAILURES,
    MEASURED,
    PROVENANCE,
    RESERVED,
    SIDE_TABLES,
    TABLES,
    TRIALS,
    Status,
    metric_values,
)
from trainables.settings import Measure
from trainables.storage import PATIENCE_OF_WORK, StoreError
from trainables.store import ENDPOINTS, Store, SweepStore, new_attempt, table
from trainables.trial import Trial

Row = dict[str, Any]
Done = TypeVar("Done")


@dataclass(frozen=True)
class PackItem:
    """What a worker is told: where the pack's plan is, and what it may use.

    Attributes:
        store: directory or URL.
        sweep: its name.
        pack_id: which pack.
        plan: the file that holds its plan.
        launch: number of the launch that runs it; see :mod:`trainables.lease`.
        threads: CPU threads.
        gpu: whether it has one.
        checkpoint_seconds: at most so long lies between two checkpoints.
    """

    store: str
    sweep: str
    pack_id: str
    plan: str
    launch: int
    threads: int = 1
    gpu: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS


@dataclass(frozen=True)
class Pack:
    """A pack as planned: trials that train together, in the order of their slots."""

    pack_id: str
    engine: str
    measure: Measure
    rounds: tuple[int, ...]
    keys: tuple[Row, ...]  # sweep, trial_id, measure_id
    trials: tuple[Trial, ...]
    physical_batch_size: int | None = None  # most examples in one forward pass; None: the whole minibatch
    together: int = 2**31  # most trials to train at once

    @classmethod
    def of(cls, rows: pa.Table) -> Pack:
        """From rows of the plan; the settings of measurement are in its metadata."""
        plan = rows.to_pylist()
        metadata: Mapping[bytes, bytes] = rows.schema.metadata or {}
        return cls(
            plan[0]["pack_id"],
            plan[0]["engine"],
            Measure.model_validate_json(metadata[b"measure"]),
            tuple(r["round"] for r in plan),
            tuple({k: r[k] for k in ("sweep", "trial_id", "measure_id")} for r in plan),
            tuple(map(Trial.of_row, plan)),
            plan[0]["physical_batch_size"],
            len(plan),
        )

    def halved(self) -> Pack | None:
        """With half as many trials at once; of a trial alone, with half as many examples in a pass; None at the end.

        What normalizes over the whole minibatch, as a plug-in may, is not cut further than into trials.
        """
        if self.engine == "call":
            return None
        if self.together > 1:
            return replace(self, together=-(-self.together // 2))
        first = self.trials[0]
        size = self.physical_batch_size or _largest_batch(first)
        if size == 1 or is_plugin("arch", first.arch) or batch_statistics(first.arch) != 1:
            return None
        return replace(self, physical_batch_size=-(-size // 2))

    def base(self, slot: int) -> Row:
        """What every row about a trial begins with: its keys and configuration."""
        return self.keys[slot] | self.trials[slot].model_dump()


@dataclass
class Outcome:
    """Rows that a pack gave.

    Attributes:
        trials: slot -> columns of the trial's row beside its configuration.
        side: table -> rows, each with its ``slot``.
        endpoints: slot -> what the trial had learned, where that is kept.
        failures: slot -> traceback.
        cause: why they failed: exception, or memory where even the smallest piece did not fit.
        device: where it ran.
        dataset_sha256: None for trials of the user's own.
    """

    trials: dict[int, Row] = field(default_factory=dict)
    side: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in SIDE_TABLES})
    endpoints: dict[int, Endpoint] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    cause: str = "exception"
    device: str = "cpu"
    dataset_sha256: str | None = None


def run_pack(item: PackItem) -> Iterator[float]:
    """Runs and commits one pack, from its last checkpoint on where there is one; yields the fraction done.

    An exception of the user's code is recorded in ``failures`` rather than raised: other packs go on. What is raised
    comes from the store or the machine, not from the trials.

    Raises:
        InterruptedError: whoever runs this threw one into it, as on preemption; a checkpoint was saved first.
    """
    store = Store(item.store, PATIENCE_OF_WORK).sweep(item.sweep)
    watch = _Watch(store, item)
    if watch.stop() or watch.is_superseded() or store.is_committed(item.pack_id):
        return
    try:
        pack = Pack.of(store.read_pack(item.plan, item.pack_id))
    except FileNotFoundError:
        if watch.is_superseded():  # by a launch that has planned anew
            return
        raise
    if cut := store.read_split(pack.pack_id):
        pack = replace(pack, together=cut[0], physical_batch_size=cut[1])
    began = time.perf_counter()
    attempt = new_attempt()
    log = partial(note, store.storage, item.launch, pack.pack_id)
    keeper = Keeper(store.storage, pack.pack_id, item.checkpoint_seconds, watch.reason, log)
    try:
        pack, outcome = yield from watch.over(_run_in_memory(store, pack, item, keeper))
    except Interrupted as interruption:
        if watch.told:
            raise InterruptedError(str(interruption)) from None
        return
    except Exception as error:  # whatever it is, it must not take the worker with it
        cause = "memory" if isinstance(error, MemoryError) else "exception"
        failures = dict.fromkeys(range(len(pack.trials)), traceback.format_exc())
        outcome = Outcome(failures=failures, cause=cause)
    seconds = (time.perf_counter() - began) / len(pack.trials)
    write(store, pack, attempt, outcome, seconds, item.threads)
    keeper.clear()


class _Watch:
    """Looks, now and then, whether a pack is to stop: asked through the store, or by whoever runs it."""

    def __init__(self, store: SweepStore, item: PackItem) -> None:
        self.storage, self.launch = store.storage, item.launch
        self.told: str | None = None  # by whoever runs it
        self.every = 5.0 if self.storage.is_remote else 1.0
        self._next_look = 0.0
        self._asked: str | None = None

    def stop(self) -> StopKind | None:
        """What the launch was asked for."""
        return stop_request(self.storage, self.launch)

    def is_superseded(self) -> bool:
        """Whether a later launch holds the sweep, and runs this pack itself."""
        holder = latest(self.storage)
        return holder is not None and holder.number > self.launch

    def reason(self) -> str | None:
        """Why to save a checkpoint and end, if at all."""
        if self.told is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.every
            with suppress(OSError, StoreError):  # no reason to stop
                if self.stop() == "checkpoint":
                    self._asked = "asked to stop"
                elif self.is_superseded():
                    self._asked = "another launch runs this pack"
        return self.told or self._asked

    def over(self, steps: Generator[float, None, Done]) -> Generator[float, None, Done]:
        """Hands on what is yielded, and keeps an InterruptedError that comes back until a checkpoint can be saved."""
        while True:
            try:
                fraction = next(steps)
            except StopIteration as end:
                done: Done = end.value
                return done
            try:
                yield fraction
            except InterruptedError as interruption:
                self.told = str(interruption) or "interrupted"


def _run_in_memory(
    store: SweepStore, pack: Pack, item: PackItem, keeper: Keeper
) -> Generator[float, None, tuple[Pack, Outcome]]:
    """Runs a pack; where it does not fit memory, in halves, which are recorded so that it is never cut otherwise."""
    while True:
        try:
            return pack, (yield from run(pack, item.threads, gpu=item.gpu, keeper=keeper))
        except MemoryError:
            smaller = pack.halved()
            if smaller is None:
                raise
        pack = smaller  # outside of the handler, whose traceback would hold what did not fit
        store.write_split(pack.pack_id, pack.together, pack.physical_batch_size)


def run(
    pack: Pack, threads: int, *, gpu: bool = False, keeper: Checkpoints = NO_CHECKPOINTS
) -> Generator[float, None, Outcome]:
    """Runs a pack, from its last checkpoint on where one is kept; yields the fraction done, returns the rows.

    Raises:
        Interrupted: ``keeper`` said so.
    """
    if pack.engine == "call":
        return (yield from _call_each(pack, threads, keeper))
    from trainables.results import train_pack  # torch is first needed here

    return (yield from train_pack(pack, threads, gpu=gpu, keeper=keeper))


def run_through(pack: Pack) -> Outcome:
    """Runs a pack in this process, on one thread, without storing anything."""
    steps = run(pack, threads=1)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def write(store: SweepStore, pack: Pack, attempt: str, outcome: Outcome, seconds: float, threads: int) -> None:
    """Commits finished and diverged trials, and records failed ones."""
    common = {"pack_id": pack.pack_id, "attempt": attempt, "seconds": seconds, "device": outcome.device}
    cut = {"together": pack.together, "physical_batch_size": pack.physical_batch_size}
    if outcome.failures:  # before the rows, which win over them: stopped in between, they are tried again
        _write_failures(store, pack, common, outcome.cause, outcome.failures)
    if outcome.trials:
        provenance = _provenance(store, pack, outcome, threads)
        rows = [
            pack.base(slot) | found | common | cut | {"slot": slot, "engine": pack.engine, "provenance_id": provenance}
            for slot, found in sorted(outcome.trials.items())
        ]
        joined = partial(_side_table, pack=pack, attempt=attempt, kept=outcome.trials)
        tables = {name: joined(rows, TABLES[name]) for name, rows in outcome.side.items() if rows}
        side: dict[str, pa.Table | bytes] = {k: v for k, v in tables.items() if v.num_rows}
        if outcome.endpoints:
            side[ENDPOINTS] = as_file({pack.keys[s]["trial_id"]: e for s, e in sorted(outcome.endpoints.items())})
        store.commit(pack.pack_id, attempt, table(rows, TRIALS), side)


def record_crash(item: PackItem, cause: str, reason: str) -> None:
    """Records that a pack's workers ended without a word, unless the pack was committed all the same."""
    store = Store(item.store, PATIENCE_OF_WORK).sweep(item.sweep)
    if store.is_committed(item.pack_id):
        return
    pack, attempt = Pack.of(store.read_pack(item.plan, item.pack_id)), new_attempt()
    common = {"pack_id": pack.pack_id, "attempt": attempt}
    _write_failures(store, pack, common, cause, dict.fromkeys(range(len(pack.trials)), reason))
    Keeper(store.storage, pack.pack_id).clear()


def halve(item: PackItem) -> bool:
    """Cuts a pack whose worker was killed for its memory; returns whether it could be cut further."""
    store = Store(item.store, PATIENCE_OF_WORK).sweep(item.sweep)
    pack = Pack.of(store.read_pack(item.plan, item.pack_id))
    if cut := store.read_split(pack.pack_id):
        pack = replace(pack, together=cut[0], physical_batch_size=cut[1])
    smaller = pack.halved()
    if smaller is not None:
        store.write_split(pack.pack_id, smaller.together, smaller.physical_batch_size)
    return smaller is not None


def _write_failures(store: SweepStore, pack: Pack, common: Row, cause: str, errors: Mapping[int, str]) -> None:
    rows = [
        pack.base(slot) | common | {"round": pack.rounds[slot], "cause": cause, "error": error}
        for slot, error in sorted(errors.items())
    ]
    store.write_failures(pack.pack_id, common["attempt"], table(rows, FAILURES))


def _side_table(rows: list[Row], schema: pa.Schema, *, pack: Pack, attempt: str, kept: Mapping[int, Row]) -> pa.Table:
    """Side rows of the trials that are committed, with their keys."""
    names = [n for n in schema.names if n not in {"sweep", "trial_id", "pack_id", "attempt"}]
    chosen = [r for r in rows if r["slot"] in kept]
    columns: dict[str, list[Any]] = {n: [r[n] for r in chosen] for n in names}
    for key in ("sweep", "trial_id"):
        columns[key] = [pack.keys[r["slot"]][key] for r in chosen]
    columns["pack_id"], columns["attempt"] = [pack.pack_id] * len(chosen), [attempt] * len(chosen)
    return pa.table({n: columns[n] for n in schema.names}, schema=schema)


def _provenance(store: SweepStore, pack: Pack, outcome: Outcome, threads: int) -> str:
    from trainables.provenance import collect

    row = collect(outcome.device, threads, outcome.dataset_sha256, plugins(pack))
    store.write_provenance(row["provenance_id"], table([row], PROVENANCE))
    return str(row["provenance_id"])


def _call_each(pack: Pack, threads: int, keeper: Checkpoints) -> Generator[float, None, Outcome]:
    """Trials of the user's own, one after the other; one that raises fails alone."""
    found: dict[int, dict[str, float] | str] = keeper.restore(pack, threads, "cpu") or {}
    for slot in range(len(found), len(pack.trials)):
        try:
            found[slot] = _call(pack.trials[slot])
        except Exception:
            found[slot] = traceback.format_exc()
        keeper.report((0, slot + 1), lambda: found)
        yield (slot + 1) / len(pack.trials)
    return _called(pack, found)


def _called(pack: Pack, found: Mapping[int, dict[str, float] | str]) -> Outcome:
    """Of what each trial returned, or the traceback of its failure."""
    outcome = Outcome()
    for slot, values in found.items():
        trial = pack.trials[slot]
        if isinstance(values, str):
            outcome.failures[slot] = values
            continue
        outcome.trials[slot] = _called_row(trial, values)
        outcome.side["curves"] += [
            {"slot": slot, "step": None, "epoch": trial.epochs, "statistic": n, "value": number(v), "error": None}
            for n, v in values.items()
        ]
    return outcome


def _call(trial: Trial) -> dict[str, float]:
    assert trial.call is not None
    resolved = resolve("call", trial.call)
    config = trial.model_dump() | {"call": resolved.target} | resolved.parameters
    return metric_values(resolved.target, load(resolved.target)(config), RESERVED - MEASURED)


def _called_row(trial: Trial, values: dict[str, float]) -> Row:
    """A trial that returns a number that is not finite counts as diverged."""
    bad = [k for k, v in values.items() if not math.isfinite(v)]
    status = Status.DIVERGED if bad else Status.FINISHED
    error = f"not finite: {', '.join(bad)}" if bad else None
    found = {k: number(v) for k, v in values.items()}
    return {"status": status, "error": error, "epochs_done": trial.epochs} | found


def number(value: float) -> float | None:
    """The value, or None (NULL) where it is not finite."""
    return float(value) if math.isfinite(value) else None


def thread_count(cpus: float) -> int:
    """Threads of a worker that holds ``cpus`` CPUs; never more than the machine has."""
    return max(1, min(int(cpus), os.cpu_count() or 1))


def _largest_batch(trial: Trial) -> int:
    """Examples in the largest step of a trial, as far as the size of its training set is known."""
    n = trial.train_size or train_size(trial.dataset)
    if n is None:
        return trial.batch_size
    if trial.sampler == "full":
        return n
    return timeline(trial.schedule, trial.batch_size, n, trial.epochs, trial.max_steps).largest_batch


def plan_metadata(measure: Measure, suffix: str, text: str) -> dict[bytes, bytes]:
    """What a plan's schema carries beside its rows: how to measure, and the sweep file."""
    about = {"measure": measure.model_dump(mode="json"), "sweep_file": [suffix, text]}
    return {name.encode(): json.dumps(value).encode() for name, value in about.items()}
