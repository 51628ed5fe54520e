"""Sweeps sent to a cluster: what travels, what comes back, what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps_for_faults import TINY

import orchestrator
from cluster import ClusterError
from cluster.jobs import Outcome
from orchestrator import launch, launching, logs, package, resume, status, stop
from orchestrator.job import PART, SAME, lines, records, refusal, versions
from orchestrator.launching import LaunchResult
from orchestrator.package import names_modules, user_modules, write_package
from orchestrator.remote import shared_store
from trainables.lease import LaunchHeldError, StopKind
from trainables.storage import DamagedStoreError, StoreError

texts = st.text(st.characters(blacklist_categories=["Cs", "Cc"]))


@given(st.lists(st.tuples(st.dictionaries(texts, texts | st.floats(allow_nan=False) | st.none()), texts), min_size=1))
def test_records_come_through_between_messages(sent: list[tuple[dict[str, Any], str]]) -> None:
    output = "".join(f"{lines(record)}{message}\n" for record, message in sent)
    said: list[str] = []
    assert list(records(["Ray's own", *output[:-1].split("\n")], said.append)) == [record for record, _ in sent]
    assert said == [message for _, message in sent]


def test_a_record_after_a_message_without_an_end() -> None:
    said: list[str] = []
    output = lines({"started": True}) + "from native code" + lines({"x": 1})
    assert list(records(output[:-1].split("\n"), said.append)) == [{"started": True}, {"x": 1}]
    assert said == ["from native code"]


def test_a_long_record_is_several_lines() -> None:
    record = {"line": "é" * PART}
    parts = lines(record).rstrip("\n").split("\n")
    assert len(parts) > 1
    assert max(map(len, parts)) < 20_000
    assert list(records([parts[0], None, "in between", *parts[1:]], [].append)) == [{}, record]


def test_versions_that_differ_are_refused_where_it_trains() -> None:
    here = versions(["ray", "torch", "duckdb", "pyarrow", "rich"])
    assert refusal(here, strict=True) is None
    there = here | {"torch": "1.0", "rich": "1.0"}
    assert refusal(there, strict=False) is None
    text = refusal(there, strict=True)
    assert f"it has torch {here['torch']}, and this machine 1.0." in text
    assert "-m pip install torch==1.0. Or install here what runs there" in text
    text = refusal(here | {"python": "3.4"}, strict=True)
    assert f"it has python {here['python']}, and this machine 3.4." in text
    assert "pip" not in text


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    text = refusal(versions(SAME) | {"no-such-package": "1.2"}, strict=False)
    assert text == (
        f"the cluster's Python ({sys.executable}) does not do: it lacks no-such-package. "
        f"On every node: {sys.executable} -m pip install no-such-package==1.2."
    )


def test_the_package_holds_ours_whole_and_the_users_apart(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis/__init__.py").write_text("raise RuntimeError")
    (tmp_path / "sweep.yaml").write_text("name: x")
    files = user_modules(tmp_path) | {"sweeps/x.yaml": tmp_path / "sweep.yaml"}
    for name in ("one.zip", "two.zip"):
        write_package(tmp_path / name, files)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        names = set(archive.namelist())
        assert json.loads(archive.read("versions.json"))["python"] == ".".join(map(str, sys.version_info[:2]))
        assert archive.read("user-files/analysis/__init__.py") == b"raise RuntimeError"
    assert {"user-files/", "user-files/sweeps/x.yaml", "orchestrator/starter.yaml", "orchestrator/job.sh"} <= names
    assert {"analysis/__init__.py", "cluster/tune.py", "trainables/packs.py"} <= names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)


def test_of_a_directory_the_python_files_travel(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "deep/er/b.py",
        ".git/c.py",
        ".venv/d.py",
        "env/pyvenv.cfg",
        "env/lib/e.py",
        "x/__pycache__/f.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/rows.parquet").write_bytes(b"x")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    assert sorted(user_modules(tmp_path)) == ["a.py", "deep/er/b.py"]


def test_too_much_is_refused_naming_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large/a.py").write_text("#" * 3_000_000)
    (tmp_path / "b.py").write_text("")
    monkeypatch.setattr(package, "MOST_BYTES", 2_000_000)
    with pytest.raises(ValueError, match=r"2 files, 3\.0 MB \(at most 10,000 and 2 MB\); most in large \(3\.0 MB\), b"):
        user_modules(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset: digits\ngrid: {lr: [0.1], arch: [mlp]}", False),
        ("arch: nets:net", True),
        ('metrics: ["own.metrics:size"]', True),
    ],
)
def test_a_sweep_file_that_names_modules(text: str, expected: bool) -> None:
    assert names_modules(text) is expected


@pytest.mark.parametrize("store", ["results", Path("results"), "./x", "file://x", "~/x"])
def test_a_store_of_one_machine_is_refused(store: str | Path) -> None:
    with pytest.raises(StoreError, match=r"that would be a directory of the cluster's head alone; give --store s3://"):
        shared_store(store, "http://head:8265")


def test_a_store_that_all_nodes_see() -> None:
    for store in ("s3://bucket/prefix", "/shared/results"):
        assert shared_store(store, "http://head:8265") == store
    assert shared_store("file:///shared", "http://head:8265") == "/shared"
    with pytest.raises(StoreError, match=r"^store s3://\*\*\*@bucket/x: credentials do not belong") as raised:
        shared_store("s3://key:secret@bucket/x", "http://head:8265")
    assert "secret" not in str(raised.value)


def test_an_address_to_join_is_none_to_ask() -> None:
    with pytest.raises(ValueError, match=r"^--address auto: the store tells how a launch goes"):
        status("results", address="auto")
    with pytest.raises(ValueError, match=r"http://HOST:8265 of a cluster"):
        list(logs("x", address="host:6379"))


def test_the_commands_to_look_in_with() -> None:
    on = LaunchResult("s", detached=True, options=" --store /shared", address="http://head:8265")
    assert "`isoratio status s --store /shared --address http://head:8265`" in on.text()
    assert on.text().startswith("s goes on at http://head:8265: ")
    seen = LaunchResult("s", detached=True, options=" --store s3://b", address="http://head:8265")
    assert "`isoratio stop s --store s3://b`" in seen.text()
    stopped = LaunchResult("s", planned=2, options=" --store s3://b", address="http://head:8265")
    assert stopped.text().endswith("isoratio resume s --store s3://b --address http://head:8265")


@pytest.mark.parametrize("below_a_raylet", [True, False])
def test_a_job_runs_with_the_python_of_the_clusters_workers(tmp_path: Path, below_a_raylet: bool) -> None:
    (tmp_path / "bin").mkdir()
    for place in ("workers-python", "bin/python3"):
        (tmp_path / place).write_text(f'#!/bin/sh\necho {place} "$@"\n')
        (tmp_path / place).chmod(0o755)
    command = ["sh", "-c", f"sh {package.OURS[0]}/job.sh launch '{{}}'; true"]
    raylet = f"import subprocess; subprocess.run({command!r})"
    worker = [f"--python_worker_command={tmp_path}/workers-python default_worker.py"] if below_a_raylet else []
    done = subprocess.run(
        [sys.executable, "-c", raylet, *worker],
        cwd=Path(orchestrator.__file__).parents[1],
        env=os.environ | {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{'workers-python' if worker else 'bin/python3'} -m orchestrator.job launch {{}}\n"


class Server:
    """A cluster that says what a test wants, to each job in turn.

    Attributes:
        outputs: lines of the next jobs.
        jobs: what was submitted: name, command, environment and the package's files.
    """

    exposed = False
    ray_version = version("ray")
    outputs: ClassVar[list[list[str | None]]] = []
    jobs: ClassVar[list[tuple[str, str, Mapping[str, str], dict[str, bytes]]]] = []

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, name: str, command: str, package: Path, environment: Mapping[str, str]) -> None:
        with zipfile.ZipFile(package) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        self.jobs.append((name, command, environment, files))

    def follow(self, name: str, on_trouble: Callable[[str], None]) -> Iterator[str | None]:
        yield from self.outputs.pop(0)

    def outcome(self, name: str) -> Outcome:
        return Outcome(1, "it fell over, last available logs (truncated):\nand more")

    def forget(self, name: str) -> None: ...


def output(*sent: dict[str, Any]) -> list[str | None]:
    return [line for record in [{"started": True}, *sent] for line in lines(record)[:-1].split("\n")]


RESULT = {"result": vars(LaunchResult("tiny", planned=4, done=4, options=" --store elsewhere"))}
ADDRESS = "http://head:8265"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    monkeypatch.setattr("cluster.jobs.JobServer", Server)
    monkeypatch.setattr(Server, "jobs", [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ISORATIO_STORE", raising=False)
    Path("tiny.yaml").write_text(TINY)
    return Server


def test_a_launch_is_sent_and_comes_back(server: type[Server], capsys: pytest.CaptureFixture[str]) -> None:
    Path("beside.py").write_text("")
    server.outputs = [["Ray's own", *output(), "a message", *output(RESULT)]]
    found = launch("tiny.yaml", "s3://bucket/x", address=ADDRESS, limit=3, max_concurrent=2)
    assert found == LaunchResult("tiny", planned=4, done=4, options=" --store s3://bucket/x", address=ADDRESS)
    [(name, command, environment, files)] = server.jobs
    assert re.fullmatch(r"isoratio-tiny-\d{8}-\d{6}-[0-9a-f]{4}", name)
    *start, arguments = shlex.split(command)
    assert start == ["sh", "orchestrator/job.sh", "launch"]
    expected = {"sweep": "tiny", "store": "s3://bucket/x", "file": "tiny.yaml", "executor": "ray", "limit": 3}
    expected |= {"take_over": False, "max_concurrent": 2, "budget_hours": None}
    assert json.loads(arguments) == expected
    assert environment == {}
    assert files["user-files/tiny.yaml"] == TINY.encode()
    assert "user-files/beside.py" not in files  # no plug-in is named
    said = capsys.readouterr()
    assert said.err == f"launched on {ADDRESS} as job {name}\na message\n"
    assert said.out == ""


def test_a_resume_takes_the_modules_along(server: type[Server]) -> None:
    Path("beside.py").write_text("")
    server.outputs = [output(RESULT)]
    resume("tiny", "/shared", address=ADDRESS)
    assert "user-files/beside.py" in server.jobs[0][3]
    assert " resume " in server.jobs[0][1]


def test_a_sweep_file_from_elsewhere_lies_at_the_top_there(server: type[Server], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = Path("tiny.yaml").replace(tmp_path / "deep/tiny.yaml")
    (tmp_path / "other").mkdir()
    for directory, place in (("", "deep/tiny.yaml"), ("deep", "tiny.yaml"), ("other", "tiny.yaml")):
        os.chdir(tmp_path / directory)
        server.outputs = [output(RESULT)]
        launch(file, "/shared", address=ADDRESS)
        assert f"user-files/{place}" in server.jobs[-1][3]


def test_the_data_root_of_this_machine_stays_here(server: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISORATIO_DATA", "/data/mine")
    for root, environment in (("/data/mine", {}), ("/shared/data", {"ISORATIO_DATA": "/shared/data"})):
        server.outputs = [output(RESULT)]
        launch("tiny.yaml", "/shared", address=ADDRESS, data_root=root)
        assert server.jobs[-1][2] == environment


def test_a_cluster_without_a_token_is_warned_of(
    server: type[Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "exposed", True)
    server.outputs = [output({"result": []})]
    assert status("/shared", address=ADDRESS) == []
    assert capsys.readouterr().err.startswith(f"WARNING: {ADDRESS} asks for no token: whoever reaches it can run")


def test_joining_without_a_token_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for address in (None, "127.0.0.1:6379"):
        launching._warn_of_no_token(address)
    assert capsys.readouterr().err == ""
    launching._warn_of_no_token("head:6379")
    assert capsys.readouterr().err.startswith("WARNING: joining the Ray at head:6379 without a token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    launching._warn_of_no_token("head:6379")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "kind"), [(2, ValueError), (3, DamagedStoreError), (4, LaunchHeldError), (1, ClusterError)]
)
def test_what_was_raised_there_is_raised_here(server: type[Server], code: int, kind: type[Exception]) -> None:
    server.outputs = [output({"error": "what and why", "code": code})]
    with pytest.raises(kind, match=r"^what and why$"):
        launch("tiny.yaml", "/shared", address=ADDRESS)


def test_a_job_without_a_result_is_said_with_what_ray_knows(server: type[Server]) -> None:
    server.outputs = [["Ray's own"], output()]
    with pytest.raises(ClusterError, match="ended without a result: it fell over, last available logs"):
        launch("tiny.yaml", "/shared", address=ADDRESS)
    with pytest.raises(ClusterError, match=r"ended without a result: it fell over$"):
        launch("tiny.yaml", "/shared", address=ADDRESS)


def test_detached_is_left_once_it_has_begun(server: type[Server]) -> None:
    server.outputs = [[*output(), None, *output({"begun": True}), "not read"]]
    found = launch("tiny.yaml", "/shared", address=ADDRESS, detach=True)
    assert found == LaunchResult("tiny", detached=True, options=" --store /shared", address=ADDRESS)


def test_asked_to_stop_until_there_is_a_launch_that_hears_it(
    server: type[Server], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {"result": RESULT["result"] | {"stopped": True}}
    launched = [*output(), None, None, None, *output(stopped)]
    server.outputs = [launched, output({"result": False}), output({"result": True}), output({"result": True})]
    wishes: list[StopKind | None] = [None, "finish", "finish", "checkpoint", "checkpoint"]
    assert launch("tiny.yaml", "/shared", address=ADDRESS, should_stop=lambda: wishes.pop(0)).stopped
    asked = [json.loads(shlex.split(command)[-1])["now"] for _, command, *_ in server.jobs[1:]]
    assert asked == [False, False, True]
    assert capsys.readouterr().err.count("the launch on the cluster has been asked to stop") == 2


def test_logs_come_as_they_were(server: type[Server]) -> None:
    server.outputs = [output({"line": "é\n"}, {"line": "two\n"}, {"result": None})]
    assert list(logs("tiny", "/shared", address=ADDRESS)) == ["é\n", "two\n"]


def test_stop_says_whether_there_was_a_launch(server: type[Server]) -> None:
    server.outputs = [output({"result": True}), output({"result": False})]
    assert [stop("tiny", "/shared", address=ADDRESS) for _ in range(2)] == [True, False]
