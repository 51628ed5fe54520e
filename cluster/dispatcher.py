"""Runs items on Ray Tune, in a process that is connected to Ray.

One Tune trial is one worker process that takes item after item, rather than one item. So items start strictly in order,
and Tune's state does not grow with them. (With a trial per item and ``reuse_actors``, a trial whose actor is about to
start takes over one that has just become free, so that short items all run on a single actor.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import BasicVariantGenerator

from cluster import worker
from cluster.executor import Cause, ClusterError, Event, Failed, Finished, Progress, Started
from cluster.messages import Job
from cluster.places import Places

LAST_WORDS = 1.0
"""Seconds. Where a server of our own Ray has died, this process ends within them and says which: Tune may be faster."""

REPORTS_PER_SECOND = 100
"""Of all items together, about: each takes this process 2 ms, see ``benchmarks/scale.py``."""

DIED = {
    Cause.CRASH: "The process that ran this item died: it was killed, or native code crashed.",
    Cause.MEMORY: (
        "The process that ran this item was killed because its machine ran out of memory: smaller items, or fewer at "
        "the same time through more CPUs per item, help."
    ),
    Cause.PREEMPTION: "The machine that ran this item went away.",
}


def run_job(job: Job, state: Path, on_event: Callable[[Event], None], stop: Callable[[], bool]) -> None:
    """Runs the items of ``job``; Tune keeps its files in ``state``, a directory of this run alone.

    Raises:
        ClusterError: no machine has what an item needs, or the one that holds the connection to Ray went away.
    """
    places = Places(job.need, min(job.max_concurrent or job.count, job.count))
    places.check()
    dispatcher = Dispatcher(job.count, places.count, on_event, stop)
    try:
        tuner(job, dispatcher, state).fit()
    except HandlerError as error:
        raise error.cause from None


def tuner(job: Job, dispatcher: Dispatcher, state: Path) -> Any:
    """Tune, set up to keep worker processes alive and nothing else."""
    cloudpickle.register_pickle_by_value(worker)
    trainable = tune.with_parameters(
        worker.Slot, job=job.pickled, directory=job.directory, threads=max(1, int(job.need.cpus))
    )
    return tune.Tuner(
        tune.with_resources(trainable, job.need.resources()),
        tune_config=tune.TuneConfig(
            search_alg=dispatcher.processes,
            num_samples=2 * job.count,  # a process that dies takes an item with it, and is replaced
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(state),
            callbacks=[dispatcher],
            stop=dispatcher,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


class HandlerError(BaseException):
    """Carries what ``on_event`` or ``stop`` raised past Tune, which takes an ``Exception`` for a failed trial."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Dispatcher(tune.Callback, tune.Stopper):
    """Hands items to the processes that Tune has started, and turns what Tune reports into events.

    Attributes:
        waiting: the items that have not started.
        running: the item that each Tune trial runs, by the trial's id.
        places: how many processes there may be, those that wait for a machine included.
        processes: Tune's supply of trials; it keeps so many of them alive.
    """

    def __init__(
        self, count: int, places: Callable[[], int], on_event: Callable[[Event], None], stop: Callable[[], bool]
    ) -> None:
        self.on_event, self.stop, self.places = on_event, stop, places
        self.processes = BasicVariantGenerator(max_concurrent=1)
        self.waiting = deque(range(count))
        self.running: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its state, which nobody restores, and handlers need not pickle."""
        return {}

    def over(self) -> bool:
        """Whether no further item shall start."""
        try:
            return not self.waiting or self.stop()
        except Exception as error:
            raise HandlerError(error) from error

    def emit(self, event: Event) -> None:
        """Hands an event on."""
        try:
            self.on_event(event)
        except Exception as error:
            raise HandlerError(error) from error

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Tune asks: shall this process end?"""
        return "fraction" not in result and (result.get("preempted", False) or self.over())

    def stop_all(self) -> bool:
        """Tune asks: shall all processes end, those that have not even started too?"""
        return not self.running and self.over()

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Tune is about to start what is missing: no more processes than items are left for."""
        if self.over():
            self.processes.set_finished()
        else:
            self.processes.max_concurrent = min(self.places(), len(self.waiting) + len(self.running))

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune tells how a step ended."""
        if "fraction" in result:
            self.emit(Progress(self.running[trial.trial_id], result["fraction"]))
            return
        if "ended" in result:
            index, error = self.running.pop(trial.trial_id), result["ended"]
            cause = Cause.PREEMPTION if result["preempted"] else Cause.EXCEPTION
            self.emit(Failed(index, cause, error) if error else Finished(index))
        if not result["done"] and not self.over():
            every = max(worker.REPORT_EVERY, self.processes.max_concurrent / REPORTS_PER_SECOND)
            trial.temporary_state.ray_actor.take.remote(self.begin(trial), every)  # before the step Tune asks for next

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Tune tells that a process died. Where it had no item yet the next one fails, else this might never end."""
        said = Path(trial.error_file).read_text(errors="replace")
        if "its owner has died" in said:
            time.sleep(LAST_WORDS)
            raise HandlerError(ClusterError("Ray gave up this machine; launch again to go on"))
        if trial.trial_id not in self.running and not self.over():
            self.begin(trial)
        if (index := self.running.pop(trial.trial_id, None)) is not None:
            self.emit(Failed(index, cause := cause_of_death(said), f"{DIED[cause]}\nRay reports: {said}"))

    def begin(self, trial: Any) -> int:
        """Starts the next item on the process of ``trial``."""
        index = self.running[trial.trial_id] = self.waiting.popleft()
        self.emit(Started(index))
        return index


def cause_of_death(said: str) -> Cause:
    """Why a process died, from Ray's words for it: that is all that Tune hands on."""
    if "running low on memory" in said:
        return Cause.MEMORY
    return Cause.PREEMPTION if "its node has died" in said else Cause.CRASH
