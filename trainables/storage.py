"""Where a store's files lie: one small interface, and its implementation on a file system.

What all else rests on is :meth:`Storage.create`: of several that create one name, one succeeds. Nothing else decides
between two processes, so no backend needs locks, clocks or compare-and-swap.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem
from typing_extensions import override

PARTIAL = ".partial"
"""How the names of files end that are still being written."""

PATIENCE_OF_WORK = 120.0
"""Seconds for which a launch or a pack under way waits for a store over a network that does not answer."""


class StoreError(Exception):
    """The store cannot do what is asked of it."""


class DamagedStoreError(StoreError):
    """A file of the store is damaged."""


def is_damage(error: Exception) -> bool:
    """Whether a file cannot be read for what it holds: of that PyArrow raises a plain OSError, and a disk EIO.

    Not where it may not be read, is gone, or the store does not answer.
    """
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno in {None, errno.EIO, errno.EBADMSG}
    return isinstance(error, pa.ArrowException | ValueError)


class Storage(ABC):
    """Files below one root, each of which exists whole or not at all.

    Names are relative, with ``/`` between folders; folders need not be made. Invariants, which one suite of tests asks
    of every backend:

    - Of any number of concurrent :meth:`create` of one name, exactly one succeeds, unless they bring the same bytes.
    - A reader sees a file whole: as created, or as some :meth:`replace` left it.
    - When a method that writes has returned, what it wrote outlasts a crash, and every later reader and :meth:`names`
      sees it. When it has raised, the file is as it was before or as it was to be, never in between.
    - Whether an answer was lost on the way is found out by reading, not left to the caller.
    - Nothing outside of the root is read or written, whatever a name or a link says.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.on_silence: Callable[[str], None] = lambda why: None  # told now and then while there is no answer

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        """A file as people find it."""
        return f"{self.url}/{name}"

    @property
    @abstractmethod
    def is_remote(self) -> bool:
        """Whether each operation is a request over a network."""

    @abstractmethod
    def below(self, folder: str) -> Storage:
        """The storage whose root is a folder of this one."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Creates a file; does nothing where it is there with the same content.

        Raises:
            FileExistsError: it is there with another content.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Writes a file, in place of the one there, if any; of concurrent ones the last stays."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Adds to a log that one process writes; alone among the methods it may lose or cut its line in a crash.

        On an object store it costs as much as writing the file anew.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes a file, if it is there."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names (without the folder) of the files in a folder, sorted; hidden and unfinished ones are left out."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders below the root, sorted; hidden ones are left out."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def age(self, name: str) -> float:
        """Seconds since a file was written, by the storage's own clock.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def remove(self) -> None:
        """Deletes everything below the root."""

    @abstractmethod
    def filesystem(self) -> FileSystem:
        """The files for PyArrow, to read only."""

    def move(self, name: str, to: str) -> None:
        """Moves a file; stopped in the middle it is there twice, never gone."""
        self.replace(to, self.read(name))
        if to != name:
            self.delete(name)

    def read_if_there(self, name: str) -> bytes | None:
        """A whole file, or None where there is none."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def check(self) -> None:
        """Finds out whether files can be written here, and exclusively.

        Raises:
            StoreError: they cannot, with the reason.
        """
        name = f".probe-{secrets.token_hex(6)}"
        try:
            self.create(name, b"first" * 50_000)  # enough for a full disk to say so
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be written: {error}") from error
        try:
            self.create(name, b"second")
        except FileExistsError:
            return
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be written: {error}") from error
        finally:
            with suppress(OSError):
                self.delete(name)
        raise StoreError(
            f"{self.url}: creating a file that exists succeeds there (no conditional put?), so that two launches could "
            "overwrite each other's rows; use another file system or object store"
        )


def contained(name: str) -> str:
    """The name, where it stays below the root.

    Raises:
        StoreError: it does not.
    """
    if "\\" in name or not name.isprintable() or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise StoreError(f"{name!r} is no name of a file in a store")
    return name


class LocalStorage(Storage):
    """A directory of a file system, local or shared, that has hard links."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.root = root

    def path(self, name: str) -> Path:
        """Where a file lies.

        Raises:
            StoreError: a link leads elsewhere.
        """
        path = self.root / contained(name)
        for part in (path, *path.parents):
            if part == self.root:
                break
            if part.is_symlink():
                raise StoreError(f"{part} is a link: a store holds files of its own only; put the file itself there")
        return path

    @override
    def below(self, folder: str) -> LocalStorage:
        return LocalStorage(self.path(folder))

    @override
    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    @override
    def create(self, name: str, data: bytes) -> None:
        path = self.path(name)
        with _partial(path, data) as partial:
            try:
                os.link(partial, path)
            except FileExistsError:
                if self.read_if_there(name) != data:
                    raise
            except OSError as error:
                if error.errno in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
                    raise StoreError(
                        f"{path.parent}: the file system has no hard links, which commits rest on"
                    ) from error
                raise
        _sync_directory(path.parent)

    @override
    def replace(self, name: str, data: bytes) -> None:
        path = self.path(name)
        with _partial(path, data) as partial:
            os.replace(partial, path)
        _sync_directory(path.parent)

    @override
    def append(self, name: str, data: bytes) -> None:
        path = self.path(name)
        _make(path.parent)
        with path.open("ab") as file:
            file.write(data)

    @override
    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    @override
    def names(self, folder: str) -> list[str]:
        return [name for name, entry in self._entries(folder) if entry.is_file(follow_symlinks=False)]

    @override
    def folders(self) -> list[str]:
        return [name for name, entry in self._entries("") if entry.is_dir(follow_symlinks=False)]

    def _entries(self, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
        path = self.path(folder) if folder else self.root
        try:
            with os.scandir(path) as found:
                return sorted((e.name, e) for e in found if not (e.name.startswith(".") or e.name.endswith(PARTIAL)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @override
    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    @override
    def age(self, name: str) -> float:
        written = self.path(name).stat().st_mtime
        probe = f".probe-{secrets.token_hex(6)}"
        self.create(probe, b"")  # the server's clock may not be ours
        try:
            return self.path(probe).stat().st_mtime - written
        finally:
            self.delete(probe)

    @override
    def remove(self) -> None:
        for left in self.root.parent.glob(f".{self.root.name}.*.removed"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        if not self.root.exists():
            return
        gone = self.root.with_name(f".{self.root.name}.{secrets.token_hex(6)}.removed")
        self.root.rename(gone)  # at once invisible, whatever happens while files go
        shutil.rmtree(gone)

    @override
    def filesystem(self) -> FileSystem:
        return SubTreeFileSystem(str(self.root), LocalFileSystem())

    @override
    def move(self, name: str, to: str) -> None:
        source, target = self.path(name), self.path(to)
        _make(target.parent)
        os.replace(source, target)
        _sync_directory(target.parent)
        _sync_directory(source.parent)


def open_storage(url: str | Path, patience: float | None = None) -> Storage:
    """The storage at a directory, ``file://`` or the URL of an object store: ``s3://bucket/prefix``, ``gs://``, ``az://``.

    Args:
        url: where it lies.
        patience: seconds for which a request over a network is tried again; None: as suits a person who waits for it.

    Raises:
        StoreError: it is neither.
    """
    text = str(url)
    scheme, found, _ = text.partition("://")
    if found and scheme != "file":
        from trainables.object_storage import ObjectStorage

        return ObjectStorage(text) if patience is None else ObjectStorage(text, patience)
    root = Path(text.removeprefix("file://")).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise StoreError(f"store {root}: it is a file, a directory is expected")
    return LocalStorage(root)


@contextmanager
def _partial(path: Path, data: bytes) -> Iterator[Path]:
    """The whole content under a name that nobody reads, for as long as it takes to give it its own."""
    _make(path.parent)
    partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
    try:
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; nothing of it was kept", str(path)) from error
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _make(directory: Path) -> None:
    """Makes a directory that outlasts a crash."""
    if not directory.is_dir():
        _make(directory.parent)
        try:
            directory.mkdir(exist_ok=True)
        except FileExistsError:  # which would read as if another one had created the file
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)) from None
        _sync_directory(directory.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
