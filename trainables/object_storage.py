"""Files in an object store (S3 and what speaks its protocol, Google Cloud Storage, Azure), through obstore.

Exclusive creation is a conditional put (``If-None-Match: *``). Credentials, region and endpoint come from the
environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT``, ...; those of a cloud
machine's role are found by themselves, files such as ``~/.aws/credentials`` are not read.
"""

from __future__ import annotations

import io
import math
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError
from obstore.store import from_url
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileSystemHandler, FileType, PyFileSystem
from typing_extensions import override

from trainables.storage import PARTIAL, DamagedStoreError, Storage, StoreError, contained

PATIENCE = 30.0
"""Seconds for which a request is tried again."""
PATIENCE_OF_CHECK = 3.0
LONGEST_PAUSE = 3.0
"""Between two tries, in seconds."""
SILENCE = 6.0
"""Seconds without an answer of which nothing is said."""
RETRY: Any = {"max_retries": 3}  # of the library's own, half a second: it does not listen to Ctrl-C meanwhile
CLIENT: Any = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(minutes=2),  # without a sign of life, or for the whole of an upload
    "timeout": timedelta(hours=1),
}
WHOLE = 8 << 20
"""Bytes up to which a file that PyArrow opens is fetched in one request, rather than by its parts."""
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_..., AZURE_...)"
ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
SCHEMES = ("s3", "gs", "az")

T = TypeVar("T")


class UnansweredError(OSError):
    """The store did not say whether it did what was asked, or asked to be asked again."""


@dataclass
class Silence:
    """Since when a store does not answer: the patience of all who ask ends together, not one after the other."""

    since: float = math.inf
    last: float = -math.inf

    def lasts(self, began: float, now: float) -> float:
        """Seconds, for a request that began then and has no answer now. One of long ago says nothing of this one."""
        if now - self.last > PATIENCE:
            self.since = math.inf
        self.since, self.last = min(self.since, began), now
        return now - self.since


