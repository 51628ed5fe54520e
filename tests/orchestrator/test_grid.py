"""Expansion of grids: every point once, and the identity that the domain types give it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from orchestrator.axes import check_value
from orchestrator.controls import Controls
from orchestrator.grid import COLUMNS, expand, findings, points, size
from orchestrator.sweepfile import load
from trainables import trial as trial_module
from trainables.registry import resolve
from trainables.schema import CONFIGURATION
from trainables.trial import FIELDS, REFERENCES, Trial, canonical_json, round_lr, trial_id

DEFAULTS = {name: [f.default] for name, f in Trial.model_fields.items() if not f.is_required()}


class _Measure(BaseModel):
    measure_id: str = "0" * 32


class _Sweep(BaseModel):
    """What ``expand`` needs of a sweep file."""

    axes: dict[str, list[Any]]
    where: str | None = None
    controls: Controls = Controls()
    measure: _Measure = Field(default_factory=_Measure)


def _expand(where: str | None = None, controls: Sequence[str] = (), **axes: Sequence[Any]) -> pa.Table:
    checked = {field: [check_value(field, v) for v in values] for field, values in axes.items()}
    given = {"where": where, "controls": [*controls]}
    return expand(_Sweep(axes=DEFAULTS | {"dataset": ["digits"]} | checked, **given))  # type: ignore[arg-type]


def _identity(row: Mapping[str, Any]) -> str:
    resolved = {f: row[f] for f in FIELDS}
    for field in REFERENCES:
        if resolved[field] is not None:
            resolved[field] = resolve(field, resolved[field]).identity  # type: ignore[arg-type]
    return trial_id(resolved)


def test_a_small_grid_by_hand() -> None:
    grid = _expand(arch=["linear", {"name": "mlp", "width": 4}], ratio=[5e-4, 1e-3], batch_size=[8, 16])
    shown = list(zip(*(grid[c].to_pylist() for c in ("arch", "lr", "batch_size")), strict=True))
    small = '{"name":"mlp","width":4}'
    assert shown == [
        ("linear", 0.004, 8),
        ("linear", 0.008, 16),
        ("linear", 0.008, 8),
        ("linear", 0.016, 16),
        (small, 0.004, 8),
        (small, 0.008, 16),
        (small, 0.008, 8),
        (small, 0.016, 16),
    ]
    text = (
        '{"arch":{"activation":"relu","depth":2,"name":"mlp","width":4},"batch_size":16,"call":null,'
        '"dataset":{"name":"digits"},"epochs":20.0,"label_noise":0.0,"loss":{"name":"cross_entropy"},"lr":0.016,'
        '"momentum":0.0,"optimizer":"sgd","order_seed":null,"precision":"float32","sampler":"stream","seed":0,'
        '"semantics":1,"weight_decay":0.0}'
    )
    assert json.loads(text)
    assert grid["trial_id"][7].as_py() == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert set(grid["measure_id"].to_pylist()) == {"0" * 32}


def test_columns_are_those_of_the_plan() -> None:
    grid = _expand(lr=[0.1], batch_size=[8], order_seed=[None, 3])
    assert list(grid.schema)[2:] == CONFIGURATION
    assert grid.column_names[:2] == ["trial_id", "measure_id"]
    assert grid["order_seed"].to_pylist() == [None, 3]


def test_typed_and_computed_rates_are_one_trial() -> None:
    computed = _expand(ratio=[5e-4], batch_size=[32])
    assert computed["lr"].to_pylist() == [0.016]
    assert computed["trial_id"] == _expand(lr=[0.016], batch_size=[32])["trial_id"]
    assert computed["trial_id"] == _expand(lr=[0.016], ratio=[5e-4])["trial_id"]


def test_points_that_coincide_are_one_trial() -> None:
    axes = {"arch": ["mlp", {"name": "mlp", "depth": 2}], "lr": [0.1, 0.1000000000000001], "seed": [1, 1.0, 2]}
    assert _expand(batch_size=[8], **axes).num_rows == 2
    assert size(DEFAULTS | axes | {"batch_size": [8]}) == 12
    assert _expand(ratio=[1e-3, 2e-3], lr=[0.016, 0.032]).num_rows == 4


mlps = st.fixed_dictionaries(
    {"name": st.just("mlp")}, optional={"depth": st.integers(1, 5), "width": st.integers(1, 99)}
)
teachers = st.fixed_dictionaries({"name": st.just("teacher"), "train_size": st.integers(1, 99)})
some = {
    "arch": st.sampled_from(["linear", "mlp"]) | mlps,
    "dataset": st.just("digits") | teachers,
    "label_noise": st.floats(0, 1),
    "seed": st.integers(0, 2**63 - 1),
    "order_seed": st.none() | st.integers(0, 2**63 - 1),
    "epochs": st.floats(1e-3, 1e6),
    "loss": st.sampled_from(["cross_entropy", "mse"]),
    "momentum": st.floats(0, 0.999),
    "weight_decay": st.floats(0, 1e3),
    "sampler": st.sampled_from(["stream", "replacement"]),
    "precision": st.sampled_from(["float32", "float64"]),
    "call": st.sampled_from([None, "json:dumps", {"name": "json:dumps", "text": "é\"\\\n'", "x": 1e-7}]),
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    fields = draw(st.lists(st.sampled_from(sorted(some)), unique=True, max_size=4))
    axes = {f: draw(st.lists(some[f], min_size=1, max_size=3)) for f in fields}
    rate = draw(st.sampled_from(["lr", "ratio"]))
    axes[rate] = draw(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=3))
    axes["batch_size"] = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=3))
    return axes


@settings(deadline=None, max_examples=60)
@given(grids())
def test_identities_and_points_are_those_of_the_domain(axes: dict[str, list[Any]]) -> None:
    grid = _expand(**axes)
    rows = grid.to_pylist()
    assert [row["trial_id"] for row in rows] == [_identity(row) for row in rows]
    assert len({row["trial_id"] for row in rows}) == len(rows)
    checked = {f: [check_value(f, v) for v in values] for f, values in axes.items()}
    defaults = {f: v[0] for f, v in DEFAULTS.items()} | {"dataset": "digits"}
    expected = set()
    for combination in itertools.product(*checked.values()):
        point = defaults | dict(zip(checked, combination, strict=True))
        rate = point.pop("ratio", None)
        point["lr"] = round_lr(point["lr"] if rate is None else rate * point["batch_size"])
        expected.add(canonical_json(point))
    assert {canonical_json({f: row[f] for f in FIELDS}) for row in rows} == expected
    assert all(Trial(**{f: row[f] for f in FIELDS}) for row in rows)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 10), st.integers(1, 9999))
def test_any_two_of_three_give_the_same_trials(ratio: float, batch_size: int) -> None:
    expected = _expand(ratio=[ratio], batch_size=[batch_size])
    (lr,) = expected["lr"].to_pylist()
    assert _expand(lr=[lr], batch_size=[batch_size]) == expected
    assert _expand(lr=[lr], ratio=[ratio]) == expected


def test_a_later_field_enters_only_when_it_is_not_inert(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ``label_noise`` had come later: trials without it keep the identity that they had before."""
    before = _expand(lr=[0.1], batch_size=[8], label_noise=[0.0, 0.5])
    monkeypatch.setitem(trial_module.LATER_FIELDS, "label_noise", 0.0)
    after = _expand(lr=[0.1], batch_size=[8], label_noise=[0.0, 0.5])
    resolved = {f: after[f][0].as_py() for f in FIELDS}
    assert after["trial_id"].to_pylist() == [_identity(row) for row in after.to_pylist()]
    assert after["trial_id"][0] != before["trial_id"][0]
    assert after["trial_id"][1] == before["trial_id"][1]
    assert resolved["label_noise"] == 0.0


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("lr <= 0.016", [(0.004, 8), (0.016, 32), (0.008, 8)]),
        ("ratio = 5e-4", [(0.004, 8), (0.016, 32)]),
        ("ratio > 0.0005", [(0.008, 8), (0.032, 32)]),
        ("batch_size IN (8) AND arch = 'mlp' -- a comment", [(0.004, 8), (0.008, 8)]),
        ("CASE WHEN batch_size = 8 THEN lr > 0.005 ELSE true END", [(0.016, 32), (0.008, 8), (0.032, 32)]),
        ("order_seed = 3", []),
        ("order_seed IS NULL AND sampler LIKE 'str%'", [(0.004, 8), (0.016, 32), (0.008, 8), (0.032, 32)]),
    ],
)
def test_where_keeps_points_in_their_order(where: str, kept: list[tuple[float, int]]) -> None:
    grid = _expand(where, ratio=[5e-4, 1e-3], batch_size=[8, 32])
    assert list(zip(grid["lr"].to_pylist(), grid["batch_size"].to_pylist(), strict=True)) == kept


