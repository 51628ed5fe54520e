"""Small image sets in the published formats, written byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.published import Published, cifar_set, idx_set

Bytes = NDArray[np.uint8]

TRAIN, TEST = 12, 5
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_FILES = ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")


def random_bytes(*shape: int, below: int = 256) -> Bytes:
    return np.random.default_rng(sum(shape)).integers(0, below, shape, dtype=np.uint8)


def idx_bytes(array: Bytes) -> bytes:
    sides = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()


def idx_contents(side: int = 4) -> list[bytes]:
    """Training images and labels, test images and labels."""
    images = (random_bytes(n, side, side) for n in (TRAIN, TEST))
    labels = (random_bytes(n, below=10) for n in (TRAIN, TEST))
    return [idx_bytes(array) for pair in zip(images, labels, strict=True) for array in pair]


def cifar_contents(classes: tuple[int, ...]) -> dict[str, bytes]:
    counts = dict(zip(CIFAR_FILES, (TRAIN // 2, TRAIN // 2, TEST), strict=True))
    records = {file: random_bytes(n, len(classes) + 3072) + np.uint8(k) for k, (file, n) in enumerate(counts.items())}
    for array in records.values():
        array[:, : len(classes)] %= np.array(classes, np.uint8)
    return {file: array.tobytes() for file, array in records.items()}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_idx(
    root: Path, contents: list[bytes] | None = None, url: str = "http://none", name: str = "mnist"
) -> Published:
    """A set of 4x4 images packed below ``root``; its checksums are those of ``contents``, right or wrong."""
    contents = contents or idx_contents()
    packed = [gzip.compress(data, mtime=0) for data in contents]
    for file, data in zip(IDX_FILES, packed, strict=True):
        write(root / "MNIST/raw" / f"{file}.gz", data)
    sums = [(md5(p), md5(c)) for p, c in zip(packed, contents, strict=True)]
    return idx_set(name, "MNIST/raw", url, sums, sizes=(TRAIN, TEST), side=4)


def write_cifar(root: Path, classes: dict[str, int], contents: dict[str, bytes] | None = None) -> Published:
    """A set of twelve and five images in an archive below ``root``."""
    contents = contents or cifar_contents(tuple(classes.values()))
    sums = {file: md5(data) for file, data in contents.items()}
    packed = archive({f"batches/{file}": data for file, data in reversed(contents.items())})
    write(root / "cifar.tar.gz", packed)
    return cifar_set("cifar10", "http://none/cifar.tar.gz", md5(packed), "batches", sums, classes, sizes=(TRAIN, TEST))


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def unpack_idx(root: Path) -> None:
    """Replaces the packed files by what is in them."""
    for packed in (root / "MNIST/raw").glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
