"""SIGKILL of the driver, of workers and of parts of Ray, at random moments."""

from __future__ import annotations

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
    "agent": "Ray",  # gives up its machine, or dies
    "raylet": "the local Ray died (its raylet ended with exit status -9); launch again to go on",
    "head": "the local Ray died (its gcs_server ended with exit status -9); launch again to go on",
}
"""What a launch says that ends with a part of it."""


@dataclass
class Killer:
    """Kills parts of launches.

    Attributes:
        home: HOME of the launches.
        dice: decides when.
        longest: seconds that a part lives before it is killed; all packs together take about as long.
        killed: what was killed in the present launch.
    """

    home: Path
    dice: random.Random
    longest: float
    killed: list[str] = field(default_factory=list)

    def kill(self, part: str, launch: subprocess.Popen[str]) -> bool:
        """Kills one process some time after there is one; False where the launch ended before."""
        while not self.find(part):
            if launch.poll() is not None:
                return False
            time.sleep(0.05)
        time.sleep(self.dice.uniform(0, self.longest))
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
    else:
        assert launch.returncode in {0, 1}, said
    assert "Traceback" not in said
    deaths = said.count("crash: ")
    assert deaths <= killed.count("worker")
    return said


@dataclass(frozen=True)
class Ordeal:
    """What is killed.

    Attributes:
        seed: of what is random.
        text: the sweep file.
        longest: see :class:`Killer`.
        parts: in the order in which they are killed, in the first launch; after that it is random.
        kills: how many at least.
    """

    seed: int
    text: str = DIGITS
    longest: float = 4.0
    parts: tuple[str, ...] = ()
    kills: int = 5


SHORT = Ordeal(0, NAPS, 1.0, ("worker", "worker", "head"), 3)
LONG = [pytest.param(Ordeal(seed), marks=[pytest.mark.long, pytest.mark.timeout(1800)]) for seed in range(1, 13)]


@pytest.mark.parametrize("ordeal", [SHORT, *LONG], ids=lambda ordeal: f"seed {ordeal.seed}")
def test_kill_9_of_anything_at_any_moment_loses_nothing(
    ordeal: Ordeal, tmp_path: Path, isoratio: Run, start: Start
) -> None:
    whole, dice = uninterrupted(ordeal.text), random.Random(ordeal.seed)
    work, home = tmp_path / "work", tmp_path / "home"
    (work / "sweep.yaml").write_text(ordeal.text)
    (work / "waiting.py").write_text(WAIT)
    kills: list[str] = []
    view, store = View(), work / "store"
    for number in range(4 * ordeal.kills):
        if view.is_whole():  # before enough was killed
            finish(work, view, whole, str(store), "launch", "sweep.yaml")
            view, store = View(), work / f"store-{number}"
        some = (*["worker"] * dice.randint(0, 2), dice.choice([*PARTS]))
        parts = ordeal.parts if ordeal.parts and not kills else some
        killer = Killer(home, dice, ordeal.longest)
        launch = start("launch", "sweep.yaml", "--store", store)
        all(killer.kill(part, launch) for part in parts)
        said = settled(launch, killer.killed)
        print(killer.killed, said)
        assert ended(home), "I6"
        kills += killer.killed
        before, view = view, View.of(store, ordeal.text.split()[1])
        check_invariants(before, view, whole)
        if len(kills) >= ordeal.kills:
            break
    print(f"killed: {' '.join(kills)}")
    assert len(kills) >= ordeal.kills
    finish(work, view, whole, str(store), "launch", "sweep.yaml")


def ended(home: Path) -> bool:
    """Whether all processes are gone within seconds."""
    deadline = time.monotonic() + 15
    while list(left_running(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not list(left_running(home))
