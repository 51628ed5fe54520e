"""What a cluster can be: every option of every kind, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from cluster.credentials import secrets_in
from cluster.instances import cores, find_gpu, machine_type


class Kind(StrEnum):
    """What starts the cluster."""

    SLURM = "slurm"
    KUBERAY = "kuberay"
    AWS = "aws"
    GCP = "gcp"
    ONPREM = "onprem"


ALL = tuple(Kind)
CLOUDS = (Kind.AWS, Kind.GCP)
PODS = (Kind.KUBERAY,)
SLURM = (Kind.SLURM,)
ONPREM = (Kind.ONPREM,)
ELASTIC = (Kind.KUBERAY, *CLOUDS)
REMOTE = (*ELASTIC, Kind.ONPREM)

TOKEN_FILE = "~/.ray/auth_token"
"""Where Ray itself looks for its token."""
LOOK_UP = {
    Kind.AWS: "aws ssm get-parameter --query Parameter.Value --output text --region REGION --name "
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
    Kind.GCP: "gcloud compute images list --project deeplearning-platform-release --no-standard-images --uri",
}
"""Prints images with Docker and the driver of NVIDIA."""

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*", "one word"
_PATH = r"(~/|/).+", "a path that begins with / or ~/"
_LABEL = r"[A-Za-z0-9][A-Za-z0-9_./-]*=[A-Za-z0-9_.-]*", "KEY=VALUE"
_DNS = r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", "a-z, 0-9, . and -"
_TEXT = r".+", "text"


def _option(
    default: Any,
    kinds: tuple[Kind, ...],
    metavar: str,
    meaning: str,
    allowed: tuple[str, str] = _TEXT,
    *,
    flag: str | None = None,
    least: int = 0,
) -> Any:
    """A field that says which kinds have it, what it means, and what is allowed: a pattern in words, or a least."""
    about = {"kinds": kinds, "metavar": metavar, "meaning": meaning, "allowed": allowed, "flag": flag, "least": least}
    return field(default=default, metadata=about)


_TIME = r"([0-9]+-)?[0-9]+(:[0-9][0-9]){0,2}"
SHORTEST = 240
"""Seconds of a Slurm job in which anything gets done: it is told to save 120 s before, or up to a minute earlier."""


@dataclass(frozen=True)
class ClusterOptions:
    """What a cluster should be; each kind has its part of these."""

    workers: tuple[int, int] | None = _option(
        None, (*SLURM, *ELASTIC), "MIN:MAX", "Fewest and most workers, 0:4 by default; on Slurm nodes, 1 by default."
    )
    gpu_type: str | None = _option(
        None, (*SLURM, *ELASTIC), "TYPE", "Such as T4, L4, A100, H100; on Slurm as the site calls it.", _WORD
    )
    gpus: int | None = _option(None, (*SLURM, *ELASTIC), "N", "Of each worker. Default: 1 with a type, else none.")
    spot: bool = _option(False, ELASTIC, "", "Cheap workers that may be taken away; the head never is.")
    cpus: int | None = _option(None, (*SLURM, *PODS, Kind.GCP), "N", "Cores of each worker.", least=1)
    memory: int | None = _option(None, (*SLURM, *PODS), "GIB", "Memory of each worker.", least=1)
    project: str | None = _option(None, (Kind.GCP,), "ID", "Who pays.", _WORD)
    region: str | None = _option(None, CLOUDS, "REGION", "Such as us-west-2 or us-central1.", _WORD)
    zone: str | None = _option(None, CLOUDS, "ZONE", "Such as us-central1-a; AWS does without.", _WORD)
    machine_image: str | None = _option(
        None,
        CLOUDS,
        "IMAGE",
        "What machines boot: Docker and NVIDIA's driver are in it.",
        (r"[A-Za-z0-9][A-Za-z0-9._/:-]*", "the name of an image"),
    )
    worker_type: str | None = _option(None, CLOUDS, "MACHINE", "Of the workers. Default: as the GPUs ask for.", _WORD)
    head_type: str | None = _option(None, CLOUDS, "MACHINE", "Of the head. Default: a small one.", _WORD)
    labels: tuple[str, ...] = _option((), PODS, "KEY=VALUE", "Nodes for workers; repeat.", _LABEL, flag="node-label")
    spot_label: str = _option(
        "cloud.google.com/gke-spot=true", PODS, "KEY=VALUE", "Nodes that may be taken away.", _LABEL
    )
    namespace: str = _option("default", PODS, "NAME", "In Kubernetes.", _DNS)
    claim: str | None = _option(
        None, PODS, "NAME", "Volume to mount where the store is a directory.", _DNS, flag="volume-claim"
    )
    time_limit: str = _option(
        "24:00:00",
        SLURM,
        "TIME",
        "Of one run of the job.",
        (_TIME, "MINUTES, HH:MM:SS or DAYS-HH:MM:SS"),
    )
    partition: str | None = _option(
        None, SLURM, "NAME", "Where to queue.", (r"[A-Za-z0-9][A-Za-z0-9._,-]*", "words and commas")
    )
    account: str | None = _option(None, SLURM, "NAME", "Who pays.", _WORD)
    hosts: tuple[str, ...] = _option(
        (),
        ONPREM,
        "HOST",
        "A machine; repeat, the head first.",
        (r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?", "host names or addresses"),
        flag="host",
    )
    user: str | None = _option(
        None, ONPREM, "USER", "Whom to log in as.", (r"[A-Za-z_][A-Za-z0-9._-]*", "the name of a user")
    )
    ssh_key: str | None = _option(None, ONPREM, "PATH", "To log in with. Default: as SSH does.")
    identity: str | None = _option(
        None,
        ELASTIC,
        "ID",
        "Who nodes are to the store: instance profile (ARN) or service account.",
        (r"[A-Za-z0-9][A-Za-z0-9._/:@+=,-]*", "an ARN or a service account"),
    )
    image: str | None = _option(
        None,
        ELASTIC,
        "IMAGE",
        "Container with all that is needed. Default: Ray's.",
        (r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "the name of a container image"),
    )
    venv: str | None = _option(
        None, (*SLURM, *ONPREM), "DIR", "Virtual environment on the nodes; on Slurm by default this one.", _PATH
    )
    setup: tuple[str, ...] | None = _option(
        None, ALL, "COMMAND", "Before Ray starts; repeat. Default: install, on Slurm activate, what is needed."
    )
    store: str | None = _option(None, ALL, "URL_OR_PATH", "The store, as every node reaches it.")
    sweep: str = _option("sweep.yaml", ALL, "FILE", "What to launch.")
    token_file: str = _option(TOKEN_FILE, REMOTE, "PATH", "Holds the token here; never put into the file.", _PATH)
    idle_minutes: int = _option(10, ELASTIC, "N", "An idle worker is given back after this.", least=1)
    name: str = _option(
        "isoratio",
        ALL,
        "NAME",
        "Of the cluster and all that is made for it.",
        (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "a-z, 0-9 and -, at most 40, beginning with a letter"),
    )

    @property
    def gpus_each(self) -> int:
        """GPUs of each worker."""
        return (1 if self.gpu_type else 0) if self.gpus is None else self.gpus


def flag_of(name: str) -> str:
    """The option of the command line for a field."""
    about = {f.name: f.metadata["flag"] for f in fields(ClusterOptions)}
    return "--" + (about[name] or name.replace("_", "-"))


def check_options(kind: Kind, options: ClusterOptions) -> None:
    """Raises ValueError with everything that is wrong, a line each."""
    if found := [*_wrong_values(kind, options), *_wrong_together(kind, options)]:
        raise ValueError("\n".join(found))


def _wrong_values(kind: Kind, options: ClusterOptions) -> Iterator[str]:
    for each in fields(options):
        value, flag = getattr(options, each.name), flag_of(each.name)
        if kind not in each.metadata["kinds"] and value != each.default:
            yield f"{flag}: {kind} has none; it is for {', '.join(each.metadata['kinds'])}"
        texts = value if isinstance(value, tuple) else (value,)
        yield from (w for t in texts if isinstance(t, str) for w in _wrong_text(flag, t, *each.metadata["allowed"]))
        if isinstance(value, int) and value < each.metadata["least"]:
            yield f"{flag} {value}: at least {each.metadata['least']}"
    if options.workers and not 0 <= options.workers[0] <= options.workers[1] >= 1:
        yield f"--workers {options.workers[0]}:{options.workers[1]}: MIN:MAX with 0 <= MIN <= MAX and MAX at least 1"


def _wrong_text(flag: str, text: str, pattern: str, words: str) -> Iterator[str]:
    if not text.isprintable() or not re.fullmatch(pattern, text):
        yield f"{flag} {text!r}: allowed is {words}, in one line"
    elif any(secrets_in(text)):
        yield f"{flag}: it holds a secret, which would stand in the file; let the node's own identity give it"


def _wrong_together(kind: Kind, options: ClusterOptions) -> Iterator[str]:
    if options.gpu_type and options.gpus == 0:
        yield f"--gpus 0 with --gpu-type {options.gpu_type}: say how many, or leave the type away for CPUs only"
    if kind is Kind.SLURM:
        yield from _wrong_slurm(options)
        return
    if options.store and not re.match(r"/|\w+://", options.store):
        yield f"--store {options.store}: a URL, or the absolute path of a directory that every node shares"
    if kind in CLOUDS:
        yield from _wrong_cloud(kind, options)
    else:
        yield from (_wrong_kuberay if kind is Kind.KUBERAY else _wrong_onprem)(options)


def _wrong_cloud(kind: Kind, options: ClusterOptions) -> Iterator[str]:
    if not options.machine_image:
        yield f"--machine-image is needed, one with Docker and NVIDIA's driver; this shows some: {LOOK_UP[kind]}"
    needed = ("region",) if kind is Kind.AWS else ("project", "region", "zone")
    yield from (f"{flag_of(name)} is needed" for name in needed if not getattr(options, name))
    if options.worker_type and kind is Kind.GCP:
        if not (options.cpus or cores(options.worker_type)):
            yield f"--worker-type {options.worker_type}: say with --cpus how many cores it has"
        if options.gpus_each and options.worker_type.startswith("n1-") and not _accelerator(options):
            yield f"--worker-type {options.worker_type}: say with --gpu-type which GPU of Google's to put into it"
    elif not options.worker_type and options.gpu_type and options.gpus != 0:
        try:
            machine_type(kind.value, options.gpu_type, options.gpus_each)
        except ValueError as error:
            yield str(error)
    elif not options.worker_type and options.gpus:
        yield f"--gpus {options.gpus}: say which with --gpu-type, or name the machine with --worker-type"


def _accelerator(options: ClusterOptions) -> str:
    """Google's name of the GPU; empty where it is not known."""
    try:
        return find_gpu(options.gpu_type or "").accelerator
    except ValueError:
        return ""


