"""Where rows come from: code, versions, device, data and plug-ins, stored once per distinct content."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainables.registry import source_sha256
from trainables.trial import canonical_json, content_id

HERE = Path(__file__).parent


def collect(device: str, threads: int, dataset_sha256: str | None, targets: list[str]) -> dict[str, Any]:
    """One row of the ``provenance`` table, its id being the hash of the rest.

    Args:
        device: name of the device that trained.
        threads: CPU threads of the worker.
        dataset_sha256: hash of the data set, None for a trial of the user's own.
        targets: "package.module:callable" of every plug-in in use.
    """
    row = {
        "revision": revision(),
        "source_sha256": _source(),
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "ray", "pyarrow", "numpy")},
        "device": device,
        "threads": threads,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dataset_sha256": dataset_sha256,
        "plugins": canonical_json({t: source_sha256(t) for t in sorted(targets)}),
    }
    return {"provenance_id": content_id(canonical_json(row))[:16], **row}


@lru_cache(maxsize=1)
def revision() -> str:
    """Revision of the code: git's where this is a checkout, with "+dirty" for changes; else the installed version."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # this very file, not a checkout around it
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return version("isoratio")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@lru_cache(maxsize=1)
def _source() -> str:
    """SHA-256 over the source files that determine a trial's numbers."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
