"""The token of a cluster, where Ray looks for it: never in an option, a file of ours or a message."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def token_file() -> Path:
    """The file that holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))


def token_here() -> str | None:
    """The token of this environment; None where there is none."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    with suppress(OSError, UnicodeDecodeError):
        token = token or token_file().read_text(encoding="utf-8").strip()
    return token or None


def joins_with_token() -> bool:
    """Whether Ray will show a token to a cluster that this process, or one that it starts, joins."""
    mode = os.environ.get("RAY_AUTH_MODE")
    return token_here() is not None if mode is None else mode.lower() != "disabled"
