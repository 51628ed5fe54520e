"""The ready sweeps are right and as large as they say; docs/conditions.md against the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import duckdb
import pytest

from orchestrator.sweepfile import Packing, load
from trainables.parameters import Net, Parameters
from trainables.registry import BUILT_IN, FUSED_ACTIVATIONS, Kind
from trainables.schedules import MAX_STEPS, Schedule
from trainables.schema import DERIVED, MEASURED, TABLES
from trainables.stacking import STACKED_CONVOLUTION
from trainables.trial import Trial

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
NAMES = [path.stem for path in SWEEPS]
DOC = (ROOT / "docs" / "conditions.md").read_text(encoding="utf-8")
FIELDS = DOC.partition("\n## ")[0]

PLAN = """
import json, sys
from orchestrator import plan
print(json.dumps({file: plan(file, sys.argv[1]).found.grid.num_rows for file in sys.argv[2:]}))
assert not {"torch", "ray"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Trials of each sweep, planned where there are neither data files nor torch."""
    empty = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-P", "-c", PLAN, str(empty / "results"), *map(str, SWEEPS)]
    env = {"ISORATIO_DATA": str(empty), "PATH": ""}
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(empty.iterdir()) == []
    return {Path(file).stem: trials for file, trials in json.loads(done.stdout).items()}


@cache
def header(name: str) -> str:
    """The comment at the head of a sweep."""
    lines = (ROOT / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def test_the_named_experiments_are_there() -> None:
    papers = ("three-factors", "sharpest-directions", "memorization", "rethinking", "group-norm", "edge-of-stability")
    assert {*papers, "digits"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_sweep_is_as_large_as_it_says(name: str, planned: dict[str, int]) -> None:
    (stated,) = re.findall(r"([\d,]+)\s+trials\b", header(name))
    assert int(stated.replace(",", "")) == planned[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_sweep_has_its_name_and_seeds_for_a_verdict(name: str) -> None:
    sweep = load(ROOT / "sweeps" / f"{name}.yaml")
    assert sweep.name == name
    assert len(set(sweep.axes["seed"])) >= 4


@pytest.mark.parametrize("name", sorted({*NAMES} - {"digits", "duality"}))
def test_a_ready_sweep_names_its_paper_and_what_it_found(name: str) -> None:
    assert re.search(r"arXiv:\d{4}\.\d{5}\b", header(name))
    assert re.search(r"^(Expected|Found): ", header(name), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_a_ready_sweep_can_be_asked(name: str) -> None:
    queries = re.findall(r'isoratio sql "(.*?)"', header(name), re.DOTALL)
    measured = [f"NULL::DOUBLE AS {column}" for column in MEASURED - {*TABLES["trials"].names}]
    derived = [f"{sql} AS {column}" for column, sql in DERIVED.items()]
    with duckdb.connect() as connection:
        for table in ("curves", "profiles"):
            connection.register(table, TABLES[table].empty_table())
        connection.register("stored", TABLES["trials"].empty_table())
        connection.execute(f"CREATE VIEW trials AS SELECT *, {', '.join(measured + derived)} FROM stored")
        for query in queries:
            assert f"sweep = '{name}'" in query
            assert connection.sql(query).fetchall() == []


def _section(heading: str) -> str:
    _, found, rest = DOC.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def _rows(text: str, first: str) -> Iterator[dict[str, str]]:
    """Rows of the tables whose first column has this title."""
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        titles, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        if titles[0] == first:
            yield from (dict(zip(titles, line, strict=True)) for line in lines)


def _table(text: str, first: str, column: str) -> dict[str, str]:
    return {row[first].strip("`"): row[column] for row in _rows(text, first)}


def _shown(value: Any) -> str:
    """A default as the page writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return value if isinstance(value, str) else f"{value:g}"


def _own(model: type[Parameters]) -> dict[str, str]:
    """Parameters that a model adds to the one it derives from, or gives another default."""
    inherited: dict[str, Any] = getattr(model.__base__, "model_fields", {})
    fields = model.model_fields.items()
    new = {n: f for n, f in fields if n not in inherited or inherited[n].default != f.default}
    return {n: "" if f.is_required() else _shown(f.default) for n, f in new.items()}


def _said(cell: str) -> dict[str, str]:
    """Names and defaults; of what is required, such as `at`, the name alone."""
    return dict(re.findall(r"`(\w+)`(?: ([^\s,;]+))?", cell))


@pytest.mark.parametrize(
    ("kind", "heading"), [("arch", "Architectures"), ("dataset", "Data"), ("optimizer", "Optimizers and losses")]
)
def test_the_page_has_every_built_in_with_its_parameters(kind: Kind, heading: str) -> None:
    section = _section(heading)
    column = "parameters and defaults of its own" if kind == "arch" else "parameters and defaults"
    found = _table(section, "name", column)
    assert {name: _said(cell) for name, cell in found.items()} == {
        name: _own(model) for name, (_, model) in BUILT_IN[kind].items()
    }


def test_the_page_has_every_parameter_common_to_nets() -> None:
    assert _table(_section("Architectures"), "parameter", "default") == _own(Net)


def test_the_page_has_every_part_of_a_schedule() -> None:
    parts = {n: get_args(f.annotation)[0] for n, f in Schedule.model_fields.items() if n != "of"}
    found = _table(_section("Schedules"), "part", "parameters and defaults")
    assert {name: _said(cell) for name, cell in found.items()} == {n: _own(part) for n, part in parts.items()}
    for what in get_args(Schedule.model_fields["of"].annotation):
        assert f"`of: {what}`" in _section("Schedules")


def test_the_page_has_every_field_of_a_trial() -> None:
    found = _table(FIELDS, "field", "default")
    fields = {n: "required" if f.is_required() else _shown(f.default) for n, f in Trial.model_fields.items()}
    assert {name: found[name] for name in fields} == fields


@pytest.mark.parametrize("field", ["pixel_shuffle", "augment", "sampler", "precision"])
def test_the_page_has_every_value(field: str) -> None:
    allowed = get_args(Trial.model_fields[field].annotation)
    assert _table(FIELDS, "field", "values")[field].split(", ") == [*allowed]


def test_the_page_has_every_loss_sampler_and_setting_of_packs() -> None:
    assert all(f"`{loss}`" in _section("Optimizers and losses") for loss in BUILT_IN["loss"])
    samplers = get_args(Trial.model_fields["sampler"].annotation)
    assert [*_table(_section("Sampling and seeds"), "`sampler`", "a step takes")] == [*samplers]
    settings = _table(_section("Large batches"), "setting", "default")
    assert settings == {f"pack.{n}": _shown(f.default) for n, f in Packing.model_fields.items()}


def test_the_page_says_what_the_fused_engine_leaves_out() -> None:
    left_out = {*get_args(Net.model_fields["activation"].annotation)} - FUSED_ACTIVATIONS
    said = _table(_section("Packs and engines"), "engine", "`auto` takes it for")["fused"]
    assert said.partition("activation ")[2].partition(";")[0] == " and ".join(sorted(left_out))


def test_the_page_says_where_stacked_convolutions_pay_and_how_long_a_schedule_may_be() -> None:
    said = _table(_section("Packs and engines"), "engine", "`auto` takes it for")["vmap"]
    assert said.endswith(f" at most {STACKED_CONVOLUTION / 1e6:g} million multiply-adds")
    assert f"more than {MAX_STEPS / 1e6:g} million steps" in _section("Schedules")


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", DOC, re.MULTILINE)}
    assert {*re.findall(r"\]\(#([\w-]+)\)", DOC)} <= headings
    files = [link for link in re.findall(r"\]\(([^)#]+)\)", DOC) if not link.startswith("http")]
    assert all((ROOT / "docs" / link).exists() for link in files)
