"""Isoratio against plain Ray Tune on the same grid, and the rate of the whole machinery with trials that do nothing.

    python benchmarks/sweep.py [--save]

Everything in one run on the same cores. The plain runs are a sample, balanced over batch sizes, scaled to the grid.
Isoratio's time is that of the command, start-up included; the plain runs' includes one start of Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

RATIOS = [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
BATCH_SIZES = [8, 16, 32, 64, 128]
NOISE = [0.0, 0.25]
SEEDS = 8
EPOCHS = 20
MEASURES: dict[str, dict[str, int] | None] = {  # at the start and the endpoint, beside losses and accuracies
    "losses": None,
    "lambda_max_and_trace": {"top": 1, "trace_probes": 4, "examples": 512},
    "top_3_and_trace": {"top": 3, "trace_probes": 16, "examples": 512},
}

DIGITS = f"""
name: digits
dataset: digits
train: {{epochs: {EPOCHS}}}
grid:
  ratio: {RATIOS}
  batch_size: {BATCH_SIZES}
  label_noise: {NOISE}
  seed: {{range: {SEEDS}}}
measure: {{at: [], hessian: HESSIAN}}
"""

NOTHING = """
name: nothing
dataset: digits
train: {call: "benchmarks.sweep:nothing"}
grid:
  lr: [0.1]
  batch_size: [8]
  seed: {range: 10000}
"""


def nothing(config: dict[str, Any]) -> dict[str, float]:
    """A trial that does nothing."""
    return {"test_accuracy": 1.0}


def isoratio(sweep: str, directory: Path) -> float:
    """Seconds that `isoratio launch` takes."""
    file = directory / "sweep.yaml"
    file.write_text(sweep)
    command = [
        str(Path(sys.executable).with_name("isoratio")),
        "launch",
        str(file),
        "--store",
        str(directory / "store"),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent)
    return time.perf_counter() - began


def plain(trials: list[dict[str, Any]], hessian: dict[str, int] | None, grid_size: int, *, reuse: bool) -> float:
    """Seconds that plain Tune takes for a grid of this size, from a sample of its trials."""
    began = time.perf_counter()
    import ray
    from ray import tune

    from benchmarks.plain import trial

    cores = len(os.sched_getaffinity(0))
    ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter() - began

    def run(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        tune.report(trial(config["point"], EPOCHS, hessian))

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        results = tune.Tuner(
            tune.with_resources(run, {"cpu": 1}),
            param_space={"point": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=directory, verbose=0),
        ).fit()
    seconds = time.perf_counter() - began
    assert not results.errors
    ray.shutdown()
    return started + seconds * grid_size / len(trials)


def compare(hessian: dict[str, int] | None, sample: int) -> dict[str, float]:
    """One row of figures: Isoratio and plain Tune with the same statistics."""
    names = ("ratio", "batch_size", "label_noise", "seed")
    points = [dict(zip(names, p, strict=True)) for p in product(RATIOS, BATCH_SIZES, NOISE, range(SEEDS))]
    each = sample // len(BATCH_SIZES)
    by_size = ([p for p in points if p["batch_size"] == b] for b in BATCH_SIZES)
    chosen = [p for of_size in by_size for p in of_size[:: len(of_size) // each][:each]]
    with tempfile.TemporaryDirectory() as directory:
        ours = isoratio(DIGITS.replace("HESSIAN", json.dumps(hessian or False)), Path(directory))
    with_reuse, without = (plain(chosen, hessian, len(points), reuse=reuse) for reuse in (True, False))
    return {
        "trials": len(points),
        "plain_sample": len(chosen),
        "isoratio_seconds": round(ours, 1),
        "plain_reuse_seconds_scaled": round(with_reuse, 1),
        "plain_seconds_scaled": round(without, 1),
        "times_faster_than_plain_reuse": round(with_reuse / ours, 1),
        "times_faster_than_plain": round(without / ours, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=20, help="plain trials to run; a multiple of 5")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = sys.path[0]
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for name, hessian in MEASURES.items():
        figures[name] = compare(hessian, options.sample)
        print(name, json.dumps(figures[name]), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        seconds = isoratio(NOTHING, Path(directory))
    figures["nothing"] = {"trials": 10_000, "seconds": round(seconds, 1), "trials_per_second": round(10_000 / seconds)}
    print("nothing", json.dumps(figures["nothing"]))
    if options.save:
        (here / "results").mkdir(exist_ok=True)
        (here / "results" / "sweep.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
