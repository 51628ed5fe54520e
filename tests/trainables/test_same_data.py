"""Data that are not what they were are refused."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainables.same_data import ChangedDataError, record_name, refuse_changed_data, same_data_as
from trainables.storage import LocalStorage, Storage

MINE = "plugins:regression"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path)


def test_the_first_data_of_a_name_count(storage: Storage) -> None:
    for _ in range(2):
        refuse_changed_data(storage, MINE, "a" * 64)
    refuse_changed_data(storage, '{"name":"plugins:regression","noise":0.6}', "b" * 64)
    with pytest.raises(ChangedDataError) as caught:
        refuse_changed_data(storage, MINE, "b" * 64)
    assert re.search(rf"{re.escape(MINE)}.*is bbbbbbbbbbbbbbbb\.\.\., it was aaaaaaaaaaaaaaaa\.\.\.", str(caught.value))
    refuse_changed_data(storage, MINE, "a" * 64)


def test_built_in_data_need_no_record(storage: Storage) -> None:
    for sha256 in ("a" * 64, "b" * 64):
        refuse_changed_data(storage, "digits", sha256)
        refuse_changed_data(storage, "teacher", sha256)
    assert storage.folders() == []


def test_of_many_at_once_all_agree_on_one(storage: Storage) -> None:
    def accepted(i: int) -> bool:
        try:
            refuse_changed_data(storage, MINE, f"{i % 2:064x}")
        except ChangedDataError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(accepted, range(40)))
    assert found in ([True, False] * 20, [False, True] * 20)


def test_trials_on_other_data_are_not_copied(tmp_path: Path) -> None:
    here, there = LocalStorage(tmp_path / "here"), LocalStorage(tmp_path / "there")
    refuse_changed_data(there, MINE, "a" * 64)
    for _ in range(2):
        same_data_as(there, here)
    with pytest.raises(ChangedDataError, match="not what earlier trials"):
        refuse_changed_data(here, MINE, "b" * 64)
    other = LocalStorage(tmp_path / "other")
    refuse_changed_data(other, MINE, "b" * 64)
    with pytest.raises(ChangedDataError, match="would be reused, and were trained on other data"):
        same_data_as(there, other)


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"sha256": "b"}'])
def test_a_record_that_is_damaged_is_written_anew(storage: Storage, damaged: bytes) -> None:
    storage.replace(record_name(MINE), damaged)
    refuse_changed_data(storage, MINE, "a" * 64)
    with pytest.raises(ChangedDataError):
        refuse_changed_data(storage, MINE, "b" * 64)
