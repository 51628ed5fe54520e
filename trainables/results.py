"""From the measurements of a trained pack to the rows that are stored."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from trainables.checkpoint import NO_CHECKPOINTS, Checkpoints
from trainables.datasets import load_dataset
from trainables.endpoints import Endpoint
from trainables.engine import Tensors
from trainables.findings import Measurements
from trainables.packs import Outcome, Pack, Row, number
from trainables.schema import TABLES, Status
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.training import Run, Training, reproducible, timeline_of
from trainables.trial import Trial


def train_pack(
    pack: Pack, threads: int, *, gpu: bool, keeper: Checkpoints = NO_CHECKPOINTS
) -> Generator[float, None, Outcome]:
    """Trains a pack, as many trials at once as it says; yields the fraction done, returns its rows.

    Args:
        pack: which one.
        threads: CPU threads.
        gpu: whether to use a GPU, if there is one.
        keeper: from whose last checkpoint it goes on, bit for bit.

    Raises:
        Interrupted: the keeper said so.
        MemoryError: it does not fit.
    """
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    with reproducible(threads):  # from the first operation on: threads keep what they are started with
        sha256 = _dataset_sha256(pack.trials[0].dataset)
        outcome = Outcome(device=_device_name(device), dataset_sha256=sha256)
        progress: Progress = keeper.restore(pack, threads, outcome.device, sha256) or {"runs": []}
    for first in range(len(progress["runs"]) * pack.together, len(pack.trials), pack.together):
        with reproducible(threads), _out_of_memory():
            run = yield from _trained(pack, first, device, progress, keeper)
            progress["runs"].append(run.saved())
            keeper.report((len(progress["runs"]), 0), lambda: progress)
    for group, saved in enumerate(progress["runs"]):
        first = group * pack.together
        trials = pack.trials[first : first + pack.together]
        _add_rows(outcome, Run(timeline_of(trials[0]), **saved), trials, first)
    return outcome


Progress = dict[str, Any]
"""Where a pack stands: ``runs``, what :meth:`Run.saved` gave of each group of trials that came to its end; within a
group also ``training``, what :meth:`Training.saved` gave of it.
"""


def _trained(
    pack: Pack, first: int, device: torch.device, progress: Progress, keeper: Checkpoints
) -> Generator[float, None, Run]:
    """Trains the group of trials that begins with slot ``first``; yields the fraction of the pack done."""
    trials = pack.trials[first : first + pack.together]
    training = Training(trials, pack.engine, pack.measure, device, pack.physical_batch_size)
    if "training" in progress:
        training.restore(progress.pop("training"))
    for fraction in training.go():
        place = len(progress["runs"]), training.done
        keeper.report(place, lambda: progress | {"training": training.saved()})
        yield (first + fraction * len(trials)) / len(pack.trials)
    return training.run


def _add_rows(outcome: Outcome, run: Run, trials: Sequence[Trial], first: int) -> None:
    """Of trials that were trained together, of which the first is at slot ``first`` of the pack."""
    for moment in run.moments:
        outcome.failures |= {first + moment.slots[i]: text for i, text in moment.found.failures.items()}
    for i, trial in enumerate(trials):
        slot = first + i
        if slot in outcome.failures:
            continue
        end = run.diverged_at[i] if run.diverged_at[i] >= 0 else math.inf
        moments = [(m.step, m.epoch, m.found, m.slots.index(i)) for m in run.moments if i in m.slots and m.step < end]
        outcome.trials[slot] = _trial_row(run, i, trial, moments)
        if i in run.endpoints:
            outcome.endpoints[slot] = _endpoint(trial, *run.endpoints[i])
        outcome.side["curves"] += [{"slot": slot} | row for row in _curve_rows(moments)]
        for table, row in _side_rows(moments):
            outcome.side[table].append({"slot": slot} | row)


Moments = list[tuple[int, float, Measurements, int]]
"""Step, epoch, measurements, and the place of one trial in them."""


def _trial_row(run: Run, i: int, trial: Trial, moments: Moments) -> Row:
    steps, time = run.steps(i), run.timeline
    row: Row = {"status": Status.FINISHED, "steps": steps, "epochs_done": time.examples(steps) / time.train_size}
    if trial.until:
        row["reached"] = run.reached_at[i] >= 0
    if run.diverged_at[i] >= 0:
        return row | {"status": Status.DIVERGED, "error": f"loss not finite at step {steps}"}
    _, _, endpoint, place = moments[-1]
    for name, values in endpoint.values.items():
        row[name] = number(values[place])
        error = ERROR_COLUMN.get(name)
        if error is not None:
            row[error] = number(endpoint.errors[name][place])
    return row | _best_test(moments)


def _best_test(moments: Moments) -> Row:
    """The largest test accuracy of all moments, and the first epoch with it; nothing where there are no classes."""
    seen = [
        (epoch, found.values["test_accuracy"][place])
        for _, epoch, found, place in moments
        if "test_accuracy" in found.values
    ]
    if not seen:
        return {}
    epoch, accuracy = max(seen, key=lambda pair: pair[1])
    return dict(zip(OF_ENDPOINT, (number(accuracy), epoch), strict=True))


def _endpoint(trial: Trial, parameters: Tensors, buffers: Tensors) -> Endpoint:
    tensors = {name: tensor.numpy() for name, tensor in {**parameters, **buffers}.items()}
    return Endpoint(trial, tensors, tuple(sorted(buffers)))


def _curve_rows(moments: Moments) -> Iterator[Row]:
    for step, epoch, found, place in moments:
        for name, values in found.values.items():
            value = number(values[place])
            if value is not None:
                error = number(found.errors[name][place])
                yield {"step": step, "epoch": epoch, "statistic": name, "value": value, "error": error}


def _side_rows(moments: Moments) -> Iterator[tuple[str, Row]]:
    """Rows of the other side tables; what has no number is left out."""
    for step, epoch, found, place in moments:
        for (table, profile), columns in found.rows.items():
            names = list(columns)
            for numbers in zip(*(columns[name][place] for name in names), strict=True):
                row = {name: _typed(table, name, value) for name, value in zip(names, numbers, strict=True)}
                if row[_NUMBER[table]] is not None:
                    row |= {"step": step, "epoch": epoch}
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


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """One kind of error for all that says so."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError among them
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
