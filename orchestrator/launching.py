"""Launching a sweep: reconcile, plan, run what is missing, try again what failed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from analysis.commits import in_threads
from analysis.database import naming_damage
from analysis.discarding import discard
from analysis.formats import escaped
from cluster.executor import Event, Executor, Failed, Progress, Started
from orchestrator import remote
from orchestrator.accounting import Budget
from orchestrator.attempts import Attempts
from orchestrator.control import store_option
from orchestrator.progress import Reporter, Tally, count_pack
from orchestrator.reconcile import Reconciliation, reconcile
from orchestrator.sweepfile import SweepFile, load
from trainables.files import data_root as files_root
from trainables.files import problems, use_data_root
from trainables.lease import PATIENCE, LaunchHeldError, Lease, StopKind, ask_to_stop, heartbeat, latest
from trainables.packs import PackItem, halve, plan_metadata, record_crash, run_pack, thread_count
from trainables.published import PUBLISHED
from trainables.registry import resolve, source_sha256
from trainables.schema import Status
from trainables.storage import PATIENCE_OF_WORK, DamagedStoreError, StoreError
from trainables.store import Store, SweepStore
from trainables.tidying import tidy

ExecutorKind = Literal["ray", "inline"]

SAVE_SECONDS = 25.0
"""How long running packs have to save a checkpoint before a launch that was told to end ends all the same."""


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended.

    Attributes:
        sweep: its name.
        planned: trials of the sweep.
        done: how many of them finished or diverged.
        diverged: how many diverged.
        failed: how many failed as often as they may.
        ran: trials that this launch ran.
        seconds: wall time.
        stopped: whether it was asked to stop before it was through.
        detached: whether it goes on in the background.
        options: what commands about this sweep need: ``--store ...`` where it is not the default one.
        address: of the cluster that it was sent to.
    """

    sweep: str
    planned: int = 0
    done: int = 0
    diverged: int = 0
    failed: int = 0
    ran: int = 0
    seconds: float = 0.0
    stopped: bool = False
    detached: bool = False
    options: str = ""
    address: str = ""

    def text(self) -> str:
        """A closing line, with what to do next."""
        name, where = self.sweep, f" --address {self.address}" if self.address else ""
        if self.detached:
            commands = (f"status {name}", f"logs {name} --follow", f"stop {name}")
            seen = "" if "://" in self.options else where  # a store that any machine sees
            look = [f"`isoratio {command}{self.options}{seen}`" for command in commands]
            return f"{name} goes on {f'at {self.address}' if where else 'in the background'}: {', '.join(look)}"
        head = (
            f"{name}: {self.done}/{self.planned} trials done ({self.diverged} diverged), {self.failed} failed; "
            f"this launch ran {self.ran} in {self.seconds:.1f} s"
        )
        if self.done + self.failed < self.planned:
            return f"{head}\ngo on with: isoratio resume {name}{self.options}{where}"
        if self.failed:
            why = f"SELECT trial_id, error FROM trials WHERE sweep = '{name}' AND status = 'failed'"
            again = f"try them again with: isoratio resume {name}{self.options}{where}"
            return f'{head}\nsee why with: isoratio sql "{why}"{self.options}\n{again}'
        return f"{head}\nnext: isoratio invariance {name}{self.options}"


