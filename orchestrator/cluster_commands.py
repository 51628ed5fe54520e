"""The commands `isoratio cluster ...`: files that start a cluster, and what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.options import ClusterOptions, Kind, flag_of
from orchestrator.options import AddressOption
from orchestrator.terminal import Exit, Format, FormatOption, fail, print_rows, say, show

if TYPE_CHECKING:
    from cluster.checking import Finding

app = typer.Typer(help="Write files that start a cluster, and check them.", no_args_is_help=True, rich_markup_mode=None)
render = typer.Typer(
    help="Write a commented file for sbatch, kubectl or `ray up`; say how to start, launch, look in and tear down.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(render, name="render")

ABOUT = {
    Kind.SLURM: """A batch job that runs a sweep on its nodes, and queues itself again before its time is up.

    Example: isoratio cluster render slurm --workers 4 --gpus 8 --sweep sweep.yaml -o job.sh
    """,
    Kind.KUBERAY: """A RayCluster for the KubeRay operator, whose workers come and go with the work.

    Example: isoratio cluster render kuberay --gpu-type L4 --spot --workers 0:8 --store gs://bucket/results -o c.yaml
    """,
    Kind.AWS: """A cluster file of `ray up` for Amazon EC2.

    Example: isoratio cluster render aws --region us-west-2 --gpu-type L4 --spot --machine-image ami-... -o c.yaml
    """,
    Kind.GCP: """A cluster file of `ray up` for Google Compute Engine.

    Example: isoratio cluster render gcp --project p --region us-central1 --zone us-central1-a --gpu-type L4 --spot
    --machine-image projects/... -o c.yaml
    """,
    Kind.ONPREM: """A cluster file of `ray up` for machines of one's own, reached by SSH.

    Example: isoratio cluster render onprem --host gpu1 --host gpu2 --user me --store /mnt/results -o c.yaml
    """,
}
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _of_field(field: Field[Any]) -> inspect.Parameter:
    """An option of the command line for an option of a cluster."""
    about, declared = field.metadata, str(field.type)
    option = typer.Option(flag_of(field.name), metavar=about["metavar"] or None, help=about["meaning"])
    if "..." in declared:
        return _parameter(field.name, Annotated[list[str] | None, option], None)
    plain = declared.removesuffix(" | None")
    kind = int if plain == "int" else bool if plain == "bool" else str  # workers, a pair, are text here
    return _parameter(field.name, Annotated[kind | None, option], field.default)


def _command(kind: Kind) -> Callable[..., None]:
    """The command that renders one kind, with the options that this kind has."""

    def run(**given: Any) -> None:
        _write(kind, given.pop("output"), given.pop("force"), given)

    own = [_of_field(f) for f in fields(ClusterOptions) if kind in f.metadata["kinds"]]
    signature = inspect.Signature([_parameter("output", Output, None), *own, _parameter("force", Force, False)])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    run.__doc__ = ABOUT[kind]
    return run


for _kind in Kind:
    render.command(_kind.value)(_command(_kind))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `render`, or not.", show_default=False)],
    address: AddressOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Say what is wrong with a cluster's file; ask sbatch or kubectl where they are, and the cluster at an address.

    Example: isoratio cluster check c.yaml --address http://127.0.0.1:8265
    """
    from cluster.checking import check as checked

    found = checked(file, address=address)
    if format is Format.TABLE:
        _show(file, found)
    else:
        print_rows([vars(each) for each in found], format)
    if wrong := sum(each.serious for each in found):
        fail(f"{file}: {wrong} to mend", Exit.USAGE)
    say(f"{file}: nothing is wrong with it")


def _show(file: Path, found: list[Finding]) -> None:
    for each in found:
        (show if each.serious else say)(each.text(file))


def _write(kind: Kind, output: Path | None, force: bool, given: dict[str, Any]) -> None:
    """Renders from the arguments of a command, writes, and says how to go on."""
    from cluster.rendering import render as rendered
    from cluster.rendering import steps

    if given.get("workers"):
        given["workers"] = _workers(given["workers"])
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    options = ClusterOptions(**values)
    text = rendered(kind, options, file=str(output) if output else None)
    if output is None:
        print(text, end="")
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ValueError(f"{output} is there already: --force writes over it") from None
    say(f"wrote {output}\n\n{steps(kind, options, str(output))}")


def _workers(text: str) -> tuple[int, int]:
    """``--workers 4`` or ``--workers 0:8``."""
    low, _, high = text.partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ValueError(f"--workers {text}: a number or MIN:MAX is expected, such as 0:8") from None
