"""The command line driven as a user does: as a process, from a directory of the user's own, with a HOME of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ISORATIO = str(Path(sys.executable).with_name("isoratio"))


OTHERS = ("ISORATIO", "RAY_", "PYTEST", "COLUMNS", "AWS_", "GOOGLE_", "AZURE_")

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment_of(user: Path) -> dict[str, str]:
    """Without a terminal, without credentials, and with an empty HOME."""
    (user / "home").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)}
    return kept | {"HOME": str(user / "home")}


def commands_of(user: Path, environment: dict[str, str]) -> Run:
    """Runs one command in the user's directory, ``user/work``."""
    (user / "work").mkdir()

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"timeout": 300, "check": False} | options
        env = environment | options.pop("env", {})
        command = [ISORATIO, *map(str, arguments)]
        return subprocess.run(command, cwd=user / "work", env=env, capture_output=True, text=True, **options)

    return run


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_of(tmp_path)


@pytest.fixture
def isoratio(tmp_path: Path, environment: dict[str, str]) -> Run:
    """The command line of this test's user, in ``tmp_path/work``."""
    return commands_of(tmp_path, environment)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A directory and the command line of a user whom all tests of a file share: for what is dear and only read."""
    user = tmp_path_factory.mktemp("shared")
    return user / "work", commands_of(user, environment_of(user))


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts one command in the user's directory and leaves it running."""

    def begin(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [ISORATIO, *map(str, arguments)],
            cwd=tmp_path / "work",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return begin
