"""Downloads of published image sets: only when asked for, and put in place only when the checksum is right."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from trainables.files import md5_of
from trainables.published import Published
from trainables.storage import LocalStorage

ATTEMPTS = 3
WAIT_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
CHUNK = 2**20

Progress = Callable[[str, int, int | None], None]
"""Told of a download: file name, bytes received, bytes in all where the server says so."""


class FetchError(ValueError):
    """A file that could not be had."""


def fetch(published: Published, root: Path, progress: Progress | None = None) -> list[Path]:
    """Downloads the files of an image set, packed as they are published; those that are right already stay.

    Args:
        published: the set.
        root: the data root.
        progress: told of every chunk.

    Returns:
        The files that were downloaded.

    Raises:
        FetchError: after several attempts, or for a file that is not the published one; nothing of it is kept.
    """
    fetched = []
    for download in published.downloads:
        path = root / download.path
        if path.is_file() and md5_of(path.read_bytes()) == download.md5:
            continue
        try:
            data = _received(download.url, progress)
        except (OSError, http.client.HTTPException) as error:
            by_hand = f"where there is no network, put the file with MD5 {download.md5} at {path} yourself"
            raise FetchError(f"{published.name}: cannot download {download.url}: {error}; {by_hand}") from error
        if (md5 := md5_of(data)) != download.md5:
            problem = f"{len(data):,} bytes with MD5 {md5}, published is {download.md5}"
            raise FetchError(f"{published.name}: {download.url} gave {problem}; nothing of it was kept")
        LocalStorage(path.parent).replace(path.name, data)
        fetched.append(path)
    return fetched


def _received(url: str, progress: Progress | None, attempts: int = ATTEMPTS) -> bytes:
    try:
        return _receive(url, progress)
    except (OSError, http.client.HTTPException) as error:
        refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
        if refused or attempts == 1:
            raise
    time.sleep(WAIT_SECONDS)
    return _received(url, progress, attempts - 1)


def _receive(url: str, progress: Progress | None) -> bytes:
    data = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        length = response.headers["Content-Length"]
        total = int(length) if length else None
        while chunk := response.read(CHUNK):
            data += chunk
            if progress:
                progress(url.rpartition("/")[2], len(data), total)
    if total is not None and len(data) < total:  # the connection broke, which read() does not say
        raise http.client.IncompleteRead(bytes(data), total - len(data))
    return bytes(data)
