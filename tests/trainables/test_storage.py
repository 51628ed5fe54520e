"""One suite that every backend of a store passes: what the docstring of ``Storage`` says is so."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_storage import MemoryStorage
from s3_server import S3Server

from trainables.object_storage import ObjectStorage
from trainables.storage import PARTIAL, LocalStorage, Storage, StoreError, open_storage

OUTSIDE = ["..", "../x", "a/../../x", "a/..", "/etc/passwd", "/", "", ".", "./x", "a//b", "a/", "a\\b", "a\0b", "a\nb"]
ODD = ["ü ñ", "日本語", "%2e%2e", "a%41", "~x", "a#b?c=d&e", "x{y}|^`<>\"'", "a+b*c", "[red]", "-rf", "$HOME", "a..b"]
FILES = ["a", "b", "t/a", "t/b", "t/deep/c", "u/a", ".hidden", f"t/x{PARTIAL}"]

Step = tuple[str, str, str, bytes]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "replace", "append", "delete", "move", "remove"]),
        st.sampled_from(FILES),
        st.sampled_from(FILES),
        st.sampled_from([b"", b"1", b"22", b"333"]),
    ),
    max_size=12,
)

RACE = """
import os, sys
from trainables.storage import open_storage
url, rounds, creators = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import trainables.object_storage
for round in range(rounds):
    ready, go = os.pipe()
    children = []
    for me in range(creators):
        if not (child := os.fork()):
            try:
                os.close(go)
                storage = open_storage(url)
                os.read(ready, 1)  # ends for all of them at once
                storage.create(f"t/{round}", b"%d" % me * 10_000)
            except FileExistsError:
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(ready)
    os.close(go)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""
"""Processes that create one file each round; a line of exit codes for each."""

KILLED = """
import hashlib, os, random, signal, sys, time
from trainables.storage import open_storage
url, times, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import trainables.object_storage
draw = random.Random(seed)
for life in range(times):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        storage, step = open_storage(url), 0
        while True:
            data = os.urandom(300_000)
            data += hashlib.sha256(data).digest()
            storage.replace("t/replaced", data)
            storage.create(f"t/{life}-{step}", data)
            storage.move(f"t/{life}-{step}", "t/moved")
            storage.create(f"u/{life}-{step}", data)
            os.write(writer, b".")
            step += 1
    os.read(reader, 1)  # it has done something
    time.sleep(draw.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
"""
"""Writers of files that end with their own hash, each killed after a moment."""

STOPPED = """
import io, json, os, signal, sys
from pathlib import Path
from trainables.storage import LocalStorage
root, operation, *arguments = sys.argv[1:]
data = [a.encode() * 10_000 if a.isupper() else a for a in arguments]
for calls in range(10_000):
    storage = LocalStorage(Path(root) / str(calls)).below("s")
    storage.create("t/old", b"O" * 10_000)
    storage.create("u/more", b"M" * 10_000)
    if not (child := os.fork()):
        left = calls
        def count(frame, event, argument):
            global left
            if event == "c_call":
                left -= argument.__module__ in ("posix", "io", "_io") or isinstance(argument.__self__, io.IOBase)
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        getattr(storage, operation)(*data)
        sys.setprofile(None)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = {f"{f}/{n}": storage.read(f"{f}/{n}").decode() for f in storage.folders() for n in storage.names(f)}
    assert all(len(content) == 10_000 for content in files.values()), (calls, files)
    print(json.dumps([code, {name: content[0] for name, content in files.items()}]))
    if code == 0:
        break
"""
"""One operation, killed before each call that it makes to the system, later every time, until it comes through."""


def outcome(storage: Storage | Model, step: Step) -> object:
    """What a step answers."""
    operation, name, other, data = step
    if operation == "remove":
        return storage.remove()
    arguments: tuple[object, ...] = {"delete": (name,), "move": (name, other)}.get(operation, (name, data))
    try:
        return getattr(storage, operation)(*arguments)
    except (FileExistsError, FileNotFoundError) as error:
        return type(error)


