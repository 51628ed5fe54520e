"""What is wrong with a file that is to start a cluster, and with the cluster, where it can be asked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.asking import Answer, ask_address, ask_tool
from cluster.credentials import secrets_in
from cluster.options import Kind
from cluster.rendering import installed
from cluster.token import token_here

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROVIDERS = {"aws": Kind.AWS, "gcp": Kind.GCP, "local": Kind.ONPREM}


@dataclass(frozen=True, order=True)
class Finding:
    """Something that a person should know.

    Attributes:
        line: of the file, counted from 1; 0 where it is about the cluster.
        problem: what is wrong.
        advice: what to do.
        serious: False for what is only said.
    """

    line: int
    problem: str
    advice: str = ""
    serious: bool = True

    def text(self, file: str | Path) -> str:
        """As one line, ``file:line: problem; advice``."""
        place = f"{file}:{self.line}: " if self.line else ""
        return place + self.problem + (f"; {self.advice}" if self.advice else "")


def check(file: str | Path, *, address: str | None = None, ask: bool = True) -> list[Finding]:
    """Everything that is wrong with a file for ``sbatch``, ``kubectl`` or ``ray up``, by line.

    Args:
        file: its kind is known from what stands in it.
        address: ``http(s)://HOST:8265`` of the cluster, if it runs.
        ask: whether ``sbatch`` or ``kubectl``, where they are here, are asked; it changes nothing there.

    Raises:
        ValueError: the file is none of those.
        OSError: it cannot be read.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text; {_EXPECTED}") from None
    kind, document, found = _parsed(path, text)
    if kind is not None:
        found += [*_in_any(text), *_RULES[kind](path, text, document)]
    if kind is not None and ask:
        found += map(_told, ask_tool(kind, path))
    if address:
        found += map(_told, ask_address(address, installed().ray, token_here()))
    return sorted(set(found))


def _told(answer: Answer) -> Finding:
    return Finding(0, answer.problem, answer.advice, answer.serious)


_EXPECTED = "expected is a batch script of Slurm, a RayCluster of KubeRay, or a cluster file of `ray up`"


def _parsed(path: Path, text: str) -> tuple[Kind | None, Any, list[Finding]]:
    """The kind and the parsed document; no kind where it does not parse."""
    if text.startswith("#!"):
        return Kind.SLURM, None, []
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        documents = [d for d in YAML().load_all(text) if isinstance(d, dict)]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return None, None, [Finding(line, f"not YAML: {error.problem}", "mend it first")]
    for document in documents:
        if str(document.get("apiVersion", "")).startswith("ray.io/"):
            return Kind.KUBERAY, document, _secrets_among(documents)
        provider = document.get("provider")
        if isinstance(provider, dict) and provider.get("type") in PROVIDERS:
            return PROVIDERS[provider["type"]], document, []
    raise ValueError(f"{path}: {_EXPECTED}")


def _secrets_among(documents: list[Any]) -> list[Finding]:
    message = "a Secret stands in the file", "make it with `kubectl create secret`, from a file that is not kept here"
    return [Finding(d.lc.line + 1, *message) for d in documents if d.get("kind") == "Secret"]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are no comments, counted from 1."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield number, line


def _in_any(text: str) -> Iterator[Finding]:
    """Rules for every kind: secrets, where the dashboard listens, versions."""
    for number, kind in secrets_in(text):
        yield Finding(number, f"{kind} stands in the file", "take it out, make it invalid, and hand it over by a file")
    token = token_here()
    for number, line in enumerate(text.splitlines(), 1):
        if token and token in line:
            yield Finding(number, "the token itself stands in the file", "name the file that holds it")
    for number, line in _lines(text):
        for host in re.findall(r"dashboard-host[\"']?\s*[=:\s]\s*[\"']?([^\s\"',}]+)", line):
            if host not in LOOPBACK:
                advice = "127.0.0.1, and a tunnel: whoever reaches the dashboard runs any code there"
                yield Finding(number, f"the dashboard listens on {host}", advice)
        yield from _versions(number, line)