def launch(
    file: str | Path,
    store: str | Path = "results",
    *,
    address: str | None = None,
    detach: bool = False,
    executor: ExecutorKind = "ray",
    limit: int | None = None,
    max_concurrent: int | None = None,
    budget_hours: float | None = None,
    data_root: str | Path | None = None,
    take_over: bool = False,
    should_stop: Callable[[], StopKind | None] = lambda: None,
) -> LaunchResult:
    """Runs what the store lacks of a sweep file; nothing that is committed runs again.

    Args:
        file: the sweep file, YAML or TOML.
        store: directory or URL of the store; made where it does not exist.
        address: a running Ray, "auto" or "host:port"; or "http://host:port" of a cluster's dashboard, from any machine,
            see :mod:`orchestrator.remote`. None starts a Ray on this machine.
        detach: leave a process behind that goes on, and return.
        executor: "ray", or "inline": in this process.
        limit: stop after the pack that completes so many trials.
        max_concurrent: so many packs run at a time at most.
        budget_hours: GPU-hours that packs may take, CPU-hours where they take no GPU; then running packs save where
            they are, and the launch ends as one that was stopped.
        data_root: directory of data files; workers of a Ray that runs already have their own ``$ISORATIO_DATA``.
        take_over: replace a launch that holds the sweep, without waiting; it ends once it finds out.
        should_stop: asked now and then. Once "finish", no further pack starts and running ones are committed; once
            "checkpoint", they save where they are and end.

    Raises:
        SweepFileError: everything wrong with the file.
        SweepChangedError: the store holds another sweep of this name.
        LaunchHeldError: another launch holds the sweep, or has taken it over.
        DataFileError: a data set's files are not there, or are not the published ones.
        StoreError: the store cannot be written, or a newer version wrote it.
    """
    sweep, options = load(file), Options(address, executor, limit, data_root, take_over, max_concurrent, budget_hours)
    if remote.is_remote(address):
        return remote.launch(sweep, store, options, file=Path(file), detach=detach, should_stop=should_stop)
    held = Store(store)
    if detach:
        _check(sweep, held, options)
        return _detached(["launch", str(file)], held.sweep(sweep.name), options)
    return _launched(sweep, held, options, should_stop)


def resume(
    sweep: str,
    store: str | Path = "results",
    *,
    address: str | None = None,
    detach: bool = False,
    executor: ExecutorKind = "ray",
    limit: int | None = None,
    max_concurrent: int | None = None,
    budget_hours: float | None = None,
    data_root: str | Path | None = None,
    take_over: bool = False,
    should_stop: Callable[[], StopKind | None] = lambda: None,
) -> LaunchResult:
    """Launches a sweep again with the sweep file kept in the store; see :func:`launch`.

    Raises:
        StoreError: no such sweep, or one that was imported.
    """
    options = Options(address, executor, limit, data_root, take_over, max_concurrent, budget_hours)
    if remote.is_remote(address):
        return remote.launch(sweep, store, options, file=None, detach=detach, should_stop=should_stop)
    held = Store(store)
    there = held.existing(sweep)
    kept = there.sweep_file()
    if kept is None:
        raise StoreError(f"sweep {sweep!r} was imported: it has no sweep file to go on with")
    suffix, text = kept
    again = load(there.storage.where(f"sweep{suffix}"), text=text)
    if detach:
        _check(again, held, options)
        return _detached(["resume", sweep], there, options)
    return _launched(again, held, options, should_stop)


@dataclass(frozen=True)
class Options:
    """Those of :func:`launch`, as given."""

    address: str | None
    executor: ExecutorKind
    limit: int | None
    data_root: str | Path | None
    take_over: bool
    max_concurrent: int | None = None
    budget_hours: float | None = None

    @property
    def patience(self) -> float:
        """Seconds to wait for a launch that holds the sweep."""
        return 0.0 if self.take_over else PATIENCE


def _check(sweep: SweepFile, store: Store, options: Options) -> None:
    """What can be found wrong before anything is written."""
    if options.address is None:
        root = Path(options.data_root).expanduser() if options.data_root else files_root()
        _check_data_files(sweep, root)
    there = store.sweep(sweep.name)
    there.check_format()
    if there.is_imported():
        raise StoreError(f"sweep {sweep.name!r} in {store.url} holds imported trials: give the sweep file another name")


def _launched(
    sweep: SweepFile, store: Store, options: Options, should_stop: Callable[[], StopKind | None]
) -> LaunchResult:
    began = time.monotonic()
    _check(sweep, store, options)
    use_data_root(options.data_root)
    store.sweep(sweep.name).storage.check()
    store = Store(store.url, PATIENCE_OF_WORK)
    store.storage.on_silence = _Silence()
    there = store.sweep(sweep.name)
    with (
        Lease(there, patience=options.patience, on_wait=_Waiting(should_stop)) as lease,
        _executor(sweep, options) as executor,
    ):
        try:
            return _Launch(sweep, store, lease, executor, options, should_stop).run(began)
        except FileNotFoundError:
            lease.check()  # whoever has taken over tidies away older plans
            raise


