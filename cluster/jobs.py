"""Commands run on a cluster's head as Ray Jobs: submitted over HTTP from any machine, followed, stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.executor import ClusterError
from cluster.greeting import speaks_grpc
from cluster.token import token_file, token_here

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and to wait for an answer."""
PATIENCE = 600.0
"""Seconds for which a job is followed though its cluster does not answer."""
RETRY_EVERY = 2.0
CHECK_AFTER = 10.0
"""Seconds of silence after which a job is asked whether it still runs."""
RENEW_AFTER = 90.0
"""Seconds of silence after which the connection is made anew: it may be dead, and nobody has said so."""
STOP_SECONDS = 60
"""How long a job that is told to end (SIGTERM) may take; Ray's own are 3."""
SILENT = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")


class LostError(ClusterError):
    """The cluster does not answer, which may pass."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        exit_code: of its command; None where it never ran, or was killed.
        message: what Ray says of it, with the last lines of its output.
    """

    exit_code: int | None
    message: str


class JobServer:
    """A cluster's dashboard, which takes jobs.

    Attributes:
        address: "http://host:port", or https.
        guarded: whether it asks for a token.
        ray_version: of the cluster.

    Raises:
        ClusterError: no dashboard answers there, or it refuses us.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        verify = _certificates() if self.address.startswith("https:") else True
        mode = _ask(self.address, "authentication_mode", verify)
        self.guarded = mode is not None and mode != "disabled"
        headers = {"Authorization": f"Bearer {_token(self.address)}"} if self.guarded else {}
        for name in SILENT:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._told(), _without_addresses():
            self.client = _Client(self.address, headers=headers, verify=verify)
            self.ray_version: str = self.client.version()

    @property
    def exposed(self) -> bool:
        """Whether anyone who reaches it may run what they like there."""
        host = urlsplit(self.address).hostname or ""
        local = host == "localhost"
        with suppress(ValueError):
            local = ipaddress.ip_address(host).is_loopback
        return not (self.guarded or local)

    def submit(self, name: str, command: str, package: Path, environment: Mapping[str, str]) -> None:
        """Starts a job; it takes no CPU from the cluster's count.

        Args:
            name: which no other job of the cluster has or had.
            command: for a shell, in the directory that ``package`` is unpacked into; the dashboard shows it.
            package: a zip file; its top is importable in the job and in all its workers.
            environment: variables for both.

        Raises:
            ClusterError: it is refused.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment}
        with self._told():
            self.client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env={"working_dir": str(package), "env_vars": variables},
                entrypoint_num_cpus=0,
            )

    def outcome(self, name: str) -> Outcome | None:
        """How a job ended; None while it has not.

        Raises:
            LostError: the cluster does not answer.
            ClusterError: it knows no such job.
        """
        with self._told():
            details = self.client.get_job_info(name)
        if not details.status.is_terminal():
            return None
        return Outcome(details.driver_exit_code, details.message or "")

    def stop(self, name: str) -> None:
        """Tells the processes of a job to end (SIGTERM), and kills what is left of them after :data:`STOP_SECONDS`."""
        with self._told():
            self.client.stop_job(name)

    def forget(self, name: str) -> None:
        """Takes a job that has ended off the dashboard's list."""
        with suppress(ClusterError), self._told():
            self.client.delete_job(name)

    def follow(self, name: str, on_trouble: Callable[[str], None] = lambda why: None) -> Iterator[str | None]:
        """Lines of a job's output until it ends, and None about every second in which there is none.

        Args:
            name: of the job.
            on_trouble: told once when the cluster does not answer, and once when it does again.

        Raises:
            LostError: the cluster has not answered for :data:`PATIENCE` seconds.
            ClusterError: it knows no such job.
        """
        read, rest = 0, ""
        trouble: float | None = None  # since when
        while True:
            try:
                for text in self._texts(name, read):
                    if trouble is not None:
                        trouble = None
                        on_trouble(f"{self.address} answers again")
                    if text is None and self.outcome(name) is not None:
                        yield from [rest] if rest else []
                        return
                    read += len(text or "")
                    *lines, rest = f"{rest}{text or ''}".split("\n")
                    yield from lines if lines else (None,)
            except LostError as error:
                if trouble is None:
                    trouble = time.monotonic()
                    on_trouble(f"{error}; trying for {PATIENCE / 60:.0f} minutes")
                if time.monotonic() - trouble > PATIENCE:
                    raise
            time.sleep(RETRY_EVERY)

    def _texts(self, name: str, skip: int) -> Iterator[str | None]:
        """The job's output after its first ``skip`` characters, and None at its end; ends early on a long silence."""
        self.outcome(name)  # whether there is such a job
        heard = asked = time.monotonic()
        tail = _Tail(self.client, name)
        try:
            while (text := tail.next(1.0)) is not None:
                now = time.monotonic()
                heard = now if text else heard
                if now - heard > RENEW_AFTER:
                    return
                if now - max(heard, asked) > CHECK_AFTER:
                    self.outcome(name)
                    asked = now
                text, skip = text[skip:], max(0, skip - len(text))
                yield text
            yield None
        finally:
            tail.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of Ray's client and of what is below it, as ours."""
        try:
            yield
        except AuthenticationError as error:
            where = "set RAY_AUTH_TOKEN_PATH to the file that holds that of this cluster"
            raise ClusterError(f"the cluster at {self.address!r} refuses our token: {where}") from error
        except (requests.RequestException, OSError) as error:
            raise LostError(f"no answer from {self.address!r}: {_reason(error)}") from error
        except RuntimeError as error:
            kind = ClusterError if "status code 4" in str(error) else LostError
            raise kind(f"the cluster at {self.address!r} answers: {error}") from error


