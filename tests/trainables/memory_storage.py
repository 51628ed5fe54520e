"""A storage in memory, for simulations that fail, delay or stop what is done to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
from pyarrow.fs import FileSystem, PyFileSystem

from trainables.object_storage import ReadOnlyFiles
from trainables.storage import PARTIAL, Storage, contained

Hook = Callable[[str, str, Literal["before", "after"]], None]
"""Called with the operation, the name from the outermost root, and when: what it raises *before* keeps the operation
from happening, what it raises *after* only keeps the caller from hearing of it."""


@dataclass
class Files:
    """What all storages that are one place share: name from the outermost root -> content and time of writing."""

    contents: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, data: bytes, now: float) -> None:
        self.contents[key], self.written[key] = bytes(data), now


class MemoryStorage(Storage):
    """Files in memory; each operation happens at one moment, between the two calls of the hook."""

    is_remote = False

    def __init__(self, hook: Hook | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("memory:")
        self.files, self.prefix = Files(), ""
        self.hook, self.clock = hook, clock

    def seen_by(self, hook: Hook | None) -> MemoryStorage:
        """The same files, as another process works on them."""
        storage = copy(self)
        storage.hook = hook
        return storage

    @contextmanager
    def _doing(self, operation: str, name: str | None = None) -> Iterator[str]:
        key = self.prefix.rstrip("/") if name is None else self.prefix + contained(name)
        if self.hook:
            self.hook(operation, key, "before")
        with self.files.lock:
            yield key
        if self.hook:
            self.hook(operation, key, "after")

    def below(self, folder: str) -> MemoryStorage:
        storage = copy(self)
        storage.url, storage.prefix = self.where(folder), f"{self.prefix}{contained(folder)}/"
        return storage

    def read(self, name: str) -> bytes:
        with self._doing("read", name) as key:
            return self._there(key)

    def create(self, name: str, data: bytes) -> None:
        with self._doing("create", name) as key:
            if key not in self.files.contents:
                self.files.put(key, data, self.clock())
            elif self.files.contents[key] != data:
                raise FileExistsError(f"{self.where(name)} exists")

    def replace(self, name: str, data: bytes) -> None:
        with self._doing("replace", name) as key:
            self.files.put(key, data, self.clock())

    def append(self, name: str, data: bytes) -> None:
        with self._doing("append", name) as key:
            self.files.put(key, self.files.contents.get(key, b"") + data, self.clock())

    def delete(self, name: str) -> None:
        with self._doing("delete", name) as key:
            self.files.contents.pop(key, None)

    def names(self, folder: str) -> list[str]:
        with self._doing("names", folder or None) as key:
            found = self._below(f"{key}/" if key else "")
        return sorted(n for n in found if "/" not in n and not (n.startswith(".") or n.endswith(PARTIAL)))

    def folders(self) -> list[str]:
        with self._doing("folders"):
            found = self._below(self.prefix)
        return sorted({n.partition("/")[0] for n in found if "/" in n and not n.startswith(".")})

    def exists(self, name: str) -> bool:
        with self._doing("exists", name) as key:
            return key in self.files.contents

    def age(self, name: str) -> float:
        with self._doing("age", name) as key:
            self._there(key)
            return self.clock() - self.files.written[key]

    def remove(self) -> None:
        with self._doing("remove"):
            for name in self._below(self.prefix):
                del self.files.contents[self.prefix + name]

    def filesystem(self) -> FileSystem:
        return PyFileSystem(ReadOnlyFiles(self, lambda name: pa.BufferReader(self.read(name))))

    def _below(self, prefix: str) -> list[str]:
        return [key.removeprefix(prefix) for key in self.files.contents if key.startswith(prefix)]

    def _there(self, key: str) -> bytes:
        if key not in self.files.contents:
            raise FileNotFoundError(f"memory:/{key}: there is none")
        return self.files.contents[key]
