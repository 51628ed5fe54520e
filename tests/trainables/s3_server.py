"""A server that speaks as much of the S3 protocol as a store needs, as a process of its own, with faults on demand.

``python s3_server.py --port 0`` prints its port. Signatures are accepted unchecked; uploads in parts are not there.
Tests talk to it through :class:`S3Server`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

CONTROL = "/_control/"
ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "unsupported": (501, "NotImplemented"),
    "conflict": (409, "ConditionalRequestConflict"),
    "precondition": (412, "PreconditionFailed"),
    "denied": (403, "AccessDenied"),
}
"""Faults that answer without effect."""
OTHERS = {
    "none": "nothing",
    "cut": "the connection ends in the middle of the request, without effect",
    "drop": "the connection ends after the effect, without an answer",
    "delay": "the effect comes `seconds` later",
    "delay_answer": "the answer comes `seconds` after the effect",
    "truncate": "the connection ends in the middle of the answer",
    "unconditional": "If-None-Match and If-Match are not looked at",
}


@dataclass
class Fault:
    """Something that goes wrong with the next ``times`` requests that fit.

    Attributes:
        operation: such as ``PUT``, ``GET``, ``LIST``; ``*``: any.
        key: pattern of the object's key.
        fired: how many requests it has met.
    """

    kind: str
    operation: str = "*"
    key: str = "*"
    times: int = 1
    seconds: float = 0.0
    fired: int = 0

    def __post_init__(self) -> None:
        assert self.kind in ANSWERS or self.kind in OTHERS, self.kind

    def fits(self, operation: str, key: str) -> bool:
        return self.fired < self.times and self.operation in {"*", operation} and fnmatch(key, self.key)


class S3Server:
    """The server's process, as tests see it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--port", "0", "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self._buckets = itertools.count()

    def environment(self) -> dict[str, str]:
        """What a client needs in order to find the server."""
        return {
            "AWS_ENDPOINT": self.url,
            "AWS_ACCESS_KEY_ID": "planted-access-key",
            "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
            "AWS_REGION": "us-east-1",
        }

    def control(self, command: str, **arguments: object) -> Any:
        body = json.dumps(arguments).encode()
        with urlopen(Request(f"{self.url}{CONTROL}{command}", body, method="POST")) as answer:
            return json.load(answer)

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{next(self._buckets)}"
        self.control("bucket", name=name)
        return name

    def fault(self, kind: str, operation: str = "*", key: str = "*", times: int = 1, seconds: float = 0.0) -> None:
        self.control("fault", **asdict(Fault(kind, operation, key, times, seconds)))

    def fired(self) -> dict[str, int]:
        """Kind of fault -> how many requests it met."""
        counts: Counter[str] = Counter()
        for fault in self.control("state")["faults"]:
            counts[fault["kind"]] += fault["fired"]
        return dict(counts)

    def requests(self) -> Counter[str]:
        """Operation -> how many requests came since the last :meth:`clear`."""
        return Counter(self.control("state")["requests"])

    def keys(self, bucket: str) -> list[str]:
        return list(self.control("state")["keys"][bucket])

    def older(self, bucket: str, key: str, seconds: float) -> None:
        """Makes an object look as if written earlier."""
        self.control("older", bucket=bucket, key=key, seconds=seconds)

    def pages(self, size: int) -> None:
        """How many entries an answer to a listing holds."""
        self.control("pages", size=size)

    def clear(self) -> None:
        """No faults, counts of zero, pages of 1000."""
        self.control("clear")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server, gone afterwards, also when this process is killed."""
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


class ProblemError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, **headers: str) -> None:
        self.status, self.code, self.headers = status, code, headers


@dataclass
class Entry:
    """An object."""

    data: bytes
    modified: float = field(default_factory=time.time)

    @property
    def headers(self) -> dict[str, str]:
        return {"ETag": self.etag, "Last-Modified": formatdate(self.modified, usegmt=True), "Accept-Ranges": "bytes"}

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A request, taken apart."""

    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Any
    body: bytes
    conditional: bool = True


def operation_of(method: str, key: str, query: dict[str, str]) -> str:
    if method == "GET" and not key:
        return "LIST"
    return "DELETES" if method == "POST" and "delete" in query else method


