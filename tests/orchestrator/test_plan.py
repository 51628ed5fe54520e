"""Packs, and what is to do: a sweep file against every state in which a store can be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cost import SECONDS_PER_COST
from orchestrator.engine import Computation, computation
from orchestrator.packs import SHARED
from orchestrator.planning import duration, plan
from orchestrator.reconcile import Reconciliation, SweepChangedError, reconcile
from orchestrator.sizes import size
from orchestrator.sweepfile import SweepFile, load
from trainables.packs import plan_metadata
from trainables.schema import CURVES, EIGENVALUES, FAILURES, PLAN, PROVENANCE, TRIALS
from trainables.stacking import STACKED_CONVOLUTION
from trainables.storage import DamagedStoreError, StoreError
from trainables.store import Store, SweepStore, new_attempt, table
from trainables.trial import FIELDS, Trial

GRID = "lr: [0.1, 0.2], batch_size: [8, 16], seed: {range: 3}"


def _sweep(folder: Path, grid: str = GRID, more: str = "", name: str = "s") -> SweepFile:
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\ndataset: digits\ngrid: {{{grid}}}\n{more}\n")
    return load(path)


class _World:
    """A store, and a runner that does what it is told instead of training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "store")
        self.runs: Counter[str] = Counter()

    def files(self, name: str = "s") -> SweepStore:
        return self.store.sweep(name)

    def reconcile(self, sweep: SweepFile, **options: Any) -> Reconciliation:
        """Like a launch: writes the plan and copies what is reused."""
        found = reconcile(sweep, self.store, **options)
        files = self.files(sweep.name)
        assert all(files.close(pack) for pack in found.given_up)
        self.write_plan(sweep, found)
        for reuse in found.reuse:
            assert reuse.commit(self.store, files)
        return found

    def write_plan(self, sweep: SweepFile, found: Reconciliation) -> None:
        metadata = plan_metadata(sweep.measure, sweep.suffix, sweep.text)
        files = self.files(sweep.name)
        files.write_plan(found.plan().replace_schema_metadata(metadata), 1, 1 + len(files.storage.names("plan")))

    def run(self, pack_id: str, name: str = "s", failing: Iterable[str] = (), cause: str = "exception") -> None:
        """Commits a pack of the plan; the members that raise are recorded, after another cause all of them."""
        files = self.files(name)
        rows = files.read_pack(files.plan_name() or "", pack_id).to_pylist()
        self.runs.update(row["trial_id"] for row in rows)
        attempt, failing = new_attempt(), set(failing)
        common = {"attempt": attempt, "seconds": 0.5, "device": "cpu"}
        known = {*TRIALS.names} & {*PLAN.names}
        base = [{k: row[k] for k in known} | common for row in rows]
        failed = [
            {k: v for k, v in row.items() if k in FAILURES.names} | {"round": r["round"], "cause": cause, "error": "no"}
            for row, r in zip(base, rows, strict=True)
            if cause != "exception" or row["trial_id"] in failing
        ]
        good = [
            row | {"status": "diverged" if row["lr"] > 1 else "finished", "provenance_id": "p", "engine": "fused"}
            for row in base
            if cause == "exception" and row["trial_id"] not in failing
        ]
        if good:
            at = {"step": 1, "epoch": 1.0}
            side = {
                "curves": [row | at | {"statistic": "test_loss", "value": row["lr"]} for row in good],
                "eigenvalues": [row | at | {"index": 0, "eigenvalue": row["lr"]} for row in good],
            }
            schemas = {"curves": CURVES, "eigenvalues": EIGENVALUES}
            tables = {
                k: table([{n: row[n] for n in schemas[k].names if n in row} for row in rows], schemas[k])
                for k, rows in side.items()
            }
            files.commit(pack_id, attempt, table(good, TRIALS), tables)
            files.write_provenance("p", table([{"provenance_id": "p"}], PROVENANCE))
        if failed:
            files.write_failures(pack_id, attempt, table(failed, FAILURES))

    def planned(self, name: str = "s") -> dict[str, tuple[str, int, int]]:
        """trial_id -> pack_id, slot, round."""
        plan = self.files(name).read_plan()
        assert plan is not None
        rows = plan.to_pylist()
        assert len({row["trial_id"] for row in rows}) == len(rows), "one row per trial"
        assert len({(row["pack_id"], row["slot"]) for row in rows}) == len(rows)
        return {row["trial_id"]: (row["pack_id"], row["slot"], row["round"]) for row in rows}

    def committed(self, name: str = "s") -> list[str]:
        paths = sorted((self.files(name).storage.root / "trials").glob("*.parquet"))
        return [t for p in paths for t in pq.read_table(p)["trial_id"].to_pylist()]


