"""Deletes files of a sweep that nobody reads any longer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from analysis.commits import SIDES, checked, in_threads
from trainables.manifest import COPY, MERGED, Manifest, file_name, numbers, read_manifest, read_numbered
from trainables.storage import PARTIAL, LocalStorage, Storage
from trainables.store import SweepStore, pack_of

GRACE = 3600.0
"""Seconds for which files that were merged stay: whoever began to read them before can go on."""

ABANDONED = 24 * 3600.0
"""Seconds after which an attempt that was never committed counts as dead, and not as a process that is paused."""

AT_ONCE = 256
MERGED_NAME = re.compile(r"[a-z]+-(\d{6,})-[0-9a-f]+\.[0-9a-f]{16}\.parquet")


@dataclass(frozen=True)
class Superfluous:
    """Names of files to delete, in this order.

    Attributes:
        manifest: the one that counts, from which all this follows.
        rows: those of packs that are merged. They go first: what they leave behind is then of no pack.
        others: all else.
    """

    manifest: Manifest
    rows: tuple[str, ...]
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.others)


def discard(sweep: SweepStore, grace: float = GRACE) -> int:
    """Deletes what nobody reads any longer, and returns how many files that was.

    - Files of packs that were merged ``grace`` seconds ago, by the storage's own clock, endpoints excepted; merged
      files that were merged anew since, or whose compaction has failed; manifests older than the last two.
    - Checkpoints of committed packs; after :data:`ABANDONED` seconds, what attempts that were never committed have
      left, and unfinished files.

    To be called by whoever holds the sweep.

    Raises:
        DamagedStoreError: a merged file is not what was written; the packs' own files are kept then.
    """
    found, storage = superfluous(sweep, grace), sweep.storage
    _check_merged(storage, found)
    deleted = 0
    for start in range(0, len(found.rows), AT_ONCE):
        if numbers(storage)[-1:] != [found.manifest.number]:  # packs may no longer be merged, and be run again
            return deleted
        some = found.rows[start : start + AT_ONCE]
        in_threads(storage.delete, some)
        deleted += len(some)
    in_threads(storage.delete, found.others)
    return deleted + len(found.others)


def superfluous(sweep: SweepStore, grace: float) -> Superfluous:
    """What :func:`discard` deletes.

    Raises:
        DamagedStoreError: what was merged cannot be told.
    """
    storage = sweep.storage
    folders = ("trials", *SIDES, "sums", MERGED, "checkpoints")
    names = {folder: [f"{folder}/{name}" for name in storage.names(folder)] for folder in folders}
    manifest = read_manifest(storage)
    committed = {*map(pack_of, names["trials"]), *manifest.packs}
    rows, others = _replaced(storage, manifest, names, grace)
    others += [name for name in names["checkpoints"] if pack_of(name) in committed]
    uncommitted = [name for kind in (*SIDES, "sums") for name in names[kind] if pack_of(name) not in committed]
    patience = max(grace, ABANDONED)
    others += [name for name in (*uncommitted, *_unfinished(storage)) if _is_older(storage, name, patience)]
    return Superfluous(manifest, tuple(rows), tuple(others))


def _replaced(
    storage: Storage, manifest: Manifest, names: Mapping[str, list[str]], grace: float
) -> tuple[list[str], list[str]]:
    """Rows of merged packs, and other files, in whose place others have been for long enough."""
    kept = {name for batch in manifest.batches for name in batch.kept}
    rows = [name for name in names["trials"] if pack_of(name) in manifest.packs]
    beside = [n for kind in (*SIDES, "sums") for n in names[kind] if pack_of(n) in manifest.packs and n not in kept]
    unnamed = {*names[MERGED]} - _named(manifest)
    there = numbers(storage)
    if not (rows or beside or unnamed or there[:-2]):
        return [], []
    settled = _settled(storage, there, grace)
    attempts = settled.packs.items() & manifest.packs.items()
    long_merged = {pack for pack, _ in attempts}
    rows, beside = ([name for name in each if pack_of(name) in long_merged] for each in (rows, beside))
    stay = [number for number in there if number >= settled.number or number in there[-2:]]
    named = {name for number in stay for name in _named(read_numbered(storage, number))}
    merged = [name for name in sorted(unnamed - named) if _merged_for(name) <= settled.number]
    old = [name for n in there if n not in stay for name in (file_name(n), file_name(n) + COPY)]
    return rows, [*beside, *merged, *old]


def _named(manifest: Manifest | None) -> set[str]:
    return {name for batch in manifest.batches for name in batch.files.values()} if manifest else set()


def _merged_for(name: str) -> float:
    """Number of the manifest that a merged file was written for: once there is a later one, none will name it."""
    found = MERGED_NAME.fullmatch(name.removeprefix(f"{MERGED}/"))
    return int(found[1]) if found else math.inf


def _settled(storage: Storage, there: Sequence[int], grace: float) -> Manifest:
    """The last manifest that was written so long ago that no reader has an earlier one in mind."""
    old = (number for number in reversed(there) if _is_older(storage, file_name(number), grace))
    number = next(old, None)
    return (read_numbered(storage, number) if number else None) or Manifest()


def _is_older(storage: Storage, name: str, seconds: float) -> bool:
    try:
        return storage.age(name) >= seconds
    except FileNotFoundError:
        return False


def _unfinished(storage: Storage) -> list[str]:
    """What processes that were killed while they wrote a file have left; an object store shows nothing of it."""
    if not isinstance(storage, LocalStorage):
        return []
    found = chain.from_iterable(storage.root.glob(p) for p in (f".*{PARTIAL}", f"*/.*{PARTIAL}", ".probe-*"))
    return sorted(str(path.relative_to(storage.root)) for path in found if not path.is_symlink())


def _check_merged(storage: Storage, found: Superfluous) -> None:
    """That merged files are whole before those go that they were made of."""
    packs = {*map(pack_of, found.rows)}
    batches = [batch for batch in found.manifest.batches if not packs.isdisjoint(batch.packs)]
    in_threads(partial(checked, storage), [name for batch in batches for name in batch.files.values()])