class _Waiting:
    """Says once that a launch waits for a sign of another one, and does so no longer when it is asked to stop."""

    def __init__(self, should_stop: Callable[[], StopKind | None]) -> None:
        self.should_stop, self.said = should_stop, False

    def __call__(self, why: str) -> None:
        if self.should_stop():
            raise LaunchHeldError(f"{why}; stopped")
        if not self.said:
            print(escaped(why), file=sys.stderr, flush=True)
            self.said = True


class _Silence:
    """Says, at most twice a minute, that a launch waits for its store."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, why: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 30
            print(escaped(f"{why}; waiting for it, {PATIENCE_OF_WORK:.0f} s at most"), file=sys.stderr, flush=True)


class _Launch:
    """One launch that holds the sweep."""

    def __init__(
        self,
        sweep: SweepFile,
        store: Store,
        lease: Lease,
        executor: Executor,
        options: Options,
        should_stop: Callable[[], StopKind | None],
    ) -> None:
        self.sweep, self.store, self.lease, self.executor = sweep, store, lease, executor
        self.there = store.sweep(sweep.name)
        self.limit, self.should_stop = options.limit, should_stop
        self.budget = Budget(sweep.resources, options.budget_hours)
        self.attempts = Attempts()
        self.plan = ""
        self._asked: StopKind | None = None
        self._next_look = 0.0
        self._overdue = math.inf  # when packs that are to save themselves must have done so

    def run(self, began: float) -> LaunchResult:
        """Plans, runs, and tells how it went."""
        self.there.mark_format()
        todo = self._reconciled(retry_failed=True, limit=self.limit)
        self._write_plan(todo)
        tidy(self.there, self.lease.number)
        with suppress(DamagedStoreError):  # nothing is deleted then, and whoever reads the file hears of it
            discard(self.there)
        self.tally = Tally(todo.grid.num_rows, self._counted(todo), sum(todo.packs["cost"].to_pylist()))
        self.reporter = Reporter(self.lease, self.tally)
        with self.reporter:
            self.reporter.say(_opening(todo, self.sweep))
            for target in _changed_plugins(self.there):
                self.reporter.say(f"warning: {target} has changed since trials of this sweep ran")
            with suppress(_OverdueError):
                self._rounds(todo)
        self.lease.check()
        result = self._result(time.monotonic() - began)
        self.reporter.log(result.text())  # before the last beat: who has seen that finds the log whole
        self.lease.beat("stopped" if self.tally.pending else "complete", **self.reporter.content())
        return result

    def _result(self, seconds: float) -> LaunchResult:
        tally, counts = self.tally, self.tally.counts
        return LaunchResult(
            self.sweep.name,
            tally.planned,
            tally.done,
            counts[Status.DIVERGED],
            counts[Status.FAILED],
            tally.done_here,
            seconds,
            stopped=tally.pending > 0
            and (self._asked or self.lease.stop) is not None,  # workers may have seen it first
            options=store_option(self.store.url),
        )

    def _rounds(self, todo: Reconciliation) -> None:
        """Runs packs, and again what failed, until nothing is left that may be tried."""
        tried: set[str] = set()
        while not tried.issuperset(todo.to_run) and not self._stopping():
            items = [item for item in self._items(todo) if item[0].pack_id not in tried]
            tried.update(todo.to_run)
            while items and not self._stopping():
                items = self._run_packs(items)
            if self.limit is not None or not (self.tally.counts[Status.FAILED] or self.tally.pending):
                return
            todo = self._reconciled(retry_failed=False)
            self.tally.counts = Counter({**todo.ended, Status.FAILED: len(todo.failed)})
            if not tried.issuperset(todo.to_run) and not self._stopping():
                new = todo.packs.filter(pc.invert(pc.is_in(todo.packs["pack_id"], pa.array(tried, pa.string()))))
                self.reporter.say(f"trying {pc.sum(new['trials']).as_py()} failed trials again")
                self._write_plan(todo)
                self.tally.counts = self._counted(todo)
                self.tally.cost += pc.sum(new["cost"]).as_py()

    def _counted(self, todo: Reconciliation) -> Counter[str]:
        """Copies what other sweeps have, once it is planned; returns the trials that have ended by status."""
        counts = Counter({**todo.ended, Status.FAILED: len(todo.failed)})
        for reuse in todo.reuse:
            reuse.commit(self.store, self.there)
            counts.update(count_pack(self.there, reuse.pack_id))
        return counts

    def _items(self, todo: Reconciliation) -> list[tuple[PackItem, float]]:
        """What workers are told, and the cost of each pack."""
        threads, gpu = thread_count(self.sweep.resources.cpu), self.sweep.resources.gpu > 0
        rows = todo.packs.select(["pack_id", "cost"]).to_pylist()
        every = self.sweep.pack.checkpoint_seconds
        common = (self.plan, self.lease.number, threads, gpu, every)
        return [(PackItem(self.store.url, self.sweep.name, row["pack_id"], *common), row["cost"]) for row in rows]

    def _run_packs(self, packs: list[tuple[PackItem, float]]) -> list[tuple[PackItem, float]]:
        """Runs packs; returns those to run once more: they were interrupted, and nothing of them is known to fail."""
        again: list[tuple[PackItem, float]] = []

        def on_event(event: Event) -> None:
            item, cost = packs[event.index]
            self.budget.note(item.pack_id, event)
            if isinstance(event, Started | Progress):
                fraction = event.fraction if isinstance(event, Progress) else 0.0
                self.tally.running[item.pack_id] = (cost, fraction)
                self._stopping()  # which tells workers, and a launch without workers has no other time for it
            elif isinstance(event, Failed) and self._interrupted(item, event):
                self.tally.running.pop(item.pack_id, None)
                again.append(packs[event.index])
            else:
                self.tally.settle(item.pack_id, cost, count_pack(self.there, item.pack_id))

        self.executor.run(run_pack, [item for item, _ in packs], on_event=on_event, stop=self._stopping)
        return again

    def _interrupted(self, item: PackItem, event: Failed) -> bool:
        """Whether a pack is to run again; else its trials are recorded as failed, unless it was committed before."""
        self.lease.check()
        self.reporter.say(f"pack {item.pack_id}: {event.cause}: {event.error.strip().splitlines()[-1]}")
        if event.cause == "exception":  # no trial's, which the worker records: the store, or the machine
            self.there.storage.check()
        if self.there.is_committed(item.pack_id):
            return False
        if self.attempts.again(item.pack_id, event.cause) and (event.cause != "memory" or halve(item)):
            return True
        record_crash(item, event.cause, event.error)
        return False

    def _stopping(self) -> bool:
        """Whether to start nothing more; workers see the request in the store.

        Raises:
            LaunchHeldError: another launch has taken over.
            _OverdueError: what runs was to save itself, and has not in time.
        """
        if self.lease.lost:
            self.lease.check()
        if time.monotonic() > self._overdue:
            raise _OverdueError
        wishes = {self.should_stop(), self._request(), "checkpoint" if self.budget.is_spent else None}
        asked: StopKind | None = "checkpoint" if "checkpoint" in wishes else "finish" if "finish" in wishes else None
        if asked and self._asked not in (asked, "checkpoint"):
            ask_to_stop(self.there.storage, self.lease.number, asked)
            self._asked = asked
            if self.budget.is_spent:
                self.reporter.say(self.budget.text())
            if asked == "checkpoint":
                self._overdue = time.monotonic() + SAVE_SECONDS
        return self._asked is not None

    def _request(self) -> StopKind | None:
        """What `isoratio stop` has asked for: looked up once a second, since this is called far more often."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self.lease.every
        return self.lease.stop

    def _reconciled(self, *, retry_failed: bool, limit: int | None = None) -> Reconciliation:
        """What is to do. Packs that trials leave are closed, so that whoever may still run one changes no row."""
        while True:
            todo = reconcile(self.sweep, self.store, limit=limit, retry_failed=retry_failed)
            self.lease.check()
            if all(in_threads(self.there.close, todo.given_up)):  # else one was committed meanwhile
                return todo

    def _write_plan(self, todo: Reconciliation) -> None:
        """Writes what is planned, with the sweep file in it; beside it lies a copy for people."""
        metadata = plan_metadata(self.sweep.measure, self.sweep.suffix, self.sweep.text)
        plan = todo.plan().replace_schema_metadata(metadata)
        self.lease.check()
        self.plan = self.there.write_plan(plan, self.lease.number, self.lease.next_plan())
        for suffix in {".yaml", ".toml"} - {self.sweep.suffix}:
            self.there.storage.delete(f"sweep{suffix}")
        self.there.storage.replace(f"sweep{self.sweep.suffix}", self.sweep.text.encode())


