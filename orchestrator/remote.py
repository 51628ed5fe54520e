"""Commands sent to a cluster, from any machine that reaches its dashboard: each is one Ray Job on the cluster's head.

The function that was called here runs there (see :mod:`orchestrator.job`); its messages go to standard error as they
come, and it returns or raises here what it did there. A launch goes on there whatever becomes of this process.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.formats import escaped
from orchestrator.job import Record, records
from orchestrator.package import names_modules, user_modules, write_package
from orchestrator.signals import StoppedAtOnce
from trainables.lease import LaunchHeldError, StopKind
from trainables.provenance import redacted
from trainables.storage import DamagedStoreError, StoreError

if TYPE_CHECKING:
    from types import FrameType

    from cluster.jobs import JobServer
    from orchestrator.launching import LaunchResult, Options
    from orchestrator.sweepfile import SweepFile


def is_remote(address: str | None) -> bool:
    """Whether an address is that of a cluster's dashboard, rather than of a Ray to join."""
    return address is not None and address.startswith(("http://", "https://"))


def launch(
    sweep: SweepFile | str,
    store: str | Path,
    options: Options,
    *,
    file: Path | None,
    detach: bool,
    should_stop: Callable[[], StopKind | None],
) -> LaunchResult:
    """Launches on a cluster; see :func:`orchestrator.launching.launch`.

    Args:
        sweep: what ``file`` holds; the name of a sweep to resume where that is None.
        store: URL, or absolute path on a file system that all nodes share.
        options: of the launch; its data root is a directory there.
        file: the sweep file.
        detach: return once it has begun.
        should_stop: asked every second.
    """
    assert options.address is not None
    name = sweep if isinstance(sweep, str) else sweep.name
    arguments: dict[str, Any] = {"sweep": name, "store": shared_store(store, options.address)}
    arguments |= {"executor": options.executor, "limit": options.limit, "take_over": options.take_over}
    arguments |= {"max_concurrent": options.max_concurrent, "budget_hours": options.budget_hours}
    files = user_modules(Path.cwd()) if isinstance(sweep, str) or names_modules(sweep.text) else {}
    if file is not None:
        arguments["file"] = place = _place(file)
        files[place] = file
    given, of_this_machine = options.data_root, os.environ.get("ISORATIO_DATA")
    environment = {} if given is None or str(given) == of_this_machine else {"ISORATIO_DATA": str(given)}
    command = "launch" if file else "resume"
    sent = _sent(options.address, command, arguments, files=files, environment=environment, same_versions=True)
    return _followed(sent, name, store, detach=detach, should_stop=should_stop)


def status(sweep: str | None, store: str | Path, address: str) -> list[dict[str, Any]]:
    """:func:`orchestrator.control.status`, asked on a cluster."""
    arguments = {"sweep": sweep, "store": shared_store(store, address)}
    found: list[dict[str, Any]] = _result(_sent(address, "status", arguments))
    return found


def stop(sweep: str, store: str | Path, address: str, *, now: bool) -> bool:
    """:func:`orchestrator.control.stop`, asked on a cluster."""
    arguments = {"sweep": sweep, "store": shared_store(store, address), "now": now}
    return bool(_result(_sent(address, "stop", arguments)))


def logs(sweep: str, store: str | Path, address: str, *, follow: bool) -> Iterator[str]:
    """:func:`orchestrator.control.logs`, read on a cluster."""
    arguments = {"sweep": sweep, "store": shared_store(store, address), "follow": follow}
    for record in _sent(address, "logs", arguments).helping():
        if "line" in record:
            yield record["line"]


def doctor(store: str | Path, address: str, data_root: str | None) -> list[dict[str, Any]]:
    """:func:`orchestrator.diagnosis.of_cluster`, asked on a cluster's head."""
    arguments = {"sweep": "doctor", "store": shared_store(store, address), "data_root": data_root}
    found: list[dict[str, Any]] = _result(_sent(address, "doctor", arguments))
    return found


def shared_store(store: str | Path, address: str) -> str:
    """A store that means the same on every node.

    Raises:
        StoreError: it does not, or it is a URL with credentials.
    """
    text = str(store).removeprefix("file://")
    if redacted(text) != text:
        raise StoreError(
            f"store {redacted(text)}: credentials do not belong into a URL, which is shown and stored; the nodes of a "
            "cluster have them in their environment, or by their role"
        )
    if "://" not in text and not Path(text).is_absolute():
        raise StoreError(
            f"store {text!r} with --address {address!r}: that would be a directory of the cluster's head alone; give "
            "--store s3://bucket/prefix (gs://, az://), or an absolute path on a file system that all its nodes share"
        )
    return text


