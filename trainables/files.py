"""Published image sets as they lie on disk, read as plain arrays: nothing in a file is executed, nothing is unpickled.

A file is used as it is published, packed; where that is missing, what it unpacks to is used. Either way the bytes pass
a known MD5 before they are looked at, which guards against accidents, not against forgery.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.published import Download, Part, Published, RecordFile


class DataFileError(ValueError):
    """A file of a data set is not as it should be.

    Attributes:
        path: the file.
        problem: what is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class MissingFileError(DataFileError):
    """There is no such file."""


class DamagedFileError(DataFileError):
    """The file is not the published one."""


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        pixels: shape (N, channels, height, width).
        labels: kind of label -> labels, shape (N,).
    """

    pixels: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]


def md5_of(data: bytes) -> str:
    """The checksum that all these sets are published with."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def data_root() -> Path:
    """Where data files lie: ``$ISORATIO_DATA``, else the user's cache."""
    given = os.environ.get("ISORATIO_DATA")
    return Path(given) if given else Path("~/.cache/isoratio").expanduser()


def use_data_root(root: str | Path | None) -> None:
    """Makes ``root`` that directory, for this process and those that it starts; None: leaves it."""
    if root is not None:
        os.environ["ISORATIO_DATA"] = str(Path(root).expanduser().absolute())


def read(published: Published, root: Path) -> tuple[Images, Images]:
    """Training and test part of an image set.

    Raises:
        MissingFileError: naming the path, its checksum and the command that fetches it.
        DamagedFileError: for a checksum, size, header or label that is not the published one.
    """
    contents: dict[RecordFile, bytes] = {}
    for download in published.downloads:
        contents |= _contents(published, download, root)
    return _part(published, "train", contents, root), _part(published, "test", contents, root)


def problems(published: Published, root: Path) -> Iterator[DataFileError]:
    """What is wrong with the files of an image set, going by their checksums."""
    for download in published.downloads:
        try:
            lying = _lying(published, download, root)
        except MissingFileError as error:
            yield error
            continue
        for path, md5 in lying.items():
            try:
                _checked(published, path, md5, root)
            except DamagedFileError as error:
                yield error


def any_of(published: Published, root: Path) -> bool:
    """Whether any file of an image set lies below ``root``."""
    paths = (path for d in published.downloads for path in (d.path, *(file.path for file in d.files)))
    return any((root / path).exists() for path in paths)


def _contents(published: Published, download: Download, root: Path) -> dict[RecordFile, bytes]:
    lying = _lying(published, download, root)
    data = [_checked(published, path, md5, root) for path, md5 in lying.items()]
    packed = root / download.path
    return _unpacked(download, packed, data[0]) if packed in lying else dict(zip(download.files, data, strict=True))


def _lying(published: Published, download: Download, root: Path) -> dict[Path, str]:
    """The files to use, with their MD5: the packed one where it exists, else what it unpacks to."""
    packed = root / download.path
    if packed.exists():
        return {packed: download.md5}
    unpacked = {root / file.path: file.md5 for file in download.files}
    if all(path.exists() for path in unpacked):
        return unpacked
    how = f"get it with `{_fetch_command(published, root)}`, or put it there yourself"
    raise MissingFileError(packed, f"missing (MD5 {download.md5}): {how}")


def _checked(published: Published, path: Path, md5: str, root: Path) -> bytes:
    data = path.read_bytes()
    if (found := md5_of(data)) != md5:
        problem = f"has {len(data):,} bytes with MD5 {found}, published is {md5}"
        raise DamagedFileError(path, f"{problem}: replace it with `{_fetch_command(published, root)}`")
    return data


def _fetch_command(published: Published, root: Path) -> str:
    place = "" if root == data_root() else f" --data-root {shlex.quote(str(root))}"
    return f"isoratio data fetch {published.name}{place}"


def _unpacked(download: Download, packed: Path, data: bytes) -> dict[RecordFile, bytes]:
    """What is needed of a packed file, read in memory: no name in an archive ever becomes a path."""
    if not packed.name.endswith(".tar.gz"):
        return {download.files[0]: gzip.decompress(data)}
    wanted, found = {file.path: file for file in download.files}, {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.name in wanted else None
            if content:
                found[wanted[member.name]] = content.read()
    for file in download.files:
        if file not in found:
            raise DamagedFileError(packed, f"holds no file {file.path}")
    return found


def _part(published: Published, part: Part, contents: dict[RecordFile, bytes], root: Path) -> Images:
    labels, pixels = [], []
    for file in published.files(part):
        records = _records(file, contents[file], root / file.path)
        if file.classes:
            labels.append(records[:, : len(file.classes)])
        if file.pixels:
            pixels.append(records[:, len(file.classes) :])
    columns = np.concatenate(labels).astype(np.int64).T
    return Images(
        np.concatenate(pixels).reshape(-1, *published.shape), dict(zip(published.classes, columns, strict=True))
    )


def _records(file: RecordFile, data: bytes, path: Path) -> NDArray[np.uint8]:
    """Checks size, header and labels; shape (count, labels + pixels)."""
    if len(data) != file.size:
        raise DamagedFileError(path, f"has {len(data):,} bytes instead of {file.size:,}")
    if not data.startswith(file.header):
        raise DamagedFileError(
            path, f"begins with {data[: len(file.header)].hex(' ', 4)}, not {file.header.hex(' ', 4)}"
        )
    records = np.frombuffer(data, np.uint8, offset=len(file.header)).reshape(file.count, -1)
    wrong = np.argwhere(records[:, : len(file.classes)] >= np.array(file.classes, np.uint8))
    if len(wrong):
        row, column = wrong[0]
        label, allowed = records[row, column], file.classes[column] - 1
        raise DamagedFileError(path, f"label {label} in record {row}: allowed are 0 to {allowed}")
    return records
