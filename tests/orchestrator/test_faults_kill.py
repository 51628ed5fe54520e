"""SIGKILL of the driver, of workers and of parts of Ray, at random moments."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from invariants import View, check_invariants, finish, left_running, uninterrupted
from sweeps_for_faults import DIGITS, NAPS, WAIT

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

PARTS = {
    "driver": r"bin/isoratio launch",
    "session": r"cluster\.session import main",
    "worker": r"^ray::ResourceTrainable",
    "agent": r"^ray::\w+Agent",
    "raylet": r"raylet/raylet ",
    "head": r"gcs/gcs_server ",
}
ENDS = {
    "session": "the local Ray died",
    "agent": "the local Ray died",
    "raylet": "the local Ray died (its raylet ended with exit status -9)",
    "head": "the local Ray died (its gcs_server ended with exit status -9)",
}
"""What a launch says that ends with a part of it."""

KILLS = 5
"""By each test."""

LONGEST = 4.0
"""Seconds that a part lives before it is killed; all packs together take about as long."""


@dataclass
class Killer:
    """Kills parts of launches.

    Attributes:
        home: HOME of the launches.
        dice: decides when.
        killed: what was killed in the present launch.
    """

    home: Path
    dice: random.Random
    killed: list[str] = field(default_factory=list)

    def kill(self, part: str, launch: subprocess.Popen[str]) -> bool:
        """Kills one process some time after there is one; False where the launch ended before."""
        while not self.find(part):
            if launch.poll() is not None:
                return False
            time.sleep(0.05)
        time.sleep(self.dice.uniform(0, LONGEST))
        found = self.find(part)
        if launch.poll() is not None or not found:
            return False
        os.kill(self.dice.choice(found), signal.SIGKILL)
        self.killed.append(part)
        return True

    def find(self, part: str) -> list[int]:
        return [pid for pid, command in left_running(self.home) if re.search(PARTS[part], command)]


def settled(launch: subprocess.Popen[str], killed: list[str]) -> str:
    """What a launch said whose parts were killed, once it has ended as it should."""
    said, _ = launch.communicate(timeout=180)
    last = killed[-1] if killed else "none"
    if last == "driver":
        assert launch.returncode == -signal.SIGKILL
    elif last in ENDS:
        assert launch.returncode == 2, said
        assert ENDS[last] in said
        assert "launch again to go on" in said
    else:
        assert launch.returncode in {0, 1}, said
    assert "Traceback" not in said
    deaths = said.count("crash: ")
    assert deaths <= killed.count("worker")
    return said


@pytest.mark.parametrize(
    ("seed", "text", "parts"),
    [
        (0, NAPS, [["worker", "worker", "head"], ["worker", "driver"]]),
        *(pytest.param(seed, DIGITS, [], marks=pytest.mark.long) for seed in range(1, 13)),
    ],
)
def test_kill_9_of_anything_at_any_moment_loses_nothing(
    seed: int, text: str, parts: list[list[str]], tmp_path: Path, isoratio: Run, start: Start
) -> None:
    print(f"seed {seed}")
    whole, work, home, dice = uninterrupted(text), tmp_path / "work", tmp_path / "home", random.Random(seed)
    (work / "sweep.yaml").write_text(text)
    (work / "waiting.py").write_text(WAIT)
    kills: list[str] = []
    for store in (work / f"store-{number}" for number in itertools.count()):
        view = View()
        while len(kills) < KILLS and not view.is_whole():
            chosen = parts.pop(0) if parts else [*(["worker"] * dice.randint(0, 2)), dice.choice([*PARTS])]
            killer = Killer(home, dice)
            launch = start("launch", "sweep.yaml", "--store", store)
            for part in chosen:
                if not killer.kill(part, launch):
                    break
            said = settled(launch, killer.killed)
            print(killer.killed, said)
            assert ended(home), "I6"
            kills += killer.killed
            before, view = view, View.of(store, text.split()[1])
            check_invariants(before, view, whole)
        finish(work, view, whole, str(store), "launch", "sweep.yaml")
        if len(kills) >= KILLS:
            print(kills)
            return


def ended(home: Path) -> bool:
    """Whether all processes are gone within seconds."""
    deadline = time.monotonic() + 15
    while list(left_running(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not list(left_running(home))
