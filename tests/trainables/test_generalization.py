"""Losses, accuracies and margins against what a loop over examples counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import SMALL_TEACHER, endpoint, study, trial, values
from torch import Tensor

from trainables.datasets import load_dataset
from trainables.findings import Measurements
from trainables.generalization import test_set as of_test_set
from trainables.generalization import training_set
from trainables.packs import Outcome
from trainables.results import _add_rows
from trainables.schedules import timeline
from trainables.training import Measured, Run

CONVNET = {"arch": "plugins:convnet", "dataset": '{"classes":3,"dimension":6,"name":"teacher","train_size":40}'}


def counted(outputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Loss, whether it is right, and margin of each example, the long way."""
    out, found = outputs.double().numpy(), {"loss": [], "right": [], "margin": []}
    for row, label in zip(out, labels.tolist(), strict=True):
        others = np.delete(row, label)
        found["loss"].append(np.log(np.exp(row).sum()) - row[label])
        found["right"].append(float(row[label] > others.max()))
        found["margin"].append(row[label] - others.max())
    return found


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_training_set_against_a_loop_over_examples(engine: str) -> None:
    pack = [trial(seed=s, label_noise=0.5, input_noise=0.3) for s in range(3)]
    of = study(pack, engine, chunk=17)
    found, clean = values(training_set(of)), load_dataset(SMALL_TEACHER).train_targets
    for i in range(3):
        outputs, given, changed = of.train_outputs[i], of.group.targets[i], of.group.changed[i].numpy()
        corrupted = changed | of.group.inputs.replaced[i].numpy()
        assert 0 < changed.sum() < corrupted.sum() < len(changed)
        as_given, as_true = counted(outputs, given), counted(outputs, clean)
        expected = {
            "train_loss": np.mean(as_given["loss"]),
            "train_accuracy": np.mean(as_given["right"]),
            "clean_loss": np.mean(np.array(as_given["loss"])[~corrupted]),
            "clean_accuracy": np.mean(np.array(as_given["right"])[~corrupted]),
            "corrupted_loss": np.mean(np.array(as_given["loss"])[corrupted]),
            "corrupted_accuracy": np.mean(np.array(as_given["right"])[corrupted]),
            "memorized": np.mean(np.array(as_given["right"])[changed]),
            "recovered": np.mean(np.array(as_true["right"])[changed]),
            "train_margin": np.mean(as_given["margin"]),
            "train_margin_p10": np.quantile(as_given["margin"], 0.1),
        }
        assert {name: float(found[name][i]) for name in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_test_set_against_a_loop_over_examples(engine: str) -> None:
    of = study([trial(seed=s) for s in range(2)], engine)
    found, labels = values(of_test_set(of)), load_dataset(SMALL_TEACHER).test_targets
    for i in range(2):
        expected = counted(of.test_outputs[i], labels)
        assert float(found["test_loss"][i]) == pytest.approx(np.mean(expected["loss"]), rel=1e-12)
        assert float(found["test_accuracy"][i]) == np.mean(expected["right"])
        assert float(found["test_margin"][i]) == pytest.approx(np.mean(expected["margin"]), rel=1e-12)
        assert float(found["test_margin_p10"][i]) == pytest.approx(np.quantile(expected["margin"], 0.1), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.just(0) | st.floats(0, 1), st.integers(0, 2**40))
def test_both_kinds_of_examples_make_up_the_training_set(labels: float, inputs: float, seed: int) -> None:
    of = study([trial(seed=seed, label_noise=labels, input_noise=inputs)])
    found = {name: float(v[0]) for name, v in values(training_set(of)).items()}
    share = float(of.group.corrupted.double().mean())
    for kind in ("loss", "accuracy"):
        parts = [(1 - share, found[f"clean_{kind}"]), (share, found[f"corrupted_{kind}"])]
        assert found[f"train_{kind}"] == pytest.approx(sum(w * v for w, v in parts if w), rel=1e-12)
        assert all(np.isnan(v) for w, v in parts if not w)
    if not inputs:
        assert found["memorized"] == pytest.approx(found["corrupted_accuracy"], rel=1e-12, nan_ok=True)
    if of.group.changed.any():
        assert 0 <= found["recovered"] <= 1 - found["memorized"]


def test_without_noise_the_clean_examples_are_all() -> None:
    found = values(training_set(study([trial(), trial(seed=1)])))
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(found[f"clean_{name}"], found[f"train_{name}"], rtol=1e-14, atol=0)
    assert all(found[name].isnan().all() for name in ("corrupted_loss", "corrupted_accuracy", "memorized", "recovered"))


def test_where_every_label_is_changed_nothing_is_clean() -> None:
    of = study([trial()])
    of = replace(of, group=replace(of.group, changed=torch.ones_like(of.group.changed)))
    found = values(training_set(of))
    assert found["clean_loss"].isnan().all()
    assert found["clean_accuracy"].isnan().all()
    assert found["corrupted_loss"] == pytest.approx(found["train_loss"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.floats(1e-3, 1e3))
def test_margins_scale_with_the_outputs(seed: int, scale: float) -> None:
    """A linear net's parameters times c: outputs and margins times c."""
    of = study([trial(arch="linear", seed=seed)])
    scaled = replace(of.group, parameters={k: scale * v for k, v in of.group.parameters.items()})
    one, other = values(of_test_set(of)), values(of_test_set(replace(of, group=scaled)))
    for name in ("test_margin", "test_margin_p10"):
        assert float(other[name]) == pytest.approx(scale * float(one[name]), rel=1e-9)


def test_real_values_have_losses_but_no_classes() -> None:
    of = study([trial(dataset="plugins:regression", arch="linear", loss="mse", seed=s) for s in range(2)])
    found = values(training_set(of)) | values(of_test_set(of))
    assert set(found) == {"train_loss", "clean_loss", "corrupted_loss", "gradient_norm", "test_loss"}
    torch.testing.assert_close(found["clean_loss"], found["train_loss"], rtol=1e-14, atol=0)
    assert found["corrupted_loss"].isnan().all()


def test_a_single_class_has_no_margin() -> None:
    found = values(training_set(study([trial(dataset="plugins:one_class", arch="linear")])))
    assert float(found["clean_accuracy"]) == 1
    assert not any("margin" in name for name in found)


@pytest.mark.parametrize("changes", [{"label_noise": 0.5}, CONVNET])
def test_engines_and_packs_agree(changes: dict[str, object]) -> None:
    """After training, each trial alone by the loop and all of them by another engine."""
    pack = [trial(seed=s, **changes) for s in range(3)]
    alone = [endpoint([t], "loop") for t in pack]
    together = endpoint(pack, "vmap" if "arch" in changes else "fused")
    assert {"clean_loss", "train_margin_p10", "dead_fraction"} <= set(together)
    for name, found in together.items():
        expected = torch.stack([a[name][0] for a in alone])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def rows_of(accuracies: list[list[float]], diverged_at: list[int], name: str = "test_accuracy") -> Outcome:
    """Of a run of two steps an epoch, measured after each."""
    moments = []
    for step, row in enumerate(accuracies):
        found = Measurements(len(row), {name: np.array(row)}, {name: np.zeros(len(row))})
        moments.append(Measured(step, step / 2, list(range(len(row))), found))
    run = Run(timeline("constant", 25, 50, None, 3), moments, diverged_at, reached_at=[-1] * len(diverged_at))
    outcome = Outcome()
    _add_rows(outcome, run, [trial()] * len(diverged_at), 0)
    return outcome


def test_the_best_test_accuracy_is_that_of_its_first_epoch() -> None:
    rows = rows_of([[0.1, 0.2], [0.7, 0.9], [0.7, 0.3], [0.6, 0.9]], [-1, -1]).trials
    best = [(rows[i]["best_test_accuracy"], rows[i]["best_test_epoch"]) for i in range(2)]
    assert best == [(0.7, 0.5), (0.9, 0.5)]


def test_a_trial_that_diverged_has_no_best_test_accuracy() -> None:
    row = rows_of([[0.1], [0.7]], [1]).trials[0]
    assert row["status"] == "diverged"
    assert "best_test_accuracy" not in row


def test_curves_end_before_a_trial_diverges() -> None:
    """A moment at which the loss is found to be no number still has finite statistics, of a net that is none."""
    curves = rows_of([[0.1, 0.2], [0.7, 0.9], [0.7, 0.3]], [1, -1]).side["curves"]
    assert [(c["slot"], c["step"]) for c in curves] == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_real_values_have_no_best_test_accuracy() -> None:
    row = rows_of([[1.0]], [-1], name="test_loss").trials[0]
    assert row["test_loss"] == 1
    assert "best_test_accuracy" not in row
