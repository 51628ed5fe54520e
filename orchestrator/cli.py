"""The command line: every command is a thin shell over one Python function.

Nothing heavy is imported before a command needs it: `--help`, `init`, `status`, `sql` and `plan` need neither torch nor
ray. Data goes to standard output, messages to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import data_commands
from orchestrator.data_commands import RootOption
from orchestrator.terminal import Exit, Format, FormatOption, fail, print_rows, say, show, shown, width

if TYPE_CHECKING:
    from types import FrameType

    from orchestrator.launching import LaunchResult
    from trainables.lease import StopKind


class ExecutorName(StrEnum):
    """Where packs run."""

    RAY = "ray"
    INLINE = "inline"


StoreOption = Annotated[
    str, typer.Option("--store", envvar="ISORATIO_STORE", metavar="DIR_OR_URL", help="The store: directory or URL.")
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray: auto or HOST:PORT. Default: start one here.")
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Replace a launch that holds the sweep, without waiting for it.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Go on in the background; look in with `status`, `logs`.")]
ExecutorOption = Annotated[ExecutorName, typer.Option(help="ray, or inline: in this process, for debugging.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Stop after the pack that completes so many trials.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file, YAML or TOML.", show_default=False)]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep.", show_default=False)]

STORE = "results"

app = typer.Typer(
    name="isoratio",
    help="Sweep learning rate and batch size, measure curvature, test whether only their ratio matters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(data_commands.app, name="data")


def main() -> None:
    """Runs the command line, turning errors of the user's into a message and an exit code."""
    try:
        app()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _StoppedAtOnce as stop:
        fail("stopped at once; what was committed is kept", 128 + stop.number)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        fail(str(error), code, name=not _is_sweep_file_error(error))


@app.command()
def init(file: Annotated[Path, typer.Argument(metavar="[FILE]")] = Path("sweep.yaml")) -> None:
    """Write a commented starter sweep file.

    Example: isoratio init my-sweep.yaml
    """
    from orchestrator import init

    say(f"wrote {init(file)}: edit it, then `isoratio plan {file}`")


