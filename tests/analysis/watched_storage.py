"""A sweep whose storage can be stopped at every single step, and its rows as a reader sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.manifest import MERGED_TABLES
from trainables.storage import LocalStorage
from trainables.store import Store, SweepStore

Hook = Callable[[str, str, str], None]
"""Operation, name of the file, and "before" or "after"."""

WRITING = ("create", "replace", "append", "delete", "move")
OPERATIONS = (*WRITING, "read", "names", "folders", "exists", "age")


class WatchedStorage(LocalStorage):
    """A directory that tells of every operation, before and after it."""

    def __init__(self, root: Path, hook: Hook) -> None:
        super().__init__(root)
        self.hook = hook

    def below(self, folder: str) -> WatchedStorage:
        return WatchedStorage(self.path(folder), self.hook)


def _watched(operation: str) -> Callable[..., Any]:
    def call(self: WatchedStorage, *arguments: Any) -> Any:
        name = str(arguments[0]) if arguments else ""
        self.hook(operation, name, "before")
        result = getattr(LocalStorage, operation)(self, *arguments)
        self.hook(operation, name, "after")
        return result

    return call


for _operation in OPERATIONS:
    setattr(WatchedStorage, _operation, _watched(_operation))


def watched(root: Path, hook: Hook) -> Store:
    """The store in a directory, every operation on which is told."""
    store = Store(root)
    store.storage = WatchedStorage(root, hook)
    return store


class KilledError(BaseException):
    """Where a process was killed: nothing of it runs any more."""


class Fault:
    """Makes one operation fail, counted from 0.

    Args:
        at: which; None: none, which counts them.
        when: before or after it has its effect.
        killed: whether every later one fails, too, as of a process that is no more; else it is an OSError, once.
        among: the operations that count; to be killed before one that only reads is like being killed before the next
            one that writes.
    """

    def __init__(
        self, at: int | None, when: str = "before", *, killed: bool = True, among: tuple[str, ...] = WRITING
    ) -> None:
        self.at, self.when, self.killed, self.among = at, when, killed, among
        self.count = 0
        self.fired = False

    def __call__(self, operation: str, name: str, when: str) -> None:
        if self.fired and self.killed:
            raise KilledError
        if when != self.when or operation not in self.among:
            return
        if self.count == self.at:
            self.fired = True
            raise KilledError if self.killed else OSError(f"{operation} {name}: no answer")
        self.count += 1


def rows(sweep: SweepStore) -> dict[str, list[str]]:
    """Every row that a reader sees at this moment, as text, sorted; side tables joined as the views do it."""
    listing = sweep.listing(*MERGED_TABLES)
    found = {table: listing.dataset(table).to_table().to_pylist() for table in MERGED_TABLES}
    accepted = {(row["pack_id"], row["attempt"]) for row in found["trials"]}
    return {
        table: sorted(str(row) for row in each if (row["pack_id"], row["attempt"]) in accepted)
        for table, each in found.items()
    }


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
