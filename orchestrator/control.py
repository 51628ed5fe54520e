"""Commands about a sweep that may be running elsewhere: how far it is, stop it, read its log, delete it.

Each reads and writes the store; where only a cluster sees that, an ``address`` has it done there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from analysis.database import Launch
from analysis.status import status as status_of
from orchestrator import remote
from trainables.lease import PATIENCE, Lease, StopKind, ask_to_stop
from trainables.lease import logs as log_names
from trainables.store import Store


def status(store: str | Path, sweep: str | None = None, *, address: str | None = None) -> list[dict[str, Any]]:
    """One row per sweep; see :func:`analysis.status.status`.

    Args:
        store: directory or URL of the store.
        sweep: its name; None for all.
        address: http://HOST:PORT of a cluster's dashboard, where the store is only seen from there.

    Raises:
        StoreError: for a sweep that does not exist, or a damaged file.
    """
    return remote.status(sweep, store, _elsewhere(address)) if address else status_of(store, sweep)


def stop(sweep: str, store: str | Path = "results", *, now: bool = False, address: str | None = None) -> bool:
    """Asks a running launch to stop; returns whether there is one.

    Args:
        sweep: its name.
        store: directory or URL of the store.
        now: running packs save a checkpoint and end, rather than being trained to the end and committed.
        address: as for :func:`status`.

    Raises:
        StoreError: no such sweep.
    """
    if address:
        return remote.stop(sweep, store, _elsewhere(address), now=now)
    there = Store(store).existing(sweep)
    running = Launch.of(there, watch=True)
    kind: StopKind = "checkpoint" if now else "finish"
    if running.alive:
        ask_to_stop(there.storage, running.number, kind)
    return running.alive


def logs(
    sweep: str, store: str | Path = "results", *, follow: bool = False, address: str | None = None
) -> Iterator[str]:
    """Lines of the logs of a sweep's launches, oldest first; with ``follow``, for as long as one is running.

    Args:
        sweep: its name.
        store: directory or URL of the store.
        follow: go on as lines are written.
        address: as for :func:`status`.

    Raises:
        StoreError: no such sweep.
    """
    if address:
        yield from remote.logs(sweep, store, _elsewhere(address), follow=follow)
        return
    there = Store(store).existing(sweep)
    read: dict[str, int] = {}
    while True:
        running = Launch.of(there, watch=True) if follow else Launch(alive=False)
        for name in log_names(there.storage):
            if name not in read or name.startswith(f"log/{running.number:06d}"):  # only those of the last launch grow
                text = (there.storage.read_if_there(name) or b"")[read.get(name, 0) :]
                whole = text[: text.rfind(b"\n") + 1]
                read[name] = read.get(name, 0) + len(whole)
                yield from whole.decode(errors="replace").splitlines(keepends=True)
        if not running.alive:
            return
        time.sleep(0.5)


def _elsewhere(address: str) -> str:
    if not remote.is_remote(address):
        raise ValueError(
            f"--address {address}: the store tells how a launch goes, and is read from here; http://HOST:8265 of a "
            "cluster has it read there"
        )
    return address


def remove(
    sweep: str,
    store: str | Path = "results",
    *,
    take_over: bool = False,
    on_wait: Callable[[str], None] = lambda why: None,
) -> None:
    """Deletes a sweep and all its rows, unless a launch holds it.

    Args:
        sweep: its name.
        store: directory or URL.
        take_over: replace a launch that holds it, without waiting.
        on_wait: see :class:`trainables.lease.Lease`.

    Raises:
        StoreError: no such sweep.
        LaunchHeldError: naming the launch.
    """
    there = Store(store).existing(sweep)
    lease = Lease(there, "rm", patience=0.0 if take_over else PATIENCE, on_wait=on_wait)
    with lease:
        lease.end()  # nothing is written into what goes
        there.storage.remove()


def advice(sweeps: Collection[str], store: str | Path) -> list[str]:
    """The commands that bring back rows which sweeps have lost."""
    held = Store(store)
    commands = (
        f"import FILE --sweep {name}" if held.sweep(name).sweep_file() is None else f"resume {name}"
        for name in sorted(sweeps)
    )
    return [f"`isoratio {command}{store_option(held.url)}`" for command in commands]


def store_option(url: str) -> str:
    """What commands about a sweep need: ``--store ...`` where it is not the default one."""
    default = Store(os.environ.get("ISORATIO_STORE", "results"))
    return "" if url == default.url else f" --store {url}"
