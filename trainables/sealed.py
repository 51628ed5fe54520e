"""Files that tell by themselves whether they are what was written: their first line is the SHA-256 of the rest."""

from __future__ import annotations

import hashlib


def seal(text: bytes) -> bytes:
    """The content of such a file."""
    return _digest(text) + b"\n" + text


def is_whole(data: bytes) -> bool:
    """Whether it is what was written."""
    digest, _, text = data.partition(b"\n")
    return digest == _digest(text)


def unsealed(data: bytes) -> bytes:
    """The text in it."""
    return data.partition(b"\n")[2]


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