class _OverdueError(Exception):
    """Packs that were to save themselves have not done so in time."""


def _changed_plugins(there: SweepStore) -> Iterator[str]:
    """Plug-ins whose source is not what it was when trials of the sweep ran."""
    recorded: dict[str, set[str]] = {}
    listing = there.listing("provenance")
    with naming_damage([there]):
        for text in listing.dataset("provenance").to_table(columns=["plugins"])["plugins"].to_pylist():
            for target, sha256 in json.loads(text).items():
                recorded.setdefault(target, set()).add(sha256)
    for target, known in recorded.items():
        now = source_sha256(target)  # of what the sweep file has loaded
        if now is not None and now not in known:
            yield target


def _opening(todo: Reconciliation, sweep: SweepFile) -> str:
    trials = sum(todo.packs["trials"].to_pylist())
    reused = sum(len(r.trial_ids) for r in todo.reuse)
    parts = [f"{sweep.name}: {todo.grid.num_rows} trials planned, {todo.done} done before"]
    parts += [f"{reused} reused from other sweeps"] if reused else []
    return f"{', '.join(parts)}; running {trials} in {todo.packs.num_rows} packs"


def _executor(sweep: SweepFile, options: Options) -> Executor:
    if options.executor == "inline":
        from cluster.inline import InlineExecutor

        return InlineExecutor()
    from cluster.tune import TuneExecutor

    _warn_of_no_token(options.address)
    needed = sweep.resources
    return TuneExecutor(options.address, needed.cpu, needed.gpu, needed.accelerator, options.max_concurrent)


