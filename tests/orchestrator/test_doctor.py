"""What `isoratio doctor` says of a sound machine, and of each thing that may be wrong with one."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import ClusterError, nodes
from cluster.nodes import Cluster
from orchestrator import diagnosis, installation, machine
from orchestrator.diagnosis import doctor, token_file
from orchestrator.health import Expected, Finding, Look, State, found_by

Run = Callable[..., subprocess.CompletedProcess[str]]
NOTHING = Expected(None)
CARD = "NVIDIA L4, 23034, {used}, {mode}, 535.183.01\n"
BANNER = "| NVIDIA-SMI 535.183.01    Driver Version: 535.183.01    CUDA Version: 12.2     |\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of our own making, without anything."""
    monkeypatch.setattr(machine, "ROOT", tmp_path / "root")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def put(root: Path, **files: str) -> None:
    """Writes files; ``__`` in a name is a slash, ``_DOT_`` a dot."""
    for name, text in files.items():
        path = root / name.replace("_DOT_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs and of Python's modules that goes first; no other nvidia-smi is found."""
    (tmp_path / "tools").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:/bin:/usr/bin")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tools"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "tools"


def has_cards(tools: Path, *cards: str, code: int = 0) -> None:
    script = f"#!/bin/sh\n[ $# = 0 ] && printf '%s' '{BANNER}' || printf '%s' '{''.join(cards)}'\nexit {code}\n"
    (tools / "nvidia-smi").write_text(script)
    (tools / "nvidia-smi").chmod(0o755)


def card(used: int = 0, mode: str = "Enabled") -> str:
    return CARD.format(used=used, mode=mode)


def has_torch(tools: Path, seen: int, cuda: str | None, *, hip: str | None = None) -> None:
    (tools / "torch.py").write_text(
        f"from types import SimpleNamespace as S\n__version__ = '2.13.0'\nversion = S(cuda={cuda!r}, hip={hip!r})\n"
        f"cuda = S(is_available=lambda: {seen} > 0, device_count=lambda: {seen})\n"
        "ones = lambda n, device: S(sum=lambda: S(item=lambda: n))\n"
    )


def test_a_sound_machine(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that has a place of its own in a test: the rest is what this machine has."""
    has_torch(tools, 0, None)
    (tools / "ray").mkdir()
    put(tools, ray____init___DOT_py="__version__ = '2.60.0'\n", ray__tune_DOT_py="")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ISORATIO_DATA", str(tmp_path / "data"))
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    rows = {row.check: row for row in doctor(tmp_path / "new" / "store")}
    assert {row.found: row.advice for row in rows.values() if row.status is State.WRONG} == {}
    assert rows["store"].found == f"{tmp_path}: can be written"
    assert rows["torch"].found == "2.13.0, without GPUs"
    assert rows["ray"].found == "2.60.0"
    assert rows["data"].found == f"{tmp_path / 'data'}: none but those built in"
    assert len({row.where for row in rows.values()}) == 1
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_check_that_breaks_has_found_something_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(expected: Expected) -> Finding:
        raise OSError("first\n  second")

    def lacks(expected: Expected) -> Finding:
        raise ModuleNotFoundError("No module named 'x'")

    assert found_by(breaks, NOTHING) == Finding(State.WRONG, "OSError: first second")
    assert found_by(lacks, NOTHING).advice == f"install Isoratio for the Python there, {sys.executable}"
    monkeypatch.setattr(installation, "ON_ALL", (breaks,))
    [row] = installation.examine(NOTHING, "m")
    assert (row.check, row.where, row.status) == ("breaks", "m", State.WRONG)


def test_packages_that_are_missing_or_out_of_range() -> None:
    needs = ("python>=3.99", "numpy>=999", "pyarrow>=1", "no-such-package>=1", "other; python_version < '3'")
    found = installation.packages(Expected(None, needs))
    assert found.status is State.WRONG
    assert "needed is >=999; no-such-package is missing, needed is >=1" in found.found
    assert "pyarrow" not in found.found
    assert found.advice.endswith(
        "'numpy>=999' 'no-such-package>=1'; make a new virtual environment with a newer Python"
    )
    assert installation.packages(Expected(None, ("python>=3.11", "pyarrow>=1"))).status is State.OK
    assert "not known" in installation.packages(NOTHING).found


def test_a_ray_that_cannot_be_imported(tools: Path) -> None:
    (tools / "ray.py").write_text("raise ImportError('libfoo.so: cannot open')\n")
    found = installation.ray(NOTHING)
    assert (found.status, found.found) == (State.WRONG, "cannot be imported: ImportError: libfoo.so: cannot open")
    assert found.advice.endswith("--force-reinstall 'ray[default,tune]'")


@pytest.mark.parametrize(
    ("cards", "seen", "cuda", "status", "found"),
    [
        (2, 2, "12.6", State.OK, "2.13.0, sees 2 GPUs"),
        (0, 0, None, State.OK, "2.13.0, without GPUs"),
        (2, 0, None, State.WRONG, "2.13.0 sees 0 of 2 GPUs: it is built without CUDA"),
        (2, 0, "13.0", State.WRONG, "sees 0 of 2 GPUs: it is built for CUDA 13.0, and the driver knows CUDA 12.2"),
        (2, 1, "12.1", State.WRONG, "2.13.0 sees 1 of 2 GPUs"),
    ],
)
def test_torch_beside_the_driver(
    tools: Path, cards: int, seen: int, cuda: str | None, status: State, found: str
) -> None:
    has_torch(tools, seen, cuda)
    if cards:
        has_cards(tools, *[card()] * cards)
    said = machine.torch(NOTHING)
    assert said.status is status
    assert said.found.endswith(found)
    assert bool(said.advice) == (status is State.WRONG)


def test_torch_that_is_told_to_see_less_or_does_not_start(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_cards(tools, card(), card())
    has_torch(tools, 1, "12.6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    said = machine.torch(NOTHING)
    assert (said.status, said.found) == (State.WARNING, "2.13.0 sees 1 of 2 GPUs: CUDA_VISIBLE_DEVICES='0'")
    (tools / "torch.py").write_text("import os; os.abort()")
    assert machine.torch(NOTHING) == Finding(State.WRONG, "does not work: exit status -6", machine.reinstall("torch"))


def test_gpus_in_use_and_a_driver_that_is_unloaded(tools: Path) -> None:
    has_cards(tools, card(), card(used=9000, mode="Disabled"))
    found = machine.gpus(NOTHING)
    assert found.status is State.WARNING
    assert found.found.startswith("2 × NVIDIA L4, driver 535.183.01; 9,000 of 23,034 MiB of GPU 1 are in use; ")
    assert found.advice == "nvidia-smi shows by whom; sudo nvidia-smi -pm 1"
    has_cards(tools, CARD.format(used="[N/A]", mode="[N/A]"))
    assert machine.gpus(NOTHING) == Finding(State.OK, "1 × NVIDIA L4, driver 535.183.01")


def test_a_driver_that_does_not_answer(tools: Path, root: Path) -> None:
    assert machine.gpus(NOTHING) == Finding(State.OK, "none")
    put(root, dev__nvidia0="")
    assert machine.gpus(NOTHING).found == "a GPU, and no nvidia-smi"
    has_cards(tools, "Failed to initialize NVML: Driver/library version mismatch\n", code=18)
    found = machine.gpus(NOTHING)
    assert found.status is State.WRONG
    assert found.found == "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch"


def test_gpus_that_ray_counts(tools: Path) -> None:
    has_cards(tools, card(), card())
    states = [machine.gpus_counted(Expected(None, counted={"GPU": n})).status for n in (1, 2, 3)]
    assert states == [State.WARNING, State.OK, State.WRONG]


def test_time_for_fewer_cores_than_are_usable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.cores(NOTHING) == Finding(State.OK, "8")
    assert machine.cores(Expected(None, counted={"CPU": 16})).found == "Ray counts 16 CPUs on 8 cores"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert machine.cores(NOTHING).found == "OMP_NUM_THREADS=16 on 8 cores"
    put(root, proc__self__cgroup="0::/a/b\n", sys__fs__cgroup__a__b__cpu_DOT_max="max 100000\n")
    put(root, sys__fs__cgroup__a__cpu_DOT_max="150000 100000\n")
    assert machine.cores(NOTHING).found == "8 cores, but time for 1.5 of them"


def test_the_quota_of_older_kernels(root: Path) -> None:
    put(
        root,
        sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us="50000\n",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us="100000\n",
    )
    assert machine.cores(NOTHING).found.endswith("but time for 0.5 of them")


def test_scarce_memory(root: Path) -> None:
    assert found_by(machine.memory, NOTHING).status is State.WRONG  # nothing says how much there is
    put(root, proc__meminfo="MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\n")
    assert machine.memory(NOTHING) == Finding(State.OK, "8.2 of 16.4 GB free")
    put(root, proc__self__cgroup="0::/", sys__fs__cgroup__memory_DOT_max="2000000000")
    put(root, sys__fs__cgroup__memory_DOT_current="1000000000")
    found = machine.memory(NOTHING)
    assert found.status is State.WARNING
    assert found.found.startswith("1.0 of 2.0 GB free; ")


def test_no_room(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.shared_memory(NOTHING).found.startswith("no ")
    (root / "dev/shm").mkdir(parents=True)
    free = 0

    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=int(1e11), free=free))
    assert machine.shared_memory(NOTHING).status is State.WARNING
    store = Expected(str(tmp_path))
    assert machine.disk_of_store(store) == Finding(
        State.WRONG, f"0.0 of 100.0 GB free in {tmp_path}", "make room, or isoratio compact, isoratio rm SWEEP"
    )
    free = int(4e9)
    assert machine.disk_of_store(store).status is State.WARNING
    free = int(6e9)
    assert machine.disk_of_store(store).status is State.OK
    assert machine.shared_memory(NOTHING).status is State.OK
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_files=10, f_favail=0))
    assert "out of inodes" in machine.disk_of_store(store).found
    assert machine.disk_of_store(Expected("s3://b/r")) == Finding(State.OK, "an object store")


def test_rays_files_lie_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert machine.disk_of_ray(NOTHING).found.endswith(f"free in {tmp_path}")


@pytest.mark.parametrize(
    ("most", "status"), [(1024, State.WARNING), (4096, State.OK), (resource.RLIM_INFINITY, State.OK)]
)
def test_few_open_files(monkeypatch: pytest.MonkeyPatch, most: int, status: State) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (512, most))
    assert machine.open_files(NOTHING).status is status


def test_a_store_that_is_a_file_or_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    found = found_by(installation.store, Expected(str(tmp_path / "file")))
    assert found.status is State.WRONG
    assert "it is a file, a directory is expected" in found.found

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert "has no hard links" in installation.store(Expected(str(tmp_path))).found
    assert installation.store(Expected(str(tmp_path))).status is State.WRONG


def test_a_node_that_sees_another_store(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / ".probe-1").write_text("sign")
    sign = (".probe-1", "sign")
    found = installation.store(Expected(str(tmp_path / "there"), sign=sign))
    assert found.status is State.WRONG
    assert "not the store of the machine that asks" in found.found
    assert not list((tmp_path / "there").iterdir())
    (tmp_path / "there" / ".probe-1").write_text("another")
    assert installation.store(Expected(str(tmp_path / "there"), sign=sign)).status is State.WRONG
    assert installation.store(Expected(str(tmp_path / "here"), sign=sign)).status is State.OK


def test_clocks(tmp_path: Path) -> None:
    assert installation.clock_of_store(Expected(str(tmp_path))).status is State.OK
    assert not list(tmp_path.iterdir())
    assert installation.skew(-7, "its clock").status is State.WARNING
    assert installation.skew(-7, "its clock", within=2.5) == Finding(
        State.OK, "its clock is -7.0 s ahead, give or take 2.5 s"
    )


def test_data_that_is_damaged_or_missing(tmp_path: Path) -> None:
    from trainables.published import PUBLISHED

    there = Expected(None, data_root=str(tmp_path), data=("mnist",))
    found = installation.data(there)
    assert found.status is State.WARNING
    assert found.found.endswith("none but those built in; here are not mnist")
    assert found.advice.startswith(f"isoratio data fetch mnist --data-root {tmp_path}, there, or")
    for download in PUBLISHED["mnist"].downloads:
        (tmp_path / download.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / download.path).write_bytes(b"cut")
    assert installation.data(there).status is State.WRONG
    assert installation.data(there).found.endswith("damaged are mnist")
    assert installation.ready_data(str(tmp_path)) == ("mnist",)


def test_versions_of_a_node() -> None:
    here, source = diagnosis._own_versions(), diagnosis._source()
    assert installation.versions(Expected(None, versions=here, source=source)).status is State.OK
    assert "another revision" in installation.versions(Expected(None, versions=here, source="x")).found
    other = installation.versions(Expected(None, versions={**here, "python": "3.2", "ray": "2.0"}))
    assert other.status is State.WRONG
    assert "and 2.0 where you ask" in other.found
    assert other.advice.endswith("-m pip install ray==2.0; have one version of Python on all nodes")


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray looks for a token; there is none."""
    for name in ("MODE", "TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_AUTH_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


def test_a_token_is_for_its_owner_alone_and_is_never_shown(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [token_file(NOTHING)]
    assert said[-1].status is State.OK
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    said.append(token_file(NOTHING))
    assert said[-1].status is State.WARNING
    no_token.write_text("secret")
    no_token.chmod(0o644)
    said.append(token_file(NOTHING))
    assert said[-1] == Finding(said[-1].status, f"{no_token} is not for its owner alone", f"chmod 600 {no_token}")
    no_token.chmod(0o600)
    said.append(token_file(NOTHING))
    assert said[-1].status is State.OK
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    said.append(token_file(NOTHING))
    assert said[-1].status is State.WARNING
    assert "secret" not in str(said)


def test_a_token_that_everyone_can_read_is_worse_than_one_behind_a_closed_door(
    no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_token.write_text("secret")
    no_token.chmod(0o644)
    real = Path.stat
    closed = {no_token.parent: 0o40700}
    opened = SimpleNamespace(st_mode=0o40755)
    monkeypatch.setattr(
        Path,
        "stat",
        lambda path, **options: real(path, **options) if path == no_token else SimpleNamespace(st_mode=doors(path)),
    )

    def doors(path: Path) -> int:
        return closed.get(path, opened.st_mode)

    assert token_file(NOTHING).status is State.WARNING
    closed.clear()
    assert token_file(NOTHING).status is State.WRONG


def test_a_token_that_is_named_and_not_there_or_turned_off(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    found = token_file(NOTHING)
    assert (found.status, found.found) == (
        State.WRONG,
        "RAY_AUTH_TOKEN_PATH names /nowhere/token, and there is no such file",
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token_file(NOTHING).advice == "unset RAY_AUTH_MODE"


def test_a_cluster_without_a_token_and_of_another_version() -> None:
    assert diagnosis.guard(True).status is State.OK
    assert diagnosis.guard(False).status is State.WARNING
    assert "ANSWERS WITHOUT A TOKEN" in diagnosis.guard(False).found
    found = diagnosis.same({"Ray": "2.0.0", "Python": "3.2.1"})
    assert found.status is State.WRONG
    assert found.found.startswith("Ray 2.0.0, and ")
    assert "; Python 3.2.1, and " in found.found
    assert diagnosis.same({"Python": platform.python_version()}).status is State.OK


def test_nodes_are_not_asked_where_ray_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "look", lambda address: Cluster("h:6379", True, "2.0.0", "3.2.1"))
    rows = diagnosis.of_cluster("auto", tmp_path)
    assert [(row.check, row.where, row.status) for row in rows] == [
        ("cluster", "h:6379", State.OK),
        ("token", "h:6379", State.WARNING),
        ("versions", "h:6379", State.WRONG),
    ]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9"])
def test_no_cluster_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def refuse(address: str) -> Cluster:
        raise ClusterError(f"no Ray at {address}")

    monkeypatch.setattr(diagnosis, "examine", lambda expected, where: [])
    monkeypatch.setattr(nodes, "look", refuse)  # what it says itself is tested with it
    token, row = doctor(tmp_path, address=address)
    assert token.check == "token file"
    assert (row.check, row.where, row.status) == ("cluster", address, State.WRONG)
    assert "127.0.0.1:9" in row.found


def test_a_directory_is_another_one_on_a_cluster_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []
    monkeypatch.setattr(diagnosis, "examine", lambda expected, where: looked.append(expected.store) or [])
    for store in (tmp_path, "s3://bucket/prefix"):
        doctor(store, address="http://127.0.0.1:9")
    assert looked == [None, "s3://bucket/prefix"]


def test_the_command(tmp_path: Path, isoratio: Run, tools: Path, environment: dict[str, str]) -> None:
    """Strict rows, a summary, an exit code; whatever is wrong, the rest is looked at all the same."""
    has_torch(tools, 0, None)
    (tools / "ray.py").write_text("raise ImportError('broken')")
    environment |= {"PYTHONPATH": str(tools), "PATH": os.environ["PATH"]}
    done = isoratio("doctor", "--format", "json", "--store", tmp_path / "new")
    assert done.returncode == 2
    rows = json.loads(done.stdout)
    assert all(list(row) == ["check", "where", "status", "found", "advice"] for row in rows)
    assert [row["check"] for row in rows if row["status"] == "wrong"] == ["ray"]
    assert done.stderr == f"isoratio: 1 of {len(rows)} checks found something wrong\n"
    assert not (tmp_path / "new").exists()
    (tools / "ray.py").unlink()
    (tools / "ray").mkdir()
    put(tools, ray____init___DOT_py="__version__ = '2.60.0'\n", ray__tune_DOT_py="")
    done = isoratio("doctor", "--store", tmp_path / "new", env={"RAY_AUTH_MODE": "disabled"})
    assert (done.returncode, done.stderr) == (0, f"{len(rows)} checks found nothing wrong\n")
    assert "\n  ok      ray: 2.60.0\n" in done.stdout
    assert done.stdout.endswith(" lets anyone in\n            → unset RAY_AUTH_MODE\n")


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.add_node(num_cpus=64)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def two_nodes(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray that asks for no token."""
    environment["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-P", "-c", CLUSTER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as cluster:  # type: ignore[call-overload]
        yield cluster.stdout.readline().strip()
        cluster.stdin.close()


@pytest.mark.long
def test_every_node_of_a_cluster_is_looked_at(two_nodes: str, isoratio: Run, tmp_path: Path) -> None:
    done = isoratio("doctor", "--address", two_nodes, "--format", "json", "--store", tmp_path)
    assert done.returncode == 0, done.stdout
    rows = json.loads(done.stdout)
    assert [r["status"] for r in rows if (r["check"], r["where"]) == ("token", two_nodes)] == ["warning"]
    stores = [r["found"] for r in rows if r["check"] == "store"]
    assert stores[1:] == [f"{tmp_path}: can be written, and is the same"] * 2
    assert {r["status"] for r in rows if r["check"] in ("versions", "ports", "clock", "gpus counted")} == {"ok"}
    assert [r["found"] for r in rows if r["check"] == "cores" and r["status"] == "warning"] == [
        f"Ray counts 64 CPUs on {len(os.sched_getaffinity(0))} cores"
    ]
    assert not list(tmp_path.glob(".probe*"))


def test_neither_torch_nor_ray_is_imported_for_help() -> None:
    code = (
        "import sys; sys.argv = ['isoratio', 'doctor', '--help']\nfrom orchestrator.cli import app\n"
        "try: app()\nfinally: assert not {'torch', 'ray', 'pyarrow'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "isoratio doctor --address auto" in done.stdout


def test_every_look_has_a_name_that_people_read() -> None:
    looks: list[Look] = [*installation.ON_ALL, *installation.OF_STORE, *installation.OF_NODES]
    names = [look.__name__ for look in looks]
    assert len(names) == len(set(names)) == 15