def test_where_sees_the_settings_and_the_ratio_and_nothing_else() -> None:
    axes = DEFAULTS | {"dataset": ["digits"], "lr": [0.1], "batch_size": [8]}
    for column in COLUMNS:
        assert not list(findings(axes, f"{column} IS NULL OR true"))
    for hidden in ("arch_json", "row", "trial_id"):
        (finding,) = findings(axes, f"{hidden} IS NOT NULL")
        assert finding.text.startswith(f"unknown column '{hidden}'")


def test_one_value_of_a_plug_in_dataset_has_no_known_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid_plugin.py").write_text("def data(root, n=3): ...\n")
    axes = DEFAULTS | {"dataset": ["grid_plugin:data"], "lr": [0.1], "batch_size": [10**9], "epochs": [1e-9]}
    assert not list(findings(axes, None))


def test_only_points_that_are_left_must_fit_the_data() -> None:
    axes = DEFAULTS | {"dataset": ["digits"], "lr": [0.1], "batch_size": [8, 5000]}
    (finding,) = findings(axes, None)
    assert (finding.field, finding.value) == ("batch_size", 5000)
    assert not list(findings(axes, "batch_size < 1000"))


GHOSTS = {"name": "mlp", "norm": "batch", "ghost_batch": 8}


@pytest.mark.parametrize(
    ("arch", "batch_size", "said"),
    [
        ({"name": "mlp", "norm": "batch"}, 1, "examples of a minibatch; at least 2 are needed"),
        (GHOSTS, 1, "examples of a minibatch; at least 2 are needed"),
        (GHOSTS, 33, "in ghost batches of 8, of which the last would have one; at least 2 are needed"),
        (GHOSTS, 34, None),
        ({"name": "mlp", "norm": "batch"}, 33, None),
        ({"name": "mlp", "norm": "layer"}, 1, None),
        ("alexnet-small", 1, "minibatch; at least 2 are needed"),
        ("resnet", 1, None),  # a channel has 8x8 numbers, at last 2x2
    ],
)
def test_batch_norm_needs_more_than_one_number(arch: Any, batch_size: int, said: str | None) -> None:
    axes = DEFAULTS | {"dataset": ["digits"], "lr": [0.1], "arch": [check_value("arch", arch)]}
    found = list(findings(axes | {"batch_size": [16, batch_size]}, None))
    assert [(f.field, f.value) for f in found] == ([("batch_size", batch_size)] if said else [])
    assert all(f.text.startswith(f"batch size {batch_size}: arch ") and f.text.endswith(str(said)) for f in found)
    assert not list(findings(axes | {"batch_size": [batch_size], "call": ["mine:train"]}, None))