_RAY_VERSION = re.compile(r"\bray(?:\[[\w,]+\])?==([\w.]+)|rayproject/ray:([\d.]+)|rayVersion: *[\"']?([\d.]+)")


def _versions(number: int, line: str) -> Iterator[Finding]:
    here = installed()
    for there in _RAY_VERSION.findall(line):
        if (version := "".join(there)) != here.ray:
            yield Finding(number, f"Ray {version}, and here is {here.ray}", "have the same on both sides")
    for major, minor in re.findall(r"rayproject/ray:\S*-py(\d)(\d+)", line):
        if f"{major}.{minor}" != here.python:
            yield Finding(number, f"Python {major}.{minor}, and here is {here.python}", "have the same on both sides")


def _line(document: Any, *keys: str | int) -> int:
    """The line of a key, or of the last one on the way to it that is there."""
    line = int(document.lc.line) + 1
    for key in keys:
        try:
            at = document.lc.data[key]
            line, document = int(at[0]) + 1, document[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _value(document: Any, *keys: str | int) -> Any:
    """What stands at the end of the keys; None where one is missing."""
    for key in keys:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _up_rules(path: Path, text: str, document: Any) -> Iterator[Finding]:
    """Rules for a file of ``ray up``."""
    from jsonschema import Draft7Validator  # type: ignore[import-untyped]

    local = _value(document, "provider", "type") == "local"
    judged = {k: v for k, v in document.items() if not (local and k == "min_workers")}  # Ray takes it off for these
    for error in Draft7Validator(_ray_schema()).iter_errors(judged):
        where = ".".join(map(str, error.absolute_path)) or "the file"
        yield Finding(_line(document, *error.absolute_path), f"{where}: {error.message}", "Ray refuses it")
    if local and not _value(document, "provider", "head_ip"):
        yield Finding(_line(document, "provider"), "no head_ip", "name the machine that is the head")
    yield from _start_commands(document)
    mounts = _value(document, "file_mounts") or {}
    source = next((here for there, here in mounts.items() if str(there).endswith("auth_token")), None)
    if source is None:
        advice = 'under file_mounts, "~/.ray/auth_token": "~/.ray/auth_token"'
        yield Finding(_line(document, "file_mounts"), "no token is copied to the nodes", advice)
    elif not Path(str(source)).expanduser().exists():
        advice = "`umask 077; ray get-auth-token --generate` makes ~/.ray/auth_token"
        yield Finding(_line(document, "file_mounts"), f"{source} is not here yet", advice, serious=False)


def _ray_schema() -> Any:
    spec = find_spec("ray")  # does not import it
    assert spec is not None
    assert spec.origin is not None
    return json.loads(Path(spec.origin).with_name("autoscaler").joinpath("ray-schema.json").read_text())


def _start_commands(document: Any) -> Iterator[Finding]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = _value(document, key)
        starts = [n for n, c in enumerate(commands or ()) if "ray start" in str(c)]
        if not starts:
            advice = "Ray's own commands ask for no token and open the dashboard: write them out"
            yield Finding(_line(document, key), f"no `ray start` under {key}", advice)
        for n in starts:
            if "RAY_AUTH_MODE=token" not in str(commands[n]):
                yield Finding(_line(document, key, n), "a Ray without a token: anyone may run code", _TOKEN)


_TOKEN = "set RAY_AUTH_MODE=token where it starts"


def _kuberay_rules(path: Path, text: str, document: Any) -> Iterator[Finding]:
    """Rules for a RayCluster, or the one inside a RayJob."""
    at: tuple[str, ...] = ("spec", "rayClusterSpec") if document.get("kind") == "RayJob" else ("spec",)

    def missing(*keys: str | int) -> bool:
        return _value(document, *at, *keys) in (None, "", [])

    def finding(problem: str, advice: str, *keys: str | int) -> Finding:
        return Finding(_line(document, *at, *keys), problem, advice)

    if not _value(document, "metadata", "name"):
        yield Finding(_line(document, "metadata"), "no metadata.name", "give it a name")
    if missing("rayVersion"):
        yield finding("no rayVersion", "KubeRay needs it to turn tokens on", "rayVersion")
    if _value(document, *at, "authOptions", "mode") != "token":
        yield finding("a Ray without a token: anyone may run code", "authOptions: {mode: token}", "authOptions")
    workers = _value(document, *at, "workerGroupSpecs")
    numbers = range(len(workers)) if isinstance(workers, list) else ()
    groups: list[tuple[str | int, ...]] = [("headGroupSpec",), *(("workerGroupSpecs", n) for n in numbers)]
    for group in groups:
        name = ".".join(map(str, group))
        if missing(*group, "template", "spec", "containers"):
            yield finding(f"no container in {name}", "template: {spec: {containers: [...]}}", *group)
        if group[0] == "workerGroupSpecs" and missing(*group, "groupName"):
            yield finding(f"no groupName in {name}", "give it a name", *group)
    if at == ("spec",) and missing("headGroupSpec", "rayStartParams", "dashboard-host"):
        advice = 'KubeRay opens it to all: under rayStartParams, dashboard-host: "127.0.0.1"'
        yield finding("no dashboard-host", advice, "headGroupSpec", "rayStartParams")


_SLURM = (
    (r"^#SBATCH .*--nodes[ =]", "no number of nodes", "#SBATCH --nodes=N"),
    (r"^#SBATCH .*--time[ =]", "no time limit", "#SBATCH --time=HH:MM:SS"),
    (r"^#SBATCH .*--requeue", "the job is not queued again when a node is lost", "#SBATCH --requeue"),
    (
        r"^#SBATCH .*--signal=(B|BR|RB):(USR1|TERM)@([3-9]\d|\d{3,})\b",
        "nobody tells the job that its time is nearly up",
        "#SBATCH --signal=B:USR1@120, and a trap that stops the launch: it saves itself in 25 s",
    ),
    (r"^#SBATCH .*--open-mode=append", "a job that is queued again overwrites its log", "#SBATCH --open-mode=append"),
    (r"^[^#]*RAY_AUTH_MODE=token", "a Ray without a token: anyone on the nodes may run code", _TOKEN),
    (r"^[^#]*scontrol requeue", "a sweep that is not complete is not queued again", "scontrol requeue at the end"),
    (r"^[^#]*isoratio (launch|resume)", "nothing is launched", "isoratio launch FILE --store STORE"),
)


def _slurm_rules(path: Path, text: str, document: Any) -> Iterator[Finding]:
    """Rules for a batch script."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    for line, problem in re.findall(r"line (\d+): (.*)", done.stderr):
        yield Finding(int(line), problem, "bash refuses it")
    for pattern, problem, advice in _SLURM:
        if not re.search(pattern, text, re.MULTILINE):
            yield Finding(1, problem, advice)
    nodes = re.search(r"^#SBATCH .*--nodes[ =](\d+)", text, re.MULTILINE)
    if nodes and int(nodes[1]) > 1:
        line = text[: nodes.start()].count("\n") + 1
        if not re.search(r"^#SBATCH .*--exclusive", text, re.MULTILINE):
            yield Finding(
                line, "several nodes, which other jobs may share", "#SBATCH --exclusive: Ray ends theirs, too"
            )
        if "ray symmetric-run" not in text:
            yield Finding(line, "several nodes and one Ray", "start it on all of them with `ray symmetric-run`")
    if re.search(r"token", text) and "umask 077" not in text and "auth_token" not in text:
        yield Finding(1, "others may read the token", "umask 077 before it is written")


_RULES: dict[Kind, Callable[[Path, str, Any], Iterator[Finding]]] = {
    Kind.SLURM: _slurm_rules,
    Kind.KUBERAY: _kuberay_rules,
    Kind.AWS: _up_rules,
    Kind.GCP: _up_rules,
    Kind.ONPREM: _up_rules,
}
