"""Published formats are read to the byte, and no damaged file gets past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import image_sets as sets
import numpy as np
import pytest

from trainables.files import DamagedFileError, MissingFileError, data_root, problems, read
from trainables.published import PUBLISHED, Published

Change = Callable[[bytes], bytes]


def test_idx_files_are_read_as_written(tmp_path: Path) -> None:
    published = sets.write_idx(tmp_path)
    parts = read(published, tmp_path)
    for part, count in zip(parts, (sets.TRAIN, sets.TEST), strict=True):
        assert part.pixels.shape == (count, 1, 4, 4)
        np.testing.assert_array_equal(part.pixels[:, 0], sets.random_bytes(count, 4, 4))
        np.testing.assert_array_equal(part.labels["class"], sets.random_bytes(count, below=10))
        assert part.labels["class"].dtype == np.int64
    sets.unpack_idx(tmp_path)
    for part, unpacked in zip(parts, read(published, tmp_path), strict=True):
        np.testing.assert_array_equal(part.pixels, unpacked.pixels)
        np.testing.assert_array_equal(part.labels["class"], unpacked.labels["class"])


@pytest.mark.parametrize("classes", [{"class": 10}, {"coarse": 20, "fine": 100}])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_records_are_read_in_the_order_of_the_batches(
    tmp_path: Path, classes: dict[str, int], packed: bool
) -> None:
    """Labels first, then red, green and blue planes, row by row; the archive's own order does not matter."""
    published = sets.write_cifar(tmp_path, classes)
    contents = sets.cifar_contents(tuple(classes.values()))
    if not packed:
        (tmp_path / "cifar.tar.gz").unlink()
        for file, data in contents.items():
            sets.write(tmp_path / "batches" / file, data)
    train, test = read(published, tmp_path)
    joined = b"".join(contents[file] for file in sets.CIFAR_FILES)
    for n, (part, k) in enumerate([(train, 0), (train, sets.TRAIN - 1), (test, 0), (test, sets.TEST - 1)]):
        length, start = len(classes) + 3072, k + (sets.TRAIN if n > 1 else 0)
        record = joined[start * length : (start + 1) * length]
        assert [part.labels[kind][k] for kind in classes] == list(record[: len(classes)])
        pixel = record[len(classes) + 1024 + 32 * 7 + 5]
        assert part.pixels[k, 1, 7, 5] == pixel
        assert part.pixels[k].tobytes() == record[len(classes) :]


def _unpacked(root: Path) -> Published:
    published = sets.write_idx(root)
    sets.unpack_idx(root)
    return published


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("spoil", [_cut, _flipped, lambda data: b"", lambda data: data + b"\0"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("file", sets.IDX_FILES)
def test_a_file_with_the_wrong_checksum_is_refused(tmp_path: Path, file: str, suffix: str, spoil: Change) -> None:
    published = sets.write_idx(tmp_path) if suffix else _unpacked(tmp_path)
    path = tmp_path / "MNIST/raw" / f"{file}{suffix}"
    right = path.read_bytes()
    path.write_bytes(spoil(right))
    with pytest.raises(DamagedFileError, match=r"bytes with MD5 \w{32}, published is") as refused:
        read(published, tmp_path)
    assert refused.value.path == path
    assert sets.md5(right) in str(refused.value)
    assert "isoratio data fetch mnist" in str(refused.value)
    assert [(type(p), p.path) for p in problems(published, tmp_path)] == [(DamagedFileError, path)]


@pytest.mark.parametrize("spoil", [_cut, _flipped])
def test_a_damaged_archive_is_refused(tmp_path: Path, spoil: Change) -> None:
    published = sets.write_cifar(tmp_path, {"class": 10})
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DamagedFileError, match="MD5"):
        read(published, tmp_path)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, _cut, "has 207 bytes instead of 208"),
        (1, lambda d: d + b"\0", "has 21 bytes instead of 20"),
        (0, lambda d: b"\0\0\x0d\3" + d[4:], "begins with 00000d03 0000000c 00000004 00000004, not 00000803 0000000c"),
        (2, lambda d: d[:11] + b"\5" + d[12:], "begins with 00000803 00000005 00000005 00000004, not"),
        (3, lambda d: d[:8] + b"\x0a" + d[9:], "label 10 in record 0: allowed are 0 to 9"),
    ],
)
def test_contents_that_are_not_as_announced_are_refused(
    tmp_path: Path, which: int, change: Change, message: str
) -> None:
    """Checked on top of the checksums, which are those of the wrong files here."""
    contents = sets.idx_contents()
    contents[which] = change(contents[which])
    published = sets.write_idx(tmp_path, contents)
    with pytest.raises(DamagedFileError, match=message) as refused:
        read(published, tmp_path)
    assert refused.value.path.name == sets.IDX_FILES[which]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-3073], r"data_batch_2\.bin: has 15,365 bytes instead of 18,438"),
        (
            lambda d: d[: 3073 * 4] + b"\x0a" + d[3073 * 4 + 1 :],
            r"data_batch_2\.bin: label 10 in record 4: allowed are",
        ),
    ],
)
def test_a_wrong_batch_is_named(tmp_path: Path, change: Change, message: str) -> None:
    contents = sets.cifar_contents((10,))
    contents["data_batch_2.bin"] = change(contents["data_batch_2.bin"])
    with pytest.raises(DamagedFileError, match=message):
        read(sets.write_cifar(tmp_path, {"class": 10}, contents), tmp_path)


