"""Launching a sweep: reconcile, plan, run what is missing, try again what failed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from cluster.executor import Event, Executor, Failed, Finished, Progress, Started
from orchestrator.lock import launch_lock
from orchestrator.parquet import count_ended
from orchestrator.progress import Reporter, Tally, count_pack
from orchestrator.reconcile import Reconciliation, reconcile
from orchestrator.sweepfile import SweepFile, load
from trainables.files import data_root as files_root
from trainables.files import problems, use_data_root
from trainables.packs import PackItem, plan_metadata, record_crash, run_pack, thread_count
from trainables.published import PUBLISHED
from trainables.registry import resolve, source_sha256
from trainables.schema import Status
from trainables.store import Store, StoreError, SweepStore, replace

ExecutorKind = Literal["ray", "inline"]


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

    def text(self) -> str:
        """A closing line, with what to do next."""
        name = self.sweep
        if self.detached:
            commands = (f"status {name}", f"logs {name} --follow", f"stop {name}")
            look = [f"`isoratio {command}{self.options}`" for command in commands]
            return f"{name} goes on in the background: {', '.join(look)}"
        head = (
            f"{name}: {self.done}/{self.planned} trials done ({self.diverged} diverged), {self.failed} failed; "
            f"this launch ran {self.ran} in {self.seconds:.1f} s"
        )
        if self.done + self.failed < self.planned:
            return f"{head}\ngo on with: isoratio resume {name}{self.options}"
        if self.failed:
            why = f"SELECT trial_id, error FROM trials WHERE sweep = '{name}' AND status = 'failed'"
            again = f"try them again with: isoratio resume {name}{self.options}"
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
    data_root: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LaunchResult:
    """Runs what the store lacks of a sweep file; nothing that is committed runs again.

    Args:
        file: the sweep file, YAML or TOML.
        store: directory of the store; made where it does not exist.
        address: a running Ray, "auto" or "host:port"; None starts one on this machine.
        detach: leave a process behind that goes on, and return.
        executor: "ray", or "inline": in this process.
        limit: stop after the pack that completes so many trials.
        data_root: directory of data files; workers of a Ray that runs already have their own ``$ISORATIO_DATA``.
        should_stop: asked now and then; once true, no further pack starts and running ones are committed.

    Raises:
        SweepFileError: everything wrong with the file.
        SweepChangedError: the store holds another sweep of this name.
        LaunchHeldError: another launch holds the sweep.
        DataFileError: a data set's files are not there, or are not the published ones.
    """
    began = time.monotonic()
    sweep, held = load(file), Store(store)
    if address is None:
        _check_data_files(sweep, Path(data_root).expanduser() if data_root else files_root())
    use_data_root(data_root)
    there = held.sweep(sweep.name)
    if (there.path / "trials").is_dir() and there.sweep_file() is None and not there.plan_path.exists():
        raise StoreError(f"sweep {sweep.name!r} in {held.root} holds imported trials: give the sweep file another name")
    with launch_lock(there):
        if not detach:
            there.stop_path.unlink(missing_ok=True)
            return _Launch(sweep, held, _executor(sweep, address, executor), limit, should_stop).run(began)
    return _detached(Path(file), there, address, executor, limit)


def resume(
    sweep: str,
    store: str | Path = "results",
    *,
    address: str | None = None,
    detach: bool = False,
    executor: ExecutorKind = "ray",
    limit: int | None = None,
    data_root: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LaunchResult:
    """Launches a sweep again with the sweep file kept in the store; see :func:`launch`.

    Raises:
        StoreError: no such sweep, or one that was imported.
    """
    file = Store(store).existing(sweep).sweep_file()
    if file is None:
        raise StoreError(f"sweep {sweep!r} was imported: it has no sweep file to go on with")
    return launch(
        file,
        store,
        address=address,
        detach=detach,
        executor=executor,
        limit=limit,
        data_root=data_root,
        should_stop=should_stop,
    )


def stop(sweep: str, store: str | Path = "results") -> bool:
    """Asks a running launch to stop once its running packs are committed; returns whether there is one."""
    from analysis.status import status

    there = Store(store).existing(sweep)
    if status(store, sweep)[0]["state"] != "running":
        return False
    there.stop_path.touch()
    return True


def logs(sweep: str, store: str | Path = "results", *, follow: bool = False) -> Iterator[str]:
    """Lines of the log of a sweep's launches; with ``follow``, for as long as one is running.

    Raises:
        StoreError: no such sweep.
    """
    from analysis.status import status

    path = Store(store).existing(sweep).launch_log_path
    if not path.exists():
        return
    with path.open() as file:
        while True:
            running = follow and status(store, sweep)[0]["state"] == "running"
            yield from file
            if not running:
                return
            time.sleep(0.5)


def remove(sweep: str, store: str | Path = "results") -> None:
    """Deletes a sweep and all its rows, unless a launch holds it."""
    there = Store(store).existing(sweep)
    with launch_lock(there):
        gone = there.path.with_name(f".{sweep}.{os.getpid()}.removed")
        there.path.rename(gone)  # at once invisible, whatever happens while files go
    shutil.rmtree(gone)


class _Launch:
    """One launch that holds the lock."""

    def __init__(
        self, sweep: SweepFile, store: Store, executor: Executor, limit: int | None, should_stop: Callable[[], bool]
    ) -> None:
        self.sweep, self.store, self.executor = sweep, store, executor
        self.there = store.sweep(sweep.name)
        self.limit, self.should_stop = limit, should_stop

    def run(self, began: float) -> LaunchResult:
        todo = reconcile(self.sweep, self.store, limit=self.limit, retry_failed=True)
        self._write_plan(todo)
        for reuse in todo.reuse:
            reuse.commit(self.store, self.there)
        counts = dict.fromkeys(Status, 0) | count_ended(self.there, self.sweep.measure.measure_id)
        self.tally = Tally(todo.grid.num_rows, counts, sum(todo.packs["cost"].to_pylist()))
        self.reporter = Reporter(self.there, self.tally)
        state = "interrupted"
        try:
            with self.reporter:
                self.reporter.say(_opening(todo, self.sweep))
                for target in _changed_plugins(self.there):
                    self.reporter.say(f"warning: {target} has changed since trials of this sweep ran")
                self._rounds(todo)
            state = "stopped" if self.tally.pending else "complete"
        finally:
            self.reporter.beat(state)  # its thread has ended: nothing overwrites this
        result = self._result(time.monotonic() - began)
        self.there.stop_path.unlink(missing_ok=True)
        self.reporter.log(result.text())
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
            stopped=self._stopping() and tally.pending > 0,
            options=_store_option(self.store),
        )

    def _rounds(self, todo: Reconciliation) -> None:
        """Runs packs, and again what failed, until nothing is left that may be tried."""
        while todo.to_run and not self._stopping():
            self._run_packs(todo)
            if self.limit is not None or not self.tally.counts[Status.FAILED]:
                return
            todo = reconcile(self.sweep, self.store, retry_failed=False)
            if todo.to_run and not self._stopping():
                again = sum(todo.packs["trials"].to_pylist())
                self.reporter.say(f"trying {again} failed trials again")
                self._write_plan(todo)
                self.tally.retry(again, sum(todo.packs["cost"].to_pylist()))

    def _run_packs(self, todo: Reconciliation) -> None:
        packs = todo.packs.select(["pack_id", "cost"]).to_pylist()
        threads = thread_count(self.sweep.resources.cpu)
        root, gpu = str(self.store.root), self.sweep.resources.gpu > 0
        items = [PackItem(root, self.sweep.name, pack["pack_id"], threads, gpu) for pack in packs]

        def on_event(event: Event) -> None:
            self._count(event, items[event.index], packs[event.index]["cost"])

        self.executor.run(run_pack, items, on_event=on_event, stop=self._stopping)

    def _count(self, event: Event, item: PackItem, cost: float) -> None:
        if isinstance(event, Started):
            self.tally.running[item.pack_id] = (cost, 0.0)
        elif isinstance(event, Progress):
            self.tally.running[item.pack_id] = (cost, event.fraction)
        else:
            assert isinstance(event, Finished | Failed)
            if isinstance(event, Failed):
                record_crash(item, event.error)
                self.reporter.say(f"pack {item.pack_id}: {event.error.strip().splitlines()[-1]}")
            self.tally.settle(item.pack_id, cost, count_pack(self.there, item.pack_id))

    def _stopping(self) -> bool:
        """Whether to start nothing more; workers see the request in the store."""
        if self.there.stop_path.exists():
            return True
        if self.should_stop():
            self.there.stop_path.touch()
            return True
        return False

    def _write_plan(self, todo: Reconciliation) -> None:
        """Keeps the sweep file, then the plan: the plan is what makes the sweep exist."""
        kept = self.there.path / f"sweep{self.sweep.suffix}"
        text = self.sweep.text.encode()
        if not kept.exists() or kept.read_bytes() != text:
            replace(kept, text)
        for other in {".yaml", ".toml"} - {self.sweep.suffix}:
            (self.there.path / f"sweep{other}").unlink(missing_ok=True)
        self.there.write_plan(todo.plan().replace_schema_metadata(plan_metadata(self.sweep.measure)))


def _store_option(store: Store) -> str:
    default = Store(os.environ.get("ISORATIO_STORE", "results"))
    return "" if store.root == default.root else f" --store {store.root}"


def _changed_plugins(there: SweepStore) -> Iterator[str]:
    """Plug-ins whose source is not what it was when trials of the sweep ran."""
    recorded: dict[str, set[str]] = {}
    for path in there.files("provenance"):
        for text in pq.read_table(path, columns=["plugins"])["plugins"].to_pylist():
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


def _executor(sweep: SweepFile, address: str | None, kind: ExecutorKind) -> Executor:
    if kind == "inline":
        from cluster.inline import InlineExecutor

        return InlineExecutor()
    from cluster.tune import TuneExecutor

    return TuneExecutor(address, sweep.resources.cpu, sweep.resources.gpu)


def _check_data_files(sweep: SweepFile, root: Path) -> None:
    """Before the first of many trials fails for it; trials of the user's own have their own data."""
    if None not in sweep.axes["call"]:
        return
    for name in {resolve("dataset", reference).name for reference in sweep.axes["dataset"]} & PUBLISHED.keys():
        for problem in problems(PUBLISHED[name], root):
            raise problem


def _detached(
    file: Path, there: SweepStore, address: str | None, executor: ExecutorKind, limit: int | None
) -> LaunchResult:
    """Leaves a driver behind that outlives the terminal, and waits until its plan is written.

    Raises:
        ValueError: with what the driver said, where it ended before that.
    """
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "launch", str(file), "--store", str(there.root)]
    command += ["--executor", executor]
    command += ["--address", address] if address else []
    command += ["--limit", str(limit)] if limit else []
    there.log_path.mkdir(parents=True, exist_ok=True)
    output = there.log_path / "detached.txt"  # what is not for the log: warnings, a traceback
    with output.open("wb") as out:
        driver = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    while not _has_begun(there, driver.pid):
        if driver.poll() is not None:
            raise ValueError(f"the launch in the background ended at once:\n{output.read_text().strip()}")
        time.sleep(0.05)
    return LaunchResult(there.name, detached=True, options=_store_option(Store(there.root)))


def _has_begun(there: SweepStore, pid: int) -> bool:
    heartbeat = there.heartbeat_path
    return heartbeat.exists() and json.loads(heartbeat.read_bytes())["pid"] == pid
