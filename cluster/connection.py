"""A Ray of our own on this machine, or a connection to one that runs."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray._private.services
import ray._private.worker
import ray._raylet
import ray.air.execution._internal.actor_manager
import ray.tune.execution.tune_controller
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError, OutOfMemoryError, RayActorError

from cluster.executor import ClusterError
from cluster.greeting import HTTP2_SETTINGS, greet, speaks_http

CONNECT_TIMEOUT = 5.0
FIND_TIMEOUT = 3.0
"""Seconds in which a node of the cluster must be found on this machine; Ray itself looks for a minute."""
OBJECT_STORE_BYTES = 100_000_000
"""Nothing but the list of items goes through Ray's object store; the smallest it takes is 75 MiB."""
WATCH_EVERY = 0.1
"""Seconds. Ray itself notices after 10 s that its raylet is gone, and after 60 s that its head is."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}


def connect(address: str | None, directory: Path) -> None:
    """Connects this process to Ray. It ends at once, with 1, when a Ray that it has started dies.

    Args:
        address: None starts a Ray with the cores of this process; it needs no HOME. Else see :class:`TuneExecutor`.
        directory: where Ray keeps its files.

    Raises:
        ClusterError: there is none at the address, or none could be started.
    """
    _adjust_ray()
    _start(directory) if address is None else _join(address)


def _start(directory: Path) -> None:
    _watch_what_is_started()
    try:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(directory),
            **QUIET,
        )
    except Exception as error:
        raise ClusterError(f"no Ray could be started on this machine: {error}") from error


def _join(address: str) -> None:
    check_node(address, check_address(address))
    try:
        ray.init(address=address, **QUIET)
    except Exception as error:
        hint = "where it asks for a token, set RAY_AUTH_MODE=token"
        raise ClusterError(f"no Ray to join at {address!r}: {error}; {hint}") from error


def check_address(address: str) -> str:
    """Refuses at once what Ray would try for minutes; returns the "host:port" that answers."""
    if "://" in address:
        allowed = "allowed are 'auto' and 'host:port' of a Ray on this machine, and http://host:8265 of any other"
        raise ClusterError(f"address {address!r}: {allowed}")
    if speaks_http(address):
        raise ClusterError(f"{address!r} is the port of a dashboard, for jobs: give --address http://{address}")
    try:
        found: str = ray._private.services.canonicalize_bootstrap_address(address)
        if greet(found, CONNECT_TIMEOUT)[3:] != HTTP2_SETTINGS:
            raise ConnectionError("something else answers there")
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray to join at {address!r}: {error}") from error
    return found


def check_node(address: str, found: str) -> None:
    """Refuses a machine that is no node of the cluster at ``found``: a driver needs one beside it."""
    token = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token and not os.path.isfile(token) and not os.environ.get("RAY_AUTH_TOKEN"):  # Ray would abort this process
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH is set to {token}, and there is no such file")
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init will
    try:
        ray._private.services.get_node_to_connect_for_driver(
            ray._raylet.GcsClient(address=found), timeout_seconds=FIND_TIMEOUT
        )
    except AuthenticationError as error:
        where = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds the token of this cluster"
        raise ClusterError(f"the Ray at {address!r} refuses our token, or asks for one: {where}") from error
    except Exception as error:
        if "No node info found" not in str(error):
            return  # ray.init says it better
        elsewhere = f"--address http://{found.rpartition(':')[0]}:8265, its dashboard, does from anywhere"
        what = f"no node of the Ray at {address!r} runs on this machine"
        raise ClusterError(f"{what}: launch on one of its nodes; {elsewhere}") from error


def _adjust_ray() -> None:
    """Two things that no setting of Ray's gives."""
    # It prints on standard output what it knows of workers that died.
    ray._private.worker._worker_logs_enabled = False
    # A worker killed by its memory monitor raises an error that Tune does not expect: the whole run would end.
    for module in (ray.air.execution._internal.actor_manager, ray.tune.execution.tune_controller):
        module.RayActorError = (RayActorError, OutOfMemoryError)


def _watch_what_is_started() -> None:
    """Ends this process with the first of Ray's servers that ends, from the moment that it has been started."""
    services, start = ray._private.services, ray._private.services.start_ray_process

    @functools.wraps(start)
    def start_and_watch(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        info = start(command, process_type, *args, **kwargs)
        if process_type in ("raylet", "gcs_server"):
            threading.Thread(target=_end_with, args=(info.process, process_type), daemon=True).start()
        return info

    services.start_ray_process = start_and_watch


def _end_with(process: subprocess.Popen[bytes], name: str) -> None:
    while process.poll() is None:
        time.sleep(WATCH_EVERY)
    print(f"its {name} ended with exit status {process.returncode}", file=sys.stderr, flush=True)
    os._exit(1)