@pytest.fixture
def world(tmp_path: Path) -> _World:
    return _World(tmp_path)


def _members(found: Reconciliation) -> dict[str, list[dict[str, Any]]]:
    packs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(found.plan().to_pylist(), key=lambda row: row["slot"]):
        packs[row["pack_id"]].append(row)
    return packs


# ---- packs


def test_packs_share_what_shapes_the_computation(world: _World) -> None:
    sweep = _sweep(world.folder, f"{GRID}, arch: [mlp, linear], momentum: [0, 0.5, 0.9], weight_decay: [0, 0.1]")
    packs = _members(reconcile(sweep, world.store))
    assert len(packs) == 2 * 2 * 2 * 2  # batch sizes, architectures, momentum or none, weight decay or none
    for rows in packs.values():
        for field in SHARED:
            assert len({row[field] for row in rows}) == 1
        assert len({row["momentum"] > 0 for row in rows}) == 1
        assert len({row["weight_decay"] > 0 for row in rows}) == 1
        assert [row["slot"] for row in rows] == list(range(len(rows)))


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds=st.integers(1, 40), rates=st.integers(1, 4), most=st.integers(1, 50))
def test_large_groups_are_cut_evenly_and_in_order(world: _World, seeds: int, rates: int, most: int) -> None:
    grid = f"lr: {[0.1 * (k + 1) for k in range(rates)]}, batch_size: [8], seed: {{range: {seeds}}}"
    sweep = _sweep(world.folder, grid, f"pack: {{max_trials: {most}}}")
    found = reconcile(sweep, world.store)
    packs = list(_members(found).values())
    sizes = [len(rows) for rows in packs]
    assert sum(sizes) == seeds * rates
    assert len(packs) == -(-seeds * rates // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    order = sorted([[(row["seed"], row["lr"]) for row in rows] for rows in packs])
    assert [pair for pairs in order for pair in pairs] == sorted(pair for pairs in order for pair in pairs)


def test_plans_are_the_same_whenever_they_are_made(world: _World) -> None:
    sweep = _sweep(world.folder)
    first = reconcile(sweep, world.store).plan().sort_by("trial_id")
    assert first == reconcile(sweep, world.store).plan().sort_by("trial_id")
    assert first.schema == PLAN
    reordered = _sweep(world.folder, "seed: [2, 0, 1], batch_size: [16, 8], lr: [0.2, 0.1]")
    assert first == reconcile(reordered, world.store).plan().sort_by("trial_id")


def test_packs_run_longest_first(world: _World) -> None:
    found = reconcile(_sweep(world.folder, f"{GRID}, epochs: [1, 5, 3]"), world.store)
    costs = found.packs["cost"].to_pylist()
    assert costs == sorted(costs, reverse=True)
    assert found.packs["epochs"].to_pylist() == [5, 5, 3, 3, 1, 1]
    assert found.to_run == found.packs["pack_id"].to_pylist()


def test_limit_takes_whole_packs_and_changes_no_pack(world: _World) -> None:
    sweep = _sweep(world.folder, f"{GRID}, epochs: [1, 5, 3]")
    every = reconcile(sweep, world.store)
    assert reconcile(sweep, world.store, limit=7).to_run == every.to_run[:2]
    assert reconcile(sweep, world.store, limit=6).to_run == every.to_run[:1]
    assert reconcile(sweep, world.store, limit=99).to_run == every.to_run
    order = [("pack_id", "ascending"), ("slot", "ascending")]  # in which the store writes it
    assert reconcile(sweep, world.store, limit=1).plan().sort_by(order) == every.plan().sort_by(order)


# ---- engines


@pytest.mark.parametrize(
    ("arch", "loss", "call", "wanted", "engine"),
    [
        ("mlp", "cross_entropy", None, "auto", "fused"),
        ('{"depth":4,"name":"mlp"}', "mse", None, "auto", "fused"),
        ("linear", "mse", None, "auto", "fused"),
        ("mlp", "mse", None, "loop", "loop"),
        ("mlp", "operator:sub", None, "auto", "auto"),
        ("operator:sub", "mse", None, "auto", "auto"),
        ("operator:sub", "mse", None, "vmap", "vmap"),
        ("mlp", "mse", "operator:neg", "vmap", "call"),
    ],
)
def test_engines(tmp_path: Path, arch: str, loss: str, call: str | None, wanted: str, engine: str) -> None:
    sweep = _sweep(tmp_path, more=f"pack: {{engine: {wanted}}}")
    assert _computed(sweep, arch=arch, loss=loss, call=call).engine == engine


def test_trials_of_the_users_own_need_not_fit_the_data(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1], batch_size: [2048]", "train: {call: 'operator:neg'}")
    (pack,) = reconcile(sweep, world.store).packs.to_pylist()
    assert (pack["engine"], pack["batch_size"]) == ("call", 2048)


def _computed(sweep: SweepFile, *, cost: float = 1.0, alone: bool = False, **settings: Any) -> Computation:
    kind = Trial(dataset="digits", lr=0.1, batch_size=8).model_dump() | settings | {"cost": cost, "alone": alone}
    return computation(kind, sweep, settle=False)


RESNET = '{"depth":8,"name":"resnet"}'


def test_convolutions_are_stacked_where_it_pays(tmp_path: Path) -> None:
    cpu, gpu = _sweep(tmp_path), _sweep(tmp_path, more="resources: {gpu: 1}")
    multiply_adds = size(RESNET, (64,), 10).multiply_adds
    most = STACKED_CONVOLUTION // multiply_adds
    assert _computed(cpu, arch=RESNET, batch_size=most).engine == "vmap"
    assert _computed(cpu, arch=RESNET, batch_size=most + 1).engine == "loop"
    assert _computed(cpu, arch=RESNET, batch_size=1, alone=True).engine == "loop"
    assert _computed(gpu, arch=RESNET, batch_size=most + 1).engine == "vmap"


def test_packs_and_pieces_fit_memory(tmp_path: Path) -> None:
    """3 x 4 bytes for every number that a layer puts out, 4 x 4 for every parameter, 4 for every input."""
    net = size(RESNET, (64,), 10)
    per_example, parameters = 12 * net.activations, 16 * net.parameters
    gib = (10 * 8 * (per_example + 4 * 64) + 10 * parameters) / 2**30
    sweep = _sweep(tmp_path, more=f"pack: {{memory: {gib * 1.001:.9f}, engine: vmap}}")
    assert _computed(sweep, arch=RESNET) == Computation("vmap", None, 10)
    large = _computed(sweep, arch='{"depth":8,"ghost_batch":16,"name":"resnet"}', sampler="full")
    assert large.physical_batch_size == int(gib * 1.001 * 2**30 / per_example) // 16 * 16
    assert large.max_trials == 1
    whole = _computed(sweep, arch=RESNET, sampler="full")
    assert whole == Computation("vmap", None, 1), "batch norm is not cut"


def test_packs_of_the_loop_are_about_half_a_minute_long(tmp_path: Path) -> None:
    loop = _sweep(tmp_path, more="pack: {engine: loop}")
    sizes = [_computed(loop, arch=RESNET, cost=seconds / SECONDS_PER_COST).max_trials for seconds in (0.01, 1, 10, 100)]
    assert sizes == [64, 30, 3, 1]


def test_engines_of_plug_ins_are_settled_only_when_asked_for(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    (world.folder / "plan_plugin.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, num_classes))\n"
    )
    sweep = _sweep(world.folder, f"{GRID}, arch: ['plan_plugin:net', mlp]")
    asked = reconcile(sweep, world.store, settle_engines=False).packs.to_pylist()
    assert {(p["arch"], p["engine"]) for p in asked} == {("mlp", "fused"), ("plan_plugin:net", "auto")}
    settled = reconcile(sweep, world.store).packs.to_pylist()
    assert {(p["arch"], p["engine"]) for p in settled} == {("mlp", "fused"), ("plan_plugin:net", "vmap")}


# ---- done, resumed, extended


def test_what_is_committed_is_done_and_what_is_left_runs_as_planned(world: _World) -> None:
    sweep = _sweep(world.folder)
    first = world.reconcile(sweep)
    before = world.planned()
    world.run(first.to_run[0])
    again = world.reconcile(sweep)
    assert again.to_run == first.to_run[1:]
    assert again.done == 6
    assert world.planned() == before
    world.run(again.to_run[0])
    last = world.reconcile(sweep)
    assert (last.to_run, last.done, last.failed) == ([], 12, [])
    assert last.overview["done"].to_pylist() == [6, 6]


def test_diverged_trials_are_done(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 3.0], batch_size: [8]")
    world.run(world.reconcile(sweep).to_run[0])
    assert reconcile(sweep, world.store).done == 2


def test_new_points_form_new_packs(world: _World) -> None:
    world.reconcile(_sweep(world.folder))
    before = world.planned()
    grown = _sweep(world.folder, "lr: [0.1, 0.2, 0.3], batch_size: [8, 16, 32], seed: {range: 4}")
    found = world.reconcile(grown)
    after = world.planned()
    assert len(after) == found.grid.num_rows == 36
    assert {t: after[t] for t in before} == before
    assert {after[t][0] for t in after.keys() - before}.isdisjoint(p for p, _, _ in before.values())
    for pack in found.to_run:
        world.run(pack)
    assert sorted(world.committed()) == sorted(after)


def test_another_meaning_is_refused_with_the_difference(world: _World) -> None:
    sweep = _sweep(world.folder)
    world.reconcile(sweep)
    smaller = _sweep(world.folder, "lr: [0.1], batch_size: [8, 16], seed: {range: 3}")
    with pytest.raises(SweepChangedError) as caught:
        reconcile(smaller, world.store)
    text = str(caught.value)
    assert f"sweep 's' in {world.store.storage.root} was launched with another meaning" in text
    assert "6 of its 12 trials are not in this grid" in text
    assert "\n-grid: {lr: [0.1, 0.2], batch_size" in text
    assert "\n+grid: {lr: [0.1], batch_size" in text
    assert "another name" in text
    assert "`isoratio rm s`" in text
    with pytest.raises(SweepChangedError, match="what is measured, or when, is not the same") as caught:
        reconcile(_sweep(world.folder, more="measure: {hessian: false}"), world.store)
    assert "\n+measure: {hessian: false}" in str(caught.value)


def test_a_change_that_the_files_do_not_show_is_told_apart(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = _sweep(world.folder)
    world.reconcile(sweep)
    monkeypatch.setattr("orchestrator.grid.SEMANTICS", 2)
    with pytest.raises(SweepChangedError, match="The files are the same: a plug-in's defaults, or the meaning of"):
        reconcile(sweep, world.store)


def test_what_is_not_science_may_change(world: _World) -> None:
    world.reconcile(_sweep(world.folder))
    before = world.planned()
    more = "pack: {max_trials: 2, engine: loop}\nresources: {cpu: 2}\nmargins: {test_loss: 1}\nretries: 0"
    world.reconcile(_sweep(world.folder, more=more))
    assert world.planned() == before


def test_a_lost_plan_is_made_again(world: _World) -> None:
    sweep = _sweep(world.folder)
    world.run(world.reconcile(sweep).to_run[0])
    before = world.planned()
    for name in world.files().storage.names("plan"):
        world.files().storage.delete(f"plan/{name}")
    found = world.reconcile(sweep)
    assert (found.done, len(found.to_run)) == (6, 1)
    assert world.planned() == before


def test_a_damaged_file_is_named(world: _World) -> None:
    sweep = _sweep(world.folder)
    world.run(world.reconcile(sweep).to_run[0])
    (path,) = (world.files().storage.root / "trials").glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedStoreError, match=f"(?s){path.name}.*`isoratio verify`"):
        reconcile(sweep, world.store)


@pytest.mark.parametrize("older", [0, 1], ids=["the first", "the second"])
def test_files_of_an_older_version_count_beside_new_ones(world: _World, older: int) -> None:
    sweep = _sweep(world.folder)
    for pack in world.reconcile(sweep).to_run:
        world.run(pack)
    path = sorted((world.files().storage.root / "trials").glob("*.parquet"))[older]
    pq.write_table(pq.read_table(path).drop_columns(["slot", "error"]), path)
    found = reconcile(sweep, world.store)
    assert (found.done, found.to_run) == (12, [])


def test_a_store_whose_name_reads_as_a_pattern_is_not_taken_for_another(tmp_path: Path) -> None:
    done, open_ = _World(tmp_path / "run1"), _World(tmp_path / "run[1]")
    for world in (done, open_):
        world.folder.mkdir()
        first, _ = world.reconcile(_sweep(world.folder)).to_run
        world.run(first)
    last = done.reconcile(_sweep(done.folder))
    done.run(_one(last))
    assert reconcile(_sweep(done.folder), done.store).done == 12
    assert reconcile(_sweep(open_.folder), open_.store).done == 6


# ---- failed


def _one(found: Reconciliation) -> str:
    (pack,) = found.to_run
    return pack


def test_a_trial_that_raises_is_tried_again_alone(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8], seed: {range: 3}", "retries: 2")
    first = world.reconcile(sweep)
    bad = first.grid["trial_id"][4].as_py()
    world.run(_one(first), failing=[bad])
    for round_ in (1, 2):
        again = world.reconcile(sweep)
        assert (again.done, again.failed) == (5, [])
        assert world.planned()[bad] == (_one(again), 0, round_)
        assert again.packs["trials"].to_pylist() == [1]
        world.run(_one(again), failing=[bad])
    final = world.reconcile(sweep)
    assert (final.to_run, final.failed, final.done) == ([], [bad], 5)
    assert sorted(final.overview["failed"].to_pylist()) == [0, 1]
    assert world.runs[bad] == 3


def test_a_new_launch_tries_failed_trials_again(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]", "retries: 1")
    bad = ""
    for launch in (1, 2):
        found = world.reconcile(sweep, retry_failed=True)
        bad = bad or found.grid["trial_id"][0].as_py()
        while found.to_run:
            world.run(_one(found), failing=[bad])
            found = world.reconcile(sweep)
        assert found.failed == [bad]
        assert world.runs[bad] == 2 * launch
    world.run(_one(world.reconcile(sweep, retry_failed=True)))
    found = world.reconcile(sweep)
    assert (found.failed, found.done) == ([], 2)
    assert sorted(world.committed()) == sorted(found.grid["trial_id"].to_pylist())


def test_no_retries(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1], batch_size: [8]", "retries: 0")
    found = world.reconcile(sweep)
    bad = found.grid["trial_id"].to_pylist()
    world.run(_one(found), failing=bad)
    assert reconcile(sweep, world.store).failed == bad
    assert len(reconcile(sweep, world.store, retry_failed=True).to_run) == 1


@pytest.mark.parametrize("cause", ["crash", "memory", "preemption"])
def test_after_a_recorded_crash_every_trial_of_the_pack_runs_alone(world: _World, cause: str) -> None:
    """Its launch has run it again as a whole before: what is to be found out now is which trial it was."""
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8, 16], seed: {range: 2}", "pack: {max_trials: 2}")
    first = world.reconcile(sweep)
    before = {pack: {t for t, p in world.planned().items() if p[0] == pack} for pack in first.to_run}
    *crashed, well = first.to_run
    world.run(well)
    for pack in crashed:
        world.run(pack, cause=cause)
    second = world.reconcile(sweep)
    assert second.packs["trials"].to_pylist() == [1] * 6
    assert second.done == 2
    tried = {t: (slot, round_) for t, (pack, slot, round_) in world.planned().items() if pack in second.to_run}
    assert tried == dict.fromkeys(set.union(*(before[pack] for pack in crashed)), (0, 1))
    for pack in second.to_run[1:]:
        world.run(pack)
    world.run(second.to_run[0], cause=cause)
    third = world.reconcile(sweep)
    assert third.packs["round"].to_pylist() == [2]
    world.run(_one(third), cause=cause)
    last = world.reconcile(sweep)
    assert (last.to_run, len(last.failed), last.done) == ([], 1, 7)


def test_packs_that_trials_leave_are_closed_so_that_no_trial_gets_a_second_row(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]", "retries: 3")
    first = world.reconcile(sweep)
    assert first.given_up == []
    world.run(_one(first), cause="crash")
    found = reconcile(sweep, world.store)
    assert found.given_up == first.to_run
    second = world.reconcile(sweep)
    late = table([{"trial_id": first.grid["trial_id"][0].as_py(), "pack_id": _one(first)}], TRIALS)
    assert not world.files().commit(_one(first), new_attempt(), late, {}), "by a worker that was out of reach"
    assert reconcile(sweep, world.store).given_up == []
    for pack in second.to_run:
        world.run(pack)
    assert sorted(world.committed()) == sorted(first.grid["trial_id"].to_pylist())
    assert reconcile(sweep, world.store).ended == {"finished": 2}


def test_a_pack_that_is_committed_while_it_is_given_up_has_won(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]", "retries: 3")
    first = world.reconcile(sweep)
    world.run(_one(first), cause="crash")
    (given_up,) = reconcile(sweep, world.store).given_up
    world.run(given_up)
    assert not world.files().close(given_up)
    again = reconcile(sweep, world.store)
    assert (again.to_run, again.given_up, again.done) == ([], [], 2)


def test_after_a_plan_was_lost_no_pack_gets_the_id_of_a_closed_one(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]", "retries: 1")
    closed = []
    for _ in range(3):
        for retry_failed in (True, False):
            found = world.reconcile(sweep, retry_failed=retry_failed)
            closed += found.given_up
            for pack in found.to_run:
                world.run(pack, cause="crash")
        assert len(reconcile(sweep, world.store).failed) == 2, "each trial has as many tries as ever"
        for folder in ("plan", "failures"):
            for name in world.files().storage.names(folder):
                world.files().storage.delete(f"{folder}/{name}")
    last = world.reconcile(sweep)
    assert closed
    assert set(closed).isdisjoint(last.to_run)
    for pack in last.to_run:
        world.run(pack)
    assert reconcile(sweep, world.store).done == 2


def test_a_pack_that_was_cut_off_before_its_commit_runs_whole_again(world: _World) -> None:
    """Failures are written, then the process dies: the rest of the pack is still to run, and nothing runs twice."""
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]")
    first = world.reconcile(sweep)
    bad = first.grid["trial_id"][0].as_py()
    world.run(_one(first), failing=[bad])
    (world.files().storage.root / "trials" / f"{_one(first)}.parquet").unlink()
    assert world.reconcile(sweep).to_run == first.to_run
    world.run(_one(first))
    assert sorted(world.committed()) == sorted(first.grid["trial_id"].to_pylist())
    assert reconcile(sweep, world.store).done == 2