def test_the_second_label_of_a_record_is_checked_against_its_own_classes(tmp_path: Path) -> None:
    contents = sets.cifar_contents((20, 100))
    contents["test_batch.bin"] = b"\x13\x64" + contents["test_batch.bin"][2:]
    published = sets.write_cifar(tmp_path, {"coarse": 20, "fine": 100}, contents)
    with pytest.raises(DamagedFileError, match="label 100 in record 0: allowed are 0 to 99"):
        read(published, tmp_path)


def test_only_the_named_members_of_an_archive_are_read_and_nothing_is_unpacked(tmp_path: Path) -> None:
    contents = sets.cifar_contents((10,))
    published = sets.write_cifar(tmp_path, {"class": 10})
    members = {"../outside": b"x", "/absolute": b"x"} | {f"batches/{k}": v for k, v in contents.items()}
    packed = sets.archive(members)
    sets.write(tmp_path / "cifar.tar.gz", packed)
    assert len(read(_with_archive(published, packed), tmp_path)[0].pixels) == sets.TRAIN
    assert [p.name for p in tmp_path.rglob("*")] == ["cifar.tar.gz"]
    assert not (tmp_path.parent / "outside").exists()

    lacking = sets.archive({k: v for k, v in members.items() if "test" not in k})
    sets.write(tmp_path / "cifar.tar.gz", lacking)
    with pytest.raises(DamagedFileError, match=r"cifar\.tar\.gz: holds no file batches/test_batch\.bin"):
        read(_with_archive(published, lacking), tmp_path)


def _with_archive(published: Published, packed: bytes) -> Published:
    (download,) = published.downloads
    return replace(published, downloads=(replace(download, md5=sets.md5(packed)),))


def test_a_missing_file_is_named_with_its_checksum_and_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = sets.write_idx(tmp_path)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    md5 = sets.md5(path.read_bytes())
    path.unlink()
    with pytest.raises(MissingFileError) as missing:
        read(published, tmp_path)
    command = f"isoratio data fetch mnist --data-root {tmp_path}"
    assert str(missing.value) == f"{path}: missing (MD5 {md5}): get it with `{command}`, or put it there yourself"
    assert [type(problem) for problem in problems(published, tmp_path)] == [MissingFileError]
    monkeypatch.setenv("ISORATIO_DATA", str(tmp_path))
    with pytest.raises(MissingFileError, match="isoratio data fetch mnist`"):
        read(published, tmp_path)


def test_a_set_may_lie_half_packed(tmp_path: Path) -> None:
    published = sets.write_idx(tmp_path)
    sets.unpack_idx(tmp_path)
    whole = sets.write_idx(tmp_path)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz").unlink()
    assert whole == published
    assert not list(problems(published, tmp_path))
    assert len(read(published, tmp_path)[0].pixels) == sets.TRAIN


def test_the_data_root_is_the_environments_or_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISORATIO_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("ISORATIO_DATA")
    monkeypatch.setenv("HOME", "/somewhere")
    assert data_root() == Path("/somewhere/.cache/isoratio")


def test_the_published_files_have_the_sizes_of_the_originals() -> None:
    """Bytes of the unpacked files, as their authors' pages and file listings give them."""
    sizes = {file.path.split("/")[-1]: file.size for of in PUBLISHED.values() for d in of.downloads for file in d.files}
    assert {sizes[file] for file in sets.IDX_FILES} == {47_040_016, 60_008, 7_840_016, 10_008}
    assert sizes["data_batch_1.bin"] == sizes["test_batch.bin"] == 30_730_000
    assert (sizes["train.bin"], sizes["test.bin"]) == (153_700_000, 30_740_000)
    sums = [md5 for of in PUBLISHED.values() for d in of.downloads for md5 in (d.md5, *(f.md5 for f in d.files))]
    assert all(len(md5) == 32 for md5 in sums)
    assert len(set(sums)) == len(sums)
