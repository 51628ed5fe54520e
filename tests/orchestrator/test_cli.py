"""Commands, exit codes, output: without Ray."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

ISORATIO = str(Path(sys.executable).with_name("isoratio"))

SWEEP = """\
name: small
dataset: {name: teacher, train_size: 40, test_size: 10, dimension: 4, classes: 3}
train: {epochs: 2}
grid:
  arch: [{name: mlp, depth: 1, width: 4}]
  ratio: [0.001, 0.01]
  batch_size: [4, 8]
  seed: {range: 4}
measure: {at: [], hessian: {top: 1, trace_probes: 2, examples: 40}}
"""


@pytest.fixture(scope="module")
def small(shared: tuple[Path, Run]) -> Path:
    """A directory in which the sweep has run."""
    work, isoratio = shared
    (work / "sweep.yaml").write_text(SWEEP)
    done = isoratio("launch", "sweep.yaml", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "16/16 trials done" in done.stderr
    return work


@pytest.fixture
def launched(tmp_path: Path, isoratio: Run, small: Path) -> Run:
    """Commands in a copy of that directory."""
    shutil.copytree(small, tmp_path / "work", dirs_exist_ok=True)
    return isoratio


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        (["--help"], {"torch", "ray", "duckdb", "pyarrow", "numpy", "pydantic"}),
        (["init", "new.yaml"], {"torch", "ray"}),
        (["status"], {"torch", "ray"}),
        (["sql", "SELECT 1 AS one"], {"torch", "ray"}),
        (["plan", "sweep.yaml"], {"torch", "ray"}),
    ],
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, command: list[str], forbidden: set[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    code = (
        "import sys, orchestrator.cli\n"
        f"sys.argv = ['isoratio', *{command!r}]\n"
        "try: orchestrator.cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"assert not {forbidden!r} & set(sys.modules), {forbidden!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([ISORATIO, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "plan",
        "launch",
        "resume",
        "status",
        "stop",
        "logs",
        "run",
        "interpolate",
        "sql",
        "invariance",
        "import",
        "export",
        "rm",
    ],
)
def test_every_command_has_help_with_an_example(isoratio: Run, command: str) -> None:
    shown = isoratio(command, "--help")
    assert shown.returncode == 0
    assert f"Example: isoratio {command}" in shown.stdout


def test_the_starter_is_a_sweep_that_runs(isoratio: Run, tmp_path: Path) -> None:
    assert isoratio("init").returncode == 0
    text = (tmp_path / "work" / "sweep.yaml").read_text()
    assert text.count("#") > 5
    again = isoratio("init")
    assert again.returncode == 2
    assert (tmp_path / "work" / "sweep.yaml").read_text() == text
    shown = isoratio("plan", "sweep.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "trials in" in shown.stdout
    assert not (tmp_path / "work" / "results").exists()


def test_a_wrong_sweep_file_is_explained_line_by_line_and_nothing_is_written(isoratio: Run, tmp_path: Path) -> None:
    wrong = SWEEP.replace("epochs", "epoch").replace("[4, 8]", "[4, 0]")
    (tmp_path / "work" / "sweep.yaml").write_text(wrong)
    for command in ("plan", "launch"):
        refused = isoratio(command, "sweep.yaml")
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert "sweep.yaml:3:9: " in refused.stderr
        assert "did you mean 'epochs'" in refused.stderr
        assert "sweep.yaml:7:19: " in refused.stderr
        assert "Traceback" not in refused.stderr
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["sweep.yaml"]


def test_rows_come_as_table_json_and_csv(launched: Run) -> None:
    query = "SELECT lr, count(*) AS n, avg(memorized) AS m FROM trials GROUP BY lr ORDER BY lr"
    assert json.loads(launched("sql", query, "--format", "json").stdout)[0] == {"lr": 0.004, "n": 4, "m": None}
    assert list(csv.reader(io.StringIO(launched("sql", query, "--format", "csv").stdout)))[:2] == [
        ["lr", "n", "m"],
        ["0.004", "4", ""],
    ]
    assert launched("sql", query).stdout.split()[:3] == ["lr", "n", "m"]
    assert launched("sql", "--format", "json", input=query).stdout == launched("sql", query, "--format", "json").stdout
    assert json.loads(launched("sql", f"{query} LIMIT 0", "--format", "json").stdout) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT lamda_max FROM trials", "lambda_max"),
        ("DROP VIEW trials", "SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", ""),
        ("SELEC 1", "syntax error"),
    ],
)
def test_a_wrong_query_is_explained(launched: Run, query: str, said: str) -> None:
    refused = launched("sql", query)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_status_and_invariance_keep_the_contract(launched: Run) -> None:
    (row,) = json.loads(launched("status", "small", "--format", "json").stdout)
    assert row.pop("cpu_hours") > 0
    assert (row.pop("gpu_hours"), row.pop("cost")) == (0, None)
    assert row == {
        "sweep": "small",
        "state": "complete",
        "planned": 16,
        "finished": 16,
        "diverged": 0,
        "failed": 0,
        "running": 0,
        "pending": 0,
        "trials_per_second": None,
        "eta_seconds": None,
    }
    verdicts = json.loads(launched("invariance", "small", "--metric", "train_loss", "--format", "json").stdout)
    (verdict,) = verdicts
    assert list(verdict) == [
        "metric",
        "scale",
        "group",
        "n_trials",
        "n_diverged",
        "n_seeds",
        "n_contrasts",
        "verdict",
        "margin",
        "effect",
        "effect_low",
        "effect_high",
        "effect_cell",
        "slope_ratio",
        "slope_ratio_low",
        "slope_ratio_high",
        "slope_batch",
        "slope_batch_low",
        "slope_batch_high",
        "exponent",
        "exponent_low",
        "exponent_high",
        "frontier",
        "note",
        "noise",
        "floor",
        "sensitivity",
    ]
    assert (verdict["n_trials"], verdict["n_seeds"], verdict["margin"]) == (16, 4, 0.1)
    named = launched("invariance", "small", "--metric", "train_loss", "--margin", "train_loss=0.5", "--format", "json")
    assert json.loads(named.stdout)[0]["margin"] == 0.5
    asked = ("--metric", "test_loss", "--margin", "test_loss=0.3")
    curve = launched("invariance", "small", "--trajectory", "test_loss", *asked, "--format", "json")
    assert {row["margin"] for row in json.loads(curve.stdout)} == {0.3}
    (diverged,) = json.loads(launched("invariance", "small", "--divergence", *asked, "--format", "json").stdout)
    assert (diverged["n_diverged"], diverged["given_survival"]) == (0, [])
    shown = launched("invariance", "small")
    assert "train_loss" in shown.stdout
    assert "isoratio invariance small --metric" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["invariance", "smal"], 2, "did you mean 'small'"),
        (["invariance", "small", "--metric", "lamda_max"], 2, "did you mean 'lambda_max'"),
        (["invariance", "small", "--margin", "a lot"], 2, "a number or METRIC=NUMBER"),
        (["invariance", "small", "--margin", "0.1", "--margin", "0.2"], 2, "stands alone"),
        (["invariance", "small", "--trajectory", "test_loss", "--metric", "lambda_max"], 2, "about that curve alone"),
        (["invariance", "small", "--trajectory", "test_loss", "--margin", "lambda_max=1"], 2, "about that curve alone"),
        (["invariance", "small", "--rules", "--divergence"], 2, "questions of their own: ask one"),
        (["invariance", "small", "--divergence", "--metric", "lamda_max"], 2, "did you mean 'lambda_max'"),
        (["resume", "nothing"], 2, "no sweep 'nothing'"),
        (["status", "nothing"], 2, "no sweep 'nothing'"),
        (["logs", "nothing"], 2, "no sweep 'nothing'"),
        (["run", "small", "zzz"], 2, "there is none"),
        (["interpolate", "small", "small"], 2, "'small': SWEEP/TRIAL_ID is expected"),
        (["interpolate", "small/a", "small/b", "--points", "1"], 2, "points"),
        (["launch", "none.yaml"], 2, "none.yaml"),
        (["launch", "sweep.yaml", "--store", "s3://bucket/x"], 2, "set AWS_ACCESS_KEY_ID"),
        (["launch", "sweep.yaml", "--store", "sweep.yaml"], 2, "it is a file"),
        (["export", "small", "sweep.yaml"], 2, "sweep.yaml"),
        (["import", "sweep.yaml", "--sweep", "mine"], 2, "sweep.yaml"),
        (["status", "--format", "xml"], 2, "xml"),
        (["launch", "sweep.yaml", "--limit", "0"], 2, "limit"),
    ],
)
def test_wrong_use_is_explained(launched: Run, arguments: list[str], code: int, said: str) -> None:
    refused = launched(*arguments)
    assert refused.returncode == code
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_a_damaged_store_has_its_own_exit_code(launched: Run, tmp_path: Path) -> None:
    victim = next((tmp_path / "work/results/small/trials").glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:100])
    for command in (["sql", "SELECT avg(test_loss) FROM trials"], ["status"], ["invariance", "small"]):
        refused = launched(*command)
        assert refused.returncode == 3, refused.stderr
        assert victim.name in refused.stderr
        assert "Traceback" not in refused.stderr


def test_export_and_import_go_round(launched: Run, tmp_path: Path) -> None:
    for name in ("small.parquet", "small.csv", "small.duckdb", "small"):
        assert launched("export", "small", name).returncode == 0
    taken = launched("import", "small.csv", "--sweep", "mine")
    assert taken.returncode == 0, taken.stderr
    query = "SELECT sweep, count(*) AS n, avg(test_loss) AS loss FROM trials GROUP BY sweep ORDER BY sweep"
    mine, small = json.loads(launched("sql", query, "--format", "json").stdout)
    assert (mine["sweep"], mine["n"]) == ("mine", 16)
    assert mine["loss"] == pytest.approx(small["loss"])
    (verdict,) = json.loads(launched("invariance", "mine", "--metric", "test_loss", "--format", "json").stdout)
    (original,) = json.loads(launched("invariance", "small", "--metric", "test_loss", "--format", "json").stdout)
    assert verdict["effect"] == pytest.approx(original["effect"])


def test_run_shows_one_trial_again(launched: Run) -> None:
    (row, *_) = json.loads(launched("sql", "SELECT trial_id, test_loss FROM trials", "--format", "json").stdout)
    shown = json.loads(launched("run", "small", row["trial_id"], "--format", "json").stdout)
    last = [r["value"] for r in shown if r["statistic"] == "test_loss"][-1]
    assert last == pytest.approx(row["test_loss"], rel=1e-4)


def test_interpolate_shows_the_line_between_two_endpoints(isoratio: Run, tmp_path: Path) -> None:
    kept = SWEEP.replace("measure: {at: []", "measure: {endpoints: true, at: []")
    (tmp_path / "work" / "sweep.yaml").write_text(kept)
    assert isoratio("launch", "sweep.yaml", "--executor", "inline").returncode == 0
    query = "SELECT 'small/' || trial_id AS name, test_loss FROM trials WHERE seed = 0 ORDER BY lr LIMIT 2"
    a, b = json.loads(isoratio("sql", query, "--format", "json").stdout)
    options = ("--points", "5", "--from", "-0.5", "--to", "1.5")
    shown = isoratio("interpolate", a["name"], b["name"][:16], *options, "--format", "json")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = json.loads(shown.stdout)
    assert [r["alpha"] for r in rows] == [-0.5, 0, 0.5, 1, 1.5]
    assert [rows[1]["test_loss"], rows[3]["test_loss"]] == pytest.approx([a["test_loss"], b["test_loss"]], rel=1e-4)
    table = isoratio("interpolate", a["name"], b["name"], *options).stdout
    assert table.split()[:5] == ["alpha", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]


def test_endpoints_that_were_not_kept_are_said(launched: Run) -> None:
    (row, *_) = json.loads(launched("sql", "SELECT trial_id FROM trials", "--format", "json").stdout)
    refused = launched("interpolate", f"small/{row['trial_id']}", f"small/{row['trial_id']}")
    assert refused.returncode == 2
    assert "set `measure: {endpoints: true}` in its sweep file" in refused.stderr
    assert refused.stdout == ""


def test_rm_asks_first(launched: Run) -> None:
    assert launched("rm", "small", input="n\n").returncode != 0
    assert json.loads(launched("status", "--format", "json").stdout)
    assert launched("rm", "small", "--yes").returncode == 0
    assert json.loads(launched("status", "--format", "json").stdout) == []


def test_the_store_may_come_from_the_environment(launched: Run, tmp_path: Path) -> None:
    elsewhere = launched("status", "--format", "json", env={"ISORATIO_STORE": str(tmp_path / "elsewhere")})
    assert json.loads(elsewhere.stdout) == []


def test_a_closed_pipe_is_no_error(launched: Run, tmp_path: Path) -> None:
    command = f"{ISORATIO} sql 'SELECT * FROM curves, range(20)' --format csv | head -n 1"
    shown = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path / "work", capture_output=True, text=True, check=False
    )
    assert shown.stdout.count("\n") == 1
    assert shown.stderr == ""


@pytest.mark.parametrize("columns", ["40", "200"])
def test_a_narrow_terminal_is_kept_to(launched: Run, columns: str) -> None:
    shown = launched("invariance", "small", "--metric", "lambda_max", env={"COLUMNS": columns})
    assert shown.returncode == 0
    paragraphs = [line for line in shown.stdout.splitlines() if "INCONCLUSIVE" not in line and "EQUIV" not in line]
    assert max(map(len, paragraphs)) <= max(int(columns), 60)


def test_a_failed_trial_gives_exit_code_1(isoratio: Run, tmp_path: Path) -> None:
    (tmp_path / "work" / "mine.py").write_text("def trial(config):\n    assert config['seed']\n    return {'x': 1.0}\n")
    (tmp_path / "work" / "sweep.yaml").write_text(
        "name: failing\ndataset: digits\ntrain: {call: 'mine:trial'}\n"
        "grid: {lr: [0.1], batch_size: [8], seed: {range: 3}}\n"
    )
    done = isoratio("launch", "sweep.yaml", "--executor", "inline")
    assert done.returncode == 1, done.stderr
    assert "2/3 trials done" in done.stderr
    assert "isoratio resume failing" in done.stderr
    why = isoratio("sql", "SELECT error FROM trials WHERE status = 'failed'", "--format", "json")
    assert "AssertionError" in json.loads(why.stdout)[0]["error"]


def test_an_extension_with_failed_trials_gives_exit_code_1(isoratio: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "mine.py").write_text(
        "def trial(config):\n    assert config['seed']\n    return {'test_loss': 1.0 + config['seed'] * config['lr']}\n"
    )
    (work / "sweep.yaml").write_text(
        "name: failing\ndataset: digits\ntrain: {call: 'mine:trial'}\nretries: 0\n"
        "grid: {ratio: [0.001], batch_size: [8, 16], seed: {range: 4}}\n"
    )
    assert isoratio("launch", "sweep.yaml", "--executor", "inline").returncode == 1
    done = isoratio("extend", "failing", "--looks", "4,5", "--executor", "inline")
    assert done.returncode == 1, done.stderr
    assert "2 trials failed; try them again with: isoratio resume failing" in done.stderr


def test_a_read_only_store_is_said(isoratio: Run, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "work" / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "work" / "results").mkdir(mode=0o555)
    refused = isoratio("launch", "sweep.yaml", "--executor", "inline")
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr
