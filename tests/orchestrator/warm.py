"""Imported by the server that commands are forked from: a launch, so that they find all that one needs in memory."""

import contextlib
import io
import tempfile
from pathlib import Path

from sweeps_for_faults import TINY

from orchestrator import compact, launch, sql, status, verify
from orchestrator.cli import main  # noqa: F401

with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
    file = Path(directory) / "sweep.yaml"
    file.write_text(TINY)
    launch(file, directory, executor="inline")
    sql(directory, "SELECT * FROM trials")
    status(directory)
    compact(directory)
    verify(directory)
