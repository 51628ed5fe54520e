"""A Ray for the time of one run: started on this machine, or joined where it runs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray._private.services
import ray._private.worker
import ray.air.execution._internal.actor_manager
import ray.tune.execution.tune_controller
from ray.exceptions import OutOfMemoryError, RayActorError

from cluster.executor import ClusterError
from cluster.reaper import scratch

CONNECT_TIMEOUT = 5.0
HTTP2_SETTINGS = b"\x04"
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + HTTP2_SETTINGS + b"\0\0\0\0\0"
"""What opens a gRPC connection: the preface and an empty settings frame, which a Ray answers with its own."""
OBJECT_STORE_BYTES = 100_000_000
"""Nothing but the list of items goes through Ray's object store; the smallest it takes is 75 MiB."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an item without a GPU sees none
    "RAY_prestart_worker_first_driver": "0",  # Tune gives its actors an environment of their own: these would idle
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even when told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # Tune's state is rewritten whole and nobody reads it
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}

TOKEN = secrets.token_hex(32)
"""One for all that this process starts, since Ray reads it once."""
TOKEN_IN_USE = threading.Event()
"""Set for good with the first such Ray: what Ray has read then keeps this process from joining any other."""


@contextmanager
def connected(address: str | None) -> Iterator[Path]:
    """A connection to Ray and a directory for scratch; on leaving, everything that was started through it ends.

    Args:
        address: None starts a Ray with the cores of this process; it needs no HOME. Else see :class:`TuneExecutor`.

    Raises:
        ClusterError: there is none at the address, or this process uses one already.
    """
    if ray.is_initialized():
        raise ClusterError("this process is connected to a Ray already: call ray.shutdown() first")
    _adjust_ray()
    private = _private_token() if address is None else {}
    with scratch() as directory, _environment(ENVIRONMENT | private):
        try:
            with signal_handlers_kept():
                _start(directory) if address is None else _join(address)
            yield directory
        finally:
            ray.shutdown()


def _start(directory: Path) -> None:
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(directory),
        **QUIET,
    )


def _join(address: str) -> None:
    _check_address(address)
    try:
        ray.init(address=address, **QUIET)
    except Exception as error:
        hint = "where it asks for a token, set RAY_AUTH_MODE=token"
        raise ClusterError(f"no Ray to join at {address!r}: {error}; {hint}") from error


def _check_address(address: str) -> None:
    """Refuses at once what Ray would try for minutes."""
    if "://" in address:
        raise ClusterError(f"address {address!r}: allowed are 'auto' and 'host:port' of a Ray on this machine")
    if TOKEN_IN_USE.is_set():
        raise ClusterError(f"address {address!r}: this process has run a Ray of its own; join others from a new one")
    try:
        found = ray._private.services.canonicalize_bootstrap_address(address)
        host, _, port = found.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT) as connection:
            connection.settimeout(CONNECT_TIMEOUT)
            connection.sendall(HTTP2_HELLO)
            if connection.recv(4)[3:] != HTTP2_SETTINGS:
                raise ConnectionError("something else answers there")
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray to join at {address!r}: {error}") from error


def _private_token() -> dict[str, str]:
    """A token for a Ray that is ours alone, so that Ray writes none to HOME; the user's own choice goes first."""
    if any(f"RAY_AUTH_{name}" in os.environ for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return {}
    TOKEN_IN_USE.set()
    return {"RAY_AUTH_TOKEN": TOKEN}


def _adjust_ray() -> None:
    """Two things that no setting of Ray's gives."""
    # It prints on standard output what it knows of workers that died.
    ray._private.worker._worker_logs_enabled = False
    # A worker killed by its memory monitor raises an error that Tune does not expect: the whole run would end.
    for module in (ray.air.execution._internal.actor_manager, ray.tune.execution.tune_controller):
        module.RayActorError = (RayActorError, OutOfMemoryError)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and undoes that and what Ray sets."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Keeps the caller's handlers of the signals that Ray and Tune take over."""
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)} if in_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
