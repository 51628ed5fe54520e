"""What a machine has that trials need: this one, or a node of a cluster, to which this module is sent by value.

What is missing or broken there is a finding.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.health import IMPORT_SECONDS, Expected, Finding, State, last, python, reinstall

ROOT = Path("/")
"""Below which ``proc``, ``sys`` and ``dev`` lie."""
GB = 1e9
TOOL_SECONDS = 20.0
SCARCE_MEMORY = 1.5 * GB
RAY_KILLS_AT = 0.95
"""Of a machine's memory."""
SCARCE_DISK = 2 * GB
SCARCE_DISK_FRACTION = 0.05
"""Of a file system; with less, Ray takes no more objects."""
OBJECT_STORE_BYTES = 100e6
OPEN_FILES = 4096
"""Below which Ray warns; it raises the soft limit to the hard one itself."""


@dataclass(frozen=True)
class Card:
    """A GPU, as NVIDIA's driver sees it; memory in MiB."""

    name: str
    total: float | None
    used: float | None
    persistence: str
    driver: str


def _cards() -> list[Card]:
    """The GPUs of this machine.

    Raises:
        RuntimeError: nvidia-smi fails.
    """
    if not shutil.which("nvidia-smi"):
        return []
    fields = "name,memory.total,memory.used,persistence_mode,driver_version"
    text = _smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [[value.strip() for value in line.split(",")] for line in text.splitlines() if line.count(",") == 4]
    return [Card(name, _number(total), _number(used), mode, driver) for name, total, used, mode, driver in rows]


def _smi(*arguments: str) -> str:
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"nvidia-smi fails: {last(done.stdout + done.stderr)}")
    return done.stdout


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def gpus(expected: Expected) -> Finding:
    """What NVIDIA's driver says of the GPUs: whether others use their memory, whether the driver stays loaded."""
    try:
        cards = _cards()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Finding(
            State.WRONG, str(error), "restart the machine: its driver may have been updated since it started"
        )
    if not cards and list(ROOT.glob("dev/nvidia[0-9]*")):
        return Finding(State.WARNING, "a GPU, and no nvidia-smi", "install the tools of NVIDIA's driver")
    if not cards:
        return Finding(State.OK, "none")
    found = ", ".join(f"{n} × {name}" for name, n in _counted([card.name for card in cards]).items())
    found += f", driver {cards[0].driver}"
    problems, advice = [], []
    for number, card in enumerate(cards):
        if card.total and card.used is not None and card.used > 0.1 * card.total:
            problems.append(f"{card.used:,.0f} of {card.total:,.0f} MiB of GPU {number} are in use")
            advice = ["nvidia-smi shows by whom"]
    if any(card.persistence == "Disabled" for card in cards):
        problems.append("the driver is unloaded whenever no process uses it, and loading takes seconds")
        advice.append("sudo nvidia-smi -pm 1")
    return Finding(State.WARNING if problems else State.OK, "; ".join([found, *problems]), "; ".join(advice))


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}


_TORCH = """
import json, torch
seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
if seen: torch.ones(2, device="cuda").sum().item()
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "seen": seen}))
"""


