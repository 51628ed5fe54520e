"""The commands that ask what is stored: SQL, verdicts, claims, power; and rows from and for elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.options import STORE, StoreOption, SweepArgument
from orchestrator.terminal import (
    AnswerFormat,
    AnswerFormatOption,
    Exit,
    Format,
    FormatOption,
    print_rows,
    say,
    show,
    width,
    without_pandas,
)

app = typer.Typer()


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
    query: Annotated[
        str | None,
        typer.Argument(metavar="[QUERY]", help="Default: standard input, or a prompt. With --named: a name."),
    ] = None,
    named: Annotated[
        bool, typer.Option("--named", help="Answer the query of that name; without one, list them.")
    ] = False,
    sweep: Annotated[str | None, typer.Option(metavar="SWEEP", help="With --named: this sweep only.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="M", help="With --named: of this metric.")] = None,
    print_it: Annotated[bool, typer.Option("--show", help="With --named: print the SQL instead.")] = False,
    store: StoreOption = STORE,
    format: AnswerFormatOption = AnswerFormat.TABLE,  # noqa: A002
) -> None:
    """Ask the tables trials, curves, eigenvalues, density, profiles, plan and provenance; read-only.

    Example: isoratio sql "SELECT ratio, avg(test_accuracy) FROM trials GROUP BY ratio ORDER BY ratio"
    """
    with without_pandas():
        from orchestrator.shell import Shell, answer, answer_named, show_named

    if not named and (sweep or metric or print_it):
        raise ValueError("--sweep, --metric and --show go with --named")
    if print_it and query is not None:
        show_named(query)
    elif named:
        answer_named(store, query, sweep, metric, format)
    elif query is not None:
        answer(store, query, format)
    elif not sys.stdin.isatty():
        answer(store, sys.stdin.read(), format)
    else:
        Shell(store, format).run()


@app.command()
def invariance(
    sweep: SweepArgument,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="M", help="Default: all measured.")] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", metavar="X|M=X", help="Equivalence margin, of all metrics or of one."),
    ] = None,
    trajectory: Annotated[
        str | None, typer.Option(metavar="STAT", help="Judge a curve at every time instead, by epoch and by step.")
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="Instead: which rule for lr and batch size fits best.")
    ] = False,
    predictors: Annotated[bool, typer.Option("--predictors", help="Instead: what tells where it breaks.")] = False,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Instead: at which lr half diverge, and what the others say.")
    ] = False,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Judge, metric by metric, whether only lr / batch_size matters, and up to which learning rate.

    Example: isoratio invariance digits --metric lambda_max --margin 0.1
    """
    given = _margins(margin or [])
    if sum([trajectory is not None, rules, predictors, divergence]) > 1:
        raise ValueError("--trajectory, --rules, --predictors and --divergence are questions of their own: ask one")
    if trajectory is not None:
        _show_trajectory(store, sweep, trajectory, _margin_of_curve(trajectory, metric, given), format)
    elif rules or predictors or divergence:
        from analysis import beside

        for chosen, found, text in (
            (rules, lambda: beside.rules(store, sweep, metric, given), beside.rules_text),
            (predictors, lambda: beside.predictors(store, sweep, metric, given), beside.predictors_text),
            (divergence, lambda: beside.divergences(store, sweep, metric, given), beside.divergences_text),
        ):
            if chosen:
                _show(found(), text, format)
    else:
        _show_verdicts(store, sweep, metric, given, format)


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


def _show_verdicts(
    store: str,
    sweep: str,
    metric: list[str] | None,
    given: dict[str, float] | float | None,
    format: Format,  # noqa: A002
) -> None:
    from orchestrator import invariance, verdict_text

    verdicts = invariance(store, sweep, metric, given)
    if format is Format.TABLE:
        show(verdict_text(store, sweep, verdicts, width=width(), in_full=bool(metric)))
    else:
        print_rows([v.as_row() for v in verdicts], format)


def _margin_of_curve(statistic: str, metric: list[str] | None, given: dict[str, float] | float | None) -> float | None:
    """The margin of the one curve that ``--trajectory`` names; options about other metrics are refused."""
    others = [*(metric or ()), *(given if isinstance(given, dict) else ())]
    if strange := [name for name in others if name != statistic]:
        raise ValueError(f"{strange[0]}: --trajectory {statistic} is about that curve alone; ask for each by itself")
    return given.get(statistic) if isinstance(given, dict) else given


def _show_trajectory(store: str, sweep: str, statistic: str, margin: float | None, format: Format) -> None:  # noqa: A002
    from orchestrator import trajectory

    found = trajectory(store, sweep, statistic, margin)
    _show(found, lambda rows: "\n\n".join(row.text() for row in rows), format)


def _show(found: Sequence[Any], text: Callable[[Any], str], format: Format) -> None:  # noqa: A002
    """What was found: in words, or as rows."""
    if format is Format.TABLE:
        show(text(found))
    else:
        print_rows([each.as_row() for each in found], format)


@app.command()
def power(
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="A pilot; else --sd and --margin.")] = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", metavar="M", help="Default: all measured.")] = None,
    margin: Annotated[
        list[str] | None, typer.Option("--margin", metavar="X|M=X", help="Equivalence margin; with --sd on its scale.")
    ] = None,
    sd: Annotated[float | None, typer.Option(metavar="SD", help="Assumed spread of one seed's difference.")] = None,
    difference: Annotated[float, typer.Option(metavar="D", help="The true difference.")] = 0,
    contrasts: Annotated[int, typer.Option(min=1, help="Contrasts that are all to be equivalent, with --sd.")] = 1,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="No shared seeds: --sd is that of one value.")] = False,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", metavar="N", help="Give the power of N seeds.")] = None,
    store: StoreOption = STORE,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show how many seeds a verdict takes, from a pilot sweep or an assumed spread.

    Example: isoratio power --sd 0.1 --margin 0.0953 --contrasts 20
    """
    from orchestrator import power, power_of_pilot

    given = _margins(margin or [])
    if sweep is not None:
        found = power_of_pilot(store, sweep, metric, given, difference=difference, seeds=seeds or ())
    elif sd is not None and isinstance(given, float):
        paired = not unpaired
        found = [power(sd, given, difference=difference, contrasts=contrasts, paired=paired, seeds=seeds or ())]
    else:
        raise ValueError("name a pilot sweep, or give --sd and --margin: two numbers on one scale")
    if format is Format.TABLE:
        show("\n".join(each.text() for each in found))
    else:
        print_rows([each.as_row() for each in found], format)


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
