"""What an answer costs: opening a store, one aggregate, the verdict; at 10,000 trials against what people do today.

    python benchmarks/analysis.py [--save] [--trials 1000000]

Trials are made up, with 100 rows of curves for each, in files as `compact` leaves them. The small store is also written
as Ray Tune's result files, as CSV and as an Optuna study, and each contestant opens them all and takes a mean by
learning rate and batch size; Isoratio gives the verdict too. Each runs in a process of its own and is timed from when
its modules are imported; the files were just written, so that they lie in memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is this benchmark

import numpy as np
import pyarrow as pa

from benchmarks.cases import save
from benchmarks.store import filled
from orchestrator.reconcile import reconcile
from orchestrator.sweepfile import load
from trainables.packs import plan_metadata
from trainables.schema import CURVES, TRIALS
from trainables.store import Store

TIMES, STATISTICS = 25, ("train_loss", "test_loss", "test_accuracy", "lambda_max")  # 100 rows of curves for a trial
PER_FILE = 16_384  # trials, of 256 packs of 64

# 50 cells of 10 seeds, and 250 of 25, in as many groups as it takes; the largest learning rates break the invariance.
SMALL = "ratio: {logspace: [1.0e-4, 3.0e-3, 10]}, batch_size: [8, 16, 32, 64, 128], seed: {range: 10}, momentum: "
LARGE = (
    "ratio: {logspace: [1.0e-4, 3.0e-3, 25]}, batch_size: [8, 12, 16, 24, 32, 48, 64, 96, 128, 192], "
    "seed: {range: 25}, label_noise: [0.0, 0.1, 0.2, 0.4], momentum: "
)
SMALL_GROUP, LARGE_GROUP = 10 * 5 * 10, 25 * 10 * 25 * 4

ISORATIO = {
    "open": "connect(store).close()",
    "aggregate": "connect(store).sql(AGGREGATE).fetchall()",
    "curves": "connect(store).sql(CURVES).fetchall()",
    "invariance": "invariance(store, 's', ['test_accuracy'])",
    "all": "connect(store).sql(AGGREGATE).fetchall(); invariance(store, 's', ['test_accuracy'])",
}
PEERS = {
    "ray": (
        "from ray.tune import ExperimentAnalysis, ResultGrid",
        """
found = ResultGrid(ExperimentAnalysis(folder + '/ray')).get_dataframe()
found.groupby(['config/lr', 'config/batch_size'])['test_accuracy'].mean()""",
    ),
    "pandas": (
        "import pandas, pathlib",
        """
ends = [pandas.read_csv(file).iloc[-1] for file in pathlib.Path(folder, 'csv').glob('*.csv')]
pandas.DataFrame(ends).groupby(['lr', 'batch_size'])['test_accuracy'].mean()""",
    ),
    "optuna": (
        "import optuna; optuna.logging.set_verbosity(optuna.logging.ERROR)",
        """
