"""What was committed: the files of a pack's accepted attempt, as its sums say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from trainables.schema import SIDE_TABLES
from trainables.storage import Storage, is_damage
from trainables.store import ENDPOINTS, checksum, damaged, rows_name, side_name

T = TypeVar("T")
R = TypeVar("R")

SIDES = (*SIDE_TABLES, ENDPOINTS)
"""Kinds of files that go with the rows of a pack."""

FEW = 32  # so many files are read one after the other


@dataclass(frozen=True)
class Digest:
    """Of a file.

    Attributes:
        size: in bytes; -1 where it cannot be read.
        sha256: hexadecimal; the reason where it cannot be read.
    """

    size: int
    sha256: str

    @classmethod
    def of_data(cls, data: bytes) -> Digest:
        """Of a file's content."""
        return cls(**checksum(data))

    @property
    def unreadable(self) -> str | None:
        """Why the file cannot be read, where that is so."""
        return f"cannot be read: {self.sha256}" if self.size == -1 else None

    def problem(self, expected: Mapping[str, Any]) -> str | None:
        """How the file differs from a sum, if it does."""
        if self.size not in {-1, expected["size"]}:
            return f"has {self.size} bytes instead of {expected['size']}"
        return self.unreadable or (None if self.sha256 == expected["sha256"] else "differs from what was committed")

    def problem_as_named(self, name: str) -> str | None:
        """How the file differs from its name, which ends with the first digits of its SHA-256 and a suffix."""
        same = self.sha256[:16] == name.rsplit(".", 2)[-2]
        return self.unreadable or (None if same else "differs from what was written")


def read_damaged(storage: Storage, name: str) -> tuple[Digest, bytes] | None:
    """A file, whatever state it is in; None where it has gone."""
    try:
        data = storage.read_if_there(name)
    except OSError as error:
        if not is_damage(error):
            raise
        return Digest(-1, str(error)), b""
    return None if data is None else (Digest.of_data(data), data)


def checked(storage: Storage, name: str, sums: Mapping[str, Any] | None = None) -> bytes:
    """A file, once it is known to be what was written: as its sum says, or without one its own name.

    Raises:
        DamagedStoreError: it is not.
    """
    found = read_damaged(storage, name)
    if found is None:
        raise damaged(storage.where(name), "it is not there")
    digest, data = found
    if problem := digest.problem_as_named(name) if sums is None else digest.problem(sums):
        raise damaged(storage.where(name), f"it {problem}")
    return data


@dataclass(frozen=True)
class Sums:
    """What one attempt at a pack wrote.

    Attributes:
        pack_id: of the pack.
        attempt: name of the attempt.
        files: name -> size and sha256.
    """

    pack_id: str
    attempt: str
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, name: str, data: bytes) -> Sums:
        """From a file ``sums/<pack>.<attempt>.json``.

        Raises:
            ValueError: it is not what a commit writes, to the last byte.
        """
        pack_id, attempt, _ = name.rpartition("/")[2].split(".")
        files = json.loads(data)
        possible = {rows_name(pack_id), *(side_name(kind, pack_id, attempt) for kind in SIDES)}
        if json.dumps(files, indent=1, sort_keys=True).encode() != data or not _is_sums(files, possible):
            raise ValueError("it does not hold the sums of a commit")
        if rows_name(pack_id) not in files:
            raise ValueError("it says nothing of the pack's rows")
        return cls(pack_id, attempt, files)

    @property
    def rows(self) -> Mapping[str, Any]:
        """Size and sha256 of the pack's rows."""
        return self.files[rows_name(self.pack_id)]

    @property
    def sides(self) -> dict[str, str]:
        """Kind -> name of what goes with the rows."""
        return {name.partition("/")[0]: name for name in self.files if name != rows_name(self.pack_id)}


def _is_sums(files: Any, possible: Collection[str]) -> bool:
    return (
        isinstance(files, dict)
        and files.keys() <= {*possible}
        and all(isinstance(found, dict) and found.keys() == {"size", "sha256"} for found in files.values())
        and all(isinstance(f["size"], int) and re.fullmatch("[0-9a-f]{64}", str(f["sha256"])) for f in files.values())
    )


def in_threads(function: Callable[[T], R], items: Collection[T]) -> list[R]:
    """Results in the order of the items; few of them, in this thread."""
    if len(items) <= FEW:
        return [function(item) for item in items]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, items))
