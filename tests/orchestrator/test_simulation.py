"""Thousands of schedules of launches, crashes, lost answers, stale holders, compaction and damage; see `simulation`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest
from simulated_processes import Fault, Step, ViolationError
from simulated_world import URL, QuickStorage, in_memory, reconciled, sweep_file
from simulation import STEPS, Sweep, play, replay

from analysis import discarding
from analysis.checks import Findings
from analysis.database import connect
from orchestrator import launching
from orchestrator.reconcile import Reconciliation, reconcile
from trainables import lease
from trainables.checkpoint import Keeper
from trainables.encoding import decode
from trainables.manifest import Manifest, read_manifest
from trainables.store import Listing, Store, SweepStore, parquet_bytes, rows_name

QUICK, LONG = 2_000, 50_000
NOTHING: dict[str, list[str]] = {"plan": [], "trials": [], "failures": []}

Fired = Counter[tuple[Step, Fault | None]]


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


CRASHES, ERRORS = {Fault.CRASH_BEFORE, Fault.CRASH_AFTER}, {Fault.ERROR, Fault.LOST_ANSWER}


def check_that_faults_fired(fired: Fired, *kinds: Collection[Fault]) -> None:
    """Each kind of fault has struck at every step, and at whoever else takes part."""
    assert not [(step, kind) for step in STEPS for kind in kinds if not any(fired[step, fault] for fault in kind)]
    struck = {(kind, fault) for (kind, _, _), fault in fired}
    assert struck >= {(kind, fault) for kind in ("duplicate", "verify", "reader") for fault in Fault}
    assert all(fired[(kind, "lose", "trials"), None] for kind in ("worker", "duplicate"))
    assert fired[("worker", "read", "checkpoints"), None], "no pack has gone on from a checkpoint"


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("start", range(0, QUICK, QUICK // 2))
def test_nothing_is_lost_whatever_fails(start: int) -> None:
    check_that_faults_fired(played(range(start, start + QUICK // 2)), CRASHES, ERRORS, {Fault.PAUSE})


@pytest.mark.long
@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("start", range(QUICK, QUICK + LONG, LONG // 10))
def test_nothing_is_lost_in_a_great_many_schedules(start: int) -> None:
    fired = played(range(start, start + LONG // 10))
    check_that_faults_fired(fired, *({fault} for fault in Fault))
    assert fired[("launch", "lose", "trials"), None], "no pack was committed while it was given up"


@pytest.mark.usefixtures("simulated")
def test_damage_costs_only_what_was_damaged_and_a_launch_brings_it_back() -> None:
    fired = played(range(60), accident=True)
    assert fired[("verify", "replace", "quarantine"), None] > 50


@pytest.mark.long
@pytest.mark.usefixtures("simulated")
def test_damage_in_many_schedules() -> None:
    fired = played(range(60, 3_000), accident=True)
    assert all(fired[("verify", "replace", "quarantine"), fault] for fault in Fault)
    assert all(fired[("accident", "damage", folder), None] for folder in ("plan", "manifest", "merged", "checkpoints"))


def test_a_seed_is_a_schedule() -> None:
    first, again, other = replay(7), replay(7), replay(8)
    assert first.play.story() == again.play.story() != other.play.story()


@pytest.mark.usefixtures("simulated")
def test_correctness_does_not_rest_on_the_lease(simulated: pytest.MonkeyPatch) -> None:
    simulated.setattr(lease.Lease, "_is_free", lambda *given: True)
    simulated.setattr(lease.Lease, "check", lambda *given: None)
    played(range(150))


def test_stand_ins_answer_as_what_they_stand_for() -> None:
    """What a launch finds missing, and the row that a reader sees, against SQL, in the middle of trouble."""
    with in_memory():
        for seed in range(12):
            sweep = Sweep(seed)
            sweep.trouble()
            file, store = sweep_file(sweep.trials, 60.0), Store(URL)
            for retry in (True, False):
                found = (reconcile(file, store, retry_failed=retry), reconciled(file, store, retry_failed=retry))
                assert facts(found[0]) == facts(found[1])
            with connect(store) as connection:
                query = "SELECT trial_id, pack_id, attempt FROM trials WHERE status <> 'failed'"
                visible = {trial: row for trial, *row in connection.sql(query).fetchall()}
                ((planned,),) = connection.sql("SELECT count(*) FROM plan").fetchall()
            assert visible == {i: [row.pack_id, row.attempt] for i, row in sweep.witness.visible.items()}
            assert planned == (sweep.trials if sweep.witness.known else 0)


def facts(found: Reconciliation) -> tuple[Any, ...]:
    """What a launch goes by."""
    packs = sorted(map(str, found.overview.select(["pack_id", "round", "trials", "to_run"]).to_pylist()))
    plan = {row["trial_id"]: (row["pack_id"], row["slot"], row["round"]) for row in found.plan().to_pylist()}
    return packs, plan, dict(found.ended), sorted(found.failed), sorted(found.given_up)


# --- the simulation finds what is wrong -----------------------------------------------------------------------------


def commit_replaces(patch: pytest.MonkeyPatch) -> None:
    create = QuickStorage.create
    patch.setattr(
        QuickStorage,
        "create",
        lambda storage, name, data: storage.replace(name, data) if "trials/" in name else create(storage, name, data),
    )


def rows_come_first(patch: pytest.MonkeyPatch) -> None:
    commit = SweepStore.commit

    def hasty(sweep: SweepStore, pack: str, attempt: str, trials: pa.Table, side: Mapping[str, Any]) -> bool:
        sweep.storage.create(rows_name(pack), parquet_bytes(trials))
        return commit(sweep, pack, attempt, trials, side)

    patch.setattr(SweepStore, "commit", hasty)


def manifest_comes_first(patch: pytest.MonkeyPatch) -> None:
    create, late = QuickStorage.create, []

    def hasty(storage: QuickStorage, name: str, data: bytes) -> None:
        if name.startswith("merged/"):
            late.append((storage, name, data))
            return
        create(storage, name, data)
        while name.startswith("manifest/") and late:
            create(*late.pop())

    patch.setattr(QuickStorage, "create", hasty)


def manifest_is_read_first(patch: pytest.MonkeyPatch) -> None:
    def hasty(sweep: SweepStore, *tables: str) -> Listing:
        manifest = read_manifest(sweep.storage)
        found = {table: sweep._names(table) for table in tables}
        for table in {*tables} & {"trials", "curves"}:
            single = [name for name in found[table] if name.partition("/")[2].partition(".")[0] not in manifest.packs]
            found[table] = [*manifest.files(table), *single]
        return Listing(sweep, manifest, found)

    patch.setattr(SweepStore, "listing", hasty)


def the_last_plan_counts(patch: pytest.MonkeyPatch) -> None:
    write, number = SweepStore.write_plan, iter(range(1, 1_000_000))
    patch.setattr(SweepStore, "write_plan", lambda sweep, plan, *_: write(sweep, plan, 0, next(number)))
    patch.setattr(lease.Lease, "check", lambda *given: None)  # which finds out in time nearly always


def tidying_takes_the_newest(patch: pytest.MonkeyPatch) -> None:
    def hasty(sweep: SweepStore, launch: int) -> None:
        for name in sweep.storage.names("plan")[1:]:
            sweep.storage.delete(f"plan/{name}")

    patch.setattr(launching, "tidy", hasty)


def there_is_no_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(discarding, "_is_older", lambda *given: True)


def losers_take_all_away(patch: pytest.MonkeyPatch) -> None:
    commit = SweepStore.commit

    def thorough(sweep: SweepStore, pack: str, attempt: str, trials: pa.Table, side: Mapping[str, Any]) -> bool:
        won = commit(sweep, pack, attempt, trials, side)
        for name in () if won else sweep.storage.names("curves"):
            if name.startswith(pack):
                sweep.storage.delete(f"curves/{name}")
        return won

    patch.setattr(SweepStore, "commit", thorough)


def packs_are_given_up_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SweepStore, "close", lambda *given: True)


def checkpoints_are_anybodys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keeper, "_names", lambda self: [f"checkpoints/{n}" for n in self.storage.names("checkpoints")])
    patch.setattr(Keeper, "_read", lambda self, name, device: decode(self.storage.read(name), device)[1])


def launches_do_not_look(patch: pytest.MonkeyPatch) -> None:
    def hasty(file: Any, store: Store, *, retry_failed: bool, **options: Any) -> Reconciliation:
        with pytest.MonkeyPatch.context() as blind:
            if retry_failed:
                blind.setattr(SweepStore, "listing", lambda sweep, *tables: Listing(sweep, Manifest(), NOTHING))
            return reconciled(file, store, retry_failed=retry_failed, **options)

    patch.setattr(launching, "reconcile", hasty)
    patch.setattr(SweepStore, "is_committed", lambda *given: False)


def verify_looks_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Findings, "seen_before", lambda now, before: before)


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    commit_replaces: "I1: what was committed as",
    rows_come_first: "I2: .* has 0 points of its curve",
    manifest_comes_first: "I1: a listed file is gone",
    manifest_is_read_first: "I1: a reader misses",
    the_last_plan_counts: "I3: ",
    tidying_takes_the_newest: "I3: .* counts, .* after",
    there_is_no_grace: "I[12]: ",
    losers_take_all_away: "I2: .* has 0 points of its curve",
    packs_are_given_up_open: "I1: what was visible as",
    checkpoints_are_anybodys: "I5: ",
    launches_do_not_look: "I4: ",
    verify_looks_once: "I1: ",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_finds(simulated: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    mutant(simulated)
    with pytest.raises(ViolationError) as found:
        played(range(QUICK))
    what, seed, *story = str(found.value).splitlines()
    assert re.match(MUTANTS[mutant], what)
    assert re.fullmatch(r"replay\(\d+\) plays it again; this happened:", seed)
    assert re.fullmatch(r" +\d+\.\d\d s  \w+ \d+: \w+ s/\S+( +<- \w+.*)?", story[0])