class ObjectStorage(Storage):
    """A prefix of a bucket.

    Args:
        url: such as ``s3://bucket/prefix``.
        patience: seconds for which a request is tried again.

    Raises:
        StoreError: a URL that is none, or that holds credentials.
    """

    is_remote = True

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        super().__init__(url)
        self.patience, self.silence = patience, Silence()
        bucket, self.prefix = _split(url)
        try:
            self.store: Any = from_url(bucket, client_options=CLIENT, retry_config=RETRY)
        except (BaseError, ValueError, TypeError) as error:
            raise _error(f"store {self.url}", error) from None

    @override
    def below(self, folder: str) -> ObjectStorage:
        storage = copy(self)  # shares the connections
        storage.url, storage.prefix = self.where(folder), self._key(folder)
        return storage

    @override
    def read(self, name: str) -> bytes:
        return self._asked(name, partial(self._get, self._key(name)))

    @override
    def create(self, name: str, data: bytes) -> None:
        key = self._key(name)

        def put() -> None:
            try:
                self._ask(name, lambda: obstore.put(self.store, key, data, mode="create", use_multipart=False))
            except UnansweredError:  # it is there, may be there, or another one is on its way
                with suppress(FileNotFoundError):
                    if self._ask(name, partial(self._get, key)) == data:
                        return
                    raise FileExistsError(f"{self.where(name)} exists") from None
                raise

        self._until_answered(put)

    def _get(self, key: str, **options: Any) -> bytes:
        asked: Any = options or None
        return bytes(obstore.get(self.store, key, options=asked).bytes())

    @override
    def replace(self, name: str, data: bytes) -> None:
        key = self._key(name)
        self._asked(name, lambda: obstore.put(self.store, key, data, use_multipart=False))  # leaves no parts behind

    @override
    def append(self, name: str, data: bytes) -> None:
        self.replace(name, (self.read_if_there(name) or b"") + data)

    @override
    def delete(self, name: str) -> None:
        key = self._key(name)
        with suppress(FileNotFoundError):
            self._asked(name, lambda: obstore.delete(self.store, key))

    @override
    def names(self, folder: str) -> list[str]:
        return self._listed(folder, "objects")

    @override
    def folders(self) -> list[str]:
        return self._listed("", "common_prefixes")

    @override
    def exists(self, name: str) -> bool:
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        return True

    @override
    def age(self, name: str) -> float:
        written = self._head(name)
        probe = f".probe-{secrets.token_hex(6)}"
        self.create(probe, b"")  # the store's clock is not ours
        try:
            seconds: float = (self._head(probe)["last_modified"] - written["last_modified"]).total_seconds()
        finally:
            self.delete(probe)
        return seconds

    @override
    def remove(self) -> None:
        listed: Any = self._asked("", lambda: list(obstore.list(self.store, self.prefix or None, chunk_size=1000)))
        for batch in listed:
            self._asked("", partial(obstore.delete, self.store, [entry["path"] for entry in batch]))

    @override
    def check(self) -> None:
        impatient = copy(self)
        impatient.patience = min(self.patience, PATIENCE_OF_CHECK)
        super(ObjectStorage, impatient).check()

    @override
    def filesystem(self) -> FileSystem:
        return PyFileSystem(ReadOnlyFiles(self, self.open))

    def open(self, name: str) -> pa.NativeFile:
        """A file for PyArrow."""
        key = self._key(name)

        def opened() -> pa.NativeFile:
            found = obstore.get(self.store, key)
            if found.meta["size"] <= WHOLE:
                return pa.BufferReader(bytes(found.bytes()))
            return pa.PythonFile(Parts(self, name, found.meta), mode="r")

        return self._asked(name, opened)

    def read_part(self, name: str, start: int, end: int, e_tag: str) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive) of a file that is still the same."""
        return self._asked(name, partial(self._get, self._key(name), range=(start, end), if_match=e_tag))

    def _head(self, name: str) -> Any:
        key = self._key(name)
        return self._asked(name, lambda: obstore.head(self.store, key))

    def _listed(self, folder: str, kind: str) -> list[str]:
        prefix = self._key(folder) if folder else self.prefix
        found: Any = self._asked(folder, lambda: obstore.list_with_delimiter(self.store, prefix or None))
        paths = found[kind] if kind == "common_prefixes" else [entry["path"] for entry in found[kind]]
        start = f"{prefix}/" if prefix else ""
        names = (path.rstrip("/").removeprefix(start) for path in paths if path.startswith(start))
        return sorted(name for name in names if name and not (name.startswith(".") or name.endswith(PARTIAL)))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{contained(name)}".removeprefix("/")

    def _asked(self, name: str, request: Callable[[], T]) -> T:
        """What the store answers, asked again where the answer was lost: only for what may be done twice."""
        return self._until_answered(lambda: self._ask(name, request))

    def _until_answered(self, request: Callable[[], T]) -> T:
        began = time.monotonic()
        pause = 0.1
        while True:
            try:
                answer = request()
            except UnansweredError as error:
                waited = self.silence.lasts(began, time.monotonic())
                if waited + pause > self.patience:
                    raise
                if waited > SILENCE:
                    self.on_silence(str(error))
            except Exception:  # an answer, too
                self.silence.since = math.inf
                raise
            else:
                self.silence.since = math.inf
                return answer
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """What the store answers; errors as a file system has them, without the request, which may tell secrets."""
        try:
            return request()
        except (BaseError, FileNotFoundError, NotImplementedError, ValueError) as error:
            problem = _error(self.where(name) if name else self.url, error)
        raise problem


def _split(url: str) -> tuple[str, str]:
    """URL of the bucket, and prefix in it.

    Raises:
        StoreError: it is not of an object store, or the environment leads to none.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or "?" in url:
        raise StoreError(
            f"store {parts.scheme}://...{parts.path}: credentials do not belong into a URL, which is shown and stored; "
            f"set them in the environment, such as {CREDENTIALS}"
        )
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise StoreError(f"store {url}: allowed are a directory, s3://bucket/prefix, gs://... and az://...")
    for name in ENDPOINTS:
        if not re.match(r"https?://\S+$|$", os.environ.get(name, "")):
            raise StoreError(f"{name} in the environment must be a URL such as http://127.0.0.1:9000")
    prefix = url.removeprefix(f"{parts.scheme}://{parts.netloc}").strip("/")
    return f"{parts.scheme}://{parts.netloc}", contained(prefix) if prefix else ""


