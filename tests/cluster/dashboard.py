"""A Ray dashboard that does what a test says: one job, whose output may break off, and no Ray."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from threading import Thread
from types import TracebackType
from typing import Any

from aiohttp import web

Tail = Callable[[web.Request, web.WebSocketResponse], Awaitable[None]]


class Dashboard:
    """Answers at 127.0.0.1 while it is entered.

    Attributes:
        tails: what each connection to the job's output does, in turn; the last one goes on doing it.
        details: of the job.
        asked: method, path and token of each request.
        submitted: what was posted.
    """

    def __init__(self, *, mode: str | None = "token", token: str = "right", version: str = "2.60.0") -> None:
        self.mode, self.token, self.version = mode, token, version
        self.tails: deque[Tail] = deque()
        self.details: dict[str, Any] = {"type": "SUBMISSION", "status": "RUNNING", "entrypoint": "true"}
        self.asked: list[tuple[str, str, str | None]] = []
        self.submitted: dict[str, Any] = {}
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self, exit_code: int | None, message: str = "") -> None:
        status = "FAILED" if exit_code else "SUCCEEDED"
        self.details |= {"status": status, "driver_exit_code": exit_code, "message": message}

    def __enter__(self) -> Dashboard:
        self.loop = asyncio.new_event_loop()
        self.runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        self.loop.run_until_complete(self._listen())
        self.thread = Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _listen(self) -> None:
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    def _app(self) -> web.Application:
        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(middlewares=[guard])
        app.add_routes(
            [
                web.get("/api/authentication_mode", self._mode),
                web.get("/api/version", self._version),
                web.route("*", "/api/packages/gcs/{name}", self._package),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/job", self._job),
                web.get("/api/jobs/job/logs/tail", self._tail),
            ]
        )
        return app

    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        token = request.headers.get("Authorization")
        self.asked.append((request.method, request.path, token))
        if self.mode == "token" and token != f"Bearer {self.token}" and request.path != "/api/authentication_mode":
            return web.Response(status=403 if token else 401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _mode(self, request: web.Request) -> web.Response:
        return web.json_response({"authentication_mode": self.mode}) if self.mode else web.Response(status=404)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.version, "ray_commit": ""})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=404 if request.method == "GET" else 200)

    async def _submit(self, request: web.Request) -> web.Response:
        self.submitted = await request.json()
        return web.json_response({"job_id": "job", "submission_id": self.submitted["submission_id"]})

    async def _job(self, request: web.Request) -> web.Response:
        return web.json_response(self.details)

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        channel = web.WebSocketResponse()
        await channel.prepare(request)
        tail = self.tails.popleft() if len(self.tails) > 1 else self.tails[0]
        await tail(request, channel)
        return channel


def says(*texts: str) -> Tail:
    """Output in pieces, to its end."""

    async def tail(request: web.Request, channel: web.WebSocketResponse) -> None:
        for text in texts:
            await channel.send_str(text)

    return tail


def breaks(*texts: str) -> Tail:
    """Output in pieces, and then the connection is reset."""

    async def tail(request: web.Request, channel: web.WebSocketResponse) -> None:
        await says(*texts)(request, channel)
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()

    return tail


def stalls(*texts: str) -> Tail:
    """Output in pieces, and then nothing, as where a router has forgotten the connection."""

    async def tail(request: web.Request, channel: web.WebSocketResponse) -> None:
        await says(*texts)(request, channel)
        await asyncio.sleep(3600)

    return tail


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
