"""What the tools that take a cluster's file, and a cluster that runs, say of themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cluster.options import Kind

SECONDS = 20


@dataclass(frozen=True)
class Answer:
    """What was said: a problem, what to do, and whether it is one at all."""

    problem: str
    advice: str = ""
    serious: bool = True


def ask_tool(kind: Kind, file: Path) -> list[Answer]:
    """What ``sbatch`` or ``kubectl`` would do with a file; they do nothing."""
    if kind is Kind.SLURM:
        return _ask("sbatch", ["sinfo", "--noheader"], ["--test-only", str(file)])
    if kind is Kind.KUBERAY:
        timeout = f"--request-timeout={SECONDS}s"
        version = ["kubectl", "get", "--raw", "/version", timeout]
        return _ask("kubectl", version, ["apply", "--dry-run=server", timeout, "-f", str(file)])
    return [Answer("not asked: what the machines say is known once `ray up` has started them", serious=False)]


def _ask(tool: str, reach: list[str], arguments: list[str]) -> list[Answer]:
    """A tool that is not here, or reaches no cluster, says nothing of the file."""
    if not shutil.which(tool):
        return [Answer(f"not asked: {tool} is not on the PATH", "check again where it is", serious=False)]
    reached = _run(reach)
    if reached.returncode:
        return [Answer(f"not asked: {tool} reaches no cluster ({_last(reached.stderr)})", serious=False)]
    done = _run([tool, *arguments])
    said = _last(done.stderr or done.stdout)
    return [Answer(f"{tool} refuses it: {said}" if done.returncode else said, serious=bool(done.returncode))]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not on the PATH")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {3 * SECONDS} s")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def ask_address(address: str, ray: str, token: str | None) -> list[Answer]:
    """Whether a cluster answers, to whom, and with which Ray.

    Args:
        address: ``http(s)://HOST:PORT`` of its dashboard.
        ray: the version here.
        token: None where there is none here.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        return [Answer(f"{address}: not the address of a dashboard", "http://HOST:8265")]
    try:
        status, body = _get(address, None)
        if status in (401, 403):
            if token is None:
                return [Answer(f"{address} asks for a token, and here is none", "set RAY_AUTH_TOKEN_PATH")]
            status, body = _get(address, token)
            if status in (401, 403):
                return [Answer(f"{address} refuses the token", "take the one with which the cluster was started")]
            return _judged(address, body, ray)
        open_to_all = Answer(f"{address} answers without a token: whoever reaches it runs any code", "turn tokens on")
        return [open_to_all, *_judged(address, body, ray)]
    except (URLError, OSError) as error:
        return [Answer(f"{address} does not answer: {error}", "is the tunnel open?")]


def _get(address: str, token: str | None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(f"{address.rstrip('/')}/api/version", headers=headers), timeout=SECONDS) as answer:
            return answer.status, answer.read(100_000).decode(errors="replace")
    except HTTPError as error:
        return error.code, ""


def _judged(address: str, body: str, ray: str) -> list[Answer]:
    try:
        there = str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError):
        return [Answer(f"{address}: something else than Ray answers", "http://HOST:8265, the dashboard of the head")]
    if there != ray:
        return [Answer(f"{address} runs Ray {there}, and here is {ray}", "have the same on both sides")]
    return [Answer(f"{address} runs Ray {there}, as here", serious=False)]
