"""What stands in for the world around the store's code while it is simulated.

Stubs are: storage, threads, clocks and random names; the trials, which give one number each; the executor; what a
launch asks DuckDB, which takes too long to be asked thousands of times (a test holds the two together); the terminal.
"""

from __future__ import annotations

import gc
import hashlib
import io
import secrets
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, partialmethod
from itertools import chain, count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_processes import Fault, Process, Simulation, of_threads, of_time

sys.path.append(str(Path(__file__).parents[1] / "trainables"))  # for the storage

from memory_storage import Hook, MemoryStorage

from analysis import checks, compaction
from cluster.executor import Cause, Event, Failed, Finished, Progress, Started
from orchestrator import launching
from orchestrator.grid import expand
from orchestrator.progress import Reporter
from orchestrator.reconcile import Reconciliation, SweepChangedError
from orchestrator.sweepfile import SweepFile, load
from trainables import checkpoint, lease, packs, provenance, store
from trainables.endpoints import Endpoint
from trainables.schema import PLAN
from trainables.storage import contained
from trainables.store import Store, SweepStore

URL, SWEEP = "memory:", "s"
PATIENCE = 2.5
SIZES = ((2, 4), (4, 6))
"""Trials of a sweep, and of the sweep file that extends it."""
CHECKPOINT_SECONDS = (0.5, 60.0)
DIVERGING = 2
"""Seed of a trial that returns what is not finite."""

_TEXT = """
name: s
dataset: digits
train: {{call: "simulated_world:trial", epochs: 1}}
grid: {{lr: [0.1], batch_size: [1], seed: {{range: {seeds}}}}}
pack: {{max_trials: 2, checkpoint_seconds: {seconds}}}
retries: 1
"""


class _Contents(dict[str, bytes]):
    """Files by name, which knows the names in each folder, and keeps equal files once."""

    equal: ClassVar[dict[bytes, bytes]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[str, list[str]] = {}

    def __setitem__(self, key: str, data: bytes) -> None:
        if key not in self:
            self.listed.pop(key.rpartition("/")[0], None)
        super().__setitem__(key, self.equal.setdefault(data, data))

    def pop(self, key: str, default: Any = None) -> Any:
        self.listed.pop(key.rpartition("/")[0], None)
        return super().pop(key, default)


class QuickStorage(MemoryStorage):
    """The storage in memory, where a thousand things are done in a few milliseconds."""

    def __init__(self, play: Simulation) -> None:
        super().__init__(play.hook, lambda: play.clock)
        self.contents = self.files.contents = _Contents()

    def _doing(self, operation: str, name: str | None = None) -> _Doing:  # type: ignore[override]
        return _Doing(self.hook, operation, _joined(self.prefix, name) if name else self.prefix[:-1])

    def _below(self, prefix: str) -> list[str]:
        if prefix.count("/") != 2:
            return super()._below(prefix)
        folder = prefix[:-1]
        if folder not in self.contents.listed:
            self.contents.listed[folder] = sorted(super()._below(prefix))
        return self.contents.listed[folder]


class _Doing:
    """Calls the hook before and after."""

    def __init__(self, hook: Hook | None, operation: str, key: str) -> None:
        self.hook, self.operation, self.key = hook, operation, key

    def __enter__(self) -> str:
        if self.hook:
            self.hook(self.operation, self.key, "before")
        return self.key

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.hook and kind is None:
            self.hook(self.operation, self.key, "after")


@lru_cache(maxsize=100_000)
def _joined(prefix: str, name: str) -> str:
    return prefix + contained(name)


@dataclass
class World:
    """One simulated world.

    Attributes:
        play: its processes.
        storage: its store, as its processes see it.
        hopeless: the seed of a trial that always raises, if there is one.
        flaky: probability that a trial raises that would not.
        duplicated: probability that a pack is run twice.
        preempted: probability at every step of a pack that it is told to end.
        orphaned: probability that workers outlive their launch, and, a tenth of it, that one seems dead and is not.
        worker_faults: what strikes workers.
        ran: seeds of the trials that were run, in that order.
    """

    play: Simulation
    storage: QuickStorage
    hopeless: int | None = None
    flaky: float = 0.0
    duplicated: float = 0.0
    preempted: float = 0.0
    orphaned: float = 0.0
    worker_faults: Mapping[Fault, float] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)
    attempts: Iterator[int] = field(default_factory=count)

    @classmethod
    def of(cls, seed: int) -> World:
        """A world in which nothing has happened yet."""
        global _world
        play = Simulation(seed)
        _world = cls(play, QuickStorage(play))
        return _world

    def unseen(self) -> SweepStore:
        """The sweep for who looks at it without taking part."""
        return SweepStore(self.storage.seen_by(None), SWEEP)