class Model:
    """What a storage should do, as a dictionary."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def create(self, name: str, data: bytes) -> None:
        if self.files.setdefault(name, data) != data:
            raise FileExistsError

    def replace(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def append(self, name: str, data: bytes) -> None:
        self.files[name] = self.files.get(name, b"") + data

    def delete(self, name: str) -> None:
        self.files.pop(name, None)

    def move(self, name: str, to: str) -> None:
        if name not in self.files:
            raise FileNotFoundError
        self.files[to] = self.files.pop(name)

    def remove(self) -> None:
        self.files.clear()

    def names(self, folder: str) -> list[str]:
        found = [n.rpartition("/")[2] for n in self.files if n.rpartition("/")[0] == folder]
        return sorted(n for n in found if not (n.startswith(".") or n.endswith(PARTIAL)))


class StorageContract:
    """Subclasses say what ``storage`` is."""

    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError

    def again(self, storage: Storage) -> Storage:
        """The same place, as another process opens it."""
        return open_storage(storage.url)

    def make_older(self, storage: Storage, name: str, seconds: float) -> None:
        raise NotImplementedError

    def everything(self, storage: Storage) -> list[str]:
        """All files, hidden ones included."""
        raise NotImplementedError

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)), random.Random(0).randbytes(20_000_000)], ids=len)
    def test_what_is_created_is_read(self, storage: Storage, data: bytes) -> None:
        storage.create("t/f", data)
        assert storage.read("t/f") == data
        assert self.again(storage).read("t/f") == data

    def test_a_file_is_created_once(self, storage: Storage) -> None:
        storage.create("t/f", b"first")
        storage.create("t/f", b"first")
        with pytest.raises(FileExistsError, match="t/f"):
            self.again(storage).create("t/f", b"second")
        assert storage.read("t/f") == b"first"
        storage.delete("t/f")
        storage.create("t/f", b"second")
        assert storage.read("t/f") == b"second"

    @pytest.mark.parametrize("creators", [2, 16])
    def test_of_many_threads_one_creates(self, storage: Storage, creators: int) -> None:
        together = threading.Barrier(creators)
        storages = [self.again(storage) for _ in range(creators)]

        def create(me: int, name: str) -> bool:
            together.wait()
            with suppress(FileExistsError):
                storages[me].create(name, b"%d" % me * 10_000)
                return True
            return False

        with ThreadPoolExecutor(creators) as pool:
            for turn in range(5):
                won = list(pool.map(partial(create, name=f"t/{turn}"), range(creators)))
                assert sum(won) == 1
                assert storage.read(f"t/{turn}") == b"%d" % won.index(True) * 10_000
        assert storage.names("t") == [str(turn) for turn in range(5)]

    def test_those_who_bring_the_same_all_create(self, storage: Storage) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: self.again(storage).create("f", b"same"), range(16)))
        assert storage.read("f") == b"same"

    def test_what_is_not_there(self, storage: Storage) -> None:
        storage.create("t/there", b"")
        for name in ("f", "t/f", "t/deep/f"):
            with pytest.raises(FileNotFoundError, match=name):
                storage.read(name)
            with pytest.raises(FileNotFoundError, match=name):
                storage.age(name)
            assert storage.read_if_there(name) is None
            assert not storage.exists(name)
            storage.delete(name)
        assert not storage.exists("t")
        assert storage.exists("t/there")
        assert storage.names("missing") == storage.names("t/missing") == storage.below("missing").names("") == []
        assert storage.below("missing").folders() == []
        storage.below("missing").remove()

    def test_readers_see_a_file_whole_while_it_is_replaced(self, storage: Storage) -> None:
        storage.replace("f", bytes(300_000))
        seen: set[int] = set()
        deadline = time.monotonic() + 20

        def read() -> None:
            reader = self.again(storage)
            while len(seen) < 20 and time.monotonic() < deadline:
                data = reader.read("f")
                assert len(data) == 300_000
                assert data.count(data[0]) == len(data)
                seen.add(data[0])

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(3)]
            for version in itertools.count(1):
                storage.replace("f", bytes([version % 256]) * 300_000)
                if all(reader.done() for reader in readers):
                    break
        assert [reader.result() for reader in readers] == [None] * 3
        assert len(seen) >= 20  # they did read meanwhile

    def test_a_listing_has_what_was_just_done(self, storage: Storage) -> None:
        other = self.again(storage)
        for i in range(25):
            storage.create(f"t/{i:02}", b"")
            assert other.names("t") == [f"{j:02}" for j in range(i + 1)]
        for i in range(25):
            storage.delete(f"t/{i:02}")
            assert other.names("t") == [f"{j:02}" for j in range(i + 1, 25)]

    def test_hidden_and_unfinished_files_are_not_listed(self, storage: Storage) -> None:
        for name in ("t/.hidden", f"t/x{PARTIAL}", "t/b", "t/a", "t/sub/c", ".h/d", "root", "u/e"):
            storage.create(name, b"")
        assert storage.names("t") == ["a", "b"]
        assert storage.names("") == ["root"]
        assert storage.folders() == ["t", "u"]
        assert storage.below("t").folders() == ["sub"]

    @pytest.mark.parametrize("name", OUTSIDE)
    def test_nothing_outside_is_touched(self, storage: Storage, name: str) -> None:
        storage = storage.below("inside")
        storage.create("a/b", b"kept")
        asked: list[Callable[[], object]] = [
            lambda: storage.read(name),
            lambda: storage.read_if_there(name),
            lambda: storage.create(name, b"x"),
            lambda: storage.replace(name, b"x"),
            lambda: storage.append(name, b"x"),
            lambda: storage.delete(name),
            lambda: storage.exists(name),
            lambda: storage.age(name),
            lambda: storage.move("a/b", name),
            lambda: storage.move(name, "a/c"),
            lambda: storage.below(name),
            lambda: storage.names(name or ".."),
        ]
        for ask in asked:
            with pytest.raises(StoreError, match="is no name of a file in a store"):
                ask()
        assert storage.read("a/b") == b"kept"
        assert storage.names("a") == ["b"]

    @pytest.mark.parametrize("name", ODD)
    def test_odd_names_are_names(self, storage: Storage, name: str) -> None:
        storage.create(f"{name}/{name}", b"odd")
        other = self.again(storage)
        assert other.folders() == [name]
        assert other.names(name) == [name]
        assert other.below(name).read(name) == b"odd"
        assert other.below(name).names("") == [name]
        with other.filesystem().open_input_file(f"{name}/{name}") as file:
            assert file.read() == b"odd"
        other.below(name).remove()
        assert storage.folders() == []

    def test_long_names(self, storage: Storage) -> None:
        storage.create(f"{'t' * 200}/{'f' * 200}", b"")
        assert storage.names("t" * 200) == ["f" * 200]
        with suppress(OSError):  # a store may refuse them, but leaves nothing then
            storage.create("f" * 300, b"whole")
        assert storage.names("") in ([], ["f" * 300])

    def test_below_is_the_same_place(self, storage: Storage) -> None:
        below = storage.below("s").below("t")
        below.create("f", b"x")
        assert storage.read("s/t/f") == self.again(below).read("f") == b"x"
        assert below.url == f"{storage.url}/s/t"
        assert below.where("f") == f"{storage.url}/s/t/f"
        storage.replace("s/t/f", b"y")
        assert below.read("f") == b"y"

    def test_removed_is_all_of_it_and_nothing_else(self, storage: Storage) -> None:
        for name in ("s/a", "s/.hidden", "s/deep/er/b", "s2/c", "sibling"):
            storage.create(name, b"")
        storage.below("s").remove()
        storage.below("s").remove()
        assert storage.folders() == ["s2"]
        assert storage.names("") == ["sibling"]
        assert not any(storage.exists(name) for name in ("s/a", "s/.hidden", "s/deep/er/b"))
        storage.create("s/a", b"new")
        assert storage.below("s").names("") == ["a"]

    def test_age_is_that_of_the_last_writing(self, storage: Storage) -> None:
        storage.create("t/f", b"")
        assert -0.1 <= storage.age("t/f") < 3
        self.make_older(storage, "t/f", 3600)
        assert 3598 < storage.age("t/f") < 3605
        storage.create("t/f", b"")  # there already
        assert storage.age("t/f") > 3598
        storage.replace("t/f", b"")
        assert -0.1 <= storage.age("t/f") < 3
        assert self.everything(storage) == ["t/f"]

    def test_parquet_files_are_a_data_set(self, storage: Storage) -> None:
        for i in range(5):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"file": [i] * 1000, "row": range(1000)}), sink)
            storage.create(f"t/{i}.parquet", sink.getvalue().to_pybytes())
        names = [f"t/{name}" for name in storage.names("t")]
        found = ds.dataset(names, format="parquet", filesystem=storage.filesystem())
        table = found.to_table(filter=ds.field("row") < 10)
        assert table.num_rows == 50
        assert found.count_rows() == 5000
        assert set(table["file"].to_pylist()) == set(range(5))
        with pytest.raises(FileNotFoundError):
            ds.dataset("t/9.parquet", found.schema, format="parquet", filesystem=storage.filesystem()).to_table()

    def test_checking_leaves_nothing(self, storage: Storage) -> None:
        storage.below("new").check()
        assert self.everything(storage) == []

    def test_names_with_a_dot_in_front_are_found_by_name(self, storage: Storage) -> None:
        storage.create(".hidden/f", b"x")
        assert storage.read(".hidden/f") == b"x"
        assert storage.exists(".hidden/f")
        assert storage.names(".hidden") == ["f"]

    def test_it_does_as_a_dictionary(self, storage: Storage) -> None:
        storage = storage.below("case")

        @settings(max_examples=40, deadline=None, derandomize=True)
        @given(steps=STEPS)
        @example(steps=[("create", "a", "a", b"1"), ("move", "a", "a", b""), ("create", "a", "a", b"")])
        def holds(steps: list[Step]) -> None:
            storage.remove()
            model = Model()
            for step in steps:
                assert outcome(storage, step) == outcome(model, step), step
            assert {n: storage.read_if_there(n) for n in FILES} == {n: model.files.get(n) for n in FILES}
            for folder in ("", "t", "t/deep", "u"):
                assert storage.names(folder) == model.names(folder)

        holds()


class TestMemory(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        self.now = 0.0
        return MemoryStorage(clock=lambda: self.now)

    def again(self, storage: Storage) -> Storage:
        assert isinstance(storage, MemoryStorage)
        return storage.seen_by(None)

    def make_older(self, storage: Storage, name: str, seconds: float) -> None:
        self.now += seconds

    def everything(self, storage: Storage) -> list[str]:
        assert isinstance(storage, MemoryStorage)
        return sorted(storage.files.contents)

    def test_the_hook_stops_before_or_after(self) -> None:
        seen = []

        def hook(*event: str) -> None:
            seen.append(event)
            if event[0] == "create":
                raise ConnectionError(event[2])

        storage = MemoryStorage()
        failing = storage.below("s").seen_by(hook)
        with pytest.raises(ConnectionError, match="before"):
            failing.create("f", b"x")
        assert not storage.exists("s/f")
        failing.exists("f")
        assert seen == [("create", "s/f", "before"), ("exists", "s/f", "before"), ("exists", "s/f", "after")]
        late = storage.below("s").seen_by(lambda *event: hook(*event) if event[2] == "after" else None)
        with pytest.raises(ConnectionError, match="after"):
            late.create("f", b"x")
        assert storage.read("s/f") == b"x"


class BetweenProcesses(StorageContract):
    """What only places that several processes reach can do."""

    def run(self, script: str, *arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize(("creators", "rounds"), [(2, 8), (16, 2), pytest.param(16, 50, marks=pytest.mark.long)])
    def test_of_many_processes_one_creates(self, storage: Storage, creators: int, rounds: int) -> None:
        lines = self.run(RACE, storage.url, rounds, creators).splitlines()
        assert len(lines) == rounds
        for turn, line in enumerate(lines):
            codes = line.split()
            assert sorted(codes) == ["0"] + ["1"] * (creators - 1)
            assert storage.read(f"t/{turn}") == b"%d" % codes.index("0") * 10_000

    @pytest.mark.parametrize("times", [12, pytest.param(150, marks=pytest.mark.long)])
    def test_a_killed_writer_leaves_whole_files(self, storage: Storage, times: int) -> None:
        self.run(KILLED, storage.url, times, 1)
        found = [f"{folder}/{name}" for folder in ("t", "u") for name in storage.names(folder)]
        assert len(found) > times
        for name in found:
            data = storage.read(name)
            assert len(data) == 300_032
            assert hashlib.sha256(data[:-32]).digest() == data[-32:], name


class TestLocal(BetweenProcesses):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "store")

    def make_older(self, storage: Storage, name: str, seconds: float) -> None:
        assert isinstance(storage, LocalStorage)
        os.utime(storage.path(name), (time.time() - seconds,) * 2)

    def everything(self, storage: Storage) -> list[str]:
        assert isinstance(storage, LocalStorage)
        return [str(path.relative_to(storage.root)) for path in storage.root.rglob("*") if path.is_file()]

    @pytest.mark.parametrize(
        ("operation", "after"),
        [
            ("create t/new N", {"t/old": "O", "u/more": "M", "t/new": "N"}),
            ("create new/new N", {"t/old": "O", "u/more": "M", "new/new": "N"}),
            ("replace t/old N", {"t/old": "N", "u/more": "M"}),
            ("move t/old away/old", {"away/old": "O", "u/more": "M"}),
            ("delete t/old", {"u/more": "M"}),
            ("remove", {}),
        ],
        ids=lambda case: case if isinstance(case, str) else "",
    )
    def test_killed_anywhere_it_is_done_or_not(self, tmp_path: Path, operation: str, after: dict[str, str]) -> None:
        lines = [json.loads(line) for line in self.run(STOPPED, tmp_path, *operation.split()).splitlines()]
        codes, seen = [code for code, _ in lines], [files for _, files in lines]
        assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
        assert len(codes) > 3
        done = seen.index(after)
        assert seen == [{"t/old": "O", "u/more": "M"}] * done + [after] * (len(seen) - done)  # once done, it stays

    def test_all_is_on_disk_before_it_is_visible(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(storage, LocalStorage)
        seen: list[str] = []

        def fsync(descriptor: int, really: Callable[[int], None] = os.fsync) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            seen.append(f"sync {'partial' if path.name.endswith(PARTIAL) else path.name}")
            really(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        for name in ("link", "replace"):
            really = getattr(os, name)
            monkeypatch.setattr(os, name, partial(self._noted, seen, name, really))
        storage.create("t/f", b"x")
        storage.replace("t/f", b"y")
        made = [f"sync {storage.root.parent.name}", "sync store"]
        assert seen == [*made, "sync partial", "link f", "sync t", "sync partial", "replace f", "sync t"]

    @staticmethod
    def _noted(seen: list[str], name: str, really: Callable[[Path, Path], None], source: Path, target: Path) -> None:
        seen.append(f"{name} {target.name}")
        really(source, target)

    def test_links_lead_nowhere(self, storage: Storage, tmp_path: Path) -> None:
        assert isinstance(storage, LocalStorage)
        storage.create("t/f", b"x")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (storage.root / "folder").symlink_to(outside)
        (storage.root / "t" / "file").symlink_to(outside / "secret")
        assert storage.names("t") == ["f"]
        assert storage.folders() == ["t"]
        for name in ("folder/secret", "folder/new", "t/file"):
            for ask in (storage.read, storage.exists, storage.age, storage.delete, storage.below):
                with pytest.raises(StoreError, match="is a link: a store holds files of its own only"):
                    ask(name)
            for write in (storage.create, storage.replace, storage.append):
                with pytest.raises(StoreError, match="is a link"):
                    write(name, b"x")
        with pytest.raises(StoreError, match="is a link"):
            storage.names("folder")
        storage.remove()
        assert [path.name for path in outside.iterdir()] == ["secret"]

    def test_a_root_reached_through_a_link_is_right(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        open_storage(tmp_path / "link").create("t/f", b"x")
        assert open_storage(tmp_path / "real").read("t/f") == b"x"

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
    def test_without_hard_links_it_is_refused(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def link(*paths: Path) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(StoreError, match="the file system has no hard links, which commits rest on"):
            storage.check()

    def test_a_place_that_creates_twice_is_refused(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "link", os.replace)
        with pytest.raises(StoreError, match="creating a file that exists succeeds there"):
            storage.check()

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"file/store: cannot be written: .*Not a directory"):
            LocalStorage(tmp_path / "file" / "store").check()

    def test_a_file_in_place_of_a_folder_is_not_taken_for_another_creator(self, storage: Storage) -> None:
        storage.create("t", b"foreign")
        for write in (storage.create, storage.replace, storage.append):
            with pytest.raises(NotADirectoryError, match="store/t"):
                write("t/f", b"x")

    def test_a_full_disk_leaves_what_was_there(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(storage, LocalStorage)
        storage.create("t/old", b"old")

        def fsync(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        for write in (storage.create, storage.replace):
            for name in ("t/old", "t/new"):
                with pytest.raises(OSError, match=f"No space left on device; nothing of it was kept: .*{name}"):
                    write(name, b"new")
        assert os.listdir(storage.root / "t") == ["old"]
        assert storage.read("t/old") == b"old"

    def test_a_file_that_goes_meanwhile_was_there(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(storage, LocalStorage)

        def link(partial: Path, path: Path, really: Callable[[Path, Path], None] = os.link) -> None:
            path.write_bytes(b"another one's")
            try:
                really(partial, path)
            finally:
                path.unlink()

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(FileExistsError):
            storage.create("f", b"mine")


class TestS3(BetweenProcesses):
    @pytest.fixture
    def storage(self, s3: S3Server) -> Storage:
        s3.pages(7)
        self.server, self.bucket = s3, s3.bucket()
        return ObjectStorage(f"s3://{self.bucket}/some/where")

    def make_older(self, storage: Storage, name: str, seconds: float) -> None:
        self.server.older(self.bucket, f"some/where/{name}", seconds)

    def everything(self, storage: Storage) -> list[str]:
        return [key.removeprefix("some/where/") for key in self.server.keys(self.bucket)]

    def test_a_whole_bucket_is_a_place_too(self, storage: Storage) -> None:
        storage.create("t/f", b"x")
        bucket = open_storage(f"s3://{self.bucket}")
        assert bucket.folders() == ["some"]
        assert bucket.read("some/where/t/f") == b"x"
        bucket.remove()
        assert self.server.keys(self.bucket) == []


def test_where_a_store_is(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (tmp_path / "r", f"{tmp_path}/r", "r", "~/r", f"file://{tmp_path}/r"):
        found = open_storage(text)
        assert isinstance(found, LocalStorage)
        assert found.root == tmp_path / "r"
        assert not found.is_remote
    assert str(open_storage("s3://bucket/r/")) == "s3://bucket/r"
    assert open_storage("s3://bucket/r").is_remote
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: it is a file, a directory is expected"):
        open_storage(tmp_path / "file")
