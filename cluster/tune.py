"""Runs items on Ray Tune.

One Tune trial is one worker process that takes item after item, rather than one item. So items start strictly in order,
and Tune's state does not grow with them. (With a trial per item and ``reuse_actors``, a trial whose actor is about to
start takes over one that has just become free, so that short items all run on a single actor.)
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.search import BasicVariantGenerator

from cluster import worker
from cluster.connection import connected, signal_handlers_kept
from cluster.executor import ClusterError, Event, Failed, Finished, Item, Progress, Started, Work

DIED = (
    "The process that ran this item died. It was killed, for example because memory ran out (then smaller items, or "
    "fewer at the same time through more CPUs per item, help), or native code crashed."
)


@dataclass(frozen=True)
class TuneExecutor:
    """An :class:`~cluster.executor.Executor` on Ray Tune.

    Attributes:
        address: None starts a Ray on this machine and ends it with the run; "auto" or "host:port" joins one.
        cpus_per_item: CPU cores that Ray sets aside for an item; its libraries get as many threads, at least one.
        gpus_per_item: GPUs that Ray sets aside for an item; a fraction shares one.
    """

    address: str | None = None
    cpus_per_item: float = 1.0
    gpus_per_item: float = 0.0

    def run(
        self,
        work: Work[Item],
        items: Sequence[Item],
        *,
        on_event: Callable[[Event], None],
        stop: Callable[[], bool],
    ) -> None:
        """See :meth:`cluster.executor.Executor.run`.

        Raises:
            ClusterError: no Ray at the address, or no machine in it that has what an item needs.
        """
        if not items or stop():
            return
        with connected(self.address) as scratch:
            dispatcher = Dispatcher(len(items), min(self._slots(), len(items)), on_event, stop)
            tuner = self._tuner(work, items, dispatcher, scratch / "tune")
            try:
                with signal_handlers_kept():
                    tuner.fit()
            except HandlerError as error:
                raise error.cause from None

    def _tuner(self, work: Work[Item], items: Sequence[Item], dispatcher: Dispatcher, state: Path) -> Any:
        cloudpickle.register_pickle_by_value(worker)
        trainable = tune.with_parameters(
            worker.Slot,
            job=cloudpickle.dumps((work, list(items))),
            directory=os.getcwd(),
            threads=max(1, int(self.cpus_per_item)),
        )
        return tune.Tuner(
            tune.with_resources(trainable, {"cpu": self.cpus_per_item, "gpu": self.gpus_per_item}),
            tune_config=tune.TuneConfig(
                search_alg=dispatcher.processes,
                num_samples=2 * len(items),  # a process that dies takes an item with it, and is replaced
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

    def _slots(self) -> int:
        """How many items the cluster can run at the same time."""
        need = {"CPU": self.cpus_per_item, "GPU": self.gpus_per_item}
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        slots = sum(
            min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in need.items() if amount) for node in nodes
        )
        if not slots:
            raise ClusterError(
                f"an item needs {self.cpus_per_item:g} CPUs and {self.gpus_per_item:g} GPUs, but no machine has that: "
                + "; ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
            )
        return slots


class HandlerError(BaseException):
    """Carries what ``on_event`` or ``stop`` raised past Tune, which takes an ``Exception`` for a failed trial."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Dispatcher(tune.Callback, tune.Stopper):
    """Hands items to the processes that Tune has started, and turns what Tune reports into events.

    Attributes:
        waiting: the items that have not started.
        running: the item that each Tune trial runs, by the trial's id.
        processes: Tune's supply of trials; it keeps ``slots`` of them alive.
    """

    def __init__(self, count: int, slots: int, on_event: Callable[[Event], None], stop: Callable[[], bool]) -> None:
        self.on_event, self.stop = on_event, stop
        self.processes = BasicVariantGenerator(max_concurrent=slots)
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
        return "fraction" not in result and self.over()

    def stop_all(self) -> bool:
        """Tune asks: shall all processes end, those that have not even started too?"""
        return not self.running and self.over()

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Tune is about to start what is missing."""
        if self.over():
            self.processes.set_finished()

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune tells how a step ended."""
        if "fraction" in result:
            self.emit(Progress(self.running[trial.trial_id], result["fraction"]))
            return
        if "ended" in result:
            index, error = self.running.pop(trial.trial_id), result["ended"]
            self.emit(Failed(index, "exception", error) if error else Finished(index))
        if not result["done"] and not self.over():
            trial.temporary_state.ray_actor.take.remote(self.begin(trial))  # before the step that Tune asks for next

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Tune tells that a process died. Where it had no item yet the next one fails, else this might never end."""
        if trial.trial_id not in self.running and not self.over():
            self.begin(trial)
        if (index := self.running.pop(trial.trial_id, None)) is not None:
            said = Path(trial.error_file).read_text(errors="replace")
            self.emit(Failed(index, "crash", f"{DIED}\nRay reports: {said}"))

    def begin(self, trial: Any) -> int:
        """Starts the next item on the process of ``trial``."""
        index = self.running[trial.trial_id] = self.waiting.popleft()
        self.emit(Started(index))
        return index