def torch(expected: Expected) -> Finding:
    """Whether PyTorch can be imported, sees the GPUs that are there, and can compute on one."""
    told, failed = python(_TORCH, IMPORT_SECONDS)
    if failed:
        return Finding(State.WRONG, f"does not work: {failed}", reinstall("torch"))
    about = json.loads(told.strip().splitlines()[-1])
    try:
        there = len(_cards())
    except (RuntimeError, subprocess.TimeoutExpired):  # said by `gpus`
        there = 0
    seen, which = about["seen"], f"{about['version']} sees {about['seen']} of {there} GPUs"
    if not there or seen >= there:
        return Finding(State.OK, f"{about['version']}, {f'sees {seen}' if seen else 'without'} GPUs")
    if not (about["cuda"] or about["hip"]):
        return Finding(State.WRONG, f"{which}: it is built without CUDA", "install a build of PyTorch with CUDA")
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        advice = "unset CUDA_VISIBLE_DEVICES, unless it is meant"
        return Finding(State.WARNING, f"{which}: CUDA_VISIBLE_DEVICES={chosen!r}", advice)
    knows = _driver_cuda()
    if about["cuda"] and knows and _numbers(knows) < _numbers(about["cuda"]):
        found = f"{which}: it is built for CUDA {about['cuda']}, and the driver knows CUDA {knows}"
        return Finding(
            State.WRONG, found, f"update NVIDIA's driver, or install a PyTorch built for CUDA {knows} or older"
        )
    return Finding(State.WRONG, which, f'{sys.executable} -c "import torch; torch.zeros(1).cuda()" says why')


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver knows, such as "12.4"."""
    found = re.search(r"CUDA (?:\w+ )?Version *: *(\d+\.\d+)", _smi())
    return found[1] if found else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def cores(expected: Expected) -> Finding:
    """Cores that a process may use, beside those it is given time on and those that it believes in."""
    usable, quota = len(os.sched_getaffinity(0)), _quota()
    threads, counted = os.environ.get("OMP_NUM_THREADS", ""), expected.counted.get("CPU", 0)
    if quota is not None and quota < usable:
        advice = "give the container whole cores, or fewer CPUs to Ray (`ray start --num-cpus N`): packs take turns"
        return Finding(State.WARNING, f"{usable} cores, but time for {quota:g} of them", advice)
    if threads.isdecimal() and int(threads) > usable:
        return Finding(State.WARNING, f"OMP_NUM_THREADS={threads} on {usable} cores", "unset OMP_NUM_THREADS")
    if counted > usable:
        advice = f"start it with --num-cpus {usable}"
        return Finding(State.WARNING, f"Ray counts {counted:g} CPUs on {usable} cores", advice)
    return Finding(State.OK, str(usable))


def _quota() -> float | None:
    """Cores whose time the control groups give this process; None: all."""
    found = []
    for folder in _groups():
        share, _, period = _text(folder / "cpu.max").partition(" ")  # "max 100000" or "150000 100000", microseconds
        found += [int(share) / int(period)] if share.isdecimal() else []
    old = ROOT / "sys/fs/cgroup/cpu"
    share, period = (_text(old / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    found += [int(share) / int(period)] if share.isdecimal() else []
    return min(found, default=None)


def _groups() -> Iterator[Path]:
    """The control groups that this process is in, from its own upwards."""
    lines = _text(ROOT / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    top = ROOT / "sys/fs/cgroup"
    group = top / own.strip("/")
    yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _text(file: Path) -> str:
    """What stands in a file; nothing where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def memory(expected: Expected) -> Finding:
    """Memory that is free, also under the limit of a container."""
    total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    for folder in _groups():
        limit, used = (_text(folder / f"memory.{name}") for name in ("max", "current"))
        if limit.isdecimal() and used.isdecimal():
            total, free = min(total, int(limit)), min(free, int(limit) - int(used))
    found = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free > max(SCARCE_MEMORY, (1 - RAY_KILLS_AT) * total):
        return Finding(State.OK, found)
    what = f"{found}; a worker takes about 0.5 GB, and Ray kills workers when {RAY_KILLS_AT:.0%} are used"
    return Finding(State.WARNING, what, "end what else runs, or ask for more CPUs per pack, so that fewer run at once")


def _meminfo(name: str) -> int:
    """Bytes."""
    found = re.search(rf"^{name}: *(\d+) kB", _text(ROOT / "proc/meminfo"), re.MULTILINE)
    if not found:
        raise ValueError(f"no {name} in {ROOT / 'proc/meminfo'}")
    return int(found[1]) * 1024


def shared_memory(expected: Expected) -> Finding:
    """Room for Ray's object store."""
    place = ROOT / "dev/shm"
    if not place.is_dir():
        return Finding(State.WARNING, f"no {place}: Ray's objects lie on disk, which is slow", _SHM)
    free = shutil.disk_usage(place).free
    if free < OBJECT_STORE_BYTES:
        return Finding(State.WARNING, f"{free / 1e6:.0f} MB free in {place}: Ray's objects lie on disk, slow", _SHM)
    return Finding(State.OK, f"{free / GB:.1f} GB free in {place}")


_SHM = "of a container: docker run --shm-size=1g; else sudo mount -o remount,size=1g /dev/shm"


def disk_of_ray(expected: Expected) -> Finding:
    """Room where Ray puts its files."""
    return _disk(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()), "name another place in RAY_TMPDIR")


def disk_of_store(expected: Expected) -> Finding:
    """Room where the store lies, where that is a directory."""
    if expected.store is None or "://" in expected.store:
        return Finding(State.OK, "an object store")
    return _disk(Path(expected.store), "isoratio compact, isoratio rm SWEEP")


def _disk(place: Path, advice: str) -> Finding:
    about, usage = os.statvfs(place), shutil.disk_usage(place)
    found = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB free in {place}"
    if about.f_files and not about.f_favail:
        return Finding(State.WRONG, f"no file more can be made in {place}: its file system is out of inodes", advice)
    if not usage.free:
        return Finding(State.WRONG, found, f"make room, or {advice}")
    if usage.free < max(SCARCE_DISK, SCARCE_DISK_FRACTION * usage.total):
        return Finding(State.WARNING, found, f"make room, or {advice}")
    return Finding(State.OK, found)


def open_files(expected: Expected) -> Finding:
    """How many files a process may have open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= OPEN_FILES:
        return Finding(State.OK, "without limit" if most == resource.RLIM_INFINITY else f"{most:,}")
    advice = "`ulimit -n 65536` where Ray starts; the administrator raises the limit in /etc/security/limits.conf"
    return Finding(State.WARNING, f"at most {most:,}; Ray wants {OPEN_FILES:,} and more", advice)


def gpus_counted(expected: Expected) -> Finding:
    """Whether Ray counts the GPUs that are there."""
    counted, there = expected.counted.get("GPU", 0), len(_cards())
    found = f"Ray counts {counted:g}, {there} are there"
    if counted > there:
        return Finding(State.WRONG, found, "start Ray there without --num-gpus")
    if counted < there:
        return Finding(State.WARNING, found, "start Ray there without --num-gpus and CUDA_VISIBLE_DEVICES")
    return Finding(State.OK, found)


ON_ANY = (cores, memory, shared_memory, disk_of_ray, open_files, gpus, torch)
