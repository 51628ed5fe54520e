from __future__ import annotations

import errno
import io
import time
from pathlib import Path

import pytest

from orchestrator import progress
from orchestrator.progress import Reporter, Tally, count_pack
from trainables.lease import Lease, heartbeat
from trainables.schema import FAILURES, TRIALS, Status
from trainables.store import Store, table


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
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    sweep, stream = Store(tmp_path).sweep("s"), io.StringIO()
    lease, counts = Lease(sweep), tally(running={"p": (1.0, 0.0)})
    lease.every = 0.02
    with lease:
        with Reporter(lease, counts, stream) as reporter:
            reporter.say("hello")
            beat = heartbeat(sweep.storage, 1)
            assert (beat["state"], beat["running_packs"], beat["trials_done"]) == ("running", ["p"], 0)
            counts.counts[Status.FINISHED] = 3
            while "3/100 trials done" not in stream.getvalue() or heartbeat(sweep.storage, 1)["trials_done"] != 3:
                time.sleep(0.01)
        lease.beat("complete", **reporter.content())
    assert heartbeat(sweep.storage, 1)["state"] == "complete"
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("hello\n3/100 trials done")
    log = sweep.storage.read("log/000001.log").decode()
    assert " hello\n" in log
    assert "3/100 trials done" in log


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with Lease(Store(tmp_path).sweep("s")) as lease, Reporter(lease, tally(), stream) as reporter:
        monkeypatch.setattr(lease.storage, "append", full)
        reporter.say("hello")
        while stream.getvalue().count("0/100 trials done") < 2:
            time.sleep(0.01)


def test_a_pack_is_counted_by_its_trials(tmp_path: Path) -> None:
    """Failures that two attempts recorded are one, and none where another attempt went well."""
    sweep = Store(tmp_path).sweep("s")
    assert count_pack(sweep, "p") == {}
    for attempt, trials in (("a", "tuv"), ("b", "tu")):
        rows = [{"trial_id": trial, "pack_id": "p", "attempt": attempt, "cause": "exception"} for trial in trials]
        sweep.write_failures("p", attempt, table(rows, FAILURES))
    sweep.write_failures("pp", "a", table([{"trial_id": "x"}], FAILURES))
    assert count_pack(sweep, "p") == {"failed": 3}
    rows = [{"trial_id": "u", "status": "finished"}, {"trial_id": "w", "status": "diverged"}]
    sweep.commit("p", "c", table(rows, TRIALS), {})
    assert count_pack(sweep, "p") == {"failed": 2, "finished": 1, "diverged": 1}
