"""Which packs `compact` has merged into which files: the one place where that is decided.

``manifest/000001.json``, ``000002.json``, ... each hold the whole truth, and the highest number counts. A new one is
created exclusively under the next number: who worked from an older one is refused and changes nothing. Beside each lies
a copy, since no other file says which packs are merged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from trainables.schema import FORMAT, SIDE_TABLES
from trainables.sealed import is_whole, seal, unsealed
from trainables.storage import DamagedStoreError, Storage, StoreError

FOLDER = "manifest"
COPY = ".copy"
MERGED = "merged"
MERGED_TABLES = ("trials", *SIDE_TABLES)

_NAME = re.compile(r"(\d{6,})\.json(\.copy)?")


@dataclass(frozen=True)
class Batch:
    """Packs that were merged together.

    Attributes:
        packs: pack_id -> attempt of the packs whose rows these files hold.
        files: table -> name of the merged file, whose name has the first digits of its SHA-256.
        kept: name -> size and sha256 of what stays as it was beside them: endpoints.
        size: bytes of the merged files together.
    """

    packs: Mapping[str, str]
    files: Mapping[str, str]
    kept: Mapping[str, Mapping[str, Any]]
    size: int


@dataclass(frozen=True)
class Manifest:
    """All batches; number 0 is that of a sweep that was never compacted."""

    number: int = 0
    batches: tuple[Batch, ...] = ()

    @cached_property
    def packs(self) -> dict[str, str]:
        """pack_id -> attempt of every pack that is merged."""
        return {pack: attempt for batch in self.batches for pack, attempt in batch.packs.items()}

    def files(self, table: str) -> Iterator[str]:
        """Names of the merged files of a table."""
        return (batch.files[table] for batch in self.batches if table in batch.files)

    def successor(self, batches: tuple[Batch, ...]) -> Manifest:
        """The next one, with other batches."""
        return replace(self, number=self.number + 1, batches=batches)

    def write(self, storage: Storage) -> None:
        """Makes it the one that counts.

        Raises:
            FileExistsError: another one was written since its predecessor was read.
        """
        content = {"format": FORMAT, "batches": [vars(batch) for batch in self.batches]}
        data = seal(json.dumps(content, sort_keys=True).encode())
        storage.create(file_name(self.number), data)
        storage.replace(file_name(self.number) + COPY, data)


def file_name(number: int) -> str:
    """Of the manifest of this number."""
    return f"{FOLDER}/{number:06d}.json"


def numbers(storage: Storage) -> list[int]:
    """Of the manifests that are there, the one that counts last; one whose file is lost may still have its copy."""
    return sorted({int(name[1]) for name in map(_NAME.fullmatch, storage.names(FOLDER)) if name})


def read_manifest(storage: Storage) -> Manifest:
    """The manifest that counts.

    Raises:
        DamagedStoreError: neither it nor its copy is what was written.
        StoreError: a newer version of Isoratio wrote it.
    """
    while there := numbers(storage):
        manifest = read_numbered(storage, there[-1])
        if manifest is not None:
            return manifest
    return Manifest()


def read_numbered(storage: Storage, number: int) -> Manifest | None:
    """The manifest of this number; None where it has gone, since newer ones have replaced it.

    Raises:
        DamagedStoreError: neither it nor its copy is what was written.
        StoreError: a newer version of Isoratio wrote it.
    """
    name = file_name(number)
    damaged = False
    for each in (name, name + COPY):
        data = storage.read_if_there(each)
        if data is not None and is_whole(data):
            return _parsed(data, number, storage.where(each))
        damaged |= data is not None
    if damaged:
        raise DamagedStoreError(
            f"{storage.where(name)}: it and its copy are damaged; `isoratio verify` moves them to quarantine, then "
            "`isoratio resume` of the sweep runs again what is gone"
        )
    return None


def _parsed(data: bytes, number: int, where: str) -> Manifest:
    content = json.loads(unsealed(data))
    if content["format"] > FORMAT:
        raise StoreError(
            f"{where}: a newer version of Isoratio wrote it, in format {content['format']}; this one reads up to "
            f"format {FORMAT}: install a newer one"
        )
    return Manifest(number, tuple(Batch(**batch) for batch in content["batches"]))
