"""A pack from its plan to its rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from packs import trial

from trainables import training
from trainables.lease import StopKind, ask_to_stop, create
from trainables.packs import Pack, PackItem, plan_metadata, record_crash, run_pack
from trainables.schema import PLAN
from trainables.settings import Measure
from trainables.store import Store, SweepStore, table
from trainables.trial import Trial

MEASURE = Measure(at=[1], hessian={"top": 2, "trace_probes": 3, "examples": 20}, metrics=["plugins:fails_for_seed_one"])
ENDPOINT_ONLY = Measure(at=[], hessian=False)


@dataclass(frozen=True)
class Planned:
    """A store with one pack to run, ``p``, in sweep ``s``.

    Attributes:
        sweep: its files.
        item: what a worker is told.
    """

    sweep: SweepStore
    item: PackItem

    def pack(self) -> Pack:
        return Pack.of(self.sweep.read_pack(self.item.plan, "p"))

    def run(self, **changes: Any) -> list[float]:
        return list(run_pack(replace(self.item, **changes)))

    def stored(self, name: str) -> list[dict[str, Any]]:
        files = [f"{name}/{file}" for file in self.sweep.storage.names(name)]
        return pa.concat_tables([self.sweep.read_table(file) for file in files]).to_pylist() if files else []


def planned(store: Path, trials: Sequence[Trial], engine: str, measure: Measure = MEASURE) -> Planned:
    sweep = Store(store).sweep("s")
    rows = [
        {"sweep": "s", "trial_id": f"t{i}", "measure_id": "m", "pack_id": "p", "slot": i, "round": 0, "engine": engine}
        | t.model_dump()
        for i, t in enumerate(trials)
    ]
    other = dict(rows[0], pack_id="q", trial_id="other")
    metadata = plan_metadata(measure, ".yaml", "name: s")
    plan = table([other, *reversed(rows)], PLAN).replace_schema_metadata(metadata)
    return Planned(sweep, PackItem(str(store), "s", "p", sweep.write_plan(plan, 1, 1), 1))


def test_a_pack_is_read_back_as_planned(tmp_path: Path) -> None:
    trials = [trial(seed=s, order_seed=o) for s, o in ((0, None), (1, 7), (2**63 - 1, 0))]
    pack = planned(tmp_path, trials, "fused").pack()
    assert pack.trials == tuple(trials)
    assert pack.measure == MEASURE
    assert [k["trial_id"] for k in pack.keys] == ["t0", "t1", "t2"]
    assert (pack.physical_batch_size, pack.together) == (None, 3)


def test_rows_curves_eigenvalues_and_failures(tmp_path: Path) -> None:
    """Seed 1 fails in a metric, the last trial diverges, the rest is finished."""
    trials = [trial(arch="linear", loss="mse", seed=s, lr=lr) for s, lr in ((0, 0.01), (1, 0.01), (2, 1e60))]
    there = planned(tmp_path, trials, "fused")
    fractions = there.run()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    finished, diverged = there.stored("trials")
    assert (finished["trial_id"], finished["status"], finished["steps"]) == ("t0", "finished", 12)
    assert finished["epochs_done"] == pytest.approx(12 * 8 / 50)
    assert finished["fine"] == 1
    assert finished["lambda_max"] > 0
    assert finished["lambda_max_residual"] < 1e-3 * finished["lambda_max"]
    assert finished["hessian_trace_se"] == 0  # so few parameters that Lanczos spans the whole space
    assert finished["seconds"] > 0
    assert (finished["together"], finished["physical_batch_size"], finished["reached"]) == (3, None, None)
    assert (diverged["trial_id"], diverged["status"]) == ("t2", "diverged")
    assert diverged["error"] == f"loss not finite at step {diverged['steps']}"
    assert diverged["train_loss"] is None
    (failed,) = there.stored("failures")
    assert (failed["trial_id"], failed["cause"], failed["round"]) == ("t1", "exception", 0)
    assert "seed one is not to my liking" in str(failed["error"])
    curves = there.stored("curves")
    assert {c["trial_id"] for c in curves} == {"t0", "t2"}
    assert {(c["step"], c["epoch"]) for c in curves if c["trial_id"] == "t0"} == {(0, 0), (6, 1), (12, 2)}
    assert all(c["step"] < diverged["steps"] for c in curves if c["trial_id"] == "t2")
    last = {c["statistic"]: c for c in curves if c["trial_id"] == "t0" and c["epoch"] == 2}
    assert last["test_loss"]["value"] == finished["test_loss"]
    assert last["test_loss"]["error"] == 0
    assert last["lambda_max"]["error"] == finished["lambda_max_residual"]
    eigenvalues = [e for e in there.stored("eigenvalues") if e["trial_id"] == "t0" and e["epoch"] == 2]
    assert [e["index"] for e in eigenvalues] == [0, 1, -1]
    assert eigenvalues[0]["eigenvalue"] == finished["lambda_max"]
    (provenance,) = there.stored("provenance")
    assert provenance["provenance_id"] == finished["provenance_id"]
    assert '"plugins:fails_for_seed_one":"' in str(provenance["plugins"])


def test_a_committed_pack_runs_no_more(tmp_path: Path) -> None:
    there = planned(tmp_path, [trial()], "fused", ENDPOINT_ONLY)
    assert there.run()
    before = there.sweep.storage.read("trials/p.parquet")
    assert there.run() == []
    assert there.sweep.storage.read("trials/p.parquet") == before


@pytest.mark.parametrize("kind", ["finish", "checkpoint"])
def test_no_pack_begins_in_a_sweep_that_stops(tmp_path: Path, kind: StopKind) -> None:
    """Nor where a later launch has taken over, whose plan is another one."""
    there = planned(tmp_path, [trial()], "fused", ENDPOINT_ONLY)
    ask_to_stop(there.sweep.storage, 1, kind)
    assert there.run() == []
    create(there.sweep.storage, 2, "launch")
    assert there.run() == []
    assert there.stored("trials") == []
    assert there.run(launch=2)
    assert len(there.stored("trials")) == 1


def test_a_pack_of_a_plan_that_is_gone(tmp_path: Path) -> None:
    """A later launch has planned anew; or, without one, the store was taken away."""
    there, gone = planned(tmp_path, [trial()], "fused", ENDPOINT_ONLY), "plan/000001-0009.0123456789abcdef.parquet"
    with pytest.raises(FileNotFoundError, match=gone):
        there.run(plan=gone)
    create(there.sweep.storage, 7, "launch")
    assert there.run(plan=gone) == []


def test_an_error_that_names_no_trial_fails_the_whole_pack(tmp_path: Path) -> None:
    there = planned(tmp_path, [trial(batch_size=99, seed=s) for s in range(2)], "fused")
    there.run()
    failed = there.stored("failures")
    assert [f["trial_id"] for f in failed] == ["t0", "t1"]
    assert all("batch_size 99: the training set has 50 examples" in str(f["error"]) for f in failed)
    assert there.stored("trials") == []


def test_trials_of_the_users_own(tmp_path: Path) -> None:
    call = '{"name":"plugins:whole_trial","scale":2.0}'
    trials = [trial(call=call, seed=s, lr=0.25) for s in (0, 3, 4)]
    there = planned(tmp_path, trials, "call")
    assert there.run() == pytest.approx([1 / 3, 2 / 3, 1])
    done = there.stored("trials")
    assert [(d["trial_id"], d["status"], d["test_accuracy"], d["my_metric"]) for d in done] == [
        ("t0", "finished", 0.75, 16.0),
        ("t2", "finished", 0.75, 16.0),
    ]
    (failed,) = there.stored("failures")
    assert failed["trial_id"] == "t1"
    assert "no third seed" in str(failed["error"])
    assert {c["statistic"] for c in there.stored("curves")} == {"test_accuracy", "my_metric"}


@pytest.mark.parametrize("cause", ["crash", "memory"])
def test_a_crash_is_recorded_unless_the_pack_was_committed(tmp_path: Path, cause: str) -> None:
    there = planned(tmp_path, [trial()], "fused", ENDPOINT_ONLY)
    record_crash(there.item, cause, "killed by signal 9")
    (failed,) = there.stored("failures")
    assert (failed["cause"], failed["error"]) == (cause, "killed by signal 9")
    there.run()
    record_crash(there.item, cause, "killed again")
    assert len(there.stored("failures")) == 1


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two attempts at the same trials have in common."""
    return [{k: v for k, v in row.items() if k not in {"attempt", "seconds", "sweep"}} for row in rows]


