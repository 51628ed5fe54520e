"""Data sets on this machine: ``isoratio data list``, ``fetch`` and ``verify``, for Python. No torch, no ray.

>>> from orchestrator import data
>>> data.fetch(["mnist"])  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from trainables import fetching, files
from trainables.parameters import Teacher
from trainables.published import PUBLISHED, Published
from trainables.registry import DIGITS_TRAIN_SIZE


class State(StrEnum):
    """Whether a data set can be used."""

    BUILT_IN = "built in"
    READY = "ready"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Listed:
    """A built-in data set, its parameters at their defaults.

    Attributes:
        name: in a sweep file.
        train_size: training examples.
        test_size: test examples.
        shape: of one input.
        classes: number of classes, of the finest labels where there are several kinds.
        where: directory of its files; None where there are none.
        state: whether it can be used.
    """

    name: str
    train_size: int
    test_size: int
    shape: tuple[int, ...]
    classes: int
    where: str | None
    state: State


@dataclass(frozen=True)
class BadFile:
    """A file that is not the published one.

    Attributes:
        dataset: name.
        file: its path.
        problem: what is wrong with it.
    """

    dataset: str
    file: str
    problem: str


def list(data_root: str | Path | None = None) -> tuple[Listed, ...]:  # noqa: A001  (the command's name)
    """The built-in data sets, and whether their files are there and right.

    Args:
        data_root: directory of data files; default ``$ISORATIO_DATA``, else the user's cache.
    """
    teacher, built_in = Teacher(), (None, State.BUILT_IN)
    return (
        Listed("digits", DIGITS_TRAIN_SIZE, 360, (64,), 10, *built_in),
        *(_listed(published, _root(data_root)) for published in PUBLISHED.values()),
        Listed("teacher", teacher.train_size, teacher.test_size, teacher.input_shape, teacher.classes, *built_in),
    )


def fetch(
    names: Sequence[str], data_root: str | Path | None = None, progress: fetching.Progress | None = None
) -> dict[str, tuple[Path, ...]]:
    """Downloads published data sets; files that are there and right stay.

    Args:
        names: of the data sets.
        data_root: directory of data files; default ``$ISORATIO_DATA``, else the user's cache.
        progress: told how each download goes.

    Returns:
        Name -> the files that were downloaded.

    Raises:
        ValueError: for a name that is not one of a published data set, or a download that failed.
    """
    chosen = [_published(name) for name in names]
    return {of.name: tuple(fetching.fetch(of, _root(data_root), progress)) for of in chosen}


def verify(names: Sequence[str] | None = None, data_root: str | Path | None = None) -> tuple[BadFile, ...]:
    """Checks the files of published data sets against their MD5.

    Args:
        names: of the data sets; default: those of which there is any file.
        data_root: directory of data files; default ``$ISORATIO_DATA``, else the user's cache.

    Returns:
        What is damaged or missing.

    Raises:
        ValueError: for a name that is not one of a published data set.
    """
    root = _root(data_root)
    chosen = [_published(name) for name in names or ()] or [of for of in PUBLISHED.values() if files.any_of(of, root)]
    return tuple(BadFile(of.name, str(e.path), e.problem) for of in chosen for e in files.problems(of, root))


def _listed(published: Published, root: Path) -> Listed:
    where, classes = root / published.downloads[0].path, max(published.classes.values())
    sizes = published.train_size, published.test_size
    return Listed(published.name, *sizes, published.shape, classes, str(where.parent), _state(published, root))


def _state(published: Published, root: Path) -> State:
    found = tuple(files.problems(published, root))
    if any(isinstance(problem, files.DamagedFileError) for problem in found):
        return State.DAMAGED
    return State.MISSING if found else State.READY


def _published(name: str) -> Published:
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name in {"digits", "teacher"}:
        raise ValueError(f"data set {name!r} is built in: it has no files")
    hint = get_close_matches(name, PUBLISHED, 1)
    allowed = f"allowed are {', '.join(PUBLISHED)}"
    raise ValueError(f"unknown data set {name!r}: {allowed}" + (f"; did you mean {hint[0]!r}?" if hint else ""))


def _root(given: str | Path | None) -> Path:
    return files.data_root() if given is None else Path(given).expanduser()