def _wrong_kuberay(options: ClusterOptions) -> Iterator[str]:
    if options.gpu_type and not options.labels and not _accelerator(options):
        yield f"--gpu-type {options.gpu_type}: not one of Google's; say with --node-label which nodes have it"
    if options.identity and not re.fullmatch(_DNS[0], options.identity):
        yield f"--identity {options.identity}: the name of a service account of Kubernetes, {_DNS[1]}"
    mounted = (options.store or "").startswith("/")
    if mounted and not options.claim:
        yield f"--store {options.store}: a directory of pods needs --volume-claim, a claim that all may write"
    if options.claim and not mounted:
        yield "--volume-claim: --store should be the directory at which it is mounted"


def _wrong_onprem(options: ClusterOptions) -> Iterator[str]:
    if not options.hosts:
        yield "--host is needed, once for each machine, the head first"
    if len(set(options.hosts)) < len(options.hosts):
        yield "--host: a machine is named twice"
    if not options.user:
        yield "--user is needed: whom to log in as, by SSH"


def _seconds(limit: str) -> int:
    """Of a time as Slurm reads it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, dash, time = limit.rpartition("-")
    given = [int(part) for part in time.split(":")]
    weights = (3600, 60, 1) if dash or len(given) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(w * part for w, part in zip(weights, given, strict=False))


def _wrong_slurm(options: ClusterOptions) -> Iterator[str]:
    if re.fullmatch(_TIME, options.time_limit) and _seconds(options.time_limit) < SHORTEST:
        why = "a run is told to save two to three minutes before its end"
        yield f"--time-limit {options.time_limit}: at least {SHORTEST // 60} minutes, since {why}"
    low, high = options.workers or (1, 1)
    if low != high:
        yield f"--workers {low}:{high}: a Slurm job has a fixed number of nodes, such as --workers {high}"
