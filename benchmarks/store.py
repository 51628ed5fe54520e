"""What the store costs: a commit, a query over many packs before and after `compact`, planning a resume of a million.

    python benchmarks/store.py [--save] [--packs 10000] [--planned 1000000]

Trials are made up; files are written as a launch writes them. Commits are compared with writing the same bytes into the
same number of files without making them durable, queries with the same rows in a single Parquet file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

import numpy as np
import pyarrow as pa

from analysis.compaction import compact
from analysis.database import connect
from orchestrator.reconcile import reconcile
from orchestrator.sweepfile import load
from trainables.packs import plan_metadata
from trainables.schema import CURVES, TRIALS
from trainables.store import Store, SweepStore, new_attempt, parquet_bytes

QUERIES = {
    "count": "SELECT count(*) FROM trials",
    "aggregate": "SELECT ratio, batch_size, avg(test_accuracy), avg(lambda_max) FROM trials GROUP BY ALL",
    "curves": "SELECT statistic, epoch, avg(value) FROM curves GROUP BY ALL",
}
TRIALS_PER_PACK, POINTS = 8, 40  # of the store of many packs: trials, and rows of a curve for each

SWEEP = """
name: million
dataset: digits
train: {epochs: 1}
grid:
  ratio: {logspace: [1e-4, 1e-2, 100]}
  batch_size: [8, 16, 32, 64, 128]
  seed: {range: SEEDS}
"""


def commit_cost(folder: Path, packs: int, trials: int) -> dict[str, float]:
    """Seconds for the commit of a pack, against its bytes in as many files."""
    sweep = Store(folder / "commits").sweep("s")
    plain = folder / "plain"
    plain.mkdir()
    ours, theirs, size = [], [], 0
    for pack in range(packs):
        rows, curves = made_up("s", f"p{pack}", pack * trials, trials), points("s", f"p{pack}", pack * trials, trials)
        began = time.perf_counter()
        assert sweep.commit(f"p{pack}", "a", rows, {"curves": curves})
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for name, table in (("trials", rows), ("curves", curves)):
            data = parquet_bytes(table)
            (plain / f"{name}-{pack}.parquet").write_bytes(data)
            size += len(data)
        theirs.append(time.perf_counter() - began)
    seconds, reference = median(ours), median(theirs)
    return {
        "trials_per_pack": trials,
        "commit_ms": round(1e3 * seconds, 2),
        "times_plain_files": round(seconds / reference, 1),
        "kilobytes_per_pack": round(size / packs / 1024, 1),
        "trials_per_second": round(trials / seconds),
        "rows_per_second": round((trials + trials * POINTS) / seconds),
    }


def query_times(folder: Path, packs: int) -> dict[str, Any]:
    """Queries over a store of many packs, before and after `compact`, and over single files."""
    store = Store(folder / "many")
    sweep = store.sweep("s")
    for pack in range(packs):
        first, name = pack * TRIALS_PER_PACK, f"p{pack:06d}"
        rows, curves = (make("s", name, first, TRIALS_PER_PACK) for make in (made_up, points))
        assert sweep.commit(name, "a", rows, {"curves": curves})
    single = Store(folder / "single")
    trials = packs * TRIALS_PER_PACK
    single.sweep("s").commit("p", "a", made_up("s", "p", 0, trials), {"curves": points("s", "p", 0, trials)})
    figures: dict[str, Any] = {"packs": packs, "trials": trials, "curve_rows": trials * POINTS}
    before, reference = timed(store), timed(single)
    began = time.perf_counter()
    compact(store, grace=0)
    figures["compact_seconds"] = round(time.perf_counter() - began, 1)
    after = timed(store)
    for name in QUERIES:
        figures[name] = {
            "seconds_before": round(before[name], 3),
            "seconds_after": round(after[name], 3),
            "seconds_single_file": round(reference[name], 3),
            "times_faster": round(before[name] / after[name], 1),
        }
    return figures


def timed(store: Store) -> dict[str, float]:
    """Seconds from opening the store to the answer, the best of three."""

    def once(query: str) -> float:
        began = time.perf_counter()
        with connect(store) as connection:
            connection.sql(query).fetchall()
        return time.perf_counter() - began

    return {name: min(once(query) for _ in range(3)) for name, query in QUERIES.items()}


def resume_time(folder: Path, planned: int) -> dict[str, Any]:
    """Seconds and memory of `isoratio plan` where nine tenths of the trials are done, before and after `compact`."""
    store, file = folder / "million", folder / "million.yaml"
    file.write_text(SWEEP.replace("SEEDS", str(planned // 500)))
    sweep = load(file)
    found = reconcile(sweep, Store(store))
    there = found.files
    plan = found.plan().replace_schema_metadata(plan_metadata(sweep.measure, sweep.suffix, sweep.text))
    there.write_plan(plan, 1, 1)
    done = complete(there, plan.sort_by("pack_id"), 0.9)
    figures: dict[str, Any] = {"planned": plan.num_rows, "done": done}
    for moment in ("before_compact", "after_compact"):
        figures[moment] = run_and_measure(["plan", str(file), "--store", str(store)])
        if moment == "before_compact":
            compact(store, grace=0)
    return figures


def complete(there: SweepStore, plan: pa.Table, part: float) -> int:
    """Commits whole packs until that part of the trials is done; returns how many are."""
    packs = plan["pack_id"].to_numpy(zero_copy_only=False)
    starts = [0, *(np.flatnonzero(packs[1:] != packs[:-1]) + 1).tolist(), len(packs)]
    done = 0
    for begin, end in itertools.pairwise(starts):
        if end > part * len(packs):
            break
        rows, attempt = plan.slice(begin, end - begin), new_attempt()
        extra = {"status": "finished", "test_accuracy": 0.9, "attempt": attempt, "seconds": 0.1}
        columns = {name: rows[name] for name in rows.column_names if name in TRIALS.names}
        columns |= {name: pa.repeat(pa.scalar(value), end - begin) for name, value in extra.items()}
        nulls = {f.name: pa.nulls(end - begin, f.type) for f in TRIALS if f.name not in columns}
        there.commit(str(packs[begin]), attempt, pa.table(columns | nulls).select(TRIALS.names).cast(TRIALS), {})
        done = end
    return done


RUN = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds, kilobytes = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"seconds": round(seconds, 1), "gigabytes": round(kilobytes / 2**20, 2)}))
"""


