from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainables import trial as module
from trainables.registry import resolve
from trainables.schema import MEASURED, RESERVED, check_metric_names
from trainables.trial import (
    FIELDS,
    LATER_FIELDS,
    REFERENCES,
    WITHIN_PACK,
    Trial,
    canonical_json,
    field_adapter,
    round_lr,
    trial_id,
)

RESOLVED = {"arch": {"name": "linear"}, "dataset": {"name": "digits"}, "lr": 0.1, "batch_size": 8, "seed": 0}


def test_identity_is_the_hash_of_canonical_json() -> None:
    text = '{"arch":{"name":"linear"},"batch_size":8,"dataset":{"name":"digits"},"lr":0.1,"seed":0,"semantics":1}'
    assert trial_id(RESOLVED) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_a_field_added_later_leaves_old_identities_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = trial_id(RESOLVED)
    monkeypatch.setattr(module, "LATER_FIELDS", {"dropout": 0.0})
    assert trial_id(RESOLVED | {"dropout": 0.0}) == before
    assert trial_id(RESOLVED | {"dropout": 0.1}) != before


def identity(**changes: object) -> str:
    values = Trial.model_validate({"dataset": "digits", "lr": 0.016, "batch_size": 32} | changes).model_dump()
    named = {kind: resolve(kind, values[kind]).identity for kind in REFERENCES if values[kind] is not None}
    return trial_id(values | named)


def test_trials_of_the_first_release_keep_their_identity() -> None:
    assert identity() == "36656c01c033a8aa9940631d6c7bda53"
    assert identity(arch='{"depth":4,"name":"mlp"}') == "17e1c5da00e45edddc8a2561ad441fa7"


def test_every_later_field_enters_the_identity_once_it_says_something() -> None:
    said = {
        "input_noise": 0.1,
        "gradient_noise": 0.1,
        "pixel_shuffle": "fixed",
        "augment": "flip",
        "train_size": 100,
        "schedule": '{"warmup":{"epochs":2.0}}',
        "until": "train_accuracy >= 0.9",
    }
    length = {"epochs": None, "max_steps": 100}
    assert {*said, "max_steps"} == {*LATER_FIELDS}
    identities = [identity(), identity(**length), *(identity(**{field: value}) for field, value in said.items())]
    assert len({*identities}) == len(identities)


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


@given(st.floats(1e-8, 10), st.integers(1, 4096))
def test_lr_from_a_ratio_and_lr_typed_are_one(ratio: float, batch_size: int) -> None:
    typed = float(f"{ratio * batch_size:.12g}")
    assert round_lr(ratio * batch_size) == round_lr(typed) == typed


def test_the_numbers_of_the_manual() -> None:
    assert round_lr(32 * 5e-4) == 0.016


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("lr", 0.1, 0.0),
        ("batch_size", 1, 0),
        ("label_noise", 1.0, 1.1),
        ("momentum", 0.9, 1.0),
        ("seed", 2**63 - 1, 2**63),
        ("order_seed", None, -1),
        ("precision", "float64", "float16"),
        ("epochs", 0.5, 0),
        ("lr", 1, float("nan")),
        ("weight_decay", 0.0, float("inf")),
    ],
)
def test_every_field_checks_its_values(field: str, good: object, bad: object) -> None:
    assert field_adapter(field).validate_python(good) == good
    with pytest.raises(ValidationError):
        field_adapter(field).validate_python(bad)


def test_a_trial_refuses_unknown_fields_and_cannot_be_changed() -> None:
    trial = Trial(dataset="digits", lr=1, batch_size=2, seed=4)
    assert trial.lr == 1.0
    assert trial.order == 4
    assert Trial(dataset="digits", lr=1, batch_size=2, order_seed=7).order == 7
    with pytest.raises(ValidationError):
        Trial(dataset="digits", lr=1, batch_size=2, learning_rate=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        trial.lr = 2.0  # type: ignore[misc]
    assert set(WITHIN_PACK) < set(FIELDS)


def test_domain_types_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys, trainables, trainables.store, trainables.settings, trainables.registry, trainables.schema\n"
        "trainables.registry.resolve('arch', 'mlp')\n"
        "from trainables import Dataset\n"
        "assert not {'torch', 'ray', 'duckdb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fine", "also_fine", "lambda_max"], None),
        ([""], "a name is text that is not empty"),
        ([3], "the name 3"),
        (["Foo", "foo"], "returned foo twice"),
        (["RATIO"], "taken by a column"),
        (["Train_Loss"], "taken by a column"),
        (["trial_id"], "taken by a column"),
    ],
)
def test_names_of_metrics_must_be_columns(names: list[object], message: str | None) -> None:
    if message is None:
        check_metric_names("mine", names, RESERVED - MEASURED)
        return
    with pytest.raises(ValueError, match=message):
        check_metric_names("mine", names, RESERVED - MEASURED)
