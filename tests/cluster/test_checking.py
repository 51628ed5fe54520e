"""What is wrong with a file that starts a cluster, line by line, and with a cluster that runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rendered import CASES

from cluster.checking import Finding, check
from cluster.rendering import installed, render


def written(tmp_path: Path, case: str, *changes: tuple[str, str]) -> Path:
    """A rendered file, changed."""
    text = render(*CASES[case])
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "file"
    file.write_text(text)
    return file


def serious(file: Path) -> list[Finding]:
    return [f for f in check(file, ask=False) if f.serious]


RAY, PYTHON = installed().ray, installed().python.replace(".", "")
WRONG = [
    ("aws-spot", "dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0", "the dashboard listens on 0.0.0.0"),
    ("aws-spot", "ray start --head", "true", "no `ray start` under head_start_ray_commands; Ray's own commands ask"),
    (
        "aws-spot",
        "max_workers: 4\n#",
        "max_workers: four\n#",
        "max_workers: 'four' is not of type 'integer'; Ray refuses",
    ),
    (
        "aws-spot",
        "idle_timeout_minutes",
        "idle_minutes",
        "the file: Additional properties are not allowed ('idle_minut",
    ),
    ("aws-spot", "MODE=token", "MODE=disabled", "a Ray without a token: anyone may run code; set RAY_AUTH_MODE=token"),
    ("aws-spot", '"~/.ray/auth_token": ', '"~/x": ', "no token is copied to the nodes; under file_mounts"),
    ("aws-spot", f"ray:{RAY}", "ray:2.9.9", f"Ray 2.9.9, and here is {RAY}; have the same on both sides"),
    ("aws-spot", f"-py{PYTHON}-", "-py38-", "Python 3.8, and here is"),
    ("aws-spot", f"tune]=={RAY}", "tune]==2.1", f"Ray 2.1, and here is {RAY}"),
    ("onprem", "head_ip:", "head:", "no head_ip; name the machine that is the head"),
    ("onprem", 'user: "me"', "user: 7", "auth.ssh_user: 7 is not of type 'string'; Ray refuses it"),
    ("kuberay-spot", "mode: token", "mode: disabled", "a Ray without a token: anyone may run code; authOptions: {mode"),
    ("kuberay-spot", 'dashboard-host: "127.0.0.1"', 'dashboard-host: "0.0.0.0"', "the dashboard listens on 0.0.0.0"),
    ("kuberay-spot", 'dashboard-host: "127.0.0.1"', "", "no dashboard-host; KubeRay opens it to all"),
    ("kuberay-spot", f'rayVersion: "{RAY}"', "", "no rayVersion; KubeRay needs it to turn tokens on"),
    ("kuberay-spot", "groupName: workers", "name: workers", "no groupName in workerGroupSpecs.0"),
    ("kuberay-spot", "containers:", "container:", "no container in headGroupSpec"),
    (
        "slurm-four-nodes",
        "#SBATCH --requeue\n",
        "",
        "the job is not queued again when a node is lost; #SBATCH --requeue",
    ),
    ("slurm-four-nodes", "USR1@120", "USR1@9", "nobody tells the job that its time is nearly up; #SBATCH --signal"),
    ("slurm-four-nodes", "#SBATCH --exclusive\n", "", "several nodes, which other jobs may share; #SBATCH --exclusive"),
    ("slurm-four-nodes", "umask 077", "umask 022", "others may read the token; umask 077 before it is written"),
    ("slurm-four-nodes", "MODE=token", "MODE=disabled", "a Ray without a token: anyone on the nodes may run code"),
    ("slurm-four-nodes", "symmetric-run", "start", "several nodes and one Ray; start it on all of them with"),
    ("slurm-four-nodes", "dashboard-host 127.0.0.1", "dashboard-host 0.0.0.0", "the dashboard listens on 0.0.0.0"),
    ("slurm-one-node", "store=results", "store='results", "bash refuses it"),
    (
        "slurm-one-node",
        "store=results",
        "AWS_SECRET_ACCESS_KEY=abcdefghijkl",
        "a token or password written out stands in",
    ),
]


@pytest.mark.parametrize(("case", "old", "new", "message"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str, old: str, new: str, message: str) -> None:
    file = written(tmp_path, case, (old, new))
    said = [f.text("FILE") for f in serious(file)]
    assert any(message in line for line in said), said
    assert all(line.startswith("FILE:") for line in said)


@pytest.mark.parametrize("case", ["aws-spot", "kuberay-spot", "slurm-one-node"])
def test_a_finding_has_its_line(tmp_path: Path, case: str) -> None:
    file = written(tmp_path, case)
    lines = file.read_text().splitlines()
    lines.insert(40, "# key AKIAABCDEFGHIJKLMNOP")
    file.write_text("\n".join(lines) + "\n")
    (found,) = serious(file)
    assert (found.line, found.problem) == (41, "a key of AWS stands in the file")
    assert "AKIA" not in found.text(file)


def test_the_line_of_a_field_is_where_it_stands(tmp_path: Path) -> None:
    file = written(tmp_path, "kuberay-spot", ("groupName: workers", "name: workers"))
    (found,) = serious(file)
    assert "name: workers" in file.read_text().splitlines()[found.line - 1]


def test_the_token_of_this_machine_is_found_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "deadbeefcafe")
    file = written(tmp_path, "aws-spot", ("ulimit -n 65536", "true deadbeefcafe"))
    assert {f.problem for f in serious(file)} == {"the token itself stands in the file"}


def test_a_secret_of_kubernetes_does_not_belong_beside_the_cluster(tmp_path: Path) -> None:
    file = written(tmp_path, "kuberay-spot")
    lines = len(file.read_text().splitlines())
    file.write_text(file.read_text() + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: x}\n")
    (found,) = serious(file)
    assert found.problem == "a Secret stands in the file"
    assert found.line > lines


def test_a_ray_job_is_judged_by_its_cluster(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "apiVersion: ray.io/v1\nkind: RayJob\nmetadata: {name: j}\nspec:\n  rayClusterSpec:\n    headGroupSpec: {}\n"
    )
    said = {f.problem: f.line for f in serious(file)}
    assert said == {
        "no rayVersion": 5,
        "a Ray without a token: anyone may run code": 5,
        "no container in headGroupSpec": 6,
    }


@pytest.mark.parametrize("text", ["", "a: 1\n", "provider: {type: azure}\n", "- 1\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(
        ValueError, match="expected is a batch script of Slurm, a RayCluster of KubeRay, or a cluster file"
    ):
        check(file)


@pytest.mark.parametrize(("text", "line"), [("a: [1\nb: 2\n", 2), ("provider: {type: aws}\na: 1\na: 2\n", 3)])
def test_what_is_not_yaml_has_its_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    (found,) = check(file)
    assert found.line == line
    assert found.problem.startswith("not YAML")


def test_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match="not a text"):
        check(tmp_path / "file")


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    """A stand-in for a tool, alone on the PATH but for bash."""
    made = tmp_path / "bin" / name
    made.parent.mkdir(exist_ok=True)
    made.write_text(f"#!/bin/bash\n{body}\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", f"{made.parent}:/usr/bin:/bin")


def notes(file: Path) -> list[tuple[bool, str]]:
    return [(f.serious, f.text(file)) for f in check(file)]


@pytest.mark.parametrize(("code", "serious_"), [(0, False), (1, True)])
def test_slurm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, serious_: bool) -> None:
    tool(tmp_path, monkeypatch, "sinfo", "exit 0")
    tool(tmp_path, monkeypatch, "sbatch", f'[ "$1" = --test-only ] || exit 9\necho "sbatch: says so" >&2; exit {code}')
    prefix = "sbatch refuses it: " if code else ""
    assert notes(written(tmp_path, "slurm-one-node")) == [(serious_, f"{prefix}sbatch: says so")]


def test_a_machine_of_no_slurm_cluster_has_the_commands_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's package leaves it."""
    tool(tmp_path, monkeypatch, "sbatch", "exit 0")
    tool(tmp_path, monkeypatch, "sinfo", "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    said = "not asked: sbatch reaches no cluster (sinfo: fatal: Could not establish a configuration source)"
    assert notes(written(tmp_path, "slurm-one-node")) == [(False, said)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "echo 'connection refused' >&2; exit 1",
            (False, "not asked: kubectl reaches no cluster (connection refused)"),
        ),
        ("[ $1 = get ] && exit 0; echo 'created (server dry run)'", (False, "created (server dry run)")),
        ("[ $1 = get ] && exit 0; echo 'unknown field' >&2; exit 1", (True, "kubectl refuses it: unknown field")),
    ],
)
def test_kubernetes_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: tuple[bool, str]
) -> None:
    tool(tmp_path, monkeypatch, "kubectl", body)
    assert notes(written(tmp_path, "kuberay-spot")) == [expected]


