"""Commands in processes of their own that begin within milliseconds: each is forked from one that has imported all."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType

CODES = {0, 1, 2, 3, 4, 130, 143}
"""Exit codes that are documented."""

Fault = Callable[[], None]
"""Sets up, in the process of a command, what is to happen to it; pickles."""

_NUMBERS = itertools.count()


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "warm"])
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}  # threads do not survive a fork
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


class Command:
    """A command of ours that runs, gone at the end of a ``with``.

    Args:
        work: the working directory.
        arguments: of `isoratio`.
        faults: what is to happen to it.
        environment: variables beside those of the tests.
    """

    def __init__(
        self,
        work: Path,
        *arguments: str | Path,
        faults: Sequence[Fault] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.output = work / f".said-{next(_NUMBERS)}"
        told = [str(argument) for argument in arguments]
        self.process = _context().Process(
            target=_run, args=(work, told, faults, dict(environment or {}), self.output), daemon=True
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.join()

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.output.read_text() if self.output.exists() else ""

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stops(self, seconds: float = 300) -> bool:
        """Waits until it is stopped; False where it ends before."""
        deadline = time.monotonic() + seconds
        while self.process.exitcode is None:
            with suppress(OSError):  # it has just ended
                if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return True
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        return False

    def until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Waits for something that is to be while it runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.exitcode is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def ended(self, seconds: float = 300) -> int:
        """Its exit code, minus the number of the signal that killed it. Whatever it is, there is no traceback."""
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, f"still running after {seconds} s:\n{self.said}"
        assert code in CODES or code == -9, f"exit code {code}:\n{self.said}"
        assert "Traceback" not in self.said, self.said
        return code


def run(
    work: Path, *arguments: str | Path, faults: Sequence[Fault] = (), environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit code of a command, and what it said."""
    with Command(work, *arguments, faults=faults, environment=environment) as command:
        return command.ended(), command.said


def _run(work: Path, arguments: list[str], faults: Sequence[Fault], environment: dict[str, str], output: Path) -> None:
    assert "warm" in sys.modules
    os.chdir(work)
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    os.close(written)
    from orchestrator.cli import main

    for fault in faults:
        fault()
    sys.argv = ["isoratio", *arguments]
    main()
