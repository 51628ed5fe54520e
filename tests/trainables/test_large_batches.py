"""Minibatches in pieces, and packs that do not fit memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pytest
from packs import endpoint, outcome, trial

from trainables.packs import Pack
from trainables.settings import Measure
from trainables.store import Store

MLP = {"depth": 2, "name": "mlp", "width": 8}


def arch(**changes: object) -> str:
    return json.dumps(MLP | changes, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
@pytest.mark.parametrize("sampler", ["stream", "full"])
@pytest.mark.parametrize("physical", [1, 3, 8, 1000])
def test_accumulated_gradients_are_those_of_the_whole_minibatch(engine: str, sampler: str, physical: int) -> None:
    pack = [trial(seed=s, momentum=0.9, sampler=sampler, gradient_noise=0.1, label_noise=0.2) for s in range(2)]
    whole, cut = endpoint(pack, engine), endpoint(pack, engine, physical=physical)
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"norm": "batch", "ghost_batch": 4}, {"norm": "group"}])
def test_random_masks_and_ghost_batches_do_not_depend_on_the_pieces(engine: str, changes: dict[str, object]) -> None:
    pack = [trial(arch=arch(**changes), seed=s) for s in range(2)]
    whole, cut = endpoint(pack, engine), endpoint(pack, engine, physical=5)
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_batch_norm_is_not_cut() -> None:
    with pytest.raises(ValueError, match="physical_batch_size 4: the net normalizes over the whole minibatch"):
        endpoint([trial(arch=arch(norm="batch"))], "vmap", physical=4)


def test_a_pack_that_is_trained_in_parts_has_the_same_rows() -> None:
    pack = [trial(seed=s, label_noise=0.1 * s) for s in range(5)]
    settings = Measure(at=[1], hessian={"top": 2, "trace_probes": 2, "examples": 20})
    whole, parts = (outcome(pack, "fused", settings, **cut) for cut in ({}, {"together": 2}))
    assert whole.trials.keys() == parts.trials.keys()
    for slot, row in whole.trials.items():
        for name, value in row.items():
            if isinstance(value, float):
                assert parts.trials[slot][name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    for table, rows in whole.side.items():
        assert [(r["slot"], r["step"]) for r in rows] == [(r["slot"], r["step"]) for r in parts.side[table]]


def test_a_pack_is_halved_until_nothing_is_left_to_halve() -> None:
    def cuts(pack: Pack) -> list[tuple[int, int | None]]:
        found, at = [], pack.halved()
        while at is not None:
            found.append((at.together, at.physical_batch_size))
            at = at.halved()
        return found

    def pack(**changes: object) -> Pack:
        trials = tuple(trial(seed=s, **changes) for s in range(3))
        return Pack("p", "vmap", Measure(), (0,) * 3, (), trials, together=3)

    assert cuts(pack(batch_size=2, sampler="full"))[1:4] == [(1, None), (1, 25), (1, 13)], "of all 50 examples"
    assert cuts(pack(batch_size=5)) == [(2, None), (1, None), (1, 3), (1, 2), (1, 1)]
    for whole in (arch(norm="batch"), "plugins:with_batchnorm"):
        assert cuts(pack(arch=whole)) == [(2, None), (1, None)], "batch norm needs the whole minibatch"


def test_a_pack_that_does_not_fit_memory_is_cut_and_goes_on(tmp_path: Path) -> None:
    """For real: a process that may not have more memory. The cut is recorded, and the next attempt cut alike."""
    (tmp_path / "sweep.yaml").write_text(
        textwrap.dedent("""
        name: large
        dataset: {name: teacher, train_size: 64, test_size: 16}
        train: {max_steps: 2}
        grid:
          arch: [{name: mlp, width: 1500}]
          lr: [0.01]
          batch_size: [8]
          seed: {range: 16}
        measure: {at: [], hessian: false, gradient_noise: false}
        """)
    )
    code = """
        import resource
        import torch
        from orchestrator.reconcile import reconcile
        from orchestrator.sweepfile import load
        from trainables.packs import PackItem, plan_metadata, run_pack
        from trainables.store import Store

        sweep, store = load("sweep.yaml"), Store("results")
        found = reconcile(sweep, store)
        metadata = plan_metadata(sweep.measure, sweep.suffix, sweep.text)
        plan = found.files.write_plan(found.plan().replace_schema_metadata(metadata), 1, 1)
        torch.set_num_threads(1)
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 350 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for _ in run_pack(PackItem("results", "large", found.to_run[0], plan, 1)):
            pass
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    query = f"SELECT status, together, pack_id FROM '{tmp_path}/results/large/trials/*.parquet'"
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == 16
    ((status, together, pack),) = set(rows)
    assert status == "finished"
    assert together < 16
    assert Store(tmp_path / "results").sweep("large").read_split(pack) == (together, None)
