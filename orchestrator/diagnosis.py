"""What keeps trials from running on this machine, or on a cluster and each of its nodes, and what to do about it."""

from __future__ import annotations

import os
import platform
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.health import Check, Expected, Finding, Look, State, found_by
from orchestrator.installation import SENT, examine, examine_node, ready_data, skew

if TYPE_CHECKING:
    from cluster.nodes import Answer


def doctor(
    store: str | Path = "results", *, address: str | None = None, data_root: str | Path | None = None
) -> list[Check]:
    """Looks at everything that trials need. It leaves nothing behind.

    Args:
        store: directory or URL of the store.
        address: of a cluster: "auto" or "host:port" on one of its nodes, each of which is then looked at, too;
            "http(s)://host:port" from anywhere.
        data_root: directory of data files; default ``$ISORATIO_DATA``, else the user's cache.

    Returns:
        A row for each thing looked at; a check that breaks is one that has found something wrong.
    """
    here, root = platform.node(), None if data_root is None else str(data_root)
    far = address is not None and "://" in address
    seen = None if far and "://" not in str(store) else _place(store)  # a directory there is another one here
    rows = [*examine(Expected(seen, _needs(), root), here), _row(token_file, here, Expected(seen))]
    if address is None:
        return rows
    try:
        return rows + (of_dashboard(address, store, root) if far else of_cluster(address, store, root))
    except Exception as error:
        return [*rows, Check("cluster", address, State.WRONG, str(error), "does Ray run there, and is its port open?")]


def _row(check: Look, where: str, expected: Expected) -> Check:
    return _of(check.__name__.replace("_", " "), where, found_by(check, expected))


def _of(check: str, where: str, found: Finding) -> Check:
    return Check(check, where, found.status, found.found, found.advice)


def _place(store: str | Path) -> str:
    """The store; of a directory that is not there yet, the nearest one above it, in which it would be made."""
    text = str(store).removeprefix("file://")
    if "://" in text:
        return text
    path = Path(text).expanduser().absolute()
    return str(next(place for place in (path, *path.parents) if place.exists()))


def _needs() -> tuple[str, ...]:
    """What Isoratio requires, of Python too; nothing where it is not installed but found on the import path."""
    try:
        python, packages = metadata("isoratio")["Requires-Python"], requires("isoratio") or []
    except PackageNotFoundError:
        return ()
    return (f"python{python}", *(text for text in packages if "extra ==" not in text))


def token_file(expected: Expected) -> Finding:
    """Whether Ray finds a token that only its owner can read. It is never shown."""
    from cluster.token import token_file as place
    from cluster.token import token_here

    mode, path, chosen = os.environ.get("RAY_AUTH_MODE"), place(), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode is not None and mode.lower() == "disabled":
        return Finding(
            State.WARNING, "RAY_AUTH_MODE=disabled: a Ray started here lets anyone in", "unset RAY_AUTH_MODE"
        )
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        advice = "put it into ~/.ray/auth_token, for you alone to read: what stands in the environment is handed on"
        return Finding(State.WARNING, "a token stands in RAY_AUTH_TOKEN", advice)
    if chosen and not path.is_file():
        return Finding(
            State.WRONG, f"RAY_AUTH_TOKEN_PATH names {path}, and there is no such file", "unset it, or mend it"
        )
    if path.is_file() and path.stat().st_mode & 0o077:  # as Ray's own command leaves it
        status = State.WRONG if _open_to_others(path) else State.WARNING
        return Finding(status, f"{path} is not for its owner alone", f"chmod 600 {shlex.quote(str(path))}")
    if token_here():
        return Finding(State.OK, f"{path}, for its owner alone")
    advice = "`umask 077; ray get-auth-token --generate` makes one; or fetch that of your cluster"
    return Finding(State.WARNING if mode else State.OK, f"none in {path}", advice if mode else "")


def _open_to_others(path: Path) -> bool:
    """Whether anyone on this machine can read a file, or change it."""
    return bool(path.stat().st_mode & 0o006) and all(folder.stat().st_mode & 0o001 for folder in path.parents)


def of_cluster(address: str, store: str | Path, data_root: str | None = None) -> list[Check]:
    """A cluster of which this machine is a node: whom it lets in, and each of its nodes.

    Raises:
        ClusterError: it does not answer.
    """
    from cluster.nodes import look

    found = look(address)
    rows = [
        Check("cluster", found.address, State.OK, "answers"),
        _of("token", found.address, guard(not found.is_open)),
        _of("versions", found.address, same({"Ray": found.ray, "Python": found.python})),
    ]
    if rows[-1].status is State.WRONG:  # Ray would refuse to be joined
        return rows
    with _signed(store) as (place, sign):
        expected = Expected(place, _needs(), data_root, sign, _own_versions(), _source(), ready_data(data_root))
        return rows + _of_nodes(address, expected)