_world: World


def _simulation() -> Simulation:
    return _world.play


@lru_cache
def sweep_file(seeds: int, seconds: float) -> SweepFile:
    """A sweep of so many trials, whose packs save a checkpoint every so many seconds."""
    return load("sweep.yaml", text=_TEXT.format(seeds=seeds, seconds=seconds))


@lru_cache
def _grid(seeds: int) -> pa.Table:
    return expand(sweep_file(seeds, 60.0))


def trial(config: dict[str, Any]) -> dict[str, float]:
    """A trial: it takes a while, may raise, and gives a number that follows from its seed."""
    seed = config["seed"]
    _world.ran.append(seed)
    _world.play.sleep(_world.play.random.expovariate(8.0))
    if seed == _world.hopeless or _world.play.chance(_world.flaky):
        raise ValueError(f"no luck with seed {seed}")
    return {"score": float("inf") if seed == DIVERGING else 1.0 / (1 + seed)}


# --- workers --------------------------------------------------------------------------------------------------------


class Workers:
    """An executor: two processes at a time, which may outlive their driver."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(
        self,
        work: Callable[[Any], Iterator[float]],
        items: Sequence[Any],
        *,
        on_event: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        play, waiting = _world.play, list(enumerate(items))
        running: dict[int, Process] = {}
        mail: list[Event] = []
        try:
            while running or waiting:
                if stop():
                    waiting.clear()
                while waiting and len(running) < 2:
                    index, item = waiting.pop(0)
                    running[index] = _start(work, index, item, mail)
                play.sleep(1.0, lambda: bool(mail) or not all(p.alive for p in running.values()))
                for event in _told(mail, running):
                    if isinstance(event, Finished | Failed):
                        del running[event.index]
                    on_event(event)
        finally:
            if not play.chance(_world.orphaned):
                for process in running.values():
                    play.kill(process)


def _start(work: Callable[[Any], Iterator[float]], index: int, item: Any, mail: list[Event]) -> Process:
    """A worker; maybe a second one for the same item, of which nobody knows."""
    play = _world.play
    if play.chance(_world.duplicated):
        play.start("duplicate", partial(_work, work, index, item, []), _world.worker_faults)
    return play.start("worker", partial(_work, work, index, item, mail), _world.worker_faults)


def _told(mail: list[Event], running: dict[int, Process]) -> Iterator[Event]:
    """What workers say, then that some died without a word, and that some seem to, whose machine is out of reach."""
    while mail:
        event = mail.pop(0)
        if event.index in running:
            yield event
    play = _world.play
    for index, process in list(running.items()):
        if not process.alive or play.chance(_world.orphaned / 10):
            yield Failed(index, play.random.choice((Cause.CRASH, Cause.PREEMPTION, Cause.MEMORY)), "gone")


def _work(work: Callable[[Any], Iterator[float]], index: int, item: Any, mail: list[Event]) -> None:
    """A worker's main thread."""
    mail.append(Started(index))
    mail.append(_ended(work, index, item, mail))


def _ended(work: Callable[[Any], Iterator[float]], index: int, item: Any, mail: list[Event]) -> Event:
    """Runs an item."""
    steps = work(item)
    assert isinstance(steps, Generator)
    try:
        fraction = next(steps)
        while True:
            mail.append(Progress(index, fraction))
            told = _world.play.chance(_world.preempted)
            fraction = steps.throw(InterruptedError("SIGTERM")) if told else next(steps)
    except StopIteration:
        return Finished(index)
    except Exception as error:
        cause = Cause.PREEMPTION if isinstance(error, InterruptedError) else Cause.EXCEPTION
        return Failed(index, cause, traceback.format_exc())


def _trained(
    pack: packs.Pack, threads: int, *, gpu: bool, keeper: checkpoint.Checkpoints
) -> Generator[float, None, packs.Outcome]:
    """In place of training: trials of the user's own, with endpoints."""
    outcome: packs.Outcome = yield from packs._call_each(pack, threads, keeper)
    outcome.endpoints = {slot: Endpoint(pack.trials[slot], {"w": np.ones(1)}) for slot in outcome.trials}
    return outcome


# --- reconciliation -------------------------------------------------------------------------------------------------


def stored(files: SweepStore, name: str) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    return decoded(files.storage.read(name))


