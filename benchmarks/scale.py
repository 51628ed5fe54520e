"""What one launch can take: a million planned trials in packs that do nothing, through real planning, Tune and commits.

    python benchmarks/scale.py [--save] [--trials 1000000]

Eight workers share the cores. Counted are seconds, CPU time and memory of the driver (the launch, and the process
beside it that talks to Ray), of Ray's own servers and of the workers; then what `status` and `plan` take, and what the
driver pays for hearing how far a running pack is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this directory, whose `analysis` is a benchmark

from benchmarks.cases import save
from cluster import Event, Progress
from cluster.tune import TuneExecutor

SWEEP = """
name: nothing
dataset: digits
train: {call: "benchmarks.scale:nothing"}
resources: {cpu: CORES}
grid:
  lr: [0.1]
  batch_size: [8]
  seed: {range: TRIALS}
"""
WORKERS, EVERY = 8, 1.0  # seconds between two looks at the processes
WAIT = 60.0  # seconds
TICK = os.sysconf("SC_CLK_TCK")
KINDS = {"cluster.session": "session", "raylet": "ray", "gcs_server": "ray", "ray::": "workers", "isoratio": "launch"}


def nothing(config: dict[str, Any]) -> dict[str, float]:
    """A trial that does nothing."""
    return {"test_accuracy": 1.0}


def waiting(reports: bool) -> Iterator[float]:
    """A pack that does nothing for a while, and may say how far it is."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < WAIT:
        time.sleep(0.01)
        if reports:
            yield passed / WAIT


def report_cost() -> float:
    """Milliseconds of the driver's CPU time for hearing how far a pack is."""
    work = importlib.import_module("benchmarks.scale").waiting  # workers find it by this name
    said: list[Event] = []
    used: list[float] = []
    with TuneExecutor(cpus_per_item=len(os.sched_getaffinity(0)) / WORKERS) as executor:
        for reports in (False, False, True):  # first so that Ray and its workers are there
            before = sum(cpu for kind, cpu, _ in processes(os.getpid()).values() if kind == "session")
            executor.run(work, [reports] * WORKERS, on_event=said.append, stop=lambda: False)
            used.append(sum(cpu for kind, cpu, _ in processes(os.getpid()).values() if kind == "session") - before)
    return 1e3 * (used[2] - used[1]) / sum(isinstance(event, Progress) for event in said)


def kind_of(command: str) -> str:
    """Which part of the machinery a process belongs to."""
    return next((kind for mark, kind in KINDS.items() if mark in command), "ray" if "ray" in command else "other")


def processes(root: int) -> dict[int, tuple[str, float, float]]:
    """Every process below one: its kind, CPU seconds so far, and resident gigabytes."""
    parents, found = {}, {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
            command = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        fields = stat.rpartition(")")[2].split()
        parents[int(entry)] = int(fields[1])
        pages, ticks = int(fields[21]), int(fields[11]) + int(fields[12])
        found[int(entry)] = (kind_of(command), ticks / TICK, pages * os.sysconf("SC_PAGE_SIZE") / 2**30)
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: found[pid] for pid in below if pid in found}


def watched(command: list[str]) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of a command, and by kind of process CPU seconds and the largest memory."""
    seen: dict[int, tuple[str, float]] = {}
    memory: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        now: dict[str, float] = defaultdict(float)
        for pid, (kind, seconds, gigabytes) in processes(process.pid).items():
            seen[pid] = (kind, seconds)
            now[kind] += gigabytes
        memory |= {kind: max(memory[kind], gigabytes) for kind, gigabytes in now.items()}
        time.sleep(EVERY)
    assert process.returncode == 0, command
    seconds = time.perf_counter() - began
    cpu: dict[str, float] = defaultdict(float)
    for kind, used in seen.values():
        cpu[kind] += used
    return seconds, {k: {"cpu_seconds": round(cpu[k], 1), "gigabytes": round(memory[k], 2)} for k in cpu}


def measure(folder: Path, trials: int) -> dict[str, Any]:
    """Plans, launches, and asks how it went."""
    file, cores = folder / "nothing.yaml", len(os.sched_getaffinity(0))
    file.write_text(SWEEP.replace("TRIALS", str(trials)).replace("CORES", str(cores / WORKERS)))
    isoratio, store = str(Path(sys.executable).with_name("isoratio")), ["--store", str(folder / "store")]
    figures: dict[str, Any] = {"cores": cores, "workers": WORKERS, "trials": trials}
    figures["plan_seconds"] = round(watched([isoratio, "plan", str(file), *store])[0], 1)
    print(json.dumps(figures), flush=True)
    seconds, figures["launch"] = watched([isoratio, "launch", str(file), *store])
    packs = len(list((folder / "store" / "nothing" / "trials").iterdir()))
    driver = sum(figures["launch"][kind]["cpu_seconds"] for kind in ("launch", "session"))
    figures |= {
        "packs": packs,
        "seconds": round(seconds, 1),
        "trials_per_second": round(trials / seconds),
        "commits_per_second": round(packs / seconds, 1),
        "driver_cpu_microseconds_per_trial": round(1e6 * driver / trials),
        "driver_cpu_milliseconds_per_pack": round(1e3 * driver / packs, 1),
        "status_seconds": round(watched([isoratio, "status", *store])[0], 1),
        "nothing_left_seconds": round(watched([isoratio, "launch", str(file), *store])[0], 1),
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = sys.path[0]
    figures = {"report_cpu_milliseconds": round(report_cost(), 2)}
    print(json.dumps(figures), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures |= measure(Path(folder), options.trials)
    print(json.dumps(figures))
    if options.save:
        save("scale", figures)


if __name__ == "__main__":
    main()
