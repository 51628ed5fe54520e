"""Downloads from a server of the test's own: what is right is put in place whole, what is not leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import image_sets as sets
import pytest

from trainables import fetching
from trainables.fetching import FetchError, fetch
from trainables.files import read
from trainables.published import Published


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``faults`` are answered first, one for each request: a status, or how many bytes are lost."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        file = self.path[1:]
        self.server.requests.append(file)
        kind, amount = self.server.faults.pop(0) if self.server.faults else ("", 0)
        if kind == "status" or file not in self.server.files:
            self.send_error(amount or 404)
            return
        data = self.server.files[file]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - amount])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server: Server, tmp_path: Path) -> Published:
    published = sets.write_idx(tmp_path / "origin", url=server.url)
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "origin/MNIST/raw").iterdir()}
    return published


def test_what_is_fetched_can_be_read_and_is_not_fetched_again(
    server: Server, published: Published, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(published, root, lambda *progress: told.append(progress))
    assert [path.relative_to(root).as_posix() for path in fetched] == [f"MNIST/raw/{f}.gz" for f in sets.IDX_FILES]
    assert len(read(published, root)[0].pixels) == sets.TRAIN
    assert told == [(path.name, len(path.read_bytes()), len(path.read_bytes())) for path in fetched]
    asked = len(server.requests)
    assert fetch(published, root) == []
    assert len(server.requests) == asked

    fetched[2].write_bytes(b"damaged")
    assert fetch(published, root) == [fetched[2]]
    assert len(read(published, root)[1].pixels) == sets.TEST


def test_a_file_that_is_not_the_published_one_is_never_put_in_place(
    server: Server, published: Published, tmp_path: Path
) -> None:
    server.files[f"{sets.IDX_FILES[1]}.gz"] = b"something else"
    with pytest.raises(FetchError, match=rf"^mnist: {server.url}/train-labels.*\.gz gave 14 bytes with MD5 .*nothing"):
        fetch(published, tmp_path / "root")
    assert [p.name for p in (tmp_path / "root/MNIST/raw").iterdir()] == [f"{sets.IDX_FILES[0]}.gz"]


@pytest.mark.parametrize("fault", [("status", 503), ("lost", 7)])
def test_a_passing_fault_is_tried_again(
    server: Server, published: Published, tmp_path: Path, fault: tuple[str, int]
) -> None:
    server.faults = [fault, fault]
    assert len(fetch(published, tmp_path / "root")) == 4
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        (("status", 503), fetching.ATTEMPTS, "HTTP Error 503"),
        (("status", 404), 1, "HTTP Error 404: Not Found"),
        (("lost", 7), fetching.ATTEMPTS, "7 more expected"),
    ],
)
def test_a_lasting_fault_says_what_to_do_instead(
    server: Server, published: Published, tmp_path: Path, fault: tuple[str, int], requests: int, message: str
) -> None:
    server.faults = [fault] * 5
    root = tmp_path / "root"
    with pytest.raises(FetchError, match=message) as failed:
        fetch(published, root)
    first = published.downloads[0]
    by_hand = f"where there is no network, put the file with MD5 {first.md5} at {root / first.path} yourself"
    assert str(failed.value).startswith(f"mnist: cannot download {first.url}: ")
    assert str(failed.value).endswith(by_hand)
    assert len(server.requests) == requests
    assert not list(root.rglob("*"))


def test_without_a_network_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.0)
    published = sets.write_idx(tmp_path / "origin", url="http://127.0.0.1:1")
    with pytest.raises(FetchError, match="Connection refused"):
        fetch(published, tmp_path / "root")