@pytest.mark.parametrize("engine", ["fused", "call"])
def test_preempted_a_pack_saves_goes_on_elsewhere_and_cleans_up(tmp_path: Path, engine: str) -> None:
    """Whoever runs it throws an InterruptedError into it, at one report after the other."""
    call = "plugins:whole_trial" if engine == "call" else None
    trials = [trial(seed=s, lr=0.2, call=call) for s in (0, 2, 3, 4)]
    there = planned(tmp_path / "a", trials, engine)
    preempted = 0
    for _ in range(100):
        steps = run_pack(there.item)
        with suppress(StopIteration):
            next(steps)
            with pytest.raises(InterruptedError, match="SIGTERM"):
                steps.throw(InterruptedError("SIGTERM"))  # type: ignore[attr-defined]
            preempted += 1
            assert 1 <= len(there.sweep.storage.names("checkpoints")) <= 2
            assert there.stored("trials") == []
            continue
        break
    assert preempted >= 2
    assert there.sweep.storage.names("checkpoints") == []
    whole = planned(tmp_path / "b", trials, engine)
    whole.run()
    for name in ("trials", "curves", "eigenvalues", "failures"):
        assert without_times(there.stored(name)) == without_times(whole.stored(name))
    assert len(there.stored("trials")) == (3 if engine == "call" else 4)


def test_a_sweep_that_is_asked_to_stop_at_once_leaves_a_checkpoint(tmp_path: Path) -> None:
    there = planned(tmp_path, [trial(epochs=20)], "fused", ENDPOINT_ONLY)
    steps = run_pack(there.item)
    next(steps)
    ask_to_stop(there.sweep.storage, 1, "checkpoint")
    deadline = time.monotonic() + 30
    fractions = []
    for fraction in steps:
        fractions.append(fraction)
        time.sleep(0.1)  # workers look once a second
        assert time.monotonic() < deadline
    assert fractions[-1] < 1
    assert there.stored("trials") == []
    assert len(there.sweep.storage.names("checkpoints")) == 1
    create(there.sweep.storage, 2, "launch")
    assert there.run(launch=2)[0] > fractions[-1]
    assert len(there.stored("trials")) == 1


def test_checkpoints_of_a_pack_that_fails_go_too(tmp_path: Path) -> None:
    """So that one that cannot be gone on from does not make every further attempt fail."""
    there = planned(tmp_path, [trial()], "fused", ENDPOINT_ONLY)
    steps = run_pack(there.item)
    next(steps)
    with pytest.raises(InterruptedError):
        steps.throw(InterruptedError("SIGTERM"))  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "restore", lambda self, saved: saved["nothing"])
        assert there.run() == []
    (failed,) = there.stored("failures")
    assert "KeyError: 'nothing'" in failed["error"]
    assert there.sweep.storage.names("checkpoints") == []
    assert there.run()
    assert len(there.stored("trials")) == 1
