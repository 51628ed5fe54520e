"""From the measurements of a trained pack to the rows that are stored."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import lru_cache

import torch

from trainables.datasets import load_dataset
from trainables.measurement import Measurements
from trainables.packs import Outcome, Pack, Row, number
from trainables.schema import STATISTICS, Status
from trainables.training import Run, reproducible, train


def train_pack(pack: Pack, threads: int, *, gpu: bool) -> Generator[float, None, Outcome]:
    """Trains a pack; yields the fraction done, returns its rows."""
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    with reproducible(threads):
        run = yield from train(pack.trials, pack.engine, pack.measure, device)
    outcome = Outcome(device=_device_name(device), dataset_sha256=_dataset_sha256(pack.trials[0].dataset))
    for _, _, found in run.moments:
        outcome.failures |= found.failures
    for slot, trial in enumerate(pack.trials):
        if slot not in outcome.failures:
            outcome.trials[slot] = _trial_row(run, slot, trial.batch_size)
            outcome.curves += _curve_rows(run, slot)
            outcome.eigenvalues += _eigenvalue_rows(run, slot)
    return outcome


def _trial_row(run: Run, slot: int, batch_size: int) -> Row:
    at = run.diverged_at[slot]
    steps = run.steps if at < 0 else at
    row: Row = {"status": Status.FINISHED, "steps": steps, "epochs_done": steps * batch_size / run.train_size}
    if at >= 0:
        return row | {"status": Status.DIVERGED, "error": f"loss not finite at step {at}"}
    endpoint = run.moments[-1][2]
    for name, values in endpoint.values.items():
        row[name] = number(values[slot])
        error = STATISTICS.get(name)
        if error is not None:
            row[error] = number(endpoint.errors[name][slot])
    return row


def _until_divergence(run: Run, slot: int) -> Iterator[tuple[int, float, Measurements]]:
    at = run.diverged_at[slot]
    return (moment for moment in run.moments if at < 0 or moment[0] < at)


def _curve_rows(run: Run, slot: int) -> list[Row]:
    return [
        {
            "slot": slot,
            "step": step,
            "epoch": epoch,
            "statistic": name,
            "value": number(values[slot]),
            "error": number(found.errors[name][slot]),
        }
        for step, epoch, found in _until_divergence(run, slot)
        for name, values in found.values.items()
        if number(values[slot]) is not None
    ]


def _eigenvalue_rows(run: Run, slot: int) -> list[Row]:
    return [
        {
            "slot": slot,
            "step": step,
            "epoch": epoch,
            "index": index,
            "eigenvalue": float(value),
            "residual": float(residual),
        }
        for step, epoch, found in _until_divergence(run, slot)
        if found.eigenvalues is not None
        for index, (value, residual) in enumerate(found.eigenvalues[slot])
        if number(value) is not None
    ]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@lru_cache(maxsize=4)
def _dataset_sha256(reference: str) -> str:
    return load_dataset(reference).sha256()
