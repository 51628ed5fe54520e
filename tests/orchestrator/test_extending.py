"""Seeds are added where a verdict is open, look by look, and nowhere else: with trials of one's own."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import import_trials, logs, resume, sql
from orchestrator.extending import LATE, Extension, _grown, extend
from orchestrator.launching import launch
from orchestrator.sweepfile import load
from trainables.lease import LaunchHeldError
from trainables.store import Store

SWEEP = """
    # what it is for
    name: own
    dataset: digits
    train: {call: "own_noise:trial"}
    grid:
      ratio: [1.0e-3, 4.0e-3]   # two lines
      batch_size: [8, 32]
      momentum: [0.0, 0.5]
      seed: {range: 4}
    margins: {test_loss: 0.1}
"""

TRIALS = """
import math, random

SPREAD = {0.0: 0.005, 0.5: 0.08, 0.9: 0.6}  # by momentum: decided at once, later, never

def trial(config):
    draw = random.Random(f"{config['lr']} {config['batch_size']} {config['seed']}")
    return {"test_loss": math.exp(draw.gauss(0, SPREAD[config["momentum"]]))}
"""

LOOKS = [4, 12, 24]


@pytest.fixture(autouse=True)
def own_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_noise", raising=False)
    Path("own_noise.py").write_text(TRIALS)


def launched(text: str = SWEEP, file: str = "own.yaml", **options: Any) -> None:
    Path(file).write_text(textwrap.dedent(text))
    launch(file, "store", executor="inline", **options)


def extended(looks: list[int] | None = LOOKS, **options: Any) -> Extension:
    return extend("own", "store", looks=looks, executor="inline", **options)


def seeds() -> dict[float, int]:
    """Seeds by momentum."""
    rows = sql("store", "SELECT momentum, count(DISTINCT seed) AS n FROM trials GROUP BY ALL").to_pylist()
    return {row["momentum"]: row["n"] for row in rows}


def rows() -> list[dict[str, Any]]:
    return sql("store", "SELECT trial_id, test_loss FROM trials ORDER BY ALL").to_pylist()


def kept() -> str:
    found = Store("store").sweep("own").sweep_file()
    assert found is not None
    return found[1]


def test_seeds_are_added_only_where_the_verdict_is_open_and_kept_in_the_sweep_file() -> None:
    launched()
    said: list[str] = []
    found = extended(say=said.append)
    assert seeds() == {0.0: 4, 0.5: 24}
    steady, noisy = found.verdicts
    assert (steady.verdict, steady.look, steady.n_seeds, steady.open) == ("equivalent", 1, 4, False)
    assert (noisy.look, noisy.n_seeds, noisy.open) == (3, 24, False)
    assert (found.ran, found.stopped) == (2 * 2 * 20, False)
    assert "own: looks at 4, 12, 24 seeds; together they are wrong in at most 5%" in found.text()
    assert "of which they spend 0.00833, 0.025, 0.05 in turn" in found.text()
    assert "test_loss (momentum 0.0): EQUIVALENT (look 1 of 3, 4 seeds, error spent 0.00833 of 0.05)" in found.text()
    assert said[0] == LATE
    assert "wrong in up to 7.1%" in LATE
    assert "1 of 2 verdicts closed; up to 12 seeds for test_loss (momentum 0.5)" in said[1]
    log = "".join(logs("own", "store"))
    assert all(line in log for text in said for line in text.splitlines())
    text = kept()
    assert "# what it is for" in text
    assert "# two lines" in text
    assert "seed: {range: 24}" in text
    assert "looks: [4, 12, 24]" in text
    file = load("own.yaml", text=text)
    assert (file.looks, file.margins, len(file.axes["seed"])) == (LOOKS, {"test_loss": 0.1}, 24)
    assert """(seed < 4 OR ("momentum" = '0.5'::DOUBLE)) AND""" in text
    before = rows()
    said.clear()
    again = extended(None, say=said.append)
    assert said == [again.text()]  # the looks are in the sweep file now
    assert (again.ran, again.looks, rows()) == (0, (4, 12, 24), before)
    assert again.verdicts == found.verdicts
    assert resume("own", "store", executor="inline").planned == 4 * 4 + 4 * 24


def test_a_stopped_extension_goes_on_to_the_same_end() -> None:
    launched(SWEEP + "    pack: {max_trials: 24}\n")
    found, calls = extended(should_stop=_after(3)), 1
    assert found.stopped
    while found.stopped:
        found, calls = extended(None, should_stop=_after(3 + 2 * calls)), calls + 1
    assert 2 < calls < 30
    stopped = rows()
    Path("store").rename("stopped")
    launched()
    assert extended().verdicts == found.verdicts
    assert rows() == stopped


def _after(n: int) -> Callable[[], Any]:
    asked = itertools.count()
    return lambda: "finish" if next(asked) > n else None


def test_one_look_at_a_time() -> None:
    launched()
    first = extended(until_decided=False)
    assert (seeds(), first.verdicts[1].look) == ({0.0: 4, 0.5: 12}, 2)
    assert "1 still open; go on with: isoratio extend own --until-decided --store" in first.text()
    with pytest.raises(ValueError, match="looks 4, 40: sweep 'own' has 4, 12, 24, over which the error is spent"):
        extended([4, 40])
    grown = _grown(load("own.yaml"), first, 12)
    assert grown.where == """seed < 4 OR ("momentum" = '0.5'::DOUBLE)"""
    assert _grown(grown, first, 12) is grown
    extended(until_decided=False)
    assert seeds() == {0.0: 4, 0.5: 24}


def test_an_unfinished_sweep_is_finished_first() -> None:
    launched(SWEEP + "    pack: {max_trials: 8}\n", limit=2)
    assert len(rows()) < 32
    said: list[str] = []
    found = extended(say=said.append)
    assert LATE not in said
    assert found.verdicts[0].verdict == "equivalent"
    assert seeds() == {0.0: 4, 0.5: 24}


def test_looks_may_stand_in_the_sweep_file_and_default_to_doubling() -> None:
    launched(SWEEP + "    looks: [4, 6]\n")
    assert extended(None).looks == (4, 6)
    launched(SWEEP.replace("name: own", "name: other"))
    assert extend("other", "store", executor="inline", metrics=["test_loss"]).looks == (4, 8, 16)


def test_where_more_seeds_would_not_help_none_are_added() -> None:
    launched(SWEEP.replace("[0.0, 0.5]", "[0.9]").replace("margins: {test_loss: 0.1}", "margins: {test_loss: 1.0e-4}"))
    found = extended([4, 6])
    assert (found.ran, found.open) == (0, [])
    assert "6 seeds would decide it with a chance below 10%" in found.text()


def test_failed_trials_are_counted_whether_or_not_any_run() -> None:
    Path("own_noise.py").write_text(TRIALS.replace("    draw =", "    assert config['seed'] != 2\n    draw ="))
    launched(SWEEP + "    retries: 0\n")
    found = extended([4, 6])
    assert (found.failed, found.stopped) == (8, False)
    assert "8 trials failed; try them again with: isoratio resume own --store" in found.text()
    again = extended(None)
    assert (again.ran, again.failed) == (0, 8)


def test_asked_to_stop_while_it_waits_for_another_launch_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(limit=8)

    def held(*_: Any, **__: Any) -> None:
        raise LaunchHeldError("another launch holds the sweep")

    monkeypatch.setattr("orchestrator.extending.launch", held)
    found = extended(should_stop=lambda: "finish")
    assert (found.stopped, found.ran) == (True, 0)
    with pytest.raises(LaunchHeldError, match="another launch holds the sweep"):
        extended()


def test_mistakes() -> None:
    launched()
    with pytest.raises(ValueError, match="growing numbers of seeds are needed"):
        extended([8, 4])
    launched(SWEEP.replace("name: own", "name: gaps") + "    where: seed < 3 OR batch_size = 8\n")
    with pytest.raises(ValueError, match="not every cell has the first 4 seeds; does `where` leave some out"):
        extend("gaps", "store", executor="inline")
    with pytest.raises(ValueError, match="unknown metric 'test_los'"):
        extended(metrics=["test_los"])
    Path("mine.csv").write_text("lr,batch_size,test_loss\n0.1,8,1.0\n")
    import_trials("store", "mine.csv", "mine")
    with pytest.raises(Exception, match="was imported: it has no sweep file to extend"):
        extend("mine", "store")
    with pytest.raises(Exception, match="nothing"):
        extend("nothing", "store")


def test_a_toml_file_seeds_of_any_kind_and_a_condition_of_one_s_own() -> None:
    text = """
        name = "own"
        dataset = "digits"
        where = "lr < 1 OR batch_size = 8"
        [train]
        call = "own_noise:trial"
        [grid]
        ratio = [1e-3, 4e-3]
        batch_size = [8, 32]
        momentum = [0.0, 0.5]
        arch = ["mlp", {name = "mlp", depth = 3}]
        seed = [3, 5, 9, 11]
        [margins]
        test_loss = 0.1
    """
    launched(text, "own.toml")
    extended(until_decided=False)
    found = Store("store").sweep("own").sweep_file()
    assert found is not None
    assert found[0] == ".yaml"
    axes = load("own.yaml", text=found[1]).axes
    assert axes["seed"] == [3, 5, 9, 11, *range(12, 20)]
    assert seeds() == {0.0: 4, 0.5: 12}


@pytest.mark.parametrize("train", ["", "seed: 3, "])
def test_a_sweep_of_one_seed_gets_an_axis(train: str) -> None:
    text = SWEEP.replace("      seed: {range: 4}\n", "").replace("{call:", f"{{{train}call:")
    launched(text)
    extended(None, until_decided=False)
    assert seeds() == {0.0: 4, 0.5: 4}
    assert load("own.yaml", text=kept()).axes["seed"] == ([3, 4, 5, 6] if train else [0, 1, 2, 3])