def test_a_member_that_left_no_trace_is_tried_again(world: _World) -> None:
    """The pack is committed, then the process dies before it writes what failed."""
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]")
    first = world.reconcile(sweep)
    bad = first.grid["trial_id"][0].as_py()
    world.run(_one(first), failing=[bad])
    for path in (world.files().storage.root / "failures").glob("*"):
        path.unlink()
    world.run(_one(world.reconcile(sweep)))
    assert sorted(world.committed()) == sorted(first.grid["trial_id"].to_pylist())


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_whatever_fails_every_trial_ends_once(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random outcomes and interruptions: no row is lost, none comes twice, and every launch comes to an end."""
    world = _World(tmp_path_factory.mktemp("world"))
    more = "pack: {max_trials: 3}\nretries: 1"
    sweep = _sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8, 16], seed: {range: 2}", more)
    for _ in range(2):
        start, found = world.runs.copy(), world.reconcile(sweep, retry_failed=True)
        while found.to_run and data.draw(st.integers(0, 9)):
            outcome = data.draw(st.sampled_from(["well", "exception", "crash"]))
            members = [t for t, (pack, _, _) in world.planned().items() if pack == found.to_run[0]]
            failing = data.draw(st.sets(st.sampled_from(members))) if outcome == "exception" else set()
            world.run(found.to_run[0], failing=failing, cause="crash" if outcome == "crash" else "exception")
            found = world.reconcile(sweep)
        assert max((world.runs - start).values(), default=0) <= 2
        assert len(set(world.committed())) == len(world.committed()) == found.done
    found = world.reconcile(sweep, retry_failed=True)
    while found.to_run:
        world.run(found.to_run[0])
        found = world.reconcile(sweep)
    assert sorted(world.committed()) == sorted(found.grid["trial_id"].to_pylist())


# ---- reused


def test_trials_of_another_sweep_are_copied_and_not_run(world: _World) -> None:
    for pack in (first := world.reconcile(_sweep(world.folder))).to_run:
        world.run(pack)
    other = _sweep(world.folder, "lr: [0.1, 0.2, 0.4], batch_size: [8, 32], seed: {range: 3}", name="t")
    found = world.reconcile(other)
    (reuse,) = found.reuse
    assert reuse.sweep == "s"
    assert set(reuse.trial_ids) == set(first.grid["trial_id"].to_pylist()) & set(found.grid["trial_id"].to_pylist())
    assert len(reuse.trial_ids) == 6
    assert sum(found.packs["trials"].to_pylist()) == 12
    assert len(world.planned("t")) == 18
    copies = pq.read_table(world.files("t").storage.root / "trials" / f"{reuse.pack_id}.parquet").to_pylist()
    assert {row["sweep"] for row in copies} == {"t"}
    assert {row["pack_id"] for row in copies} == {reuse.pack_id}
    assert [row["slot"] for row in copies] == list(range(6))
    (attempt,) = {row["attempt"] for row in copies}
    for side in ("curves", "eigenvalues"):
        rows = pq.read_table(world.files("t").storage.root / side / f"{reuse.pack_id}.{attempt}.parquet").to_pylist()
        assert {row["trial_id"] for row in rows} == set(reuse.trial_ids)
        assert len(rows) == 6
        assert {(row["sweep"], row["pack_id"], row["attempt"]) for row in rows} == {("t", reuse.pack_id, attempt)}
    assert (world.files("t").storage.root / "provenance" / "p.parquet").exists()
    for pack in found.to_run:
        world.run(pack, "t")
    last = world.reconcile(other)
    assert (last.to_run, last.reuse, last.done) == ([], [], 18)
    assert sorted(world.committed("t")) == sorted(last.grid["trial_id"].to_pylist())


def test_a_copy_that_was_cut_off_is_made_again_or_run(world: _World) -> None:
    for pack in world.reconcile(_sweep(world.folder)).to_run:
        world.run(pack)
    other = _sweep(world.folder, name="t")
    files = world.files("t")
    world.write_plan(other, reconcile(other, world.store))  # and nothing was copied
    found = reconcile(other, world.store)
    assert len(found.reuse[0].trial_ids) == 12
    world.reconcile(other)
    assert len(world.committed("t")) == 12
    for path in (files.storage.root / "trials").glob("*"):
        path.unlink()
    for path in (world.files().storage.root / "trials").glob("*"):
        path.unlink()
    with pytest.raises(StoreError, match="trials that were to be reused are gone; launch again"):
        found.reuse[0].commit(world.store, files)
    again = world.reconcile(other)
    assert again.reuse == []
    assert sorted(again.packs["trials"].to_pylist()) == [6, 6]


def test_only_the_same_measurements_are_reused(world: _World) -> None:
    for pack in world.reconcile(_sweep(world.folder)).to_run:
        world.run(pack)
    other = _sweep(world.folder, more="measure: {hessian: false}", name="t")
    assert reconcile(other, world.store).reuse == []


def test_failed_and_imported_trials_are_not_reused(world: _World) -> None:
    found = world.reconcile(_sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]"))
    bad, good = found.grid["trial_id"].to_pylist()
    world.run(_one(found), failing=[bad])
    imported = table([{"sweep": "i", "trial_id": bad, "status": "finished", "lr": 0.1, "batch_size": 8}], TRIALS)
    world.files("i").commit("import", new_attempt(), imported, {})
    (reuse,) = reconcile(_sweep(world.folder, "lr: [0.1, 0.2], batch_size: [8]", name="t"), world.store).reuse
    assert reuse.trial_ids == (good,)


def test_a_failed_trial_is_taken_from_a_sweep_where_it_went_well(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1], batch_size: [8]", "retries: 0")
    world.run(_one(world.reconcile(sweep)), failing=reconcile(sweep, world.store).grid["trial_id"].to_pylist())
    other = _sweep(world.folder, "lr: [0.1], batch_size: [8]", name="t")
    world.run(_one(world.reconcile(other)), "t")
    found = world.reconcile(sweep)
    assert [r.sweep for r in found.reuse] == ["t"]
    assert found.failed == []
    assert reconcile(sweep, world.store).done == 1


def test_metrics_of_plug_ins_are_copied_too(world: _World) -> None:
    sweep = _sweep(world.folder, "lr: [0.1], batch_size: [8]")
    world.run(_one(world.reconcile(sweep)))
    (path,) = (world.files().storage.root / "trials").glob("*.parquet")
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("sharpness", pa.array([7.0])), path)
    world.reconcile(_sweep(world.folder, "lr: [0.1], batch_size: [8]", name="t"))
    (copy,) = (world.files("t").storage.root / "trials").glob("*.parquet")
    assert pq.read_table(copy)["sharpness"].to_pylist() == [7.0]


# ---- the plan for people


def test_plan_counts_everything_and_writes_nothing(world: _World) -> None:
    grid = "arch: [mlp, {name: mlp, depth: 2}], lr: [0.1, 0.2, 0.4], batch_size: [8, 16], seed: {range: 3}"
    _sweep(world.folder, grid, "where: lr < 0.3")
    found = plan(world.folder / "s.yaml", world.store.storage.root, workers=2)
    assert not world.store.storage.root.exists()
    assert found.summary().splitlines()[:4] == [
        "s: 12 trials in 2 packs",
        "  grid     36 points, 18 coincide, 6 left out by `where`",
        "  done     0",
        "  to run   12 in 2 packs, 2 fused",
    ]
    assert "with 2 workers (a guess: nothing has run yet)" in found.summary()
    costs = [row["cost"] for row in found.rows()]
    assert found.seconds == pytest.approx(max(*costs, sum(costs) / 2) * SECONDS_PER_COST)
    assert {"pack_id", "trials", "batch_size", "engine", "done", "estimated_seconds"} <= set(found.rows()[0])


def test_plan_shows_what_share_of_the_time_measuring_takes(world: _World) -> None:
    _sweep(world.folder, f"{GRID}, epochs: [1, 4]", "measure: {at: [1, 2], hessian: {at: []}}")
    found = plan(world.folder / "s.yaml", world.store.storage.root)
    shares, rows = found.measuring, found.rows()
    assert {*shares} == {"hessian", "losses", "gradient_noise"}
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    whole = sum(row["cost"] for row in rows)
    assert sum(row["measuring_share"] * row["cost"] for row in rows) == pytest.approx(sum(shares.values()) * whole)
    assert all(0 < row["measuring_share"] < 1 for row in rows)
    line = found.summary().splitlines()[-1]
    assert line.startswith(
        f"  measuring about {sum(shares.values()):.0%} of the time: hessian {shares['hessian']:.0%}, "
    )
    _sweep(world.folder, f"{GRID}, epochs: [1, 4]", "measure: {at: [1, 2], hessian: false, gradient_noise: false}")
    less = plan(world.folder / "s.yaml", world.store.storage.root)
    assert [*less.measuring] == ["losses"]
    assert less.measuring["losses"] < sum(shares.values())


def test_only_packs_that_are_to_run_have_a_share(world: _World) -> None:
    sweep = _sweep(world.folder, f"{GRID}, epochs: [1, 2]")
    for pack in world.reconcile(sweep).to_run[:3]:
        world.run(pack)
    found = plan(world.folder / "s.yaml", world.store.storage.root)
    shares = [row["measuring_share"] for row in found.rows()]
    assert [share is None for share in shares] == [row["estimated_seconds"] is None for row in found.rows()]
    assert shares[-1] == pytest.approx(sum(found.measuring.values()))
    world.run(found.found.to_run[0])
    done = plan(world.folder / "s.yaml", world.store.storage.root)
    assert done.measuring == {}
    assert "measuring" not in done.summary()


def test_plan_learns_how_fast_packs_run(world: _World) -> None:
    sweep = _sweep(world.folder, f"{GRID}, epochs: [1, 2]")
    first = world.reconcile(sweep)
    world.run(first.to_run[0])
    found = plan(world.folder / "s.yaml", world.store.storage.root, workers=1)
    cost = first.packs["cost"][0].as_py()
    assert found.is_measured
    assert found.seconds_per_cost == pytest.approx(6 * 0.5 / cost)
    assert found.seconds == pytest.approx(sum(first.packs["cost"].to_pylist()[1:]) * 3.0 / cost)
    assert "  done     6\n  to run   18 in 3 packs" in found.summary()
    assert [row["estimated_seconds"] is None for row in found.rows()] == [True, False, False, False]
    _sweep(world.folder, name="t")
    assert "from packs that have run" in plan(world.folder / "t.yaml", world.store.storage.root).summary()


def test_plan_shows_what_is_reused_and_when_nothing_is_left(world: _World) -> None:
    for pack in world.reconcile(_sweep(world.folder)).to_run:
        world.run(pack)
    _sweep(world.folder, name="t")
    assert plan(world.folder / "t.yaml", world.store.storage.root).summary().splitlines()[-2:] == [
        "  to run   0 in 0 packs",
        "  reused   12 from s",
    ]
    assert plan(world.folder / "s.yaml", world.store.storage.root).seconds == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (119, "119 s"), (130, "2.2 min"), (3600, "60 min"), (9000, "2.5 h"), (1e6, "12 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_planned_trials_are_trials(world: _World) -> None:
    for row in reconcile(_sweep(world.folder), world.store).plan().to_pylist():
        assert Trial(**{f: row[f] for f in FIELDS})


PLAN_ALONE = """
import sys, time
from pathlib import Path
from orchestrator.planning import plan
found = plan("s.yaml", "store")
found.summary(), found.rows()
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(time.process_time(), int(peak) * 1024 / 1e9, *{"torch", "ray"} & set(sys.modules))
"""


def _plan_alone(folder: Path, grid: str) -> list[str]:
    """CPU seconds, peak memory in GB and heavy modules of a process that plans, and nothing else."""
    (folder / "s.yaml").write_text(f"name: s\ndataset: digits\ngrid: {{{grid}}}\n")
    (folder / "alone.py").write_text(PLAN_ALONE)
    command = [sys.executable, "alone.py"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()


def test_plan_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    _, _, *heavy = _plan_alone(tmp_path, GRID)
    assert heavy == []


@pytest.mark.long
def test_a_million_points(tmp_path: Path) -> None:
    """In little memory; how long it takes is for benchmarks/store.py."""
    rates = "ratio: {logspace: [1e-4, 1e-3, 20]}, batch_size: [8, 16, 32, 64, 128]"
    _, memory, *_ = _plan_alone(tmp_path, f"arch: [mlp, linear], {rates}, label_noise: [0, 0.5], seed: {{range: 2500}}")
    assert float(memory) < 1.0