def run_and_measure(arguments: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command, begun by a small process: a child's peak begins at its parent's size."""
    command = [sys.executable, "-c", RUN, str(Path(sys.executable).with_name("isoratio")), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def made_up(sweep: str, pack: str, first: int, n: int) -> pa.Table:
    """Rows of `trials`."""
    number = np.arange(first, first + n)
    ratio, batch = 10.0 ** -(2 + number % 5 / 2), 8 * 2 ** (number // 5 % 5)
    columns: dict[str, Any] = {"trial_id": [f"{i:032x}" for i in number], "batch_size": batch, "lr": ratio * batch}
    columns |= {"seed": number // 25, "test_accuracy": 0.9 + 1e-3 * np.sin(number), "lambda_max": 5 + np.cos(number)}
    columns |= {"slot": np.arange(n)}
    constant = {"sweep": sweep, "pack_id": pack, "attempt": "a", "status": "finished", "arch": "mlp"}
    return filled(columns, constant | {"dataset": "digits", "measure_id": "m", "seconds": 0.1}, TRIALS, n)


def points(sweep: str, pack: str, first: int, n: int) -> pa.Table:
    """Rows of `curves`."""
    number, point = np.repeat(np.arange(first, first + n), POINTS), np.tile(np.arange(POINTS), n)
    statistic = np.array(["train_loss", "test_loss", "test_accuracy", "lambda_max"])[point % 4]
    columns = {"trial_id": [f"{i:032x}" for i in number], "step": point // 4, "epoch": point // 4 / 10.0}
    columns |= {"statistic": statistic, "value": np.sin(number + point), "error": np.zeros(len(number))}
    return filled(columns, {"sweep": sweep, "pack_id": pack, "attempt": "a"}, CURVES, n * POINTS)


def filled(columns: dict[str, Any], constant: dict[str, Any], schema: pa.Schema, n: int) -> pa.Table:
    """A table of a schema; what is not given is NULL."""
    given = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    given |= {name: pa.repeat(pa.scalar(value), n) for name, value in constant.items()}
    nulls = {field.name: pa.nulls(n, field.type) for field in schema if field.name not in given}
    return pa.table(given | nulls).select(schema.names).cast(schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=10_000)
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], Any]] = {
        "commit_small": lambda folder: commit_cost(folder, 200, 8),
        "commit_large": lambda folder: commit_cost(folder, 100, 64),
        "queries": lambda folder: query_times(folder, options.packs),
        "resume": lambda folder: resume_time(folder, options.planned),
    }
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = part(Path(folder))
        print(name, json.dumps(figures[name]), flush=True)
    figures["gigabytes_of_this_process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    if options.save:
        (Path(__file__).parent / "results" / "store.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