class _Client(JobSubmissionClient):
    """Ray's, with an end to waiting: it has none of its own."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=TIMEOUT, **options)

    def version(self) -> str:
        """Of the cluster's Ray."""
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


class _Tail:
    """The output of a job as it comes, read in a thread: the caller's own may run an event loop, as in a notebook."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self.texts: SimpleQueue[str | Exception | None] = SimpleQueue()
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self._read(client, name))
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def next(self, seconds: float) -> str | None:
        """What has come, empty if that takes longer; None at the end.

        Raises:
            LostError: the connection broke.
        """
        try:
            text = self.texts.get(timeout=seconds)
        except Empty:
            return ""
        if isinstance(text, Exception):
            raise LostError(f"the output of the job broke off: {_reason(text)}") from text
        return text

    def close(self) -> None:
        """Ends the connection."""
        with suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)
        self.loop.close()

    async def _read(self, client: JobSubmissionClient, name: str) -> None:
        try:
            async for text in client.tail_job_logs(name):
                self.texts.put(text)
            self.texts.put(None)
        except Exception as error:  # whatever the libraries below may raise
            self.texts.put(error)


def _checked(address: str) -> str:
    """An address without what is not needed.

    Raises:
        ClusterError: it is none, or holds credentials.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ClusterError("an address holds no credentials: set RAY_AUTH_TOKEN_PATH to the file that holds the token")
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"(\[[^]]+\]|[^:]+)(:\d{1,5})?", parts.netloc):
        raise ClusterError(f"address {address!r}: http://HOST:8265 of a Ray dashboard is expected, or https")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _ask(address: str, what: str, verify: bool | str) -> str | None:
    """What a dashboard tells anyone; None where it is too old to know.

    Raises:
        ClusterError: no dashboard answers there.
    """
    try:
        answer = requests.get(f"{address}/api/{what}", timeout=TIMEOUT, verify=verify)
        return str(answer.json()[what]) if answer.ok else None
    except requests.JSONDecodeError as error:
        raise ClusterError(f"what answers at {address!r} is no Ray dashboard") from error
    except requests.RequestException as error:
        parts = urlsplit(address)
        place = f"{parts.hostname}:{parts.port or 80}"
        if speaks_grpc(place):
            hint = f"from any machine give http://{parts.hostname}:8265, its dashboard; on a node, {place}"
            raise ClusterError(f"{address!r} is a port of Ray itself, which speaks no HTTP: {hint}") from error
        raise LostError(f"no Ray dashboard answers at {address!r}: {_reason(error)}") from error


def _token(address: str) -> str:
    """The token to show.

    Raises:
        ClusterError: there is none.
    """
    token = token_here()
    if token is None:
        what = f"the cluster at {address!r} asks for a token, and there is none in {token_file()}"
        where = "`ray get-auth-token` on the cluster prints it; put it into that file, or set RAY_AUTH_TOKEN_PATH"
        raise ClusterError(f"{what}: {where}")
    return token


def _certificates() -> str | bool:
    """The authorities that may vouch for a dashboard; True: those that everyone trusts."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Without the variables that Ray's client prefers to the address it is given."""
    names = {"RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"} & os.environ.keys()
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


def _reason(error: Exception) -> str:
    """What is wrong, out of the many words for it."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)|\[SSL: \w+\] ([^'\")(]+)", str(error))
    return (found[1] or found[2]).strip() if found else str(error) or type(error).__name__
