"""Files by which the tools of others start a cluster: ``sbatch``, ``kubectl``, ``ray up``."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.instances import cores, find_gpu, machine_type
from cluster.options import CLOUDS, ClusterOptions, Kind, check_options

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
DISTRIBUTION = "isoratio"
GPU_LABEL = "cloud.google.com/gke-accelerator"
CPU_ONLY = {Kind.AWS: "m7i.2xlarge", Kind.GCP: "n2-standard-8"}


@dataclass(frozen=True)
class Versions:
    """What runs here, and so must run there.

    Attributes:
        ray: its version.
        python: as ``3.11``.
        packages: all that a node needs, as ``pip`` takes it.
    """

    ray: str
    python: str
    packages: tuple[str, ...]


@cache
def installed() -> Versions:
    """The versions of this environment, with each package that ours needs pinned to what is installed."""
    needed = [r for r in importlib.metadata.requires(DISTRIBUTION) or [] if "extra ==" not in r]
    names = [re.match(r"[\w.-]+(\[[\w,.-]+\])?", r) for r in needed]
    pinned = tuple(f"{n[0]}=={_version(n[0].partition('[')[0])}" for n in names if n)
    return Versions(_version("ray"), f"{sys.version_info.major}.{sys.version_info.minor}", pinned)


def _version(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]  # 2.13.0+cpu: a build for this machine, not for theirs


def render(kind: Kind | str, options: ClusterOptions, versions: Versions | None = None, file: str | None = None) -> str:
    """The text of the file: a batch script for Slurm, YAML for the others.

    Args:
        kind: what the file is for.
        options: what the cluster should be.
        versions: default: :func:`installed`.
        file: as the file will be called, in its own comments.

    Raises:
        ValueError: options that are wrong or do not go together, all of them at once.
    """
    kind = Kind(kind)
    check_options(kind, options)
    found = {**_resolved(kind, options, versions or installed()), "steps": steps(kind, options, file)}
    return _environment().get_template(f"{kind.value}.j2").render(found)


def steps(kind: Kind | str, options: ClusterOptions, file: str | None = None) -> str:
    """The commands, with comments, that take the file from nothing to a finished sweep and away again."""
    kind = Kind(kind)
    file = file or options.name + (".sh" if kind is Kind.SLURM else ".yaml")
    template = f"steps-{kind.value if kind in (Kind.SLURM, Kind.KUBERAY) else 'up'}.j2"
    given = {**vars(options), "venv": _venv(kind, options), "kind": kind.value, "file": file}
    return _environment().get_template(template).render(given).strip()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # that is for HTML; `yaml`, `sh` and `command` quote
    )
    found.filters |= {"yaml": _yaml, "sh": _word, "command": _command, "comment": _comment, "quoted": shlex.quote}
    return found


def _yaml(value: Any) -> str:
    """A value as YAML, which JSON in one line is."""
    return json.dumps(value, ensure_ascii=False)


def _word(text: str) -> str:
    """A word of shell that means exactly the text, but for a ``~/`` in front, which is the home directory."""
    if text.startswith("~/"):
        return f'"$HOME"/{shlex.quote(text[2:])}'
    return shlex.quote(text)


def _command(text: str) -> str:
    """A command in a script, so that what it leaves open stays in it."""
    return text if re.fullmatch(r"(?:[\w./:=@%+, -]|'[^']*')+", text, re.ASCII) else f"eval {shlex.quote(text)}"


def _comment(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


def _resolved(kind: Kind, options: ClusterOptions, versions: Versions) -> dict[str, Any]:
    """What a template is given: the options, and what follows from them."""
    low, high = options.workers or ((1, 1) if kind is Kind.SLURM else (0, 4))
    machine = _worker_type(kind, options)
    gpu = find_gpu(options.gpu_type) if options.gpu_type and kind is not Kind.SLURM and not options.labels else None
    flavour = f"py{versions.python.replace('.', '')}-{'gpu' if options.gpus_each else 'cpu'}"
    return {
        **vars(options),
        "kind": kind.value,
        "low": low,
        "high": high,
        "gpus": options.gpus_each,
        "worker_type": machine,
        "worker_cores": options.cpus or (machine and cores(machine)),
        "accelerator": gpu and gpu.accelerator,
        "selector": {GPU_LABEL: gpu.accelerator} if gpu else dict(label.split("=", 1) for label in options.labels),
        "spot_pair": options.spot_label.split("=", 1),
        "image": options.image or f"rayproject/ray:{versions.ray}-{flavour}",
        "venv": _venv(kind, options),
        "setup": _setup(kind, options, versions),
        "ray_version": versions.ray,
    }


def _worker_type(kind: Kind, options: ClusterOptions) -> str | None:
    if options.worker_type or kind not in CLOUDS:
        return options.worker_type
    return machine_type(kind.value, options.gpu_type, options.gpus_each) if options.gpu_type else CPU_ONLY[kind]


def _venv(kind: Kind, options: ClusterOptions) -> str:
    return options.venv or (sys.prefix if kind is Kind.SLURM else "~/.isoratio")


def _setup(kind: Kind, options: ClusterOptions, versions: Versions) -> tuple[str, ...]:
    if options.setup is not None or options.image:  # an image of one's own has all that is needed
        return options.setup or ()
    venv, packages = _word(_venv(kind, options)), " ".join(map(shlex.quote, versions.packages))
    if kind is Kind.SLURM:
        return (f"source {venv}/bin/activate",)
    if kind is Kind.ONPREM:
        make = f"test -x {venv}/bin/python || python{versions.python} -m venv {venv}"
        return (make, f"{venv}/bin/pip install --quiet {packages}")
    return (f"pip install --quiet {packages}",)
