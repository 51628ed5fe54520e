"""Is every stored file what was written? What is not goes to quarantine, so that the rest can be asked and resumed."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from analysis.checks import Findings, look
from analysis.compaction import BatchWriter, without
from analysis.database import select_sweeps
from trainables.manifest import COPY, read_manifest
from trainables.manifest import FOLDER as MANIFEST
from trainables.sealed import is_whole
from trainables.storage import LocalStorage, Storage
from trainables.store import Store, SweepStore

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written.

    Attributes:
        sweep: name.
        file: its path below the sweep's directory.
        problem: what is wrong with it.
    """

    sweep: str
    file: str
    problem: str


def verify(store: str | Path | Store, sweep: str | None = None) -> list[Damage]:
    """Checks every file of a store, and moves what is bad to ``quarantine/`` of its sweep.

    A pack goes as a whole: its rows of all tables, its endpoints and its sums. Of packs that `compact` has merged, all
    those go whose rows were in a bad file, except where their own files are still there. ``isoratio resume`` then runs
    their trials again. A manifest is restored from its copy. Launches and compactions may run meanwhile.

    What was written is told by the sums of a commit, by the hash in a file's name, or by its content; of a format that
    had neither, a file only has to be readable. Logs, and the copy of the sweep file, are for people, and not checked.

    Args:
        store: its directory or URL.
        sweep: only this one.

    Raises:
        StoreError: no such sweep, or a newer version of Isoratio has written there: nothing is moved then.
    """
    return [damage for each in select_sweeps(store, sweep) for damage in _verified(each)]


def _verified(sweep: SweepStore) -> list[Damage]:
    found = look(sweep)
    if found.damage:
        found = look(sweep).seen_before(found)
        _set_aside(sweep.storage, found)
    return [Damage(sweep.name, name, problem) for name, problem in sorted(found.damage.items())]


def _set_aside(storage: Storage, found: Findings) -> None:
    """Moves what is bad, in an order that can be interrupted: until it no longer counts, a file stays where it is."""
    merged = {name for name in found.damage if found.void.get(name)}
    gone = {*found.damage}.union(*(found.along.get(name, ()) for name in found.damage))
    for name in sorted(gone - merged, key=lambda name: (not name.startswith("trials/"), name)):
        if not _restored(storage, name):
            _move(storage, name)
    if merged:
        _uncover(storage, {pack for name in merged for pack in found.void[name]})
    for name in sorted(merged):
        _move(storage, name)


def _move(storage: Storage, name: str) -> None:
    """Moves a file, if it is there, below ``quarantine/``."""
    target = _free(storage, name)
    path = storage.root / name if isinstance(storage, LocalStorage) else None
    with suppress(FileNotFoundError):
        if isinstance(storage, LocalStorage) and path and (path.is_symlink() or path.is_dir()):
            storage.path(target).parent.mkdir(parents=True, exist_ok=True)
            path.rename(storage.path(target))
        else:
            storage.move(name, target)


def _free(storage: Storage, name: str) -> str:
    """A name in quarantine that is not in use: what is there stays."""
    names = chain([f"{QUARANTINE}/{name}"], (f"{QUARANTINE}/{name}.{number}" for number in count(1)))
    if isinstance(storage, LocalStorage):  # where links and folders may be there, too
        return next(each for each in names if not os.path.lexists(storage.root / each))
    return next(each for each in names if not storage.exists(each))


def _restored(storage: Storage, name: str) -> bool:
    """Writes a manifest anew from its copy, or a copy from its manifest; at no moment there is none."""
    if not name.startswith(f"{MANIFEST}/"):
        return False
    other = name.removesuffix(COPY) if name.endswith(COPY) else name + COPY
    data = storage.read_if_there(other)
    if data is None or not is_whole(data):
        return False
    with suppress(OSError):  # where it cannot even be read
        storage.replace(_free(storage, name), storage.read(name))
    storage.replace(name, data)
    return True


def _uncover(storage: Storage, packs: Collection[str]) -> None:
    """Makes packs count as not merged: by their own files, as far as those are still there."""
    while True:
        manifest = read_manifest(storage)
        writer = BatchWriter(storage, manifest.number + 1)
        each = [b if b.packs.keys().isdisjoint(packs) else without(storage, writer, b, packs) for b in manifest.batches]
        batches = tuple(batch for batch in each if batch)
        if batches == manifest.batches:
            return
        try:
            manifest.successor(batches).write(storage)
        except FileExistsError:  # a compaction was faster, and may have merged some of them anew
            writer.undo()
        else:
            return
