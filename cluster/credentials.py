"""What must not stand in a file that is kept, shared and committed: tokens, keys and passwords."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SECRETS = {
    "a token or password written out": re.compile(
        r"""(?ix) [\w-]* (?: token | secret | password | passwd | api_?key | access_?key(?:_id)? ) ["']?
        \s* [=:] \s* ["']? (?! [$<{(\[~/"'\s] ) (?! (?:token|true|false|null|none) \b ) [^\s"']{8,}"""
    ),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a URL with a password": re.compile(r"://[^/\s@:]*:[^/\s@$]+@"),
}


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """The line, counted from 1, and kind of everything that looks like a secret; never the secret itself."""
    for number, line in enumerate(text.splitlines(), 1):
        for kind, pattern in _SECRETS.items():
            if pattern.search(line):
                yield number, kind