@lru_cache(maxsize=20_000)
def decoded(data: bytes) -> list[dict[str, Any]]:
    """Rows of a Parquet file; NULLs are left out."""
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def reconciled(
    sweep: SweepFile, held: Store, *, limit: int | None = None, retry_failed: bool = False
) -> Reconciliation:
    """As :func:`orchestrator.reconcile.reconcile`, which the tests hold it against."""
    files = held.sweep(sweep.name)
    listing = files.listing("plan", "trials", "failures")
    read = [tuple(map(files.storage.read, listing.tables[table])) for table in ("plan", "trials", "failures")]
    seeds, there = len(sweep.grid["seed"]), frozenset(listing.packs())
    return replace(_reconciled(seeds, 1 + sweep.retries, retry_failed, there, *read), files=files)


@lru_cache(maxsize=20_000)
def _reconciled(
    seeds: int, tries: int, retry_failed: bool, there: frozenset[str], plan: Files, trials: Files, failures: Files
) -> Reconciliation:
    grid = _grid(seeds)
    ids: list[str] = grid["trial_id"].to_pylist()
    rows = [[row for data in files for row in decoded(data)] for files in (plan, trials, failures)]
    planned = {row["trial_id"]: row for row in rows[0]}
    if planned.keys() - ids:
        raise SweepChangedError("the sweep has grown meanwhile")
    standing = _Standing(planned, there, *rows[1:], tries=tries, retry_failed=retry_failed)
    formed = _formed(standing, ids, grid["measure_id"][0].as_py())
    whose = {i: standing.pack(i) or formed[i][0] for i in ids}
    overview = _overview(standing, formed, whose)
    lost = {i: (whose[i], standing.done[i]["slot"], 0) for i in ids if i not in {*planned, *formed}}
    placed = [{"row": ids.index(i), "slot": s, "pack_id": p} for i, (p, s, _) in (formed | lost).items()]
    ended = Counter(standing.done[i]["status"] for i in ids if standing.state(i) == "done")
    left = {planned[i]["pack_id"] for i in {*planned, *formed} if i in planned and i in formed} - there
    failed = [i for i in ids if standing.state(i) == "failed"]
    todo = overview.filter(overview["to_run"])
    unknown: Any = None  # whose files these are
    return _Reconciled(
        unknown, grid, todo, overview, [], ended, failed, pa.Table.from_pylist(placed, _PLACED), sorted(left), []
    )


Files = tuple[bytes, ...]


class _Reconciled(Reconciliation):
    """One that plans as it did the last time."""

    def plan(self) -> pa.Table:
        earlier = self.files.read_plan()
        key = (None if earlier is None else rows_bytes(earlier), id(self.placed))
        if key not in _plans:
            known: Any = SimpleNamespace(name=self.files.name, read_plan=lambda: earlier)
            _plans[key] = super(_Reconciled, replace(self, files=known)).plan()
        return _plans[key]


_plans: dict[tuple[bytes | None, int], pa.Table] = {}


class _Standing:
    """What became of each trial that is planned."""

    def __init__(
        self,
        plan: Mapping[str, Mapping[str, Any]],
        there: Collection[str],
        trials: Sequence[Mapping[str, Any]],
        failures: Sequence[Mapping[str, Any]],
        *,
        tries: int,
        retry_failed: bool,
    ) -> None:
        self.plan, self.tries, self.retry_failed = plan, tries, retry_failed
        rows = sorted(trials, key=lambda row: row["pack_id"], reverse=True)
        self.done = {row["trial_id"]: row for row in rows}
        self.committed = there
        self.first = len({*there} - {row["pack_id"] for row in trials}) * tries
        self.failures = failures

    def pack(self, trial_id: str) -> str | None:
        """Where it stays."""
        if self.state(trial_id) in {"new", "retry"}:
            return None
        return (self.plan.get(trial_id) or self.done[trial_id])["pack_id"]

    def round(self, trial_id: str) -> int | None:
        """Of its pack in the plan."""
        return self.plan[trial_id]["round"] if trial_id in self.plan else None

    def next_round(self, trial_id: str) -> int:
        """Of its pack, were it tried again."""
        return self.first if (now := self.round(trial_id)) is None else now + 1

    def state(self, trial_id: str) -> str:
        """See ``_STANDING`` there."""
        if trial_id in self.done:
            return "done"
        if trial_id not in self.plan:
            return "new"
        if self._open(self.plan[trial_id]["pack_id"]):
            return "pending"
        return "retry" if self.retry_failed or self.next_round(trial_id) % self.tries else "failed"

    def _open(self, pack: str) -> bool:
        members = {i for i, row in self.plan.items() if row["pack_id"] == pack}
        failed = {row["trial_id"] for row in self.failures if row["pack_id"] == pack}
        return pack not in self.committed and members.isdisjoint(self.done) and not members <= failed