@dataclass(frozen=True)
class _Sent:
    """A command that runs on a cluster.

    Attributes:
        server: the cluster.
        job: its name there.
    """

    server: JobServer
    job: str

    def records(self) -> Iterator[Record]:
        """What it says until it ends, an empty one about every second; messages go to standard error.

        Raises:
            ClusterError: it cannot be followed, or ended without a result.
            Exception: what it raised there.
        """
        from cluster.executor import ClusterError

        begun = ended = False
        for record in records(self.server.follow(self.job, _say), _say):
            if "error" in record:
                raise _ERRORS.get(record["code"], ClusterError)(record["error"])
            begun, ended = begun or bool(record), ended or "result" in record
            yield record
        if not ended:
            outcome = self.server.outcome(self.job)
            why = outcome.message if outcome else "it still runs"
            why = why.partition(", last available logs")[0] if begun else why  # which have been shown
            raise ClusterError(f"job {self.job} at {self.server.address} ended without a result: {why}")

    def helping(self) -> Iterator[Record]:
        """Likewise, of a command that is of no use without this process: it ends with it, and leaves no trace."""
        try:
            yield from self.records()
        finally:
            with suppress(ValueError):
                if self.server.outcome(self.job) is None:
                    self.server.stop(self.job)
            self.server.forget(self.job)


_ERRORS: dict[int, type[Exception]] = {2: ValueError, 3: DamagedStoreError, 4: LaunchHeldError}
"""By exit code."""


def _result(sent: _Sent) -> Any:
    [result] = [record["result"] for record in sent.helping() if "result" in record]
    return result


def _sent(
    address: str,
    command: str,
    arguments: Mapping[str, Any],
    *,
    files: Mapping[str, Path] | None = None,
    environment: Mapping[str, str] | None = None,
    same_versions: bool = False,
) -> _Sent:
    """Submits a command.

    Raises:
        ClusterError: no cluster at the address, or it refuses.
    """
    from cluster.jobs import JobServer

    server = JobServer(address)
    if server.exposed:
        _say(
            f"WARNING: {address} asks for no token: whoever reaches it can run anything on that cluster, and read what "
            "it reads. Start it with RAY_AUTH_MODE=token"
        )
    if same_versions:
        _check_ray(server)
    job = f"isoratio-{arguments['sweep'] or 'all'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory, "isoratio.zip")
        write_package(package, files or {})
        line = shlex.join(["sh", "orchestrator/job.sh", command, json.dumps(arguments)])
        server.submit(job, line, package, environment or {})
    return _Sent(server, job)


def _check_ray(server: JobServer) -> None:
    from cluster.executor import ClusterError

    here, there = version("ray"), server.ray_version
    if here != there:
        raise ClusterError(
            f"the cluster at {server.address} runs Ray {there}, and this machine has Ray {here}: give every node "
            f"`pip install ray=={here}` and start it anew, or install ray=={there} here"
        )


def _place(file: Path) -> str:
    """The path of a sweep file in the user's directory there: as here, or at its top where it lies elsewhere."""
    with suppress(ValueError):
        return file.absolute().relative_to(Path.cwd()).as_posix()
    return file.name


def _followed(
    sent: _Sent, sweep: str, store: str | Path, *, detach: bool, should_stop: Callable[[], StopKind | None]
) -> LaunchResult:
    """Follows a launch to its end, or until it has begun."""
    from cluster.jobs import LostError
    from orchestrator.launching import LaunchResult

    address, asked = sent.server.address, None
    found = LaunchResult(sweep, detached=True, options=_store_option(store), address=address)
    _say(f"launched on {address} as job {sent.job}")
    try:
        with _told_to_end():
            for record in sent.records():
                if "result" in record:
                    return LaunchResult(**record["result"] | {"options": found.options, "address": address})
                if "begun" in record and detach:
                    break
                wish = should_stop()
                if wish != asked and stop(sweep, store, address, now=wish == "checkpoint"):
                    asked = wish
                    _say("the launch on the cluster has been asked to stop")
    except (StoppedAtOnce, KeyboardInterrupt, LostError):
        _say(found.text())
        raise
    return found


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends this process, not the launch: it comes when this machine is shut down."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise StoppedAtOnce(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _store_option(store: str | Path) -> str:
    return "" if str(store) == os.environ.get("ISORATIO_STORE") else f" --store {store}"


def _say(text: str) -> None:
    print(escaped(text, keep="\n\t"), file=sys.stderr, flush=True)
