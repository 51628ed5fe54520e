from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from orchestrator import progress
from orchestrator.progress import Reporter, Tally
from trainables.schema import Status
from trainables.store import Store


def tally(**changes: object) -> Tally:
    return Tally(**{"planned": 100, "counts": dict.fromkeys(Status, 0), "cost": 10.0} | changes)  # type: ignore[arg-type]


def test_counts_rate_and_time_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([20.0] * 10)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    t = tally(counts=dict.fromkeys(Status, 0) | {Status.FINISHED: 40}, started=0.0)
    assert t.trials_per_second is None
    assert t.eta_seconds is None
    t.running["p"] = (4.0, 0.5)
    t.settle("q", 3.0, {"finished": 28, "diverged": 2})
    assert t.done == 70
    assert t.trials_per_second == 1.5
    assert t.fraction == pytest.approx(0.5)
    assert t.eta_seconds == pytest.approx(20)
    assert t.line() == "70/100 trials done, launch 50%, 2 diverged, 0 failed, 1.5 trials/s, 20 s to go"


def test_a_launch_with_nothing_to_do_is_done() -> None:
    assert tally(cost=0.0).fraction == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (89, "89 s"), (240, "4.0 min"), (3000, "50 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_off_a_terminal_there_are_plain_lines_a_log_and_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    sweep, stream = Store(tmp_path).sweep("s"), io.StringIO()
    sweep.log_path.mkdir(parents=True)
    with Reporter(sweep, tally(running={"p": (1.0, 0.0)}), stream) as reporter:
        reporter.say("hello")
        beat = json.loads((sweep.log_path / "launch.json").read_text())
        assert (beat["state"], beat["running_packs"]) == ("running", ["p"])
        while "trials done" not in stream.getvalue():
            pass
    reporter.beat("complete")
    assert json.loads((sweep.log_path / "launch.json").read_text())["state"] == "complete"
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("hello\n0/100 trials done")
    log = (sweep.log_path / "launch.log").read_text()
    assert " hello\n" in log
    assert "0/100 trials done" in log
