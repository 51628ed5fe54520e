from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from trainables.manifest import COPY, Batch, Manifest, file_name, is_whole, numbers, read_manifest
from trainables.schema import FORMAT
from trainables.storage import DamagedStoreError, LocalStorage, StoreError


def batch(pack: str) -> Batch:
    kept = {f"endpoints/{pack}.a.safetensors": {"size": 3, "sha256": "0" * 64}}
    return Batch({pack: "a"}, {"trials": f"merged/trials-000001-{pack}.0123456789abcdef.parquet"}, kept, 99)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def test_a_sweep_that_was_never_compacted_has_an_empty_one(storage: LocalStorage) -> None:
    assert read_manifest(storage) == Manifest(0, ())
    assert numbers(storage) == []


def test_the_highest_number_counts(storage: LocalStorage) -> None:
    first = Manifest().successor((batch("p"),))
    second = first.successor((batch("p"), batch("q")))
    first.write(storage)
    assert read_manifest(storage) == first
    second.write(storage)
    assert read_manifest(storage) == second
    assert second.packs == {"p": "a", "q": "a"}
    assert [*second.files("trials")] == [b.files["trials"] for b in second.batches]
    assert [*second.files("curves")] == []
    assert numbers(storage) == [1, 2]


def test_who_worked_from_an_older_one_is_refused_and_changes_nothing(storage: LocalStorage) -> None:
    Manifest().successor((batch("p"),)).write(storage)
    with pytest.raises(FileExistsError):
        Manifest().successor((batch("q"),)).write(storage)
    assert read_manifest(storage).packs == {"p": "a"}


@pytest.mark.parametrize("lost", ["", COPY])
def test_one_file_is_enough(storage: LocalStorage, lost: str) -> None:
    Manifest().successor((batch("p"),)).write(storage)
    Manifest(1).successor((batch("q"),)).write(storage)
    storage.delete(file_name(2) + lost)
    assert read_manifest(storage).packs == {"q": "a"}


def test_any_flipped_bit_is_found_and_the_copy_counts(storage: LocalStorage) -> None:
    written = Manifest().successor((batch("p"),))
    written.write(storage)
    data = storage.read(file_name(1))
    assert is_whole(data)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1 << random.Random(position).randrange(8)
        assert not is_whole(bytes(bad)), position
    storage.replace(file_name(1), bytes(bad))
    assert read_manifest(storage) == written
    storage.replace(file_name(1) + COPY, data[:-1])
    with pytest.raises(DamagedStoreError, match=r"/000001\.json: it and its copy are damaged; `isoratio verify`"):
        read_manifest(storage)


def test_one_of_a_newer_version_is_refused(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.manifest.FORMAT", FORMAT + 1)
    Manifest().successor(()).write(storage)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=f"in format {FORMAT + 1}; this one reads up to format {FORMAT}: install"):
        read_manifest(storage)
    assert json.loads(storage.read(file_name(1)).partition(b"\n")[2])["batches"] == []
