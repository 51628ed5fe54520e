"""What a check is, and what it says; sent by value to the nodes of a cluster, so that only Python has to be there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

IMPORT_SECONDS = 90.0
"""For PyTorch from a file system on the network that has not seen it before."""


class State(StrEnum):
    """How it stands with what was looked at."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        status: how it stands.
        found: what is there.
        advice: what to do, with a command where there is one.
    """

    status: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A row of the answer.

    Attributes:
        check: what was looked at.
        where: the machine, node or address.
        status: how it stands.
        found: what is there.
        advice: what to do, with a command where there is one.
    """

    check: str
    where: str
    status: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Expected:
    """What to look at, and what to find.

    Attributes:
        store: URL, or the directory in which the store lies or will; None: it is not looked at.
        needs: what Isoratio requires, as packages say it; Python as "python>=3.11".
        data_root: directory of data files; None: as the environment there says.
        sign: name and content of a file in the store, which a node is to see; None: this is no node.
        versions: of Python and packages where the cluster is asked from.
        source: SHA-256 of the code there.
        data: the published data sets that are there.
        counted: what Ray counts of the node: "CPU", "GPU", ...
    """

    store: str | None
    needs: tuple[str, ...] = ()
    data_root: str | None = None
    sign: tuple[str, str] | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    source: str = ""
    data: tuple[str, ...] = ()
    counted: Mapping[str, float] = field(default_factory=dict)


Look = Callable[[Expected], Finding]


def found_by(look: Look, expected: Expected) -> Finding:
    """What a check finds; one that breaks has found something wrong."""
    try:
        return look(expected)
    except ModuleNotFoundError as error:
        advice = f"install Isoratio for the Python there, {sys.executable}"
        return Finding(State.WRONG, f"ModuleNotFoundError: {error}", advice)
    except Exception as error:
        text = " ".join(str(error).split())
        return Finding(State.WRONG, f"{type(error).__name__}: {text}" if text else type(error).__name__)


def reinstall(package: str) -> str:
    """The command that does."""
    return shlex.join([sys.executable, "-m", "pip", "install", "--force-reinstall", package])


def python(code: str, seconds: float) -> tuple[str, str]:
    """What a new Python prints; and where it fails, the last line of what it says of that."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "always", "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"not done in {seconds:g} s"
    return done.stdout, last(done.stderr) or f"exit status {done.returncode}" if done.returncode else ""


def last(text: str) -> str:
    """The last line."""
    return (text.strip().splitlines() or [""])[-1].strip()