def _warn_of_no_token(address: str | None) -> None:
    """A Ray that lets us in without a token lets anyone in. Of a job, whoever has sent it was told."""
    from cluster.token import joins_with_token

    known = address is None or address.startswith(("127.", "localhost:")) or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not known and not joins_with_token():
        print(
            f"WARNING: joining the Ray at {address} without a token: whoever reaches it can run anything there. Start "
            "it with RAY_AUTH_MODE=token",
            file=sys.stderr,
            flush=True,
        )


def _check_data_files(sweep: SweepFile, root: Path) -> None:
    """Before the first of many trials fails for it; trials of the user's own have their own data."""
    if None not in sweep.axes["call"]:
        return
    for name in {resolve("dataset", reference).name for reference in sweep.axes["dataset"]} & PUBLISHED.keys():
        for problem in problems(PUBLISHED[name], root):
            raise problem


def _detached(command: list[str], there: SweepStore, options: Options) -> LaunchResult:
    """Leaves a driver behind that outlives the terminal, and waits until its plan is written.

    Raises:
        ValueError: with what the driver said, where it ended before that.
    """
    command = [sys.executable, "-P", "-m", "orchestrator.cli", *command, "--store", there.store_url]
    command += ["--executor", options.executor]
    command += ["--address", options.address] if options.address else []
    command += ["--limit", str(options.limit)] if options.limit else []
    command += ["--max-concurrent", str(options.max_concurrent)] if options.max_concurrent else []
    command += ["--budget-hours", str(options.budget_hours)] if options.budget_hours is not None else []
    command += ["--data-root", str(options.data_root)] if options.data_root else []
    command += ["--take-over"] if options.take_over else []
    with tempfile.TemporaryFile("w+") as output:  # what is not for the log: warnings, a traceback
        driver = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        while not has_begun(there, driver.pid):
            if driver.poll() is not None:
                output.seek(0)
                _raise_as_said(driver.returncode, output.read().strip())
            time.sleep(0.05)
    return LaunchResult(there.name, detached=True, options=store_option(there.store_url))


def _raise_as_said(code: int, said: str) -> None:
    """What the driver in the background raised, as far as its exit code tells."""
    said = said.removeprefix("isoratio: ")
    if code == 4:
        raise LaunchHeldError(said)
    if code == 3:
        raise DamagedStoreError(said)
    raise ValueError(f"the launch in the background ended at once:\n{said}")


def has_begun(there: SweepStore, pid: int) -> bool:
    """Whether the launch of process ``pid`` holds the sweep and has planned."""
    holder = latest(there.storage)
    return holder is not None and holder.pid == pid and "trials_done" in heartbeat(there.storage, holder.number)