def test_batch_norm_is_not_judged_where_minibatches_have_other_sizes() -> None:
    axes = DEFAULTS | {"dataset": ["digits"], "lr": [0.1], "batch_size": [33], "arch": [check_value("arch", GHOSTS)]}
    assert not list(findings(axes | {"sampler": ["full"]}, None))
    schedules = [check_value("schedule", {"cosine": {}, "of": of}) for of in ("lr", "batch_size")]
    assert [len(list(findings(axes | {"schedule": [schedule]}, None))) for schedule in schedules] == [1, 0]


def test_an_order_that_changes_nothing_is_refused() -> None:
    axes = DEFAULTS | {"dataset": ["digits"], "lr": [0.1], "batch_size": [8], "seed": [0, 1], "sampler": ["full"]}
    (finding,) = findings(axes | {"order_seed": [None, 5]}, None)
    assert (finding.field, finding.value) == ("order_seed", 5)
    assert finding.text == (
        "order_seed 5: with sampler full every step takes the whole training set, so the order changes nothing; "
        "leave it out"
    )
    assert not list(findings(axes | {"order_seed": [0, 1]}, "order_seed = seed"))
    assert not list(findings(axes | {"order_seed": [5], "sampler": ["stream"]}, None))


def test_the_order_is_that_of_the_fields_and_the_values() -> None:
    axes = {"dataset": ["digits"], "lr": [0.2, 0.1], "batch_size": [8], "seed": [2, 1], "momentum": [0.9, 0]}
    grid = points(DEFAULTS | axes)
    shown = list(zip(*(grid[c].to_pylist() for c in ("lr", "seed", "momentum")), strict=True))
    assert shown == list(itertools.product([0.2, 0.1], [2, 1], [0.9, 0]))


def test_expand_takes_a_sweep_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: s\ndataset: digits\ngrid: {lr: [0.1, 0.2], batch_size: [8]}\nwhere: lr > 0.1\n")
    sweep = load(path)
    grid = expand(sweep)
    assert grid["lr"].to_pylist() == [0.2]
    assert grid["measure_id"].to_pylist() == [sweep.measure.measure_id]


def test_an_order_seed_that_is_the_seed_is_the_same_trial(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: aa\ndataset: digits\ngrid: {lr: [0.1], batch_size: [8], seed: [0, 1], order_seed: [null, 0, 5]}\n"
    )
    found = expand(load(file)).select(["seed", "order_seed"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [(0, None), (0, 5), (1, None), (1, 0), (1, 5)]
