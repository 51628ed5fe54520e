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
from trainables.results import _trial_row
from trainables.training import Run

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
    pack = [trial(seed=s, label_noise=0.5) for s in range(3)]
    of = study(pack, engine, chunk=17)
    found, clean = values(training_set(of)), load_dataset(SMALL_TEACHER).train_targets
    for i in range(3):
        outputs, given, changed = of.train_outputs[i], of.group.targets[i], of.group.changed[i].numpy()
        assert changed.any()
        assert not changed.all()
        as_given, as_true = counted(outputs, given), counted(outputs, clean)
        expected = {
            "train_loss": np.mean(as_given["loss"]),
            "train_accuracy": np.mean(as_given["right"]),
            "clean_loss": np.mean(np.array(as_given["loss"])[~changed]),
            "clean_accuracy": np.mean(np.array(as_given["right"])[~changed]),
            "corrupted_loss": np.mean(np.array(as_given["loss"])[changed]),
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
@given(st.floats(0, 1), st.integers(0, 2**40))
def test_both_kinds_of_labels_make_up_the_training_set(noise: float, seed: int) -> None:
    of = study([trial(seed=seed, label_noise=noise)])
    found = {name: float(v[0]) for name, v in values(training_set(of)).items()}
    share = float(of.group.changed.double().mean())
    names = ("train_loss", "clean_loss", "corrupted_loss"), ("train_accuracy", "clean_accuracy", "memorized")
    for whole, clean, changed in names:
        parts = [(1 - share, found[clean]), (share, found[changed])]
        assert found[whole] == pytest.approx(sum(w * v for w, v in parts if w), rel=1e-12)
        assert all(np.isnan(v) for w, v in parts if not w)
    if share:
        assert 0 <= found["recovered"] <= 1 - found["memorized"]


def test_without_noise_the_clean_examples_are_all() -> None:
    found = values(training_set(study([trial(), trial(seed=1)])))
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(found[f"clean_{name}"], found[f"train_{name}"], rtol=1e-14, atol=0)
    assert all(found[name].isnan().all() for name in ("corrupted_loss", "memorized", "recovered"))


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


def run_with(accuracies: list[list[float]], diverged_at: list[int]) -> Run:
    moments = [
        (
            step,
            step / 2,
            Measurements(len(row), {"test_accuracy": np.array(row)}, {"test_accuracy": np.zeros(len(row))}),
        )
        for step, row in enumerate(accuracies)
    ]
    return Run(moments, diverged_at, steps=len(accuracies) - 1, train_size=50)


def test_the_best_test_accuracy_is_that_of_its_first_epoch() -> None:
    run = run_with([[0.1, 0.2], [0.7, 0.9], [0.7, 0.3], [0.6, 0.9]], [-1, -1])
    best = [(row["best_test_accuracy"], row["best_test_epoch"]) for row in (_trial_row(run, i, 8) for i in range(2))]
    assert best == [(0.7, 0.5), (0.9, 0.5)]


def test_a_trial_that_diverged_has_no_best_test_accuracy() -> None:
    row = _trial_row(run_with([[0.1], [0.7]], [1]), 0, 8)
    assert row["status"] == "diverged"
    assert "best_test_accuracy" not in row


def test_real_values_have_no_best_test_accuracy() -> None:
    moments = [(0, 0.0, Measurements(1, {"test_loss": np.ones(1)}, {"test_loss": np.zeros(1)}))]
    row = _trial_row(Run(moments, [-1], steps=0, train_size=50), 0, 8)
    assert row["test_loss"] == 1
    assert "best_test_accuracy" not in row