@app.command()
def plan(file: FileArgument, store: StoreOption = STORE, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Show trials, packs, what is done already and how long the rest may take; write nothing.

    Example: isoratio plan sweeps/digits.yaml
    """
    from orchestrator import plan

    found = plan(file, store)
    if format is Format.TABLE:
        show(found.summary())
    else:
        print_rows(found.rows(), format)


@app.command()
def launch(
    file: FileArgument,
    address: AddressOption = None,
    detach: DetachOption = False,
    executor: ExecutorOption = ExecutorName.RAY,
    limit: LimitOption = None,
    data_root: RootOption = None,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Run what is missing of a sweep; the same command resumes and extends.

    Example: isoratio launch sweeps/digits.yaml
    """
    from orchestrator import launch

    _run_launch(launch, file, address, detach, executor, limit, data_root, take_over, store)


@app.command()
def resume(
    sweep: SweepArgument,
    address: AddressOption = None,
    detach: DetachOption = False,
    executor: ExecutorOption = ExecutorName.RAY,
    limit: LimitOption = None,
    data_root: RootOption = None,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Launch again with the sweep file kept in the store: run what is missing, try again what failed.

    Example: isoratio resume digits
    """
    from orchestrator import resume

    _run_launch(resume, sweep, address, detach, executor, limit, data_root, take_over, store)


@app.command()
def status(
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show how far each sweep is, from any terminal that sees the store.

    Example: isoratio status digits
    """
    from orchestrator import status

    print_rows(status(store, sweep), format)


@app.command()
def stop(
    sweep: SweepArgument,
    now: Annotated[bool, typer.Option("--now", help="Save running packs as they are rather than finish them.")] = False,
    store: StoreOption = STORE,
) -> None:
    """Ask a running launch to stop once its running packs are committed.

    Example: isoratio stop digits
    """
    from orchestrator import stop

    running = stop(sweep, store, now=now)
    say(f"asked the launch of {sweep} to stop" if running else f"no launch of {sweep} is running")


@app.command()
def logs(
    sweep: SweepArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    store: StoreOption = STORE,
) -> None:
    """Show the log of a sweep's launches.

    Example: isoratio logs digits --follow
    """
    from orchestrator import logs

    for line in logs(sweep, store, follow=follow):
        print(shown(line), end="", flush=follow)


@app.command()
def run(
    sweep: SweepArgument,
    trial_id: Annotated[str, typer.Argument(metavar="TRIAL_ID", help="As in `trials`; its first digits suffice.")],
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Train one trial again, alone, in this process, storing nothing; show what it measures.

    Example: isoratio run digits 3f2a
    """
    from orchestrator import run_trial

    print_rows(run_trial(sweep, trial_id, store), format)


@app.command()
def interpolate(
    a: Annotated[str, typer.Argument(metavar="A", help="SWEEP/TRIAL_ID; the first digits of the id suffice.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise; it may be in another sweep.")],
    points: Annotated[int, typer.Option(min=2, help="Points on the line, evenly spaced.")] = 31,
    start: Annotated[float, typer.Option("--from", help="First alpha: 0 is A, 1 is B.")] = -1.0,
    stop: Annotated[float, typer.Option("--to", help="Last alpha.")] = 2.0,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show the loss on the line (1 - alpha) A + alpha B through two endpoints, kept by `measure: {endpoints: true}`.

    The training loss is that on A's training set, its label noise included.

    Example: isoratio interpolate digits/3f2a digits/9c01 --points 7
    """
    from orchestrator import interpolate

    print_rows(interpolate(a, b, store, points=points, start=start, stop=stop), format)


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="Default: read standard input.")] = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Ask the tables trials, curves, eigenvalues, density, profiles, plan and provenance; read-only.

    Example: isoratio sql "SELECT ratio, avg(test_accuracy) FROM trials GROUP BY ratio ORDER BY ratio"
    """
    from orchestrator import sql

    if query is not None:
        print_rows(sql(store, query), format)
    elif not sys.stdin.isatty():
        print_rows(sql(store, sys.stdin.read()), format)
    else:
        _prompt(lambda text: print_rows(sql(store, text), format))


@app.command()
def invariance(
    sweep: SweepArgument,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="M", help="Default: all measured.")] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", metavar="X|M=X", help="Equivalence margin, of all metrics or of one."),
    ] = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Judge, metric by metric, whether only lr / batch_size matters, and up to which learning rate.

    Example: isoratio invariance digits --metric lambda_max --margin 0.1
    """
    from orchestrator import invariance, verdict_text

    verdicts = invariance(store, sweep, metric, _margins(margin or []))
    if format is Format.TABLE:
        show(verdict_text(store, sweep, verdicts, width=width(), in_full=bool(metric)))
    else:
        print_rows([v.as_row() for v in verdicts], format)


@app.command()
def check(sweep: SweepArgument, store: StoreOption = STORE, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Say of each claim under `expect` in the sweep file whether the trials reproduce it; exit 1 unless all are.

    Example: isoratio check digits
    """
    from orchestrator import check

    found = check(store, sweep)
    print_rows([each.as_row() for each in found], format)
    if any(each.result != "reproduced" for each in found):
        raise typer.Exit(Exit.TRIALS_FAILED)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet or CSV with lr, batch_size and a metric.")],
    sweep: Annotated[str, typer.Option("--sweep", metavar="NAME", help="Sweep to put them into.")],
    store: StoreOption = STORE,
) -> None:
    """Take in trials that were measured elsewhere.

    Example: isoratio import mine.csv --sweep mine
    """
    from orchestrator import import_trials

    say(str(import_trials(store, file, sweep)))


@app.command()
def export(
    sweep: SweepArgument,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A .parquet, .csv or .duckdb file, or a directory.")],
    store: StoreOption = STORE,
) -> None:
    """Write a sweep's tables to a file that needs no store.

    Example: isoratio export digits digits.duckdb
    """
    from orchestrator import export

    say(f"wrote {export(store, sweep, dest)}")


@app.command()
def verify(
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Check every stored file; move damaged packs to quarantine, from where `resume` replaces them.

    Example: isoratio verify digits
    """
    from orchestrator import verify
    from orchestrator.control import advice

    damaged = verify(store, sweep)
    if damaged or format is not Format.TABLE:
        print_rows([vars(d) for d in damaged], format)
    if damaged:
        again = " and ".join(advice({d.sweep for d in damaged}, store))
        fail(f"what is damaged went to quarantine; what is gone comes back by {again}", Exit.STORE)
    say("every file is what was written")


@app.command()
def compact(
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Single files stay so long after they were merged.")
    ] = 3600.0,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Merge the files of many packs, so that queries open few.

    Example: isoratio compact digits
    """
    from orchestrator import compact

    done = compact(store, sweep, grace=grace, take_over=take_over, on_wait=cache(say))
    print_rows([vars(each) for each in done], format)


@app.command()
def rm(
    sweep: SweepArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Delete a sweep and all its rows.

    Example: isoratio rm digits --yes
    """
    from orchestrator import remove

    if not yes and not sys.stdin.isatty():
        raise ValueError(f"deleting {sweep} and all its rows cannot be undone: say --yes")
    if not yes and not typer.confirm(f"delete sweep {sweep} and all its rows from {store}?", err=True):
        return
    remove(sweep, store, take_over=take_over, on_wait=cache(say))
    say(f"deleted {sweep}")


def _run_launch(
    start: Callable[..., LaunchResult],
    what: Path | str,
    address: str | None,
    detach: bool,
    executor: ExecutorName,
    limit: int | None,
    data_root: str | None,
    take_over: bool,
    store: str,
) -> None:
    with _signals() as received:
        result = start(
            what,
            store=store,
            address=address,
            detach=detach,
            executor=executor.value,
            limit=limit,
            data_root=data_root,
            take_over=take_over,
            should_stop=lambda: _wish(received),
        )
    say(result.text())
    if received:
        raise typer.Exit(128 + received[0])
    if result.stopped:
        raise typer.Exit(Exit.INTERRUPTED)
    incomplete = limit is None and not result.detached and result.done < result.planned
    raise typer.Exit(Exit.TRIALS_FAILED if result.failed or incomplete else Exit.DONE)


class _StoppedAtOnce(BaseException):
    """A second signal; no KeyboardInterrupt, which Typer takes for itself."""

    def __init__(self, number: int) -> None:
        self.number = number


_SAID = {
    "finish": b"\nstopping once the running packs are committed; once more saves them as they are\n",
    "checkpoint": b"\nstopping once the running packs are saved as they are; once more stops at once\n",
}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C asks to stop after committing, twice to save running packs as they are, three times stops at once.

    SIGTERM, which comes with preemption, begins at the second.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if _wish(received) == "checkpoint":
            raise _StoppedAtOnce(number)
        received.append(number)
        os.write(2, _SAID["finish" if _wish(received) == "finish" else "checkpoint"])

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wish(received: list[int]) -> StopKind | None:
    """What the signals so far ask for."""
    if signal.SIGTERM in received or len(received) > 1:
        return "checkpoint"
    return "finish" if received else None


def _prompt(answer: Callable[[str], None]) -> None:
    """Reads queries that end with a semicolon until the end of input."""
    import readline  # noqa: F401  (gives input() history and editing)

    text = ""
    while True:
        try:
            text += input("isoratio> " if not text else "     ...> ") + "\n"
        except EOFError:
            return
        if text.strip() in {"exit", "quit", ".exit", ".quit"}:
            return
        if text.rstrip().endswith(";"):
            try:
                answer(text)
            except ValueError as error:
                say(str(error))
            text = ""


def _margins(given: list[str]) -> dict[str, float] | float | None:
    """``--margin X`` for all metrics, or any number of ``--margin M=X``."""
    named: dict[str, float] = {}
    for text in given:
        metric, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--margin {text}: a number or METRIC=NUMBER is expected") from None
        if not equals:
            if len(given) > 1:
                raise ValueError(
                    f"--margin {text}: one number for all metrics stands alone; else METRIC=NUMBER for each"
                )
            return number
        named[metric] = number
    return named or None


def _exit_code(error: Exception) -> Exit | None:
    """The exit code of an error that is the user's to mend; None for one of ours."""
    if isinstance(error, OSError):  # maybe no more files may be opened, so that nothing can be imported either
        return Exit.USAGE
    from trainables.lease import LaunchHeldError
    from trainables.storage import DamagedStoreError, StoreError

    if isinstance(error, LaunchHeldError):
        return Exit.HELD
    if isinstance(error, DamagedStoreError):
        return Exit.STORE
    if isinstance(error, ValueError | StoreError):
        return Exit.USAGE
    from orchestrator.inspection import TrialFailedError

    return Exit.TRIALS_FAILED if isinstance(error, TrialFailedError) else None


def _is_sweep_file_error(error: Exception) -> bool:
    """Its lines begin with ``file:line:column``, which editors follow: nothing goes before them."""
    if isinstance(error, OSError):
        return False
    from orchestrator.source import SweepFileError

    return isinstance(error, SweepFileError)


if __name__ == "__main__":
    main()
