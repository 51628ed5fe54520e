"""The far side of a command that is sent to a cluster: it runs one function, in a Ray Job on the cluster's head.

A job has one output for everything. What the function returns goes there as records, lines that begin with a mark;
all other lines are messages for people. Which Python and packages there are is not known before :func:`refusal`: until
then nothing is imported but the standard library, as Python 3.9 has it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.lease import StopKind

MARK = "\x1e"
"""ASCII's separator of records, which messages do not hold."""
PART = 4000
"""Characters of a record in one line: Ray cuts lines of more than 20,000."""
VERSIONS = "versions.json"
USER_FILES = "user-files"
SAME = ("ray", "torch", "duckdb", "pyarrow")
"""Packages that must have one version here and there, beside Python: they decide numbers, or how they are stored."""

Record = dict[str, Any]
Send = Callable[..., None]


def main() -> None:
    """Arguments: the function's name, and its arguments as JSON."""
    name, arguments = sys.argv[1:]
    descriptor = os.dup(1)
    sys.stdout = sys.stderr  # what the user's own code prints is a message

    def send(**record: Any) -> None:
        os.write(descriptor, lines(record).encode())

    send(started=True)
    raise SystemExit(_answer(name, json.loads(arguments), send))


def _answer(name: str, arguments: dict[str, Any], send: Send) -> int:
    """Runs the function; its exit code."""
    refused = refusal(json.loads(Path(VERSIONS).read_text()), strict=name in ("launch", "resume"))
    if refused:
        send(error=refused, code=2)
        return 2
    os.chdir(USER_FILES)
    from orchestrator.cli import exit_code
    from orchestrator.signals import StoppedAtOnce

    try:
        return _FUNCTIONS[name](send, arguments)
    except StoppedAtOnce as stop:
        return 128 + stop.number
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        send(error=str(error), code=code)
        return code


def _launch(send: Send, arguments: dict[str, Any]) -> int:
    """``launch`` where there is a file, else ``resume``; says when it has begun."""
    from orchestrator.cli import launch_code
    from orchestrator.launching import has_begun, launch, resume
    from orchestrator.signals import signals, wish
    from trainables.store import Store

    sweep, limit = arguments.pop("sweep"), arguments["limit"]
    there, begun = Store(arguments["store"]).sweep(sweep), False

    def should_stop() -> StopKind | None:
        nonlocal begun
        if not begun and has_begun(there, os.getpid()):
            begun = True
            send(begun=True)
        return wish(received)

    with signals() as received:
        if "file" in arguments:
            result = launch(**arguments, address="auto", should_stop=should_stop)
        else:
            result = resume(sweep, **arguments, address="auto", should_stop=should_stop)
    send(result=asdict(result))
    return launch_code(result, limit, received)


def _status(send: Send, arguments: dict[str, Any]) -> int:
    from orchestrator import status

    send(result=status(**arguments))
    return 0


def _stop(send: Send, arguments: dict[str, Any]) -> int:
    from orchestrator import stop

    send(result=stop(**arguments))
    return 0


def _logs(send: Send, arguments: dict[str, Any]) -> int:
    from orchestrator import logs

    for line in logs(**arguments):
        send(line=line)
    send(result=None)
    return 0


def _doctor(send: Send, arguments: dict[str, Any]) -> int:
    from orchestrator.diagnosis import of_cluster

    del arguments["sweep"]
    send(result=[asdict(row) for row in of_cluster("auto", **arguments)])
    return 0


_FUNCTIONS: dict[str, Callable[[Send, dict[str, Any]], int]] = {
    "launch": _launch,
    "resume": _launch,
    "status": _status,
    "stop": _stop,
    "logs": _logs,
    "doctor": _doctor,
}


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """What is installed of Python and packages, without what is a build's own: "2.13.0" for "2.13.0+cu126"."""
    found: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = None
    return found


def refusal(there: dict[str, str | None], *, strict: bool) -> str | None:
    """Why this Python cannot run what was sent, and what to do; None where it can.

    Args:
        there: :func:`versions` where the command was given.
        strict: whether versions must be the same: for what trains.
    """
    here = versions(set(there) - {"python"})
    missing = sorted(name for name in there if here[name] is None and there[name])
    other = [name for name in ("python", *SAME) if here[name] and here[name] != there[name]] if strict else []
    if not missing and not other:
        return None
    parts = [f"it lacks {', '.join(missing)}"] if missing else []
    parts += [f"it has {name} {here[name]}, and this machine {there[name]}" for name in other]
    text = f"the cluster's Python ({sys.executable}) does not do: {'; '.join(parts)}."
    install = " ".join(f"{name}=={there[name]}" for name in [*missing, *other] if name != "python")
    if install:
        text += f" On every node: {sys.executable} -m pip install {install}."
    return text + (" Or install here what runs there: a sweep's trials come from one set of versions." if other else "")


def lines(record: Record) -> str:
    """A record as lines of the output."""
    text = json.dumps(record)
    starts = range(0, len(text), PART)
    return "".join(f"{MARK}{'.' if at == starts[-1] else '+'}{text[at : at + PART]}\n" for at in starts)


def records(output: Iterable[str | None], say: Callable[[str], None]) -> Iterator[Record]:
    """The records among lines of a job's output, an empty one for each None; the other lines go to ``say``.

    What comes before the first record is Ray's, about the job.
    """
    begun, text = False, ""
    for line in output:
        if line is None:
            yield {}
            continue
        message, mark, part = line.partition(MARK)  # native code may leave a line without an end
        if begun and (message or not mark):
            say(message)
        if mark:
            begun, text = True, text + part[1:]
        if mark and part.startswith("."):
            yield json.loads(text)
            text = ""


if __name__ == "__main__":
    main()
