"""A pack from its plan to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packs import trial

from trainables.packs import Pack, PackItem, plan_metadata, record_crash, run_pack
from trainables.schema import PLAN
from trainables.settings import Measure
from trainables.store import Store, SweepStore, table
from trainables.trial import Trial

MEASURE = Measure(at=[1], hessian={"top": 2, "trace_probes": 3, "examples": 20}, metrics=["plugins:fails_for_seed_one"])


def planned(store: Path, trials: Sequence[Trial], engine: str, measure: Measure = MEASURE) -> SweepStore:
    sweep = Store(store).sweep("s")
    rows = [
        {"sweep": "s", "trial_id": f"t{i}", "measure_id": "m", "pack_id": "p", "slot": i, "round": 0, "engine": engine}
        | t.model_dump()
        for i, t in enumerate(trials)
    ]
    other = dict(rows[0], pack_id="q", trial_id="other")
    sweep.write_plan(table([other, *reversed(rows)], PLAN).replace_schema_metadata(plan_metadata(measure)))
    return sweep


def run(sweep: SweepStore) -> list[float]:
    return list(run_pack(PackItem(str(sweep.root), "s", "p")))


def stored(sweep: SweepStore, name: str) -> list[dict[str, object]]:
    files = sorted((sweep.path / name).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]).to_pylist() if files else []


def test_a_pack_is_read_back_as_planned(tmp_path: Path) -> None:
    trials = [trial(seed=s, order_seed=o) for s, o in ((0, None), (1, 7), (2**63 - 1, 0))]
    pack = Pack.of(planned(tmp_path, trials, "fused").read_pack("p"))
    assert pack.trials == tuple(trials)
    assert pack.measure == MEASURE
    assert [k["trial_id"] for k in pack.keys] == ["t0", "t1", "t2"]
    assert (pack.physical_batch_size, pack.together) == (None, 3)


def test_rows_curves_eigenvalues_and_failures(tmp_path: Path) -> None:
    """Seed 1 fails in a metric, the last trial diverges, the rest is finished."""
    trials = [trial(arch="linear", loss="mse", seed=s, lr=lr) for s, lr in ((0, 0.01), (1, 0.01), (2, 1e60))]
    sweep = planned(tmp_path, trials, "fused")
    fractions = run(sweep)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    finished, diverged = stored(sweep, "trials")
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
    (failed,) = stored(sweep, "failures")
    assert (failed["trial_id"], failed["cause"], failed["round"]) == ("t1", "exception", 0)
    assert "seed one is not to my liking" in str(failed["error"])
    curves = stored(sweep, "curves")
    assert {c["trial_id"] for c in curves} == {"t0", "t2"}
    assert {(c["step"], c["epoch"]) for c in curves if c["trial_id"] == "t0"} == {(0, 0), (6, 1), (12, 2)}
    assert all(c["step"] < diverged["steps"] for c in curves if c["trial_id"] == "t2")
    last = {c["statistic"]: c for c in curves if c["trial_id"] == "t0" and c["epoch"] == 2}
    assert last["test_loss"]["value"] == finished["test_loss"]
    assert last["test_loss"]["error"] == 0
    assert last["lambda_max"]["error"] == finished["lambda_max_residual"]
    eigenvalues = [e for e in stored(sweep, "eigenvalues") if e["trial_id"] == "t0" and e["epoch"] == 2]
    assert [e["index"] for e in eigenvalues] == [0, 1, -1]
    assert eigenvalues[0]["eigenvalue"] == finished["lambda_max"]
    (provenance,) = stored(sweep, "provenance")
    assert provenance["provenance_id"] == finished["provenance_id"]
    assert '"plugins:fails_for_seed_one":"' in str(provenance["plugins"])


def test_a_committed_pack_and_a_stopped_sweep_run_nothing(tmp_path: Path) -> None:
    sweep = planned(tmp_path, [trial()], "fused", Measure(at=[], hessian=False))
    sweep.log_path.mkdir()
    sweep.stop_path.touch()
    assert run(sweep) == []
    assert stored(sweep, "trials") == []
    sweep.stop_path.unlink()
    assert run(sweep)
    before = (sweep.path / "trials" / "p.parquet").read_bytes()
    assert run(sweep) == []
    assert (sweep.path / "trials" / "p.parquet").read_bytes() == before


def test_an_error_that_names_no_trial_fails_the_whole_pack(tmp_path: Path) -> None:
    sweep = planned(tmp_path, [trial(batch_size=99, seed=s) for s in range(2)], "fused")
    run(sweep)
    failed = stored(sweep, "failures")
    assert [f["trial_id"] for f in failed] == ["t0", "t1"]
    assert all("batch_size 99: the training set has 50 examples" in str(f["error"]) for f in failed)
    assert stored(sweep, "trials") == []


def test_trials_of_the_users_own(tmp_path: Path) -> None:
    call = '{"name":"plugins:whole_trial","scale":2.0}'
    trials = [trial(call=call, seed=s, lr=0.25) for s in (0, 3, 4)]
    sweep = planned(tmp_path, trials, "call")
    assert run(sweep) == pytest.approx([1 / 3, 2 / 3, 1])
    done = stored(sweep, "trials")
    assert [(d["trial_id"], d["status"], d["test_accuracy"], d["my_metric"]) for d in done] == [
        ("t0", "finished", 0.75, 16.0),
        ("t2", "finished", 0.75, 16.0),
    ]
    (failed,) = stored(sweep, "failures")
    assert failed["trial_id"] == "t1"
    assert "no third seed" in str(failed["error"])
    assert {c["statistic"] for c in stored(sweep, "curves")} == {"test_accuracy", "my_metric"}


def test_a_crash_is_recorded_unless_the_pack_was_committed(tmp_path: Path) -> None:
    sweep = planned(tmp_path, [trial()], "fused", Measure(at=[], hessian=False))
    item = PackItem(str(tmp_path), "s", "p")
    record_crash(item, "killed by signal 9")
    (failed,) = stored(sweep, "failures")
    assert (failed["cause"], failed["error"]) == ("crash", "killed by signal 9")
    run(sweep)
    record_crash(item, "killed again")
    assert len(stored(sweep, "failures")) == 1
