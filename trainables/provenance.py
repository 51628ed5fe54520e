"""Where rows come from: code, versions, machine, flags, data and plug-ins, stored once per distinct content.

What is recorded decides a trial's numbers, or tells on what they were computed. It is a closed list: nothing of the
environment, of paths or of hosts gets in that is not named here, see ``docs/provenance.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainables.trial import canonical_json, content_id

HERE = Path(__file__).parent
_SENT = HERE / "origin.json"  # what was known where this copy of the code was sent to a cluster from

PACKAGES = ("isoratio", "torch", "ray", "pyarrow", "numpy", "duckdb")
"""Distributions whose versions are recorded."""

VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "PYTHONHASHSEED"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_CPUS_PER_TASK"),
)
"""Environment variables that are recorded: they change numbers, or where they are computed."""

DRIVER_FILES = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))
"""Where Linux says which GPU driver is loaded."""

_UNCLEAR = re.compile(r"(?<=://)[^\s?#]*[?#]\S*@\S*[^\s'\")\]}>,;:.]")  # a password with ?, or a query with @
_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s/?#@]*:\S*@|[^\s/?#@]*@)")
_QUERY = re.compile(r"(://[^\s?#]*[?#])\S*[^\s'\")\]}>,;:.]")
_URL = re.compile(r"(?:https?|ssh|git)://\S+")
_HOST_AND_PATH = re.compile(r"(?:[^\s@:/]+@)?([\w.-]+:(?!//)[^\s@:?#]+)")  # git's short form of ssh


def collect(device: str, threads: int, dataset_sha256: str | None, targets: list[str]) -> dict[str, Any]:
    """One row of the ``provenance`` table, its id being the hash of the rest.

    Args:
        device: name of the device that trained.
        threads: CPU threads of the worker.
        dataset_sha256: hash of the data set, None for a trial of the user's own.
        targets: "package.module:callable" of every plug-in in use.
    """
    from trainables.registry import source_sha256

    with _as_in_training(threads, own=dataset_sha256 is None):
        flags = determinism()
    row = {
        "revision": revision(),
        "remote": remote(),
        "source_sha256": package_sha256(),
        **_versions(),
        **_machine(),
        "device": device,
        **_gpu(device),
        "threads": threads,
        "deterministic": flags["deterministic_algorithms"],
        "determinism": canonical_json(flags),
        "dataset_sha256": dataset_sha256,
        "plugins": canonical_json({t: source_sha256(t) for t in sorted(targets)}),
        "environment": canonical_json(environment()),
    }
    return {"provenance_id": content_id(canonical_json(row))[:16], **row}


def redacted(text: str) -> str:
    """Text in which URLs have neither user, password nor what follows ``?`` or ``#``: ``s3://***@bucket/x?***``.

    Where it is unclear what is secret, rather too much goes: of ``http://host:80/a@b`` the host and its port, too.
    """
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", _UNCLEAR.sub("***", text)))


@lru_cache(maxsize=1)
def revision() -> str | None:
    """Revision of the code: git's where this is a checkout, with "+dirty" for changes; else the installed version."""
    if _SENT.is_file():
        return _sent("revision")
    try:
        _check_checkout()
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return _version("isoratio")


@lru_cache(maxsize=1)
def remote() -> str | None:
    """Where the code's checkout comes from, without credentials; None without a checkout, or for a local path."""
    if _SENT.is_file():
        return _sent("remote")
    try:
        _check_checkout()
        url = _git("config", "--get", "remote.origin.url")
    except (OSError, subprocess.SubprocessError):
        return None
    if _URL.fullmatch(url):
        return redacted(url)
    short = _HOST_AND_PATH.fullmatch(url)
    return short[1] if short else None


def _check_checkout() -> None:
    _git("ls-files", "--error-unmatch", Path(__file__).name)  # this very file, not a checkout around it


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _sent(what: str) -> str | None:
    found: str | None = json.loads(_SENT.read_text(encoding="utf-8"))[what]
    return found


@lru_cache(maxsize=1)
def package_sha256() -> str:
    """SHA-256 over the source files that determine a trial's numbers."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def determinism() -> dict[str, Any]:
    """The settings of torch, at this moment and in this thread, that decide which bits come out."""
    import torch
    from torch.backends import cuda, cudnn

    smallest = torch.full((), torch.finfo(torch.float32).tiny)
    settings: dict[str, Callable[[], Any]] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled,
        "flush_denormal": lambda: (smallest / 2).item() == 0,  # torch has no getter
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "matmul_allow_tf32": lambda: cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": lambda: cudnn.allow_tf32,
        "cudnn_deterministic": lambda: cudnn.deterministic,
        "cudnn_benchmark": lambda: cudnn.benchmark,
        "CUBLAS_WORKSPACE_CONFIG": lambda: _variable("CUBLAS_WORKSPACE_CONFIG"),
    }
    return {name: _told(read) for name, read in settings.items()}


def _told(read: Callable[[], Any]) -> Any:
    """A setting; None where torch does not tell, as when a plug-in has set TF32 in both its older and newer way."""
    with suppress(RuntimeError):
        return read()
    return None


def _as_in_training(threads: int, *, own: bool) -> AbstractContextManager[None]:
    """The state in which trials are trained, or in which one of the user's own finds itself."""
    if own:
        return nullcontext()
    from trainables.training import reproducible

    return reproducible(threads)


def environment() -> dict[str, str]:
    """Those of :data:`VARIABLES` that are set, without credentials."""
    return {name: value for name in VARIABLES if (value := _variable(name)) is not None}


def _variable(name: str) -> str | None:
    value = os.environ.get(name)
    return None if value is None else redacted(value)


@lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    import torch

    cudnn = torch.backends.cudnn.version()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


@lru_cache(maxsize=1)
def _machine() -> dict[str, Any]:
    """Of this machine, what another one of its kind has, too: no name, no address, no serial number."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "os": " ".join(filter(None, (platform.system(), platform.release(), *platform.libc_ver()))),
        "machine": platform.machine(),
        "cpu": _first(r"model name\s*: (.+)", [Path("/proc/cpuinfo")]),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
    }


def _memory_bytes() -> int:
    """Main memory, to a whole GiB: of nodes of one kind, each has some MB more or less."""
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30) * 2**30


def _gpu(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"gpu_memory_bytes": None, "gpu_driver": None}
    import torch

    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return {"gpu_memory_bytes": memory, "gpu_driver": _first(r"\b(\d{3,}\.[\d.]+)\b", DRIVER_FILES)}


def _first(pattern: str, files: Iterable[Path]) -> str | None:
    """What a pattern finds in the first file that is there and has it."""
    for path in files:
        with suppress(OSError):
            if found := re.search(pattern, path.read_text()):
                return found[1].strip()
    return None
