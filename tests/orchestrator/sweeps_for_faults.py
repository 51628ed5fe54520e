"""Sweeps that things happen to."""

TINY = """\
name: tiny
dataset: {name: teacher, train_size: 16, test_size: 4, dimension: 3, classes: 2}
train: {epochs: 1}
grid: {arch: [linear], lr: [0.01, 0.1], batch_size: [4, 8], seed: [0]}
measure: {at: [], hessian: {top: 1, trace_probes: 1, examples: 8}, endpoints: true}
pack: {checkpoint_seconds: 0}
"""
"""Four trials in two packs, in a fraction of a second."""

LONGER = TINY.replace("epochs: 1}", "epochs: 50, momentum: 0.9}").replace("checkpoint_seconds: 0", "")
"""The same with hundreds of reports by each pack, and a checkpoint only after a minute or where it is asked to end."""

WAITING = """\
name: tiny
dataset: digits
train: {call: "waiting:wait"}
grid: {lr: [0.1], batch_size: [8], seed: [0, 1]}
"""
"""Trials that end once there is a file ``go``: see :data:`WAIT`."""

WAIT = """\
import time
from pathlib import Path

def wait(config):
    while not Path("go").exists():
        time.sleep(0.02)
    return {"test_loss": float(config["seed"])}

def nap(config):
    time.sleep(0.3)
    return {"test_loss": config["batch_size"] + 0.1 * config["seed"]}

def size(probe):
    if Path("broken").exists():
        raise RuntimeError("the metric is broken")
    return {"size": float(probe.vector.numel())}
"""
"""Trials of the user's own, ``waiting.py``."""

DIGITS = """\
name: digits
dataset: digits
train: {epochs: 8}
grid:
  ratio: [0.0005, 0.002]
  batch_size: [16, 64]
  label_noise: [0.0, 0.25]
  seed: {range: 4}
measure: {at: {every: 4}, hessian: {top: 2, trace_probes: 4, examples: 128}}
pack: {max_trials: 4, checkpoint_seconds: 0}
"""
"""Eight packs of a second each."""

NAPS = """\
name: naps
dataset: digits
train: {call: "waiting:nap"}
grid: {lr: [0.1], batch_size: [4, 8, 16, 32, 64, 128, 256, 512], seed: {range: 4}}
pack: {max_trials: 4, checkpoint_seconds: 0}
"""
"""Eight packs of a second each that cost nothing: see :data:`WAIT`."""

FULL = """\
name: full
dataset: {name: teacher, train_size: 16, test_size: 4, dimension: 3, classes: 2}
train: {epochs: 1}
grid: {arch: [linear], lr: [0.01, 0.1], batch_size: [4, 8], seed: [0]}
measure:
  at: []
  hessian: {top: 2, trace_probes: 1, examples: 8, sgd_steps: 2, density: {probes: 1, steps: 2}}
  gradient_noise: {probes: 2}
  metrics: ["waiting:size"]
  endpoints: true
retries: 0
"""
"""Rows in every table."""
