"""The image sets that their authors publish: where, in which files, with which checksums. Facts alone, no reading.

Sources: LeCun, Cortes and Burges, the MNIST database; Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747 (Fashion-MNIST);
Krizhevsky 2009, "Learning multiple layers of features from tiny images" (CIFAR).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["train", "test"]


@dataclass(frozen=True)
class RecordFile:
    """A file that is a header and then records of one length: label bytes, pixel bytes.

    Attributes:
        path: where it lies below the data root; in an archive, its name.
        md5: of the whole file.
        part: which examples it holds.
        count: number of records.
        header: the bytes before the first record.
        classes: number of classes of each label byte of a record.
        pixels: pixel bytes of a record.
    """

    path: str
    md5: str
    part: Part
    count: int
    header: bytes = b""
    classes: tuple[int, ...] = ()
    pixels: int = 0

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.count * (len(self.classes) + self.pixels)


@dataclass(frozen=True)
class Download:
    """A file as it is published: a gzipped file or, named ``.tar.gz``, an archive.

    Attributes:
        url: where it is published.
        path: where it lies below the data root.
        md5: published with it.
        files: what is needed of its contents.
    """

    url: str
    path: str
    md5: str
    files: tuple[RecordFile, ...]


@dataclass(frozen=True)
class Published:
    """An image set.

    Attributes:
        name: in a sweep file.
        shape: channels, height and width of an image.
        classes: kind of label -> number of classes, in the order of a record's label bytes.
        downloads: the files.
    """

    name: str
    shape: tuple[int, int, int]
    classes: Mapping[str, int]
    downloads: tuple[Download, ...]

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return self._count("train")

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return self._count("test")

    def files(self, part: Part) -> Iterator[RecordFile]:
        """The files of a part, in the order of its examples."""
        return (file for download in self.downloads for file in download.files if file.part == part)

    def _count(self, part: Part) -> int:
        return sum(file.count for file in self.files(part) if file.pixels)


def idx_set(
    name: str,
    folder: str,
    url: str,
    md5: Sequence[tuple[str, str]],
    sizes: tuple[int, int] = (60_000, 10_000),
    side: int = 28,
) -> Published:
    """A set of grey images of ten classes in the four gzipped IDX files of MNIST.

    Args:
        name: in a sweep file.
        folder: below the data root.
        url: of the folder where the files are published.
        md5: of each file, packed and unpacked: training images, training labels, test images, test labels.
        sizes: number of training and of test images.
        side: height and width of an image, in pixels.
    """

    def download(file: str, part: Part, count: int, sides: tuple[int, ...], md5: tuple[str, str]) -> Download:
        content = RecordFile(
            f"{folder}/{file}",
            md5[1],
            part,
            count,
            _idx_header(count, *sides),
            classes=() if sides else (10,),
            pixels=side * side if sides else 0,
        )
        return Download(f"{url}/{file}.gz", f"{folder}/{file}.gz", md5[0], (content,))

    square = (side, side)
    downloads = (
        download("train-images-idx3-ubyte", "train", sizes[0], square, md5[0]),
        download("train-labels-idx1-ubyte", "train", sizes[0], (), md5[1]),
        download("t10k-images-idx3-ubyte", "test", sizes[1], square, md5[2]),
        download("t10k-labels-idx1-ubyte", "test", sizes[1], (), md5[3]),
    )
    return Published(name, (1, side, side), {"class": 10}, downloads)


def _idx_header(*dimensions: int) -> bytes:
    """Magic number of unsigned bytes in so many dimensions, then these; big-endian."""
    return b"".join(n.to_bytes(4, "big") for n in (0x0800 + len(dimensions), *dimensions))


def cifar_set(
    name: str,
    url: str,
    md5: str,
    folder: str,
    files: Mapping[str, str],
    classes: Mapping[str, int],
    sizes: tuple[int, int] = (50_000, 10_000),
) -> Published:
    """A set of 32x32 colour images in CIFAR's binary archive.

    Args:
        name: in a sweep file.
        url: of the archive.
        md5: of the archive.
        folder: in the archive, and below the data root.
        files: name in ``folder`` -> MD5: the training files in their order, then the test file.
        classes: kind of label -> number of classes, in the order of a record's label bytes.
        sizes: number of training and of test images.
    """
    *batches, last = files
    counts = dict.fromkeys(batches, sizes[0] // len(batches)) | {last: sizes[1]}
    contents = (
        RecordFile(
            f"{folder}/{file}",
            files[file],
            "test" if file == last else "train",
            count,
            classes=tuple(classes.values()),
            pixels=3 * 32 * 32,
        )
        for file, count in counts.items()
    )
    archive = Download(url, url.rpartition("/")[2], md5, tuple(contents))
    return Published(name, (3, 32, 32), classes, (archive,))


PUBLISHED: dict[str, Published] = {
    of.name: of
    for of in (
        idx_set(
            "mnist",
            "MNIST/raw",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            [
                ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
                ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
                ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
                ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
            ],
        ),
        idx_set(
            "fashion-mnist",
            "FashionMNIST/raw",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            [
                ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
                ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
                ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
            ],
        ),
        cifar_set(
            "cifar10",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
            },
            {"class": 10},
        ),
        cifar_set(
            "cifar100",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            {"train.bin": "6172c7755cfe09b2fe270c85cebc1b15", "test.bin": "4499cfba6c016c1be1438163640a0898"},
            {"coarse": 20, "fine": 100},
        ),
    )
}
"""The published image sets, by name."""
