"""What travels to a cluster: one zip file of our packages, the sweep file and the user's own modules."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from orchestrator.job import SAME, USER_FILES, VERSIONS, versions
from trainables.provenance import remote, revision

OURS = ("orchestrator", "analysis", "cluster", "trainables")
ORIGIN = "trainables/origin.json"
"""Where the code comes from: it is no checkout there."""
MOST_BYTES = 50 << 20
MOST_FILES = 10_000
FOREIGN = {"__pycache__", "node_modules", "site-packages"}
REFERENCE = re.compile(r"\b[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")
"""What looks like "package.module:callable"."""


def write_package(path: Path, user_files: Mapping[str, Path]) -> None:
    """Writes the zip file: equal contents make equal files, which a cluster keeps from one job to the next.

    Args:
        path: where to.
        user_files: path in the user's directory there -> file here.
    """
    contents = {name: file.read_bytes() for name, file in _ours()}
    contents |= {f"{USER_FILES}/{name}": file.read_bytes() for name, file in user_files.items()}
    contents[f"{USER_FILES}/"] = b""
    contents[VERSIONS] = json.dumps(versions(_requirements()), sort_keys=True).encode()
    contents[ORIGIN] = json.dumps({"revision": revision(), "remote": remote()}).encode()
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in sorted(contents.items()):
            archive.writestr(ZipInfo(name), content, ZIP_DEFLATED)


def user_modules(directory: Path) -> dict[str, Path]:
    """The Python files below a directory, by their path in it, without hidden and virtual environments' directories.

    Raises:
        ValueError: they are too many or too large to be what a sweep needs, naming where most of them lie.
    """
    found = {file.relative_to(directory).as_posix(): file for file in _modules(directory)}
    sizes: Counter[str] = Counter()
    for name, file in found.items():
        sizes[name.partition("/")[0]] += file.stat().st_size
    if len(found) <= MOST_FILES and sizes.total() <= MOST_BYTES:
        return found
    largest = ", ".join(f"{name} ({size / 1e6:,.1f} MB)" for name, size in sizes.most_common(5))
    raise ValueError(
        f"the Python files below {directory} travel to the cluster, and are too many: {len(found):,} files, "
        f"{sizes.total() / 1e6:,.1f} MB (at most {MOST_FILES:,} and {MOST_BYTES / 1e6:,.0f} MB); most in {largest}. "
        "Launch from a directory that holds what the sweep needs"
    )


def names_modules(text: str) -> bool:
    """Whether a sweep file names anything of the user's own."""
    return REFERENCE.search(text) is not None


def _modules(directory: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not _is_foreign(Path(where, name))]
        yield from (Path(where, name) for name in files if name.endswith(".py") and Path(where, name).is_file())


def _is_foreign(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in FOREIGN or (folder / "pyvenv.cfg").exists()


def _ours() -> Iterator[tuple[str, Path]]:
    """Our own files, by their path in the package."""
    for package in OURS:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        top = Path(spec.submodule_search_locations[0])
        for file in top.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield f"{package}/{file.relative_to(top).as_posix()}", file


def _requirements() -> list[str]:
    """Names of the packages that we need."""
    try:
        needed = [text for text in requires("isoratio") or [] if "extra ==" not in text]
    except PackageNotFoundError:  # not installed, but on the import path
        return list(SAME)
    return [match[0] for text in needed if (match := re.match(r"[\w.-]+", text))]
