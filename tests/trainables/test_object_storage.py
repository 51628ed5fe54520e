"""An object store whose requests fail: what is said, for how long it is tried, what is left behind."""

from __future__ import annotations

import re
import signal
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server, serving

from trainables import object_storage as module
from trainables.object_storage import ObjectStorage, UnansweredError
from trainables.storage import DamagedStoreError, StoreError

PASSING = ["slow_down", "error", "conflict", "cut", "drop", "truncate"]
OPERATIONS: dict[str, tuple[str, Callable[[ObjectStorage], object], object]] = {
    "read": ("GET", lambda s: s.read("t/old"), b"old"),
    "create": ("PUT", lambda s: s.create("t/new", b"new" * 100_000), None),
    "create the same": ("PUT", lambda s: s.create("t/old", b"old"), None),
    "replace": ("PUT", lambda s: s.replace("t/old", b"new" * 100_000), None),
    "append": ("PUT", lambda s: s.append("t/old", b"er"), None),
    "delete": ("DELETES", lambda s: s.delete("t/old"), None),
    "names": ("LIST", lambda s: s.names("t"), ["old"]),
    "folders": ("LIST", lambda s: s.folders(), ["t"]),
    "exists": ("HEAD", lambda s: s.exists("t/old"), True),
    "age": ("HEAD", lambda s: s.age("t/old") < 3, True),
    "remove": ("LIST", lambda s: s.remove(), None),
}
"""Operation -> request that meets the fault, what is asked, what it answers."""
SECRETS = ("planted-secret-key", "planted-access-key", "planted-password", "Signature=")


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library tries again as often as ever, but sooner."""
    monkeypatch.setitem(module.RETRY, "backoff", {"init_backoff": timedelta(milliseconds=20)})


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


@pytest.fixture
def storage(bucket: str) -> ObjectStorage:
    storage = ObjectStorage(f"s3://{bucket}/p", patience=8)
    storage.create("t/old", b"old")
    return storage


def impatient(storage: ObjectStorage, patience: float = 0.3) -> ObjectStorage:
    return ObjectStorage(storage.url, patience)


def said(ask: Callable[[], object], kind: type[Exception] | tuple[type[Exception], ...]) -> str:
    """The message; no credentials are in it, nor in the traceback."""
    with pytest.raises(kind) as raised:
        ask()
    whole = "".join(traceback.format_exception(raised.value))
    assert not [secret for secret in SECRETS if secret in whole]
    return str(raised.value)


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_passes_is_overcome(s3: S3Server, bucket: str, storage: ObjectStorage, operation: str, kind: str) -> None:
    request, ask, expected = OPERATIONS[operation]
    quiet = ObjectStorage(f"s3://{s3.bucket()}/p")
    quiet.create("t/old", b"old")
    ask(quiet)
    s3.clear()
    s3.fault(kind, request)
    assert ask(storage) == expected
    assert s3.fired() == {kind: 1}
    contents = {name: storage.read(f"t/{name}") for name in storage.names("t")}
    assert contents == {name: quiet.read(f"t/{name}") for name in quiet.names("t")}  # as without the fault


@pytest.mark.parametrize(("kind", "times"), [("slow_down", 6), ("cut", 6), ("conflict", 3)])
def test_creation_outlasts_a_bad_spell(s3: S3Server, storage: ObjectStorage, kind: str, times: int) -> None:
    s3.fault(kind, "PUT", times=times)  # more than the library itself tries
    storage.create("t/new", b"new")
    assert s3.fired() == {kind: times}
    assert storage.read("t/new") == b"new"


@pytest.mark.parametrize("kind", ["drop", "conflict", "error", "cut"])
def test_who_lost_hears_so_whatever_happens(s3: S3Server, storage: ObjectStorage, kind: str) -> None:
    s3.fault(kind, "PUT")
    with pytest.raises(FileExistsError, match=r"p/t/old exists$"):
        storage.create("t/old", b"mine")
    assert s3.fired() == {kind: 1}
    assert storage.read("t/old") == b"old"


def test_an_upload_overtaken_by_another_one_has_lost(s3: S3Server, storage: ObjectStorage) -> None:
    s3.fault("delay", "PUT", seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(storage.create, "t/new", b"slow")
        while not s3.fired()["delay"]:
            time.sleep(0.01)
        storage.create("t/new", b"quick")
        with pytest.raises(FileExistsError):
            slow.result()
    assert storage.read("t/new") == b"quick"


@pytest.mark.parametrize("kind", ["delay", "delay_answer"])
def test_an_upload_that_takes_too_long_is_found_to_be_there(
    s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(module.CLIENT, "read_timeout", timedelta(seconds=0.3))
    s3.fault(kind, "PUT", seconds=1)
    ObjectStorage(storage.url).create("t/new", b"new")
    assert s3.fired() == {kind: 1}
    time.sleep(0.8)  # until the first upload, given up, has had its effect too
    assert storage.read("t/new") == b"new"


def test_a_server_that_does_not_answer_is_given_up(
    s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CLIENT, "read_timeout", timedelta(seconds=0.2))
    s3.fault("delay", times=1000, seconds=3)
    stalled = impatient(storage)
    began = time.monotonic()
    assert said(lambda: stalled.create("t/new", b""), UnansweredError).endswith(": Timeout")
    assert time.monotonic() - began < 5


def test_a_cut_upload_leaves_nothing(s3: S3Server, bucket: str, storage: ObjectStorage) -> None:
    s3.fault("cut", "PUT", times=1000)
    for write in (impatient(storage).create, impatient(storage).replace):
        message = said(lambda write=write: write("t/new", bytes(12_000_000)), UnansweredError)  # type: ignore[misc]
        assert re.search(rf"s3://{bucket}/p/t/new: no answer from 127\.0\.0\.1:\d+: ", message)
    with pytest.raises(UnansweredError):
        impatient(storage).replace("t/old", bytes(12_000_000))
    assert s3.keys(bucket) == ["p/t/old"]
    assert s3.requests().keys() <= {"PUT", "GET"}  # none in parts
    assert storage.read("t/old") == b"old"


@pytest.mark.parametrize("patience", [0.3, pytest.param(5.0, marks=pytest.mark.long)])
def test_patience_is_limited(s3: S3Server, storage: ObjectStorage, patience: float) -> None:
    s3.fault("slow_down", times=10_000)
    for ask in (lambda s: s.create("t/new", b""), lambda s: s.read("t/old"), lambda s: s.names("t")):
        began = time.monotonic()
        message = said(lambda ask=ask: ask(impatient(storage, patience)), UnansweredError)  # type: ignore[misc]
        assert "answers 503 Service Unavailable: SlowDown: because of a SlowDown" in message
        assert 0.4 * patience < time.monotonic() - began < patience + 2


def test_all_who_ask_are_patient_together() -> None:
    silence = module.Silence()
    assert silence.lasts(began=0, now=20) == 20
    assert silence.lasts(began=19, now=25) == 25
    assert silence.lasts(began=25, now=50) == 50
    assert silence.lasts(began=100, now=101) == 1  # nobody has asked for long
    assert silence.lasts(began=100, now=103) == 3


def test_a_server_that_is_gone_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        storage = ObjectStorage(f"s3://{server.bucket()}/p", patience=0.2)
        storage.create("t/old", b"old")
    for ask in (lambda: storage.read("t/old"), lambda: storage.create("t/new", b""), lambda: storage.names("t")):
        began = time.monotonic()
        assert re.search(r"p.*: no answer from 127\.0\.0\.1:\d+: Connection refused", said(ask, UnansweredError))
        assert time.monotonic() - began < 4
    assert re.search(r"p: cannot be written: .*: Connection refused", said(storage.check, StoreError))


def test_a_launch_need_not_wait_as_long_as_a_commit(
    s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.PATIENCE_OF_CHECK < 5 < module.PATIENCE <= 60
    monkeypatch.setattr(module, "PATIENCE_OF_CHECK", 0.2)
    s3.fault("slow_down", times=10_000)
    began = time.monotonic()
    said(ObjectStorage(storage.url).check, StoreError)
    assert time.monotonic() - began < 5


def test_a_signal_is_heard_while_the_store_is_out_of_reach(s3: S3Server, storage: ObjectStorage) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedError("alarm")

    s3.fault("slow_down", times=10_000)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.monotonic()
        with pytest.raises(InterruptedError, match="alarm"):
            ObjectStorage(storage.url).read("t/old")
        assert time.monotonic() - began < 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    storage = ObjectStorage("s3://no-such/p")
    for ask in (lambda: storage.read("f"), lambda: storage.create("f", b""), lambda: storage.names("t"), storage.check):
        assert re.fullmatch(
            r"s3://no-such/p.*: there is no such bucket; create it first, or mend the URL", said(ask, StoreError)
        )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_denied_is_said_at_once(s3: S3Server, storage: ObjectStorage, operation: str) -> None:
    request, ask, _ = OPERATIONS[operation]
    s3.fault("denied", request, times=1000)
    message = said(lambda: ask(storage), PermissionError)
    assert re.search(r"^s3://.*: 127\.0\.0\.1:\d+ answers 403 Forbidden.*; check AWS_ACCESS_KEY_ID and ", message)
    assert s3.fired() == {"denied": 1}


def test_denied_is_a_store_that_cannot_be_written(s3: S3Server, storage: ObjectStorage) -> None:
    s3.fault("denied", "PUT", times=1000)
    message = said(storage.check, StoreError)
    assert "cannot be written" in message
    assert "answers 403 Forbidden: AccessDenied: because of a AccessDenied; check AWS_ACCESS_KEY_ID" in message


def test_missing_credentials_are_said_to_be(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said(
        lambda: ObjectStorage(storage.url), StoreError
    )


def test_credentials_of_an_endpoint_are_not_shown(monkeypatch: pytest.MonkeyPatch, storage: ObjectStorage) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://user:planted-password@127.0.0.1:9")
    message = said(lambda: impatient(storage).read("f"), UnansweredError)
    assert message.endswith("no answer from 127.0.0.1:9: Connection refused")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_is_a_url(monkeypatch: pytest.MonkeyPatch, s3: S3Server, variable: str) -> None:
    monkeypatch.setenv(variable, "planted-password.example:9000")
    assert said(lambda: ObjectStorage("s3://b/p"), StoreError) == (
        f"{variable} in the environment must be a URL such as http://127.0.0.1:9000"
    )


@pytest.mark.parametrize("url", ["s3://user:planted-password@b/p", "s3://b/p?X-Amz-Signature=planted-password"])
def test_credentials_do_not_belong_into_a_url(url: str) -> None:
    message = said(lambda: ObjectStorage(url), StoreError)
    assert re.match(r"store s3://\.\.\./p: credentials do not belong into a URL, which is shown and stored; ", message)


@pytest.mark.parametrize("url", ["s3://", "s3:///p", "http://b/p", "memory://b", "ftp://b/p", "s3a://b/p"])
def test_other_urls_are_refused(url: str) -> None:
    message = said(lambda: ObjectStorage(url), StoreError)
    assert message == f"store {url}: allowed are a directory, s3://bucket/prefix, gs://... and az://..."


@pytest.mark.parametrize("url", ["s3://b/../p", "s3://b/a//p", "s3://b/a/./p"])
def test_a_prefix_leads_nowhere_else(s3: S3Server, url: str) -> None:
    assert "is no name of a file in a store" in said(lambda: ObjectStorage(url), StoreError)


def test_a_store_that_does_not_look_at_conditions_is_refused(s3: S3Server, bucket: str, storage: ObjectStorage) -> None:
    storage.check()
    assert s3.keys(bucket) == ["p/t/old"]
    s3.fault("unconditional", "PUT", times=1000)
    assert "creating a file that exists succeeds there (no conditional put?), so that two launches could overwrite" in (
        said(storage.check, StoreError)
    )
    assert s3.fired()["unconditional"] == 2
    assert s3.keys(bucket) == ["p/t/old"]


def test_a_store_that_does_not_know_conditions_is_refused(s3: S3Server, storage: ObjectStorage) -> None:
    s3.fault("unsupported", "PUT", times=1000)
    assert "answers 501 Not Implemented" in said(impatient(storage).check, StoreError)


@pytest.mark.parametrize(
    ("value", "message"),
    [("disabled", "when conditional put is disabled"), ("nonsense", 'Failed to parse "nonsense"')],
)
def test_conditions_switched_off_are_refused(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", value)
    assert message in said(lambda: ObjectStorage(storage.url).check(), StoreError)


def parquet(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {name: pa.array(range(rows)) for name in ("a", "b", "c", "d")}
    pq.write_table(pa.table(columns), sink, compression="none", use_dictionary=False, row_group_size=rows // 4)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("kind", [*PASSING, None])
def test_of_a_large_file_only_parts_are_read(
    s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    storage.create("t/large.parquet", parquet(100_000))
    found = ds.dataset(["t/large.parquet"], format="parquet", filesystem=storage.filesystem())
    monkeypatch.setattr(module, "WHOLE", 100_000)
    s3.clear()
    read, really = 0, ObjectStorage.read_part

    def read_part(self: ObjectStorage, name: str, start: int, end: int, e_tag: str) -> bytes:
        nonlocal read
        if not read and kind:
            s3.fault(kind, "GET")
        read += end - start
        return really(self, name, start, end, e_tag)

    monkeypatch.setattr(ObjectStorage, "read_part", read_part)
    assert np.array_equal(found.to_table(columns=["c"])["c"].to_numpy(), np.arange(100_000))
    assert 800_000 < read < 1_000_000  # of 3.2 million
    assert not kind or s3.fired() == {kind: 1}


def test_a_large_file_replaced_meanwhile_is_not_mixed(
    s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE", 100)
    storage.replace("f", bytes(1000))
    file = impatient(storage).open("f")
    assert file.read(10) == bytes(10)
    storage.replace("f", b"1" * 1000)
    assert "412 Precondition Failed" in said(lambda: file.read(10), OSError)
    assert impatient(storage).open("f").read() == b"1" * 1000


def test_requests_are_few(s3: S3Server, storage: ObjectStorage) -> None:
    def requests(ask: Callable[[], object]) -> dict[str, int]:
        s3.clear()
        ask()
        return dict(s3.requests())

    for i in range(20):
        storage.create(f"t/{i}", parquet(100))
    names = [f"t/{i}" for i in range(20)]
    schema = pq.read_schema(storage.open("t/0"))
    found = ds.dataset(names, schema, format="parquet", filesystem=storage.filesystem())
    assert requests(lambda: storage.create("u/f", b"x")) == {"PUT": 1}
    assert requests(lambda: storage.replace("u/f", b"y")) == {"PUT": 1}
    assert requests(lambda: storage.read("u/f")) == {"GET": 1}
    assert requests(lambda: storage.names("t")) == {"LIST": 1}
    assert requests(lambda: storage.below("t").exists("0")) == {"HEAD": 1}
    assert requests(found.to_table) == {"GET": 20}


def test_a_folder_marked_by_another_tool_is_no_file(s3: S3Server, bucket: str, storage: ObjectStorage) -> None:
    for key in ("p/t/", "p/marked/"):
        urlopen(Request(f"{s3.url}/{bucket}/{key}", b"", method="PUT"))
    assert storage.names("t") == ["old"]
    assert storage.names("marked") == []
    storage.remove()
    assert not storage.exists("t/old")


def test_a_foreign_object_is_named(s3: S3Server, bucket: str, storage: ObjectStorage) -> None:
    urlopen(Request(f"{s3.url}/{bucket}/p/t//x", b"", method="PUT"))
    message = said(lambda: storage.names("t"), DamagedStoreError)
    assert re.search(r'p/t: holds a foreign object, delete it: .*"p/t//"', message)
    assert storage.read("t/old") == b"old"


def test_files_are_only_read_through_pyarrow(storage: ObjectStorage) -> None:
    files = storage.filesystem()
    assert files.get_file_info("t/old").is_file
    assert files.get_file_info("t/new").type.name == "NotFound"
    for write in (files.delete_file, files.open_output_stream, files.create_dir):
        with pytest.raises(NotImplementedError, match="the files of a store are only read here"):
            write("t/old")
    with pytest.raises(StoreError, match="is no name"):
        files.open_input_file("../outside")


def test_the_server_ends_with_those_it_serves() -> None:
    server = S3Server()
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(10) == 0
