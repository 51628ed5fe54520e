"""More seeds for what is undecided: the sweep file grows look by look, only for the groups whose verdict is open."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from analysis.contrasts import LEAST_SEEDS
from analysis.database import quoted
from analysis.decision import ALPHA
from analysis.formats import escaped
from analysis.invariance import asked
from analysis.sequential import LookVerdict, judge_looks, planned_looks
from analysis.status import status
from orchestrator.control import store_option
from orchestrator.launching import ExecutorKind, LaunchResult, launch
from orchestrator.sweepfile import SweepFile, load
from trainables.lease import LaunchHeldError, StopKind, latest, remark
from trainables.storage import StoreError
from trainables.store import Store, SweepStore

LATE = (
    "the sweep file has no `looks:`, and verdicts could be seen before these were planned: where one was, at 5%, all "
    "looks together are wrong in up to 7.1%; to keep to 5%, state them before the first launch"
)
"""What is said where looks are planned for a sweep that was judged, maybe. The figure: see tests of the looks."""


@dataclass(frozen=True)
class Extension:
    """How far an extension came.

    Attributes:
        sweep: its name.
        looks: numbers of seeds at which verdicts are taken.
        verdicts: what the looks so far say, one per metric and group.
        ran: trials that were run.
        failed: trials that have failed as often as they may.
        stopped: whether it was asked to stop, or trials were left out, before a look could be taken.
        options: what commands about this sweep need: ``--store ...`` where it is not the default one.
    """

    sweep: str
    looks: tuple[int, ...]
    verdicts: tuple[LookVerdict, ...]
    ran: int
    failed: int
    stopped: bool
    options: str = ""

    @property
    def open(self) -> list[LookVerdict]:
        """Those that a further look may decide."""
        return [v for v in self.verdicts if v.open]

    def text(self) -> str:
        """What was decided, at which look and with which chance of error, and what to do next."""
        lines = [_plan_text(self), *map(_line, self.verdicts)]
        if self.failed:
            lines.append(
                f"{self.failed} trials failed; try them again with: isoratio resume {self.sweep}{self.options}"
            )
        if self.open:
            command = f"isoratio extend {self.sweep} --until-decided{self.options}"
            lines.append(f"{len(self.open)} still open; go on with: {command}")
        return "\n".join(lines)


def extend(
    sweep: str,
    store: str | Path = "results",
    *,
    looks: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    until_decided: bool = True,
    address: str | None = None,
    executor: ExecutorKind = "ray",
    data_root: str | Path | None = None,
    take_over: bool = False,
    should_stop: Callable[[], StopKind | None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Extension:
    """Adds seeds where a verdict is open, up to the planned looks; the same call goes on with what was stopped.

    The looks are kept in the sweep file, in the store, when the first seeds are added, and stay as they are: the error
    is spent over them (see :mod:`analysis.sequential`). Margins are those of the sweep file.

    Args:
        sweep: name of a launched sweep.
        store: directory or URL of the store.
        looks: numbers of seeds at which to look; by default the seeds there are, twice and four times as many.
        metrics: those that are to be decided; by default all that were measured and have a margin.
        until_decided: go on up to the last look; else up to the next one.
        address: see :func:`orchestrator.launching.launch`, as for the rest.
        executor: where packs run.
        data_root: directory of data files.
        take_over: replace a launch that holds the sweep.
        should_stop: asked now and then.
        say: what to do with a line about a look.

    Raises:
        StoreError: no such sweep, or one that was imported.
        ValueError: for looks that do not grow or are not those begun with, for an unknown metric, or where the grid
            leaves out seeds of some cells.
    """
    there = Store(store).existing(sweep)
    file = _kept(there)
    numbers = _looks(file, looks)
    (state,) = status(store, sweep)
    pending = file if state["state"] != "complete" else None
    grown, ran, failed, waited, stopped = pending is not None, 0, state["failed"], 0, False
    if not (pending or file.looks):
        _tell(there, LATE, say)
    while True:
        if pending:
            result = _launched(pending, store, address, executor, data_root, take_over, should_stop)
            ran, failed = ran + result.ran, result.failed
            stopped = result.stopped or result.done + result.failed < result.planned
        verdicts = tuple(judge_looks(*asked(store, sweep, metrics, None), numbers))
        found = Extension(sweep, numbers, verdicts, ran, failed, stopped, store_option(there.store_url))
        following = _next_look(found)
        if stopped or following is None or (grown and not until_decided):
            _tell(there, found.text(), say)
            return found
        if following == waited:
            names = ", ".join(map(_name, found.open))
            raise ValueError(f"{names}: not every cell has the first {following} seeds; does `where` leave some out?")
        file = _grown(file, found, following)
        _tell(there, _progress(found, following), say)
        pending, grown, waited = file, True, following


def _kept(there: SweepStore) -> SweepFile:
    """The sweep file as last launched.

    Raises:
        StoreError: there is none.
    """
    kept = there.sweep_file()
    if kept is None:
        raise StoreError(f"sweep {there.name!r} was imported: it has no sweep file to extend")
    suffix, text = kept
    return load(there.storage.where(f"sweep{suffix}"), text=text)


def _looks(file: SweepFile, given: Sequence[int] | None) -> tuple[int, ...]:
    """As begun with, else as given, else the seeds there are, twice and four times as many."""
    n = max(len(file.axes["seed"]), LEAST_SEEDS)
    begun, asked_for = tuple(file.looks), tuple(given or ())
    if begun and asked_for and begun != asked_for:
        raise ValueError(
            f"looks {_numbers(asked_for)}: sweep {file.name!r} has {_numbers(begun)}, over which the error is spent; "
            "leave --looks out"
        )
    numbers = begun or asked_for or (n, 2 * n, 4 * n)
    planned_looks(numbers)
    return numbers


def _next_look(found: Extension) -> int | None:
    """Seeds of the look that open verdicts wait for."""
    taken = min((v.look for v in found.open), default=len(found.looks))
    return found.looks[taken] if taken < len(found.looks) else None


def _launched(
    file: SweepFile,
    store: str | Path,
    address: str | None,
    executor: ExecutorKind,
    data_root: str | Path | None,
    take_over: bool,
    should_stop: Callable[[], StopKind | None],
) -> LaunchResult:
    """The launch of a sweep file; one that is asked to stop while it waits for another launch has stopped."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"{file.name}{file.suffix}")
        path.write_text(file.text, encoding="utf-8")
        try:
            return launch(
                path,
                store,
                address=address,
                executor=executor,
                data_root=data_root,
                take_over=take_over,
                should_stop=should_stop,
            )
        except LaunchHeldError:
            if should_stop() is None:
                raise
            return LaunchResult(file.name, stopped=True)