def _formed(standing: _Standing, ids: Sequence[str], measure_id: str) -> dict[str, tuple[str, int, int]]:
    """Trials that get a new pack -> its id, their slot in it, their round."""
    groups: dict[tuple[int, str], list[str]] = {}
    for i in ids:
        if (state := standing.state(i)) in {"new", "retry"}:
            groups.setdefault((standing.next_round(i), "" if state == "new" else i), []).append(i)
    found = {}
    for (round_, _), members in groups.items():
        for start in range(0, len(members), 2):
            part = members[start : start + 2]
            content = ",".join((*sorted(part), measure_id, str(round_)))
            pack = hashlib.sha256(content.encode()).hexdigest()[:16]
            found |= {i: (pack, slot, round_) for slot, i in enumerate(part)}
    return found


def _overview(standing: _Standing, formed: Mapping[str, tuple[str, int, int]], whose: Mapping[str, str]) -> pa.Table:
    """One row per pack."""
    rows = []
    for pack in sorted(set(whose.values())):
        members = [i for i, at in whose.items() if at == pack]
        new = members[0] in formed
        rows.append(
            {
                "pack_id": pack,
                "round": formed[members[0]][2] if new else standing.round(members[0]) or 0,
                "trials": len(members),
                "to_run": new or any(standing.state(i) == "pending" for i in members),
                "engine": "call",
                "physical_batch_size": None,
                "cost": float(len(members)),
            }
        )
    return pa.Table.from_pylist(rows, _OVERVIEW)


_OVERVIEW = pa.schema(
    [
        *(PLAN.field(name) for name in ("pack_id", "round")),
        pa.field("trials", pa.int64()),
        pa.field("to_run", pa.bool_()),
        *(PLAN.field(name) for name in ("engine", "physical_batch_size", "cost")),
    ]
)
_PLACED = pa.schema([pa.field("row", pa.int64()), PLAN.field("slot"), PLAN.field("pack_id")])


# --- the rest -------------------------------------------------------------------------------------------------------


class _Quiet(Reporter):
    """Shows nothing and starts no thread."""

    def __init__(self, held: lease.Lease, tally: Any) -> None:
        self.lease, self.tally, self.log = held, tally, held.log

    def __enter__(self) -> _Quiet:
        self.lease.describe = self.content
        self.lease.beat(**self.content())
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        self.log(text)


def _holder(of_this_process: Callable[[int, str], lease.Holder], number: int, command: str) -> lease.Holder:
    process = _world.play.me().process
    return replace(of_this_process(number, command), pid=process.number, host=f"host {process.host}")


def _is_gone(holder: lease.Holder) -> bool:
    me, other = _world.play.current, _world.play.processes[holder.pid]
    return not other.alive and (me is None or me.process.host == other.host)


def _noted(sweep: SweepStore, commit: Callable[..., bool], pack_id: str, *given: Any) -> bool:
    """Commits, and takes note where another attempt was first."""
    won = commit(sweep, pack_id, *given)
    if not won:
        play = _world.play
        play.steps.append((play.clock, play.me().process, "lose", f"{SWEEP}/{store.rows_name(pack_id)}", None))
    return won


