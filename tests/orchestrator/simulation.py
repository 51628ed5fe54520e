"""One sweep through launches, crashes, take-overs, compaction and damage, as a seed decides; and what must hold.

- I1: what was committed is never lost nor changed, and the row that is visible of a trial stays.
- I2: a trial has at most one visible row, with all that belongs to it, at every moment.
- I3: done, failed and pending trials add up to those planned.
- I4: a launch runs only what is missing.
- I5: in the end the rows are those of a sweep without faults.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial
from random import Random
from typing import NamedTuple, TypeVar

from simulated_processes import Fault, InjectedError, Process, Step, ViolationError
from simulated_world import (
    CHECKPOINT_SECONDS,
    DIVERGING,
    SIZES,
    SWEEP,
    URL,
    World,
    collect,
    decoded,
    in_memory,
    stored,
    sweep_file,
)

from analysis.compaction import compact
from analysis.verification import Damage, verify
from orchestrator.launching import LaunchResult, launch
from orchestrator.reconcile import SweepChangedError
from trainables.lease import LaunchHeldError, ask_to_stop, latest
from trainables.manifest import COPY, MERGED
from trainables.manifest import FOLDER as MANIFEST
from trainables.schema import Status
from trainables.storage import DamagedStoreError
from trainables.store import ENDPOINTS, SweepStore, pack_of, side_name

Key = TypeVar("Key")

STEPS: list[Step] = [
    *(("worker", "create", folder) for folder in ("curves", "endpoints", "sums", "trials", "failures")),
    *(("compact", "create", folder) for folder in ("merged", "manifest")),
    ("compact", "replace", "manifest"),
    *(("compact", "delete", folder) for folder in ("trials", "curves", "sums")),
    *(("launch", "create", folder) for folder in ("lease", "plan", "sums", "trials")),
    *(("launch", "replace", folder) for folder in ("", "log")),
    ("launch", "delete", "lease"),
]
"""Those of a commit, of a compaction and of a launch at which every fault has to be seen to strike."""

CLOSING = {("launch", "create", "sums"), ("launch", "create", "trials")}
"""Steps that a launch takes only where packs have failed."""

UNCHECKED = {"log", "lease", "quarantine"}
"""Folders in which nothing is damaged: what says who holds a sweep, and is for people."""


class Row(NamedTuple):
    """What a reader sees of a trial."""

    pack_id: str
    slot: int
    attempt: str
    trial_id: str
    seed: int
    status: str
    score: float | None


def expected(seed: int) -> tuple[str, float | None]:
    """Status and score of a trial in a sweep without faults."""
    return (Status.DIVERGED, None) if seed == DIVERGING else (Status.FINISHED, 1.0 / (1 + seed))


def rows_of(files: SweepStore) -> dict[tuple[str, int], Row]:
    """All committed rows by pack and slot, as any reader finds them.

    Raises:
        ViolationError: a row is there twice, or what belongs to it is not there once.
    """
    listing = files.listing("trials", "curves")
    found: dict[tuple[str, int], Row] = {}
    for name in listing.tables["trials"]:
        for row in _trials(files.storage.read(name)):
            if row[:2] in found:
                raise ViolationError(f"I2: {row} is there twice, the second time in {name}")
            found[row[:2]] = row
    curves = Counter(key for name in listing.tables["curves"] for key in _curves(files.storage.read(name)))
    for row in found.values():
        if curves[row.pack_id, row.attempt, row.trial_id] != 1:
            raise ViolationError(f"I2: {row} has {curves[row.pack_id, row.attempt, row.trial_id]} points of its curve")
    return found


@lru_cache(maxsize=20_000)
def _trials(data: bytes) -> tuple[Row, ...]:
    names = Row._fields
    return tuple(Row(*(row.get(name) for name in names)) for row in decoded(data))


@lru_cache(maxsize=20_000)
def _curves(data: bytes) -> tuple[tuple[str, str, str], ...]:
    return tuple((row["pack_id"], row["attempt"], row["trial_id"]) for row in decoded(data))


class Witness:
    """Looks at the store after every change, and remembers.

    Attributes:
        files: the sweep.
        committed: all rows that were ever seen.
        visible: trial -> the one row that the tables show.
        endpoints: file -> its content, likewise.
        planned: trials that are planned for good.
        known: all that were ever planned.
        plan: the file that counts.
        planner: the lease of who wrote it.
        is_damaged: whether files were damaged on purpose, so that rows may go.
        leases: process -> name of the last lease that it took.
    """

    def __init__(self, world: World) -> None:
        self.play, self.files = world.play, world.unseen()
        self.committed: dict[tuple[str, int], Row] = {}
        self.visible: dict[str, Row] = {}
        self.endpoints: dict[str, bytes] = {}
        self.planned: set[str] = set()
        self.known: set[str] = set()
        self.plan = self.planner = ""
        self.is_damaged = False
        self.leases: dict[Process, str] = {}

    def look(self, name: str) -> None:
        """After something was done to a file.

        Raises:
            ViolationError: saying which invariant does not hold.
        """
        folder = name.split("/")[1]
        if folder in {"trials", "curves", "endpoints", "merged", "manifest"}:
            try:
                self._look_at_rows()
            except FileNotFoundError as error:
                raise ViolationError("I1: a listed file is gone") from error
        elif folder == "plan":
            self._look_at_plan()
        elif folder == "lease" and self.files.storage.exists(name.partition("/")[2]):
            self.leases[self.play.me().process] = name
        elif folder == "quarantine" and not self.is_damaged:
            raise ViolationError(f"I1: {name}: nothing was damaged")

    def look_again(self, lost: Collection[str]) -> None:
        """After files were damaged and moved away, with which these packs may have gone.

        Raises:
            ViolationError: others are gone, too, or something damaged is still there.
        """
        found = rows_of(self.files)
        stay = {key: row for key, row in self.committed.items() if key in found or row.pack_id not in lost}
        self._compare(stay, found, "committed")
        self._look_at_endpoints(found.values())
        self.is_damaged, self.plan, self.planner, self.planned = True, "", "", set()
        self.committed, self.visible = found, {}
        self._look_at_rows()

    def _look_at_rows(self) -> None:
        found = rows_of(self.files)
        visible: dict[str, Row] = {}
        for row in sorted(found.values()):  # as the views choose: see analysis.database
            visible.setdefault(row.trial_id, row)
        self._compare(self.committed, found, "committed")
        self._look_at_endpoints(found.values())
        self._compare(self.visible, visible, "visible")
        self.committed, self.visible = found, visible
        if not self.is_damaged and (unplanned := visible.keys() - self.known):
            raise ViolationError(f"I3: trials that nobody planned: {unplanned}")

    def _look_at_endpoints(self, rows: Iterable[Row]) -> None:
        for name in {side_name(ENDPOINTS, row.pack_id, row.attempt) for row in rows}:
            data = self.files.storage.read_if_there(name)
            if data is None or self.endpoints.setdefault(name, data) != data:
                raise ViolationError(f"I1: {name} is {'gone' if data is None else 'changed'}")

    def _compare(self, before: dict[Key, Row], now: dict[Key, Row], what: str) -> None:
        for key, row in before.items():
            if now.get(key) != row:
                raise ViolationError(f"I1: what was {what} as {row} is now {now.get(key)}")

    def _look_at_plan(self) -> None:
        plan = self.files.plan_name() or ""
        if plan == self.plan:
            return
        planned = {row["trial_id"] for row in stored(self.files, plan)} if plan else set()
        if self.planned - planned:
            raise ViolationError(f"I3: {plan} lacks trials that were planned")
        lease, last = self.leases[self.play.me().process], self.files.storage.names("lease")[-1:]
        if plan < self.plan or lease < self.planner:
            raise ViolationError(f"I3: {plan} counts, of {lease}, after {self.plan} of {self.planner}")
        self.plan, self.planner = plan, lease
        self.known |= planned
        if [lease.rpartition("/")[2]] == last:  # else the next holder may not have seen it, and plans without it
            self.planned = planned


class Sweep:
    """What happens to one sweep under a seed.

    Attributes:
        world: its world.
        witness: who watches.
        results: of the launches that came to their end.
    """

    def __init__(self, seed: int) -> None:
        self.world = World.of(seed)
        self.play = self.world.play
        self.random = self.play.random
        self.witness = Witness(self.world)
        self.play.watch = self.witness.look
        self.results: list[LaunchResult] = []
        self.seconds = self.random.choice(CHECKPOINT_SECONDS)
        self.faults = self._some_faults()
        aims = [(step, fault) for fault in Fault for step in STEPS]
        self.play.aim = aims[seed % len(aims)]
        self.damage: list[Damage] = []  # that was found
        self.small, self.grown = self.random.choice(SIZES)
        self.trials = self.small  # of the sweep as it was launched last
        self.grace = math.inf  # the shortest that any compaction gave

    def _some_faults(self) -> dict[Fault, float]:
        """Of different kinds, from none to many."""
        kinds = self.random.sample(list(Fault), self.random.randint(1, len(Fault)))
        rate = self.random.choice((0.0, 0.005, 0.02, 0.06))
        pauses = {Fault.PAUSE: 0.1} if self.random.random() < 0.2 else {}
        return dict.fromkeys(kinds, rate / len(kinds)) | pauses

    # --- who takes part ---------------------------------------------------------------------------------------------

    def launch(self, trials: int, *, take_over: bool = False) -> None:
        """A launch, from the command line to its last word."""
        result = launch(sweep_file(trials, self.seconds), URL, executor="inline", take_over=take_over)
        self.results.append(result)
        if result.done + result.failed > result.planned:
            raise ViolationError(f"I3: {result.done} done and {result.failed} failed of {result.planned}")

    def compact(self, grace: float, *, take_over: bool) -> None:
        """`isoratio compact`."""
        self.grace = min(self.grace, grace)
        if self.witness.files.holds_anything():
            compact(URL, SWEEP, grace=grace, take_over=take_over)

    def verify(self) -> None:
        """`isoratio verify`."""
        if self.witness.files.holds_anything():
            self.damage += verify(URL, SWEEP)

    def read(self) -> None:
        """A reader on another machine, which takes its time."""
        for _ in range(3):
            self.play.sleep(self.random.expovariate(0.6))
            before, began = self.witness.committed, self.play.clock
            try:
                found = rows_of(SweepStore(self.world.storage, SWEEP))
            except FileNotFoundError as error:
                if self.play.clock - began < self.grace:
                    raise ViolationError("I1: a reader finds no file") from error
                continue
            if missing := before.items() - found.items():
                raise ViolationError(f"I1: a reader misses {missing}")

    def ask_to_stop(self) -> None:
        """`isoratio stop`."""
        storage = SweepStore(self.world.storage, SWEEP).storage
        if holder := latest(storage):
            ask_to_stop(storage, holder.number, self.random.choice(("finish", "checkpoint")))

    def _start(self, kind: str, work: Callable[[], None], within: float = 6.0) -> Process:
        return self.play.start(kind, work, self.faults, delay=self.random.uniform(0, within))

    # --- what happens -----------------------------------------------------------------------------------------------

    def trouble(self) -> None:
        """Everything that may happen, at once."""
        world, some = self.world, self.random
        world.worker_faults = self.faults
        world.hopeless = some.choice((None, None, self.small - 1))
        closing = self.play.aim is not None and self.play.aim[0] in CLOSING
        world.flaky, world.preempted = 0.5 if closing else some.choice((0.0, 0.3)), some.choice((0.0, 0.1))
        world.duplicated, world.orphaned = some.choice((0.0, 0.3)), some.choice((0.0, 0.5))
        for _ in range(some.choice((1, 1, 2, 2, 3))):
            grown, take_over = some.random() < 0.2, some.random() < 0.3
            self._start("launch", partial(self.launch, self.grown if grown else self.small, take_over=take_over))
        is_aimed_at = self.play.aim is not None and self.play.aim[0][0] == "compact"
        for at in (4.0, 8.0, 16.0) if is_aimed_at else some.choice(((), (), (6.0,), (6.0, 12.0))):
            grace = 0.0 if is_aimed_at else some.choice((0.0, 2.0, 3600.0))
            take_over = some.random() < (0.8 if is_aimed_at else 0.3)
            self._start("compact", partial(self.compact, grace, take_over=take_over), within=at)
        if some.random() < 0.1:
            self._start("stop", self.ask_to_stop)
        slow = self.faults | {Fault.PAUSE: 0.2}  # so that all may happen between any two steps
        for kind, work in [("reader", self.read), *[("verify", self.verify)] * (some.random() < 0.2)]:
            self.play.start(kind, work, slow, delay=some.uniform(0, 6))
        self.play.play()
        self._check_ends()
        self.trials = max(self.small, len(self._planned()))

    def _planned(self) -> set[str]:
        """Trials in the plan that counts."""
        plan = self.witness.files.read_plan()
        return set() if plan is None else set(plan["trial_id"].to_pylist())

    def _check_ends(self) -> None:
        """Processes end for a reason that is known."""
        for process in self.play.processes:
            if process.error is not None and not self._is_known(process.error):
                raise ViolationError(f"{process} ended by an unexpected error") from process.error

    def _is_known(self, error: BaseException | None) -> bool:
        """Whether an error is a fault's, or what a launch says that has lost its sweep."""
        while error is not None:
            if isinstance(error, InjectedError | LaunchHeldError | SweepChangedError):
                return True
            if "another compaction was faster" in str(error):
                return True
            if isinstance(error, FileNotFoundError | DamagedStoreError) and not self.grace:
                return True  # it reads what a compaction has deleted that does not wait
            error = error.__cause__ or error.__context__
        return False

    def accident(self) -> None:
        """Files are damaged; `isoratio verify`, disturbed at first, moves them away, and only what they held."""
        contents, watch = self.world.storage.contents, self.play.watch
        self.play.watch = lambda name: None
        names = sorted(name for name in contents if name.count("/") > 1 and name.split("/")[1] not in UNCHECKED)
        hit = self.random.sample(names, min(len(names), self.random.randint(1, 2)))
        lost = self._packs_in(hit)
        for name in hit:
            contents[name] = _damaged(contents[name], self.random)
            self.play.steps.append((self.play.clock, Process("accident", 0, 0, {}), "damage", name, None))
        self.play.aim = None
        for faults in (self.faults, {}):
            self.play.start("verify", self.verify, faults)
            self.play.play()
            self._check_ends()
        self.witness.look_again(lost)
        self.play.watch = watch

    def _packs_in(self, hit: Collection[str]) -> set[str]:
        """The packs whose rows may go with these files."""
        packs = set()
        for name in hit:
            folder = name.split("/")[1]
            if folder == MERGED:
                packs |= {row["pack_id"] for row in decoded(self.world.storage.contents[name])}
            elif folder == MANIFEST:  # with both copies
                packs |= (
                    {row.pack_id for row in self.witness.committed.values()} if self._is_only_copy(name, hit) else set()
                )
            else:
                packs.add(pack_of(name))
        return packs

    def _is_only_copy(self, name: str, hit: Collection[str]) -> bool:
        other = name.removesuffix(COPY) if name.endswith(COPY) else name + COPY
        return other in hit or other not in self.world.storage.contents

    def recovery(self) -> None:
        """A last launch, or what it takes, undisturbed."""
        world = self.world
        world.worker_faults, world.flaky, world.preempted, world.duplicated, world.orphaned = {}, 0.0, 0.0, 0.0, 0.0
        self.faults, self.play.aim = {}, None
        self.play.switching = 0.05
        done = {row.seed for row in self.witness.visible.values()}
        ran, trials = len(world.ran), self.trials
        hopeless = [seed for seed in range(trials) if seed == world.hopeless]
        for _ in range(3):  # what had failed, and was only to be written down, is tried again by the next launch
            self._start("launch", partial(self.launch, trials))
            self.play.play()
            self._check_ends()
            if self.results[-1].failed == len(hopeless):
                break
        if again := done & set(world.ran[ran:]):
            raise ViolationError(f"I4: trials {again} ran again")
        found = {row.seed: (row.status, row.score) for row in self.witness.visible.values()}
        wanted = {seed: expected(seed) for seed in range(trials) if seed not in hopeless}
        if found != wanted:
            raise ViolationError(f"I5: {found} instead of {wanted}")
        result = self.results[-1]
        if (result.planned, result.done, result.failed) != (trials, len(wanted), trials - len(wanted)):
            raise ViolationError(f"I3: {result.done} done and {result.failed} failed of {result.planned}")


def _damaged(data: bytes, random: Random) -> bytes:
    """Content with one bit changed, or cut off."""
    if not data or random.random() < 0.3:
        return data[: random.randrange(len(data))] if data else b"?"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def play(seed: int, *, accident: bool = False) -> Sweep:
    """Plays one schedule, within :func:`simulated_world.in_memory`.

    Args:
        seed: which.
        accident: damage files before the last launch.

    Raises:
        ViolationError: what does not hold, with the seed and all that happened.
    """
    collect(seed)
    sweep = Sweep(seed)
    try:
        sweep.trouble()
        if accident:
            sweep.accident()
        sweep.recovery()
    except ViolationError as error:
        story = sweep.play.story()
        raise ViolationError(
            f"{error}\nreplay({seed}{', accident=True' * accident}) plays it again; this happened:\n{story}"
        ) from error.__cause__
    return sweep


def replay(seed: int, *, accident: bool = False) -> Sweep:
    """Plays one schedule, as on its own: for a seed that a test has named."""
    with in_memory():
        return play(seed, accident=accident)