def _grown(file: SweepFile, found: Extension, seeds: int) -> SweepFile:
    """The sweep file with more seeds for the groups that are open; what was planned stays in the grid."""
    before = file.axes["seed"]
    if seeds <= len(before):
        return file
    data = tomllib.loads(file.text) if file.suffix == ".toml" else YAML().load(file.text)
    (data.get("train") or {}).pop("seed", None)
    data["grid"]["seed"] = _axis([*before, *range(max(before) + 1, max(before) + 1 + seeds - len(before))])
    data["looks"] = _flow(CommentedSeq(found.looks))
    waiting = _distinct(v.group for v in found.open)
    if len(waiting) < len(_distinct(v.group for v in found.verdicts)):
        more = f"{_among(before)} OR {' OR '.join(map(_condition, waiting))}"
        data["where"] = f"({file.where}) AND ({more})" if file.where else more
    written, yaml = StringIO(), YAML()
    yaml.width = 4096
    yaml.dump(data, written)
    return load(f"{file.name}.yaml", text=written.getvalue())


def _axis(seeds: list[int]) -> Any:
    whole = seeds == list(range(len(seeds)))
    return _flow(CommentedMap(range=len(seeds)) if whole else CommentedSeq(seeds))


def _flow(node: Any) -> Any:
    node.fa.set_flow_style()
    return node


def _distinct(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for group in groups:
        if group not in found:
            found.append(group)
    return found


def _among(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(len(seeds)))
    return f"seed < {len(seeds)}" if whole else f"seed IN ({_numbers(seeds)})"


def _condition(group: dict[str, Any]) -> str:
    """What holds for the trials of a group, in SQL."""
    return f"({' AND '.join(f'{quoted(name)} {_equals(value)}' for name, value in group.items())})"


def _equals(value: Any) -> str:
    if value is None:
        return "IS NULL"
    if isinstance(value, float):
        return f"= '{value!r}'::DOUBLE"
    return f"= {value}" if isinstance(value, int) else "= '" + str(value).replace("'", "''") + "'"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _plan_text(found: Extension) -> str:
    spent = ", ".join(f"{look.spent:.3g}" for look in planned_looks(found.looks))
    return (
        f"{found.sweep}: looks at {_numbers(found.looks)} seeds; together they are wrong in at most {ALPHA:.0%} for "
        f"each metric and group, of which they spend {spent} in turn"
    )


def _progress(found: Extension, seeds: int) -> str:
    """What is decided, and for what seeds are added."""
    names = ", ".join(_name(v) for v in found.open)
    closed = len(found.verdicts) - len(found.open)
    return f"{_plan_text(found)}\n{closed} of {len(found.verdicts)} verdicts closed; up to {seeds} seeds for {names}"


def _name(verdict: LookVerdict) -> str:
    group = ", ".join(f"{name} {value}" for name, value in verdict.group.items())
    return f"{verdict.metric} ({group})" if group else verdict.metric


def _line(v: LookVerdict) -> str:
    return f"{_name(v)}: {v.verdict.upper()} ({v.taken})" + (f": {v.note}" if v.note else "")


def _tell(there: SweepStore, text: str, say: Callable[[str], None]) -> None:
    """To the caller, and into the log beside that of the last launch."""
    say(text)
    holder = latest(there.storage)
    if holder is not None:
        remark(there.storage, holder.number, "extend", escaped(text, keep="\n").splitlines())