study = optuna.load_study(study_name='s', storage=f'sqlite:///{folder}/optuna.db')
found = study.trials_dataframe(('params', 'value'))
found.groupby(['params_lr', 'params_batch_size'])['value'].mean()""",
    ),
}
PROGRAM = """
import json, re, sys, time
folder = sys.argv[1]
store = folder + "/store"
AGGREGATE = "SELECT lr, batch_size, avg(test_accuracy) FROM trials GROUP BY ALL"
CURVES = "SELECT statistic, epoch, avg(value) FROM curves GROUP BY ALL"
{imports}
began = time.perf_counter()
{body}
seconds = time.perf_counter() - began
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(json.dumps([seconds, int(peak) / 2**20]))
"""


def make_store(folder: Path, trials: int, grid: str, group: int) -> Store:
    """A finished sweep in ``folder/store``."""
    momenta = [round(0.9 * i / max(1, trials // group), 6) for i in range(max(1, trials // group))]
    file = folder / "s.yaml"
    measure = "measure: {at: {every: 1}}"
    file.write_text(f"name: s\ndataset: digits\ntrain: {{epochs: {TIMES}}}\ngrid: {{{grid}{momenta}}}\n{measure}\n")
    sweep, store = load(file), Store(folder / "store")
    there = store.sweep("s")
    there.mark_format()
    plan = reconcile(sweep, store).plan().sort_by("pack_id")
    there.write_plan(plan.replace_schema_metadata(plan_metadata(sweep.measure, sweep.suffix, sweep.text)), 1, 1)
    for begin in range(0, len(plan), PER_FILE):
        rows, name = plan.slice(begin, PER_FILE), f"p{begin:09d}"
        there.commit(name, "a", ended(rows, name), {"curves": curves(rows, name)})
    return store


def ended(plan: pa.Table, pack: str) -> pa.Table:
    """Rows of `trials` for trials of the plan."""
    lr, batch_size, seed = (plan[name].to_numpy() for name in ("lr", "batch_size", "seed"))
    own = np.random.default_rng([7, *pack.encode()]).standard_normal(len(plan))
    accuracy = 0.96 + 0.02 * np.log10(lr / batch_size) + 0.004 * np.sin(seed) + 0.002 * own
    accuracy -= np.maximum(0.0, lr - 0.2)
    constant = {"sweep": "s", "pack_id": pack, "attempt": "a", "status": "finished", "seconds": 1.0}
    columns = {"test_accuracy": accuracy, "train_loss": 1.1 - accuracy, "lambda_max": 5.0 * np.exp(own / 20)}
    known = {name: plan[name] for name in plan.column_names if name in TRIALS.names and name not in constant}
    return filled(known | columns, constant, TRIALS, len(plan))


def curves(plan: pa.Table, pack: str) -> pa.Table:
    """Rows of `curves`: every statistic of every trial at every epoch."""
    points = TIMES * len(STATISTICS)
    index = pa.array(np.repeat(np.arange(len(plan), dtype=np.int32), points))
    epoch, which = np.tile(np.repeat(np.arange(1, TIMES + 1), 4), len(plan)), np.tile(np.arange(4), TIMES * len(plan))
    value = np.random.default_rng([11, *pack.encode()]).random(len(epoch), dtype=np.float32)
    columns = {
        "trial_id": pa.DictionaryArray.from_arrays(index, plan["trial_id"].combine_chunks()).cast(pa.string()),
        "step": epoch * 100,
        "epoch": epoch.astype(float),
        "statistic": pa.DictionaryArray.from_arrays(which.astype(np.int8), pa.array(STATISTICS)).cast(pa.string()),
        "value": value.astype(float),
        "error": np.zeros(len(epoch)),
    }
    return filled(columns, {"sweep": "s", "pack_id": pack, "attempt": "a"}, CURVES, len(epoch))


def results(store: Store) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Every trial's id, what was varied, and its results at every epoch."""
    varied = ("lr", "batch_size", "momentum", "seed")
    listing = store.sweep("s").listing("trials", "curves")
    ends = listing.read("trials", ["trial_id", *varied, "test_accuracy"]).to_pylist()
    values = listing.read("curves", ["value"])["value"].to_numpy().reshape(len(ends), TIMES, len(STATISTICS))
    for end, lines in zip(ends, values, strict=True):
        config = {name: end[name] for name in varied}
        rows = [{"epoch": i + 1, **dict(zip(STATISTICS, line.tolist(), strict=True))} for i, line in enumerate(lines)]
        rows[-1]["test_accuracy"] = end["test_accuracy"]
        yield end["trial_id"], config, rows


def write_csv(store: Store, folder: Path) -> None:
    """One file a trial, one line an epoch."""
    folder.mkdir()
    for name, config, rows in results(store):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*config, *rows[0]])
            writer.writeheader()
            writer.writerows(config | row for row in rows)