@pytest.mark.parametrize(("case", "name"), [("slurm-one-node", "sbatch"), ("kuberay-spot", "kubectl")])
def test_a_tool_that_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, name: str) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    file = written(tmp_path, case)
    assert notes(file) == [(False, f"not asked: {name} is not on the PATH; check again where it is")]


class Dashboard(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard does, to those who show its token."""

    token = ""
    body = b""

    def do_GET(self) -> None:
        shown = self.headers.get("Authorization")
        code = 200 if not self.token or shown == f"Bearer {self.token}" else 403 if shown else 401
        self.send_response(code)
        self.end_headers()
        self.wfile.write(self.body if code == 200 and self.path == "/api/version" else b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Dashboard, "token", "right")
    monkeypatch.setattr(Dashboard, "body", json.dumps({"ray_version": installed().ray}).encode())
    server = HTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def said_of(address: str, tmp_path: Path) -> list[tuple[bool, str]]:
    file = written(tmp_path, "slurm-one-node")
    return [(f.serious, f.text(file)) for f in check(file, address=address, ask=False)]


def test_a_cluster_is_asked_for_its_token_and_version(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert said_of(dashboard, tmp_path) == [
        (True, f"{dashboard} asks for a token, and here is none; set RAY_AUTH_TOKEN_PATH")
    ]
    (tmp_path / "token").write_text("wrong\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    ((serious_, text),) = said_of(dashboard, tmp_path)
    assert serious_
    assert f"{dashboard} refuses the token" in text
    assert "wrong" not in text
    (tmp_path / "token").write_text("right\n")
    assert said_of(dashboard, tmp_path) == [(False, f"{dashboard} runs Ray {installed().ray}, as here")]
    monkeypatch.setattr(Dashboard, "body", b'{"ray_version": "1.2"}')
    ((serious_, text),) = said_of(dashboard, tmp_path)
    assert serious_
    assert "runs Ray 1.2, and here is" in text


def test_a_cluster_that_is_open_to_all_is_a_problem(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "token", "")
    said = said_of(dashboard, tmp_path)
    assert (True, f"{dashboard} answers without a token: whoever reaches it runs any code; turn tokens on") in said


def test_something_else_at_the_address_is_said(dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "token", "")
    monkeypatch.setattr(Dashboard, "body", b"<html>")
    assert any("something else than Ray answers" in t for _, t in said_of(dashboard, tmp_path))
    ((_, text),) = said_of("head:6379", tmp_path)
    assert text == "head:6379: not the address of a dashboard; http://HOST:8265"
    ((_, text),) = said_of("http://127.0.0.1:1", tmp_path)
    assert "does not answer" in text
