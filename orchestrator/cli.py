"""The command line: every command is a thin shell over one Python function.

Nothing heavy is imported before a command needs it: `--help`, `init`, `status`, `sql` and `plan` need neither torch nor
ray. Data goes to standard output, messages to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator import cluster_commands, data_commands, doctor_commands, question_commands
from orchestrator.options import (
    STORE,
    AddressOption,
    BudgetOption,
    ClusterOption,
    ConcurrentOption,
    DetachOption,
    ExecutorName,
    ExecutorOption,
    FileArgument,
    LimitOption,
    RootOption,
    StoreOption,
    SweepArgument,
    TakeOverOption,
)
from orchestrator.signals import StoppedAtOnce, signals, wish
from orchestrator.terminal import Exit, Format, FormatOption, fail, print_rows, say, show, shown

if TYPE_CHECKING:
    from orchestrator.launching import LaunchResult


app = typer.Typer(
    name="isoratio",
    help="Sweep learning rate and batch size, measure curvature, test whether only their ratio matters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(question_commands.app)
app.add_typer(data_commands.app, name="data")
app.add_typer(cluster_commands.app, name="cluster")
app.add_typer(doctor_commands.app)


def main() -> None:
    """Runs the command line, turning errors of the user's into a message and an exit code."""
    try:
        app()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedAtOnce as stop:
        fail("stopped at once; what was committed is kept", 128 + stop.number)
    except Exception as error:
        code = exit_code(error)
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
    max_concurrent: ConcurrentOption = None,
    budget_hours: BudgetOption = None,
    data_root: RootOption = None,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Run what is missing of a sweep; the same command resumes and extends.

    With --address http://HOST:8265 it runs on a cluster, as a Ray Job that this terminal only follows: the sweep file
    and the Python files below the current directory travel, the store is a URL or a directory that all nodes share.

    Example: isoratio launch sweeps/digits.yaml
    """
    from orchestrator import launch

    caps = {"max_concurrent": max_concurrent, "budget_hours": budget_hours}
    _run_launch(launch, file, address, detach, executor, limit, caps, data_root, take_over, store)


@app.command()
def resume(
    sweep: SweepArgument,
    address: AddressOption = None,
    detach: DetachOption = False,
    executor: ExecutorOption = ExecutorName.RAY,
    limit: LimitOption = None,
    max_concurrent: ConcurrentOption = None,
    budget_hours: BudgetOption = None,
    data_root: RootOption = None,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Launch again with the sweep file kept in the store: run what is missing, try again what failed.

    Example: isoratio resume digits
    """
    from orchestrator import resume

    caps = {"max_concurrent": max_concurrent, "budget_hours": budget_hours}
    _run_launch(resume, sweep, address, detach, executor, limit, caps, data_root, take_over, store)


@app.command()
def status(
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None,
    address: ClusterOption = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show how far each sweep is, from any terminal that sees the store.

    Example: isoratio status digits
    """
    from orchestrator import status

    print_rows(status(store, sweep, address=address), format)


@app.command()
def stop(
    sweep: SweepArgument,
    now: Annotated[bool, typer.Option("--now", help="Save running packs as they are rather than finish them.")] = False,
    address: ClusterOption = None,
    store: StoreOption = STORE,
) -> None:
    """Ask a running launch to stop once its running packs are committed.

    Example: isoratio stop digits
    """
    from orchestrator import stop

    running = stop(sweep, store, now=now, address=address)
    say(f"asked the launch of {sweep} to stop" if running else f"no launch of {sweep} is running")


@app.command()
def logs(
    sweep: SweepArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    address: ClusterOption = None,
    store: StoreOption = STORE,
) -> None:
    """Show the log of a sweep's launches.

    Example: isoratio logs digits --follow
    """
    from orchestrator import logs

    for line in logs(sweep, store, follow=follow, address=address):
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
def extend(
    sweep: SweepArgument,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Go on up to the last look; else up to the next one.")
    ] = False,
    looks: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Seeds at which to look. Default: those there are, x 2, x 4.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="M", help="Default: all measured.")] = None,
    address: AddressOption = None,
    executor: ExecutorOption = ExecutorName.RAY,
    data_root: RootOption = None,
    take_over: TakeOverOption = False,
    store: StoreOption = STORE,
) -> None:
    """Add seeds where a verdict is open, at planned looks that together are wrong in at most 5%.

    Example: isoratio extend digits --until-decided --looks 8,16,32
    """
    from orchestrator import extend

    with signals() as received:
        found = extend(
            sweep,
            store,
            looks=_looks(looks),
            metrics=metric,
            until_decided=until_decided,
            address=address,
            executor=executor.value,
            data_root=data_root,
            take_over=take_over,
            should_stop=lambda: wish(received),
            say=say,
        )
    if received:
        raise typer.Exit(128 + received[0])
    if found.stopped:
        raise typer.Exit(Exit.INTERRUPTED)
    raise typer.Exit(Exit.TRIALS_FAILED if found.failed else Exit.DONE)


def _looks(text: str | None) -> list[int] | None:
    """``--looks 8,16,32``."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise ValueError(f"--looks {text}: whole numbers are expected, such as 8,16,32") from None


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
    caps: dict[str, float | None],
    data_root: str | None,
    take_over: bool,
    store: str,
) -> None:
    try:
        with signals() as received:
            result = start(
                what,
                store=store,
                address=address,
                detach=detach,
                executor=executor.value,
                limit=limit,
                **caps,
                data_root=data_root,
                take_over=take_over,
                should_stop=lambda: wish(received),
            )
    except StoppedAtOnce as stop:
        if address and "://" in address:  # only the following has stopped
            raise typer.Exit(128 + stop.number) from None
        raise
    say(result.text())
    raise typer.Exit(launch_code(result, limit, received))


def launch_code(result: LaunchResult, limit: int | None, received: list[int]) -> int:
    """The exit code of a launch that ended; ``received`` are the signals it got."""
    if received:
        return 128 + received[0]
    if result.stopped:
        return Exit.INTERRUPTED
    incomplete = limit is None and not result.detached and result.done < result.planned
    return Exit.TRIALS_FAILED if result.failed or incomplete else Exit.DONE


def exit_code(error: Exception) -> Exit | None:
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