def write_ray(store: Store, folder: Path) -> None:
    """A finished Tune run: every trial's result file, and the state of the experiment, as Tune writes them."""
    from ray.train._internal.storage import StorageContext
    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

    states = []
    storage = StorageContext(str(folder.parent), folder.name)
    for name, config, rows in results(store):
        trial = Trial("net", config=config, trial_id=name, storage=storage, stub=True)
        trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
        trial.set_status(Trial.TERMINATED)
        lines = [row | AUTOMATIC | {"trial_id": name, "training_iteration": row["epoch"]} for row in rows]
        trial.run_metadata.last_result = lines[-1] | {"config": config, "done": True}
        trial.storage.trial_dir_name = name
        directory = Path(trial.storage.trial_fs_path)
        directory.mkdir(parents=True)
        (directory / "result.json").write_text("".join(json.dumps(line | {"config": config}) + "\n" for line in lines))
        states.append(trial.get_json_state())
    state = {"trial_data": states, "runner_data": {}, "stats": {"start_time": 0.0}}
    (folder / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps(state))


AUTOMATIC = {
    "timestamp": 1767225600,
    "date": "2026-01-01_00-00-00",
    "time_this_iter_s": 0.1,
    "time_total_s": 1.0,
    "pid": 1,
    "hostname": "node",
    "node_ip": "127.0.0.1",
    "time_since_restore": 1.0,
    "iterations_since_restore": 1,
    "done": False,
    "checkpoint_dir_name": None,
}
"""What Tune adds to every result."""


def write_optuna(store: Store, folder: Path) -> None:
    """A study in SQLite, with the test accuracy at every epoch."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {
        "lr": FloatDistribution(0.0, 10.0),
        "momentum": FloatDistribution(0.0, 1.0),
        "batch_size": CategoricalDistribution([8, 16, 32, 64, 128]),
        "seed": IntDistribution(0, 1000),
    }
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{folder}.db")
    study.add_trials(
        optuna.trial.create_trial(
            params=config,
            distributions=kinds,
            value=rows[-1]["test_accuracy"],
            intermediate_values={row["epoch"]: row["test_accuracy"] for row in rows},
        )
        for _, config, rows in results(store)
    )


def run(folder: Path, body: str, imports: str) -> dict[str, float]:
    """Seconds and peak memory, the best of three where it is short."""
    program = PROGRAM.format(imports=imports, body=body)
    best: list[float] = []
    for _ in range(3):
        command = [sys.executable, "-P", "-W", "ignore", "-c", program, str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        best = min(filter(None, (best, json.loads(done.stdout.splitlines()[-1]))))
        if best[0] > 20:
            break
    return {"seconds": round(best[0], 3), "gigabytes": round(best[1], 2)}


def ours(folder: Path) -> dict[str, Any]:
    """Every question asked of ``folder/store``."""
    imports = "from analysis.database import connect; from analysis.invariance import invariance"
    return {name: run(folder, body, imports) for name, body in ISORATIO.items()}


def small(folder: Path) -> dict[str, Any]:
    """10,000 trials, Isoratio and its peers."""
    store = make_store(folder, 10_000, SMALL, SMALL_GROUP)
    writers: dict[str, Callable[[Store, Path], None]] = {"ray": write_ray, "pandas": write_csv, "optuna": write_optuna}
    figures: dict[str, Any] = {"trials": 10_000, "isoratio": ours(folder)}
    reference = figures["isoratio"]["all"]["seconds"]
    for name, (imports, body) in PEERS.items():
        writers[name](store, folder / {"pandas": "csv"}.get(name, name))
        figures[name] = found = run(folder, body, imports)
        found["times_isoratio"] = round(found["seconds"] / reference, 1)
        print(name, json.dumps(found), flush=True)
    return figures


def large(folder: Path, trials: int) -> dict[str, Any]:
    """Many trials, Isoratio alone."""
    began = time.perf_counter()
    store = make_store(folder, trials, LARGE, LARGE_GROUP)
    seconds = time.perf_counter() - began
    rows = sum(part.count_rows() for part in [store.sweep("s").listing("curves").dataset("curves")])
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()) / 1e9
    figures = {"trials": trials, "curve_rows": rows, "gigabytes": round(size, 2), "made_in_seconds": round(seconds)}
    return figures | {"isoratio": ours(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000_000, help="of the large store")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for name, part in {"small": small, "large": lambda folder: large(folder, options.trials)}.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = part(Path(folder))
        print(name, json.dumps(figures[name]), flush=True)
    if options.save:
        save("analysis", figures)


if __name__ == "__main__":
    main()
