"""What is installed and within reach of a machine: packages, the store, data; and all checks of a machine together."""

from __future__ import annotations

import platform
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.health import IMPORT_SECONDS, Check, Expected, Finding, State, found_by, python, reinstall
from orchestrator.machine import ON_ANY, disk_of_store, gpus_counted

SKEW = 5.0
"""Seconds that clocks may differ. Nothing rests on them, but whoever compares logs does."""
SENT = ("orchestrator.installation", "orchestrator.machine", "orchestrator.health")
"""The modules that :func:`examine_node` is made of."""


def packages(expected: Expected) -> Finding:
    """Whether Python and all packages are within the ranges that Isoratio is made for."""
    from packaging.requirements import Requirement

    needs = [Requirement(text) for text in expected.needs]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    there = {need.name: _version(need.name) for need in needs}
    bad = [n for n in needs if (have := there[n.name]) is None or not n.specifier.contains(have, prereleases=True)]
    if not needs:
        return Finding(State.OK, f"Python {platform.python_version()}; which packages are needed is not known here")
    if not bad:
        return Finding(State.OK, f"Python {platform.python_version()} and {len(needs) - 1} packages as needed")
    found = [f"{n.name} {there[n.name] or 'is missing'}, needed is {n.specifier or 'any'}" for n in bad]
    install = [str(n) for n in bad if n.name != "python"]
    advice = [shlex.join([sys.executable, "-m", "pip", "install", *install])] if install else []
    advice += ["make a new virtual environment with a newer Python"] if len(install) < len(bad) else []
    return Finding(State.WRONG, "; ".join(found), "; ".join(advice))


def _version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def ray(expected: Expected) -> Finding:
    """Whether Ray can be imported."""
    told, failed = python("import ray, ray.tune; print(ray.__version__)", IMPORT_SECONDS)
    if failed:
        return Finding(State.WRONG, f"cannot be imported: {failed}", reinstall("ray[default,tune]"))
    return Finding(State.OK, told.split()[-1])


def store(expected: Expected) -> Finding:
    """Whether the store takes files, of one name only one; on a node, whether it is the same store."""
    from trainables.storage import StoreError, open_storage

    assert expected.store is not None
    there = open_storage(expected.store)
    if expected.sign:
        name, content = expected.sign
        if (there.read_if_there(name) or b"").decode() != content:
            found = f"{expected.store}: not the store of the machine that asks, whose file {name} is not here"
            return Finding(State.WRONG, found, _SHARED)
    try:
        there.check()
    except StoreError as error:
        return Finding(State.WRONG, str(error), "give this user the right to write there, or name another --store")
    return Finding(State.OK, f"{expected.store}: can be written" + (", and is the same" if expected.sign else ""))


_SHARED = "a directory that all nodes share at one path, or --store s3://bucket/prefix (gs://, az://)"


def clock_of_store(expected: Expected) -> Finding:
    """This machine's clock beside that of the file system of the store."""
    from trainables.storage import LocalStorage, open_storage

    assert expected.store is not None
    there = open_storage(expected.store)
    if not isinstance(there, LocalStorage):
        return Finding(State.OK, "not compared: an object store")
    name = f".probe-{secrets.token_hex(6)}"
    try:
        before = time.time()
        there.create(name, b"")
        return skew(there.path(name).stat().st_mtime - (before + time.time()) / 2, "the store's")
    finally:
        there.delete(name)


def skew(seconds: float, whose: str, within: float = 0.0) -> Finding:
    """What to say of a clock that is ahead by ``seconds``, give or take ``within``."""
    found = f"{whose} is {round(seconds, 1) + 0:+.1f} s ahead" + (
        f", give or take {within:.1f} s" if within >= 0.05 else ""
    )
    if abs(seconds) - within <= SKEW:
        return Finding(State.OK, found)
    advice = "have both follow one time server (`timedatectl set-ntp true`): times in logs do not compare"
    return Finding(State.WARNING, found, advice)


def data(expected: Expected) -> Finding:
    """Which published data sets are here, whole, and which of those that the asking machine has."""
    from trainables.files import DamagedFileError, any_of, data_root, problems
    from trainables.published import PUBLISHED

    root = Path(expected.data_root).expanduser() if expected.data_root else data_root()
    bad = {name: list(problems(PUBLISHED[name], root)) for name in PUBLISHED if any_of(PUBLISHED[name], root)}
    ready = [name for name, found in bad.items() if not found]
    damaged = [n for n, found in bad.items() if any(isinstance(each, DamagedFileError) for each in found)]
    missing = [name for name in expected.data if name not in ready]
    found = f"{root}: {', '.join(ready) or 'none but those built in'}"
    fetch = f"isoratio data fetch {' '.join(damaged or missing)} --data-root {shlex.quote(str(root))}"
    if damaged:
        return Finding(State.WRONG, f"{found}; damaged are {', '.join(damaged)}", fetch)
    if missing:
        advice = f"{fetch}, there, or let ISORATIO_DATA name a directory that all nodes share"
        return Finding(State.WARNING, f"{found}; here are not {', '.join(missing)}", advice)
    return Finding(State.OK, found)


def ready_data(root: str | None) -> tuple[str, ...]:
    """Names of the published data sets that are here."""
    from trainables.files import any_of, data_root
    from trainables.published import PUBLISHED

    place = Path(root).expanduser() if root else data_root()
    return tuple(name for name, published in PUBLISHED.items() if any_of(published, place))


def versions(expected: Expected) -> Finding:
    """Whether what decides numbers is the same on a node: Python, packages, our own code."""
    from orchestrator.job import versions as installed
    from trainables.provenance import package_sha256

    here = installed(set(expected.versions) - {"python"})
    other = [name for name, wanted in expected.versions.items() if here[name] != wanted]
    if other:
        found = "; ".join(f"{n} {here[n] or 'is missing'}, and {expected.versions[n]} where you ask" for n in other)
        install = [f"{name}=={expected.versions[name]}" for name in other if name != "python"]
        steps = [shlex.join([sys.executable, "-m", "pip", "install", *install])] if install else []
        steps += ["have one version of Python on all nodes"] if "python" in other else []
        return Finding(State.WRONG, found, "; ".join(steps))
    if package_sha256() != expected.source:
        advice = (
            "install one revision of Isoratio on all nodes, or launch with --address http://HOST:8265, which sends it"
        )
        return Finding(State.WRONG, "another revision of Isoratio than where you ask", advice)
    return Finding(State.OK, "as where you ask")


OF_STORE = (store, clock_of_store, disk_of_store)
ON_ALL = (packages, ray, *ON_ANY, data)
OF_NODES = (versions, gpus_counted)


def examine(expected: Expected, where: str) -> list[Check]:
    """All checks of this machine."""
    looks = [*ON_ALL, *(OF_STORE if expected.store else ()), *(OF_NODES if expected.sign else ())]
    with ThreadPoolExecutor(max_workers=4) as pool:  # most of them wait for other processes
        found = list(pool.map(lambda look: found_by(look, expected), looks))
    return [
        Check(look.__name__.replace("_", " "), where, each.status, each.found, each.advice)
        for look, each in zip(looks, found, strict=True)
    ]


def examine_node(expected: Mapping[str, Any], counted: Mapping[str, float]) -> list[dict[str, str]]:
    """The same on a node: from plain values to plain values."""
    rows = examine(Expected(**{**expected, "counted": counted}), "")
    return [{"check": r.check, "status": r.status.value, "found": r.found, "advice": r.advice} for r in rows]
