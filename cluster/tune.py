"""Runs items as trials of Ray Tune."""

from __future__ import annotations

import os
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
    """An :class:`~cluster.executor.Executor` on Ray Tune: actors that are reused run one item after the other.

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
            tuner = self._tuner(work, items, Watch(on_event, stop, self._slots()), scratch / "tune")
            try:
                with signal_handlers_kept():
                    tuner.fit()
            except HandlerError as error:
                raise error.cause from None

    def _tuner(self, work: Work[Item], items: Sequence[Item], watch: Watch, state: Path) -> Any:
        cloudpickle.register_pickle_by_value(worker)
        trainable = tune.with_parameters(
            worker.ItemTrainable,
            job=cloudpickle.dumps((work, list(items))),
            directory=os.getcwd(),
            threads=max(1, int(self.cpus_per_item)),
        )
        return tune.Tuner(
            tune.with_resources(trainable, {"cpu": self.cpus_per_item, "gpu": self.gpus_per_item}),
            param_space={"index": tune.grid_search(list(range(len(items))))},
            tune_config=tune.TuneConfig(search_alg=InOrder(watch), reuse_actors=True),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(state),
                callbacks=[watch],
                stop=watch,
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


class Watch(tune.Callback, tune.Stopper):
    """Turns what Tune reports into events, and tells Tune which item may not start any more."""

    def __init__(self, on_event: Callable[[Event], None], stop: Callable[[], bool], slots: int) -> None:
        self.on_event, self.stop, self.slots = on_event, stop, slots
        self.begun: set[int] = set()
        self.settled: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its state, which nobody restores, and handlers need not pickle."""
        return {}

    def stopping(self) -> bool:
        """Whether no further item shall start."""
        try:
            return self.stop()
        except Exception as error:
            raise HandlerError(error) from error

    def emit(self, event: Event) -> None:
        """Hands an event on."""
        try:
            self.on_event(event)
        except Exception as error:
            raise HandlerError(error) from error

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Tune asks: shall this trial end here?"""
        return "ready" in result and self.stopping()

    def stop_all(self) -> bool:
        """Tune asks: shall all trials end here? Those that run are left to finish."""
        return False

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune reports one step of an item."""
        index = trial.config["index"]
        if "error" in result:
            self.settle(Failed(index, "exception", result["error"]))
        elif "fraction" in result:
            self.emit(Progress(index, result["fraction"]))
        elif "ready" not in result:
            self.settle(Finished(index))
        elif not result["done"]:  # else the answer to "ready" was to stop
            self.begin(index)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Tune reports that an actor died."""
        index = trial.config["index"]
        self.begin(index)
        said = Path(trial.error_file).read_text(errors="replace")
        self.settle(Failed(index, "crash", f"{DIED}\nRay reports: {said}"))

    def begin(self, index: int) -> None:
        """Reports an item as started, once."""
        if index not in self.begun:
            self.begun.add(index)
            self.emit(Started(index))

    def settle(self, event: Finished | Failed) -> None:
        """Reports how an item ended."""
        self.settled.add(event.index)
        self.emit(event)


class InOrder(BasicVariantGenerator):
    """Tune's grid, handed out in order: with many trials waiting, Tune starts any of them.

    One more trial waits than can run, since an actor is kept for reuse only while a trial waits for one.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self.handed_out = 0

    def next_trial(self) -> Any:
        """The next trial, or None while enough of them wait."""
        if self.watch.stopping():
            self.set_finished()
        waiting = self.handed_out - len(self.watch.begun)
        free = self.watch.slots - len(self.watch.begun) + len(self.watch.settled)
        if False:
            return None
        self.handed_out += 1
        return super().next_trial()