@contextmanager
def in_memory() -> Iterator[pytest.MonkeyPatch]:
    """Puts the simulated world in place of the real one."""
    time, threads = of_time(_simulation), of_threads(_simulation)
    for trials, seconds in product({*chain(*SIZES)}, CHECKPOINT_SECONDS):
        _ = _grid(trials), sweep_file(trials, seconds)  # before random names are counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "open_storage", lambda url, patience=None: _world.storage)
        patch.setattr(secrets, "token_hex", lambda size: _world.play.token(size))
        for module in (lease, launching, packs):
            patch.setattr(module, "time", time)
        patch.setattr(lease, "threading", threads)
        patch.setattr(lease.Holder, "of_this_process", partial(_holder, lease.Holder.of_this_process))
        patch.setattr(lease.Holder, "is_gone", _is_gone)
        patch.setattr(packs, "Keeper", partial(checkpoint.Keeper, clock=time.monotonic))
        patch.setattr(packs, "run", _trained)
        patch.setattr(packs, "new_attempt", lambda: f"{next(_world.attempts):012x}")
        origin = provenance.collect("cpu", 1, None, [])
        patch.setattr(provenance, "collect", lambda *about: origin)
        patch.setattr(launching, "load", lambda file: file)
        patch.setattr(store.SweepStore, "commit", partialmethod(_noted, store.SweepStore.commit))
        for module in (launching, compaction):
            patch.setattr(module, "PATIENCE", PATIENCE)
        patch.setattr(launching, "_executor", lambda sweep, options: Workers())
        patch.setattr(launching, "_changed_plugins", lambda there: ())
        patch.setattr(launching, "Reporter", _Quiet)
        patch.setattr(launching, "reconcile", reconciled)
        _make_quick(patch)
        with _rare_collection():
            yield patch


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Leaves garbage that refers to itself to :func:`collect`: to look through all that is kept would take long."""
    gc.disable()
    collect(0)
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect(seed: int) -> None:
    """Now and then takes away what earlier schedules have left, and what it finds in use it never looks at again."""
    if seed % 100 == 0:
        gc.collect()
        gc.freeze()


def _make_quick(patch: pytest.MonkeyPatch) -> None:
    """The same few Parquet files are written and read again and again; and pools of threads are for disks."""
    patch.setattr(pq, "write_table", _Writer(pq.write_table))
    patch.setattr(pq, "read_table", _Reader(pq.read_table))
    patch.setattr(ThreadPoolExecutor, "submit", _at_once)
    patch.setattr(checks, "strange_packs", _Asked(checks.strange_packs))
    for module in (checkpoint, store):
        patch.setattr(module, "version", lambda package: "1")
    patch.setattr(checkpoint, "source_sha256", lambda target: "1")
    patch.setattr(packs, "table", _Tables(store.table))
    patch.setattr(packs, "load", lru_cache(packs.load))
    patch.setattr(packs, "resolve", lru_cache(packs.resolve))


class _Writer:
    """Writes a table as it did the last time."""

    def __init__(self, write: Callable[..., None]) -> None:
        self.write = write
        self.written: dict[tuple[bytes, str], bytes] = {}

    def __call__(self, rows: pa.Table, sink: io.BytesIO, **options: Any) -> None:
        key = (rows_bytes(rows), repr(options))
        if key not in self.written:
            file = io.BytesIO()
            self.write(rows, file, **options)
            self.written[key] = file.getvalue()
        sink.write(self.written[key])


def rows_bytes(rows: pa.Table) -> bytes:
    """A table as it lies in memory."""
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    return stream.getvalue()


class _Tables:
    """Makes a table of rows as it did the last time."""

    def __init__(self, make: Callable[[Any, pa.Schema], pa.Table]) -> None:
        self.make = make
        self.known: dict[tuple[str, int], pa.Table] = {}

    def __call__(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        key = (repr(rows), len(schema))
        if key not in self.known:
            self.known[key] = self.make(rows, schema)
        return self.known[key]


class _Reader:
    """Reads a file as it did the last time."""

    def __init__(self, read: Callable[..., pa.Table]) -> None:
        self.read = read
        self.known: dict[tuple[bytes, str], pa.Table] = {}

    def __call__(self, source: Any, **options: Any) -> pa.Table:
        if not hasattr(source, "read"):
            return self.read(source, **options)
        key = (source.read(), repr(options))
        if key not in self.known:
            self.known[key] = self.read(pa.BufferReader(key[0]), **options)
        return self.known[key]


class _Asked:
    """Asks DuckDB about rows as it did the last time."""

    def __init__(self, ask: Callable[..., dict[str, str]]) -> None:
        self.ask = ask
        self.known: dict[Any, dict[str, str]] = {}

    def __call__(self, sweep: SweepStore, files: list[str], plan: str | None, packs: Collection[str]) -> dict[str, str]:
        held = {name: sweep.storage.read(name) for name in (*files, *([plan] if plan else []))}
        key = (frozenset(held.items()), frozenset(packs))
        if key not in self.known:
            frozen = MemoryStorage()
            for name, data in held.items():
                frozen.files.put(f"{SWEEP}/{name}", data, 0.0)
            self.known[key] = self.ask(SweepStore(frozen, SWEEP), files, plan, packs)
        return self.known[key]


def _at_once(pool: ThreadPoolExecutor, function: Callable[..., Any], *given: Any, **options: Any) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function(*given, **options))
    except Exception as error:
        future.set_exception(error)
    return future