def _error(where: str, error: Exception) -> Exception:
    """What went wrong with a request, from the words of the library."""
    text = str(error)
    status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else None
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return StoreError(f"{where}: there is no such bucket; create it first, or mend the URL")
    if "169.254.169.254" in text or re.search(r"Missing\w*Key", text):
        return StoreError(f"{where}: no credentials found; set {CREDENTIALS}")
    if "invalid path" in text:
        return DamagedStoreError(f"{where}: holds a foreign object, delete it: {_first_line(error)}")
    if status in {401, 403}:
        return PermissionError(f"{where}: {_answer(text)}; check {CREDENTIALS} and what the bucket allows")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{where}: there is none")
    if status:
        passing = status >= 500 or status in {408, 409, 412, 429}
        return (UnansweredError if passing else StoreError)(f"{where}: {_answer(text)}")
    if "HTTP error" in text:
        reason = re.search(r'(?:message|error): "([^"]*)"', text) or re.search(r"kind: (Timeout)", text)
        return UnansweredError(f"{where}: no answer from {_host(text)}: {reason[1] if reason else 'connection lost'}")
    return StoreError(f"{where}: {_first_line(error)}")


def _answer(text: str) -> str:
    """What the server answers: of an S3 error only code and message, for the rest may repeat credentials."""
    status = re.findall(r"status code: (\d{3}(?: [A-Z]\w*)*)", text)[:1]
    said = re.findall(r"<(?:Code|Message)>([^<]*)<", text.partition("Debug source")[0])
    return f"{_host(text)} answers {': '.join(status + said)}"


def _host(text: str) -> str:
    found = re.search(r"https?://(?:[^/\s]*@)?([^/\s,]+)", text)
    return found[1] if found else "the store"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class Parts(io.RawIOBase):
    """A large file of which PyArrow reads what it needs."""

    def __init__(self, storage: ObjectStorage, name: str, meta: Any) -> None:
        self.storage, self.name, self.position = storage, name, 0
        self.size, self.e_tag = meta["size"], meta["e_tag"]

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    @override
    def tell(self) -> int:
        return self.position

    @override
    def read(self, size: int = -1) -> bytes:
        start, end = self.position, self.size if size < 0 else min(self.position + size, self.size)
        self.position = max(start, end)
        return self.storage.read_part(self.name, start, end, self.e_tag) if start < end else b""


class ReadOnlyFiles(FileSystemHandler):
    """The files of a storage for PyArrow, to read only.

    Args:
        storage: has the files.
        opened: a file by its name.
    """

    def __init__(self, storage: Storage, opened: Callable[[str], pa.NativeFile]) -> None:
        self.storage, self.opened = storage, opened

    @override
    def get_type_name(self) -> str:
        return "object-storage"

    @override
    def normalize_path(self, path: str) -> str:
        return path

    @override
    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        exist = [self.storage.exists(path) for path in paths]
        return [FileInfo(path, FileType.File if e else FileType.NotFound) for path, e in zip(paths, exist, strict=True)]

    @override
    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.opened(path)

    @override
    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.opened(path)

    @override
    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        raise NotImplementedError("a store's files are named, not searched for")

    def _read_only(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("the files of a store are only read here")

    create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = move = _read_only
    copy_file = open_output_stream = open_append_stream = _read_only