class Buckets:
    """What the server holds."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Entry]] = {}
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.page_size = 1000

    # What tests ask for

    def control_bucket(self, name: str) -> None:
        self.buckets[name] = {}

    def control_fault(self, **fault: Any) -> None:
        self.faults.append(Fault(**fault))

    def control_pages(self, size: int) -> None:
        self.page_size = size

    def control_older(self, bucket: str, key: str, seconds: float) -> None:
        self.buckets[bucket][key].modified -= seconds

    def control_clear(self) -> None:
        self.faults, self.requests, self.page_size = [], Counter(), 1000

    def control_state(self) -> dict[str, object]:
        keys = {name: sorted(bucket) for name, bucket in self.buckets.items()}
        faults = [asdict(fault) for fault in self.faults]
        return {"faults": faults, "requests": self.requests, "keys": keys}

    # What clients ask for

    def fault_of(self, operation: str, key: str) -> Fault | None:
        for fault in self.faults:
            if fault.fits(operation, key):
                fault.fired += 1
                return fault
        return None

    def answer(self, call: Call) -> Answer:
        do = getattr(self, f"do_{call.operation.lower()}", self.unknown)
        try:
            if call.bucket not in self.buckets:
                raise ProblemError(404, "NoSuchBucket")
            answer: Answer = do(call, self.buckets[call.bucket])
        except ProblemError as problem:
            return Answer(problem_xml(problem.code, call), problem.status, problem.headers)
        return answer

    def do_get(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        self._match(call, bucket.get(call.key))
        entry = bucket[call.key]
        size = len(entry.data)
        if not (asked := call.headers.get("Range")):
            return Answer(entry.data, 200, entry.headers)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1 if first and last else size, size)
        if start >= size:
            raise ProblemError(416, "InvalidRange", **{"Content-Range": f"bytes */{size}"})
        return Answer(entry.data[start:end], 206, entry.headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})

    do_head = do_get

    def do_put(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        there = bucket.get(call.key)
        if call.conditional and there and call.headers.get("If-None-Match") == "*":
            raise ProblemError(412, "PreconditionFailed")
        if call.conditional and "If-Match" in call.headers:
            self._match(call, there)
        bucket[call.key] = Entry(call.body)
        return Answer(headers={"ETag": bucket[call.key].etag})

    def unknown(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        raise ProblemError(501, "NotImplemented")

    def _match(self, call: Call, there: Entry | None) -> None:
        if there is None:
            raise ProblemError(404, "NoSuchKey")
        if call.headers.get("If-Match", there.etag) != there.etag:
            raise ProblemError(412, "PreconditionFailed")

    def do_delete(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        bucket.pop(call.key, None)
        return Answer(status=204)

    def do_deletes(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        keys = [found.text or "" for found in ElementTree.fromstring(call.body).iter() if found.tag.endswith("Key")]
        for key in keys:
            bucket.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return Answer(f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def do_list(self, call: Call, bucket: dict[str, Entry]) -> Answer:
        prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
        after = call.query.get("continuation-token", call.query.get("start-after", ""))
        found: dict[str, str] = {}  # a key, or a prefix that several have in common -> its XML
        for key, entry in sorted(bucket.items()):
            common, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            name = prefix + common + cut if cut else key
            if key.startswith(prefix) and name > after:
                found[name] = _common(name) if cut else _contents(key, entry)
        page = list(found.items())[: min(int(call.query.get("max-keys", 1000)), self.page_size)]
        more = len(page) < len(found)
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        xml = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(xml for _, xml in page)}"
        return Answer(f"<ListBucketResult><KeyCount>{len(page)}</KeyCount>{xml}</ListBucketResult>".encode())


def problem_xml(code: str, call: Call) -> bytes:
    """As S3 says it, repeating parts of the request."""
    echo = f"<AWSAccessKeyId>{escape(call.headers.get('Authorization', ''))}</AWSAccessKeyId>"
    xml = f"<Error><Code>{code}</Code><Message>because of a {code}</Message>{echo}</Error>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()


def _common(name: str) -> str:
    return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"


def _contents(key: str, entry: Entry) -> str:
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(entry.modified))
    etag, size = f"<ETag>{escape(entry.etag)}</ETag>", f"<Size>{len(entry.data)}</Size>"
    return f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>{etag}{size}</Contents>"


class Server:
    """The buckets behind HTTP, and the faults in between."""

    def __init__(self) -> None:
        self.buckets = Buckets()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        url = urlsplit(request.raw_path)
        if url.path.startswith(CONTROL):
            command = getattr(self.buckets, f"control_{url.path.removeprefix(CONTROL)}")
            return await self.send(
                request, Answer(json.dumps(command(**json.loads(await request.content.read()))).encode())
            )
        bucket, _, key = unquote(url.path.removeprefix("/")).partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        operation = operation_of(request.method, key, query)
        self.buckets.requests[operation] += 1
        fault = self.buckets.fault_of(operation, key) or Fault("none")
        if fault.kind == "cut":
            await request.content.read(1)
            return self.cut(request)
        body = await request.content.read()
        call = Call(operation, bucket, key, query, request.headers, body, conditional=fault.kind != "unconditional")
        answer = await self.answer(call, fault)
        return self.cut(request) if fault.kind == "drop" else await self.send(request, answer, fault.kind != "truncate")

    async def answer(self, call: Call, fault: Fault) -> Answer:
        if fault.kind in ANSWERS:
            status, code = ANSWERS[fault.kind]
            return Answer(problem_xml(code, call), status)
        await asyncio.sleep(fault.seconds if fault.kind == "delay" else 0)
        answer = self.buckets.answer(call)
        await asyncio.sleep(fault.seconds if fault.kind == "delay_answer" else 0)
        return answer

    async def send(self, request: web.BaseRequest, answer: Answer, whole: bool = True) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(answer.body)
        with suppress(ConnectionResetError):  # the client is gone
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(answer.body if whole else answer.body[: len(answer.body) // 2])
        if not whole and request.transport:
            request.transport.close()  # after what was written has gone out
        return response

    def cut(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response()


async def serve(port: int, until_eof: bool) -> None:
    runner = web.ServerRunner(web.Server(Server().handle), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(runner.addresses[0][1], flush=True)
    ended = asyncio.Event()
    if until_eof:
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.until_eof))
