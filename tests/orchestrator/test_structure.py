"""The layers hold, and the documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from analysis.database import COLUMNS
from orchestrator import __all__ as twins
from orchestrator.cli import app
from orchestrator.sweepfile import load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_imports_go_one_way() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_command_named_in_the_documents_exists() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    documents = [p for place in ("docs", "sweeps", "orchestrator") for p in (ROOT / place).rglob("*.[my]*")]
    for path in (ROOT / "README.md", ROOT / "Makefile", *documents):
        named = set(re.findall(r"\bisoratio ([a-z]+)\b(?! &&)", path.read_text()))
        assert named <= commands, (path, named - commands)


def test_every_command_has_its_function() -> None:
    renamed = {"import": "import_trials", "run": "run_trial", "rm": "remove"}
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert renamed.get(command, command) in twins


def test_every_table_of_the_readme_is_a_view() -> None:
    named = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert set(named) == set(COLUMNS)


@pytest.mark.parametrize(
    "file", [*ROOT.glob("sweeps/*.yaml"), ROOT / "orchestrator/starter.yaml"], ids=lambda p: p.name
)
def test_shipped_sweeps_are_right(file: Path) -> None:
    assert load(file).name


def test_the_sweep_file_of_the_readme_is_right(tmp_path: Path) -> None:
    """The whole one, the same with the ``measure`` section further down, and the one of what can be varied."""
    whole, section, varied = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    for text in (whole, re.sub(r"(?ms)^measure:.*?(?=^\w)", section, whole)):
        (tmp_path / "sweep.yaml").write_text(text)
        assert load(tmp_path / "sweep.yaml").name == "digits"
    assert load(tmp_path / "sweep.yaml").measure.endpoints
    (tmp_path / "sweep.yaml").write_text(f"name: varied\n{varied}")
    assert load(tmp_path / "sweep.yaml").axes["dataset"] == ["cifar10"]


def test_nothing_names_a_machine() -> None:
    """No path of a machine and no registry's host in what is committed."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a checkout")
    for name in tracked.stdout.split():
        text = (ROOT / name).read_text(errors="ignore")
        assert not re.search(r"(?<![\w.])/(?:home|root|work)/\w|pypi\.org|python[h]osted", text), name
