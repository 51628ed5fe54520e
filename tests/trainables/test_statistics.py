"""docs/measurements.md against the code: what it lists is what is measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packs import run, trial
from ruamel.yaml import YAML

from trainables.schedules import timeline
from trainables.schema import DERIVED, TABLES
from trainables.settings import CriticalSamples, Density, GradientNoise, Hessian, Measure
from trainables.statistics import COLUMNS, ERROR_COLUMN, GROUPS, OF_ENDPOINT

DOC = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text(encoding="utf-8")
EVERYTHING = Measure(
    at=[1],
    hessian=Hessian(top=2, trace_probes=4, sgd_steps=2, density=Density(probes=2, steps=4)),
    gradient_noise=GradientNoise(lambda_max=True, probes=2),
    critical_samples=CriticalSamples(examples=8, iterations=2),
)


def _rows(heading: str) -> list[dict[str, str]]:
    """The rows of all tables under a heading, up to the next one."""
    _, found, rest = DOC.partition(f"\n{heading}\n")
    assert found, heading
    return list(_cells(re.split(r"\n#+ ", rest)[0]))


def _cells(text: str) -> Iterator[dict[str, str]]:
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        header, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        for line in lines:
            yield dict(zip(header, line, strict=True))


def _name(cell: str) -> str:
    return re.fullmatch(r"`(.+)`", cell)[1]  # type: ignore[index]


def test_every_group_has_its_table() -> None:
    section = DOC.partition("\n## Statistics\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### `(.+)`$", section, re.MULTILINE) == [*GROUPS]


@pytest.mark.parametrize("group", GROUPS)
def test_every_statistic_is_defined_with_its_error(group: str) -> None:
    rows = _rows(f"### `{group}`")
    assert [_name(row["statistic"]) for row in rows] == [*GROUPS[group]]
    for row in rows:
        column = ERROR_COLUMN[_name(row["statistic"])]
        said = re.match(r"`(\w+)`|exact", row["error"])
        assert said, row
        assert said[1] == column
        assert all(row[cell] for cell in ("definition", "unit", "estimator", "cost"))


def test_every_derived_column_is_defined() -> None:
    defined = {_name(row["column"]) for row in _rows("## Columns that follow")}
    assert defined == {*DERIVED, *OF_ENDPOINT}


@pytest.mark.parametrize("table", ["eigenvalues", "density", "profiles"])
def test_every_column_of_the_side_tables_is_defined(table: str) -> None:
    common = {"sweep", "trial_id", "step", "epoch", "pack_id", "attempt"}
    rows = [row for row in _rows(f"### `{table}`") if "column" in row]
    assert [_name(row["column"]) for row in rows] == [name for name in TABLES[table].names if name not in common]


def test_the_worked_example_is_what_happens() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    measure = Measure.model_validate(YAML(typ="safe").load(text)["measure"])
    moments = measure.moments(timeline("constant", 32, 1437, 20, None))
    optional = ("hessian", "gradient_noise", "critical_samples")
    expected = [
        {
            "step": str(step),
            "epoch": f"{moment.epoch:.3g}",
            "groups": ", ".join(["always", *(g for g in optional if getattr(moment.due, g))]),
        }
        for step, moment in moments.items()
    ]
    assert _rows("## When") == expected


def test_what_is_defined_is_what_is_measured() -> None:
    trials = [trial(seed=s, arch="plugins:residual", label_noise=0.5, epochs=2) for s in (0, 1)]
    found = run(trials, "vmap", EVERYTHING).moments[-1].found
    assert {*found.values} == {*ERROR_COLUMN}
    profiles = {_name(row["profile"]) for row in _rows("### `profiles`") if "profile" in row}
    assert {profile for table, profile in found.rows if table == "profiles"} == profiles
    assert {table for table, _ in found.rows} == {"eigenvalues", "density", "profiles"}


def test_no_name_stands_twice() -> None:
    assert len({*COLUMNS}) == len(COLUMNS) == len({name.lower() for name in COLUMNS})
    assert not {*COLUMNS} & {*OF_ENDPOINT}