def guard(asks: bool) -> Finding:
    """What to say of a cluster that asks for a token, or does not."""
    if asks:
        return Finding(State.OK, "it asks for a token, and takes ours")
    problem = "IT ANSWERS WITHOUT A TOKEN: whoever reaches it can run anything there, and read what it reads"
    advice = "start it with RAY_AUTH_MODE=token on every node (`umask 077; ray get-auth-token --generate` makes one)"
    return Finding(State.WARNING, problem, advice)


def same(there: Mapping[str, str]) -> Finding:
    """Versions of Ray and Python at the head, which must be those of here to the last number."""
    here = {"Ray": version("ray"), "Python": platform.python_version()}
    if other := [name for name in there if here[name] != there[name]]:
        what = "; ".join(f"{name} {there[name]}, and {here[name]} here" for name in other)
        return Finding(State.WRONG, what, "use a Python environment like that with which the cluster was started")
    return Finding(State.OK, f"{' and '.join(f'{name} {there[name]}' for name in there)}, as here")


@contextmanager
def _signed(store: str | Path) -> Iterator[tuple[str | None, tuple[str, str]]]:
    """The place of the store with a file in it, by which nodes know it; no place where none can be written."""
    from trainables.storage import StoreError, open_storage

    place, sign = _place(store), (f".probe-{secrets.token_hex(6)}", secrets.token_hex(16))
    storage = None
    try:
        storage = open_storage(place)
        storage.create(sign[0], sign[1].encode())
    except (OSError, StoreError):  # said by the check of this machine
        yield None, sign
        return
    try:
        yield place, sign
    finally:
        with suppress(OSError, StoreError):
            storage.delete(sign[0])


def _own_versions() -> dict[str, str | None]:
    from orchestrator.job import SAME, versions

    return versions(SAME)


def _source() -> str:
    from trainables.provenance import package_sha256

    return package_sha256()


def _of_nodes(address: str, expected: Expected) -> list[Check]:
    from cluster.executor import ClusterError
    from cluster.nodes import ask_nodes

    try:
        answers = ask_nodes(address, examine_node, asdict(expected), modules=SENT)
    except ClusterError as error:
        return [Check("nodes", address, State.WRONG, str(error), "`ray status` there")]
    return [row for answer in answers for row in node_rows(answer)]


def node_rows(answer: Answer) -> Sequence[Check]:
    """What a node has answered."""
    rows = []
    if answer.closed:
        advice = "open them between nodes, with the ports of workers (10002 to 19999)"
        rows.append(Check("ports", answer.node, State.WRONG, f"not reached: {', '.join(answer.closed)}", advice))
    else:
        rows.append(Check("ports", answer.node, State.OK, "reached"))
    if answer.ahead is not None:
        clock = skew(answer.ahead, "its clock", answer.within)
        rows.append(Check("clock", answer.node, clock.status, clock.found, clock.advice))
    if answer.error:
        advice = "`ray stop` and start Ray there anew; its logs lie there in /tmp/ray/session_latest/logs"
        return [*rows, Check("node", answer.node, State.WRONG, answer.error, advice)]
    said = [
        Check(each["check"], answer.node, State(each["status"]), each["found"], each["advice"])
        for each in answer.result
    ]
    return [*rows, *said]


def of_dashboard(address: str, store: str | Path, data_root: str | None = None) -> list[Check]:
    """A cluster seen from afar: whom it lets in, which Ray it runs; and what its head says of it and of its nodes.

    Raises:
        ClusterError: it does not answer, or refuses our token.
    """
    from cluster.jobs import JobServer

    server = JobServer(address)
    rows = [
        Check("cluster", address, State.OK, "answers"),
        _of("token", address, guard(server.guarded)),
        _of("versions", address, same({"Ray": server.ray_version})),
    ]
    return rows if rows[-1].status is State.WRONG else rows + _of_head(address, store, data_root)


def _of_head(address: str, store: str | Path, data_root: str | None) -> list[Check]:
    from orchestrator import remote

    try:
        found = remote.doctor(store, address, data_root)
    except Exception as error:
        advice = f"isoratio doctor --address auto --store {store}, on its head"
        return [Check("nodes", address, State.WRONG, str(error), advice)]
    return [Check(**{**row, "status": State(row["status"])}) for row in found]
