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


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Without a terminal, and with an empty HOME."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ISORATIO", "RAY_", "PYTEST", "COLUMNS"))}
    return kept | {"HOME": str(home)}


@pytest.fixture
def isoratio(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command in the user's directory, ``tmp_path/work``."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("timeout", 300)
        env = environment | options.pop("env", {})
        command = [ISORATIO, *map(str, arguments)]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False, **options)

    return run


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
