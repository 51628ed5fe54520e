"""From the measurements of a trained pack to the rows that are stored."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import lru_cache

import torch

from trainables.datasets import load_dataset
from trainables.endpoints import Endpoint
from trainables.engines import MEMBER
from trainables.findings import Measurements
from trainables.packs import Outcome, Pack, Row, number
from trainables.schema import TABLES, Status
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.training import Run, reproducible, train
from trainables.trial import Trial


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
            if run.parameters and run.diverged_at[slot] < 0:
                outcome.endpoints[slot] = _endpoint(run, slot, trial)
            outcome.side["curves"] += _curve_rows(run, slot)
            for table, row in _side_rows(run, slot):
                outcome.side[table].append(row)
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
        error = ERROR_COLUMN.get(name)
        if error is not None:
            row[error] = number(endpoint.errors[name][slot])
    return row | _best_test(run, slot)


def _best_test(run: Run, slot: int) -> Row:
    """The largest test accuracy of all moments, and the first epoch with it; nothing where there are no classes."""
    seen = [
        (epoch, found.values["test_accuracy"][slot])
        for _, epoch, found in run.moments
        if "test_accuracy" in found.values
    ]
    if not seen:
        return {}
    epoch, accuracy = max(seen, key=lambda pair: pair[1])
    return dict(zip(OF_ENDPOINT, (number(accuracy), epoch), strict=True))


def _endpoint(run: Run, slot: int, trial: Trial) -> Endpoint:
    buffers = {name: tensors for name, tensors in run.buffers.items() if name != MEMBER}
    tensors = {name: tensor[slot].cpu().numpy() for name, tensor in {**run.parameters, **buffers}.items()}
    return Endpoint(trial, tensors, tuple(sorted(buffers)))


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


def _side_rows(run: Run, slot: int) -> Iterator[tuple[str, Row]]:
    """Rows of the other side tables; what has no number is left out."""
    for step, epoch, found in _until_divergence(run, slot):
        for (table, profile), columns in found.rows.items():
            names = list(columns)
            for numbers in zip(*(columns[name][slot] for name in names), strict=True):
                row = {name: _typed(table, name, value) for name, value in zip(names, numbers, strict=True)}
                if row[_NUMBER[table]] is not None:
                    row |= {"slot": slot, "step": step, "epoch": epoch}
                    yield table, row | ({"profile": profile} if table == "profiles" else {})


_NUMBER = {"eigenvalues": "eigenvalue", "density": "node", "profiles": "value"}
"""The column without which a row says nothing."""


def _typed(table: str, column: str, value: float) -> float | int | None:
    known = number(value)
    return known if known is None or TABLES[table].field(column).type == "double" else int(known)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@lru_cache(maxsize=4)
def _dataset_sha256(reference: str) -> str:
    return load_dataset(reference).sha256()
