"""Runs items on Ray Tune, by way of a process that holds the connection to Ray."""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import Pipe
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cluster.executor import ClusterError, Event, Item, Work
from cluster.messages import Asked, Ended, Job, Message, Need
from cluster.reaper import scratch

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an item without a GPU sees none
    "RAY_prestart_worker_first_driver": "0",  # Tune gives its actors an environment of their own: these would idle
    "RAY_timeout_ms_task_wait_for_death_info": "60000",  # that a machine is gone takes Ray 15 s to know, not its 1 s
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # Tune's state is rewritten whole and nobody reads it
}
COMMAND = (sys.executable, "-P", "-c", "from cluster.session import main; main()")
SILENCE = 0.5
"""Seconds. While items run, Ray asks several times a second whether to stop."""
LEAVE_TIMEOUT = 15.0
"""Seconds for leaving a Ray that goes on: it ends our workers there."""


@dataclass
class TuneExecutor:
    """An :class:`~cluster.executor.Executor` on Ray Tune.

    Attributes:
        address: None starts a Ray on this machine, which ends with the executor; "auto" or "host:port" joins one.
        cpus_per_item: CPU cores that Ray sets aside for an item; its libraries get as many threads, at least one.
        gpus_per_item: GPUs that Ray sets aside for an item; a fraction shares one.
        accelerator: the kind of GPU that an item needs, as Ray names it, such as H100; None: any.
        max_concurrent: so many items run at a time at most; None: as many as there is room for.
    """

    address: str | None = None
    cpus_per_item: float = 1.0
    gpus_per_item: float = 0.0
    accelerator: str | None = None
    max_concurrent: int | None = None
    _kept: bool = field(default=False, init=False, repr=False)
    _session: Session | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        """Keeps the Ray that the first run needs until the ``with`` is left."""
        self._kept = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends or leaves Ray."""
        self._kept = False
        self._end()

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
            ClusterError: no Ray at the address, no machine in it that has what an item needs, or it died under the run.
        """
        if not items or stop():
            return
        need = Need(self.cpus_per_item, self.gpus_per_item, self.accelerator)
        job = Job(pickle.dumps((work, list(items))), len(items), os.getcwd(), need, self.max_concurrent)
        settled = False
        try:
            self._session = self._session or Session(self.address)
            self._session.run(job, on_event, stop)
            settled = True
        finally:
            if not (settled and self._kept):
                self._end()

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()


class Session:
    """The process that holds the connection to Ray, seen from the one that launches."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        with ExitStack() as stack:
            directory = stack.enter_context(scratch())
            self.log = directory / "session.log"
            self.channel: Connection[Job | bool, Message]
            self.channel, its = Pipe()
            stack.enter_context(self.channel)
            with its, self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*COMMAND, str(its.fileno()), str(directory), *([address] if address else [])],
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | ENVIRONMENT | _token(address),
                    start_new_session=True,
                )
            stack.callback(self._leave)
            self.stack = stack.pop_all()

    def run(self, job: Job, on_event: Callable[[Event], None], stop: Callable[[], bool]) -> None:
        """Runs a job to its end; after an exception the session can only be ended."""
        self._send(job)
        while not isinstance(message := self._next(stop), Ended):
            if isinstance(message, ClusterError):
                raise message
            if isinstance(message, Asked):
                self._send(stop())
            else:
                on_event(message)

    def end(self) -> None:
        """Ends all that was started."""
        self.stack.close()

    def _send(self, message: Job | bool) -> None:
        try:
            self.channel.send(message)
        except OSError as error:
            raise self._died() from error

    def _next(self, stop: Callable[[], bool]) -> Message:
        while not self.channel.poll(SILENCE):
            stop()  # which may raise: a Ray that starts, or hangs, does not ask
        try:
            return self.channel.recv()
        except InterruptedError:  # of a signal handler that the caller has set
            raise
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _died(self) -> ClusterError:
        which = "the local Ray died" if self.address is None else f"the connection to Ray at {self.address!r} broke"
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return ClusterError("".join([which, *(f" ({line})" for line in last), "; launch again to go on"]))

    def _leave(self) -> None:
        """Closes the channel, so that a Ray that goes on is left in order. One of our own ends with its files."""
        self.channel.close()
        try:
            self.process.wait(0 if self.address is None else LEAVE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _token(address: str | None) -> dict[str, str]:
    """A token for a Ray that is ours alone, so that Ray writes none to HOME; the user's own choice goes first."""
    if address is not None or any(f"RAY_AUTH_{name}" in os.environ for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
