"""The loss on a line against what it must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import CPU, outcome, trial
from torch.nn.functional import cross_entropy

from trainables import interpolation
from trainables.datasets import load_dataset
from trainables.endpoints import Endpoint
from trainables.engines import build
from trainables.interpolation import Point, line
from trainables.packs import Outcome
from trainables.settings import Measure
from trainables.trial import Trial

KEEP = Measure(at=[], hessian=False, gradient_noise=False, endpoints=True)
NETS = [
    ("fused", '{"depth":2,"name":"mlp","width":8}'),
    ("vmap", '{"depth":2,"name":"mlp","width":8}'),
    ("loop", '{"depth":2,"name":"mlp","width":8}'),
    ("vmap", "plugins:with_batchnorm"),
    ("loop", "plugins:with_batchnorm"),
    ("vmap", "plugins:partly_frozen"),
]


def pair(engine: str, *changes: dict[str, object]) -> tuple[Outcome, list[Trial]]:
    """Two trials in packs of their own, of different seeds unless the changes say otherwise."""
    trials = [trial(**{"seed": s} | change) for s, change in enumerate(changes)]
    return outcome(trials, engine, KEEP), trials


def ends(found: Outcome) -> tuple[Endpoint, Endpoint]:
    return found.endpoints[0], found.endpoints[1]


def column(points: Sequence[Point], name: str) -> list[float]:
    return [getattr(p, name) for p in points]


@pytest.mark.parametrize(("engine", "arch"), NETS)
def test_at_0_and_1_it_is_what_was_measured(engine: str, arch: str) -> None:
    found, _ = pair(engine, {"arch": arch, "lr": 0.2, "batch_size": 8}, {"arch": arch})
    points = line(*ends(found), engine, [0.0, 1.0], CPU)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert column(points, name) == pytest.approx([found.trials[i][name] for i in range(2)], rel=1e-12), name


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
@pytest.mark.parametrize("dataset", ["plugins:regression", trial().dataset])
def test_squared_error_of_a_linear_net_is_the_parabola_through_three_of_its_points(engine: str, dataset: str) -> None:
    same = {"arch": "linear", "loss": "mse", "dataset": dataset}
    found, _ = pair(engine, same, same | {"lr": 0.01})
    alphas = list(np.linspace(-3, 4, 15))
    points = line(*ends(found), engine, [*alphas, 0.0, 0.5, 1.0], CPU)
    for name in ("train_loss", "test_loss"):
        *values, at_0, at_half, at_1 = column(points, name)
        bend = 2 * (at_0 - 2 * at_half + at_1)
        parabola = [at_0 + (at_1 - at_0 - bend) * alpha + bend * alpha**2 for alpha in alphas]
        assert bend > 0
        assert values == pytest.approx(parabola, rel=1e-10)
    assert np.isnan(column(points, "train_accuracy")).all() == (dataset == "plugins:regression")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 3), min_size=1, max_size=5))
def test_seen_from_b_it_is_the_same_line(alphas: list[float]) -> None:
    found, _ = pair("fused", {}, {"lr": 0.2})
    a, b = ends(found)
    forth, back = line(a, b, "fused", alphas, CPU), line(b, a, "fused", [1 - alpha for alpha in alphas], CPU)
    for name in ("train_loss", "test_loss"):
        assert column(forth, name) == pytest.approx(column(back, name), rel=1e-9)


@pytest.mark.parametrize(("engine", "arch"), NETS)
def test_between_the_ends_lies_the_module_with_the_mean_state(engine: str, arch: str) -> None:
    """BatchNorm's running statistics included; what is counted is A's."""
    found, (a, _) = pair(engine, {"arch": arch, "lr": 0.2}, {"arch": arch, "epochs": 2})
    first, second = (end.tensors for end in ends(found))
    data = load_dataset(a.dataset)
    module = build(a, data.input_shape, data.num_classes).double().eval()
    mean = {
        k: torch.from_numpy((3 * first[k] + second[k]) / 4 if first[k].dtype == np.float64 else first[k]) for k in first
    }
    module.load_state_dict(mean)
    (point,) = line(*ends(found), engine, [0.25], CPU)
    for name, inputs, targets in (
        ("train", data.train_inputs, data.train_targets),
        ("test", data.test_inputs, data.test_targets),
    ):
        outputs = module(inputs)
        assert getattr(point, f"{name}_loss") == pytest.approx(cross_entropy(outputs, targets).item(), rel=1e-10)
        right = (outputs.argmax(1) == targets).double().mean().item()
        assert getattr(point, f"{name}_accuracy") == pytest.approx(right)


def test_the_training_set_is_that_of_a() -> None:
    found, _ = pair("fused", {"label_noise": 0.5, "input_noise": 0.3}, {})
    a, b = ends(found)
    stored = [found.trials[i]["train_loss"] for i in range(2)]
    assert line(a, b, "fused", [0.0], CPU)[0].train_loss == pytest.approx(stored[0], rel=1e-12)
    assert line(b, a, "fused", [0.0], CPU)[0].train_loss == pytest.approx(stored[1], rel=1e-12)
    on_noise, clean = line(a, b, "fused", [1.0], CPU)[0], line(b, a, "fused", [0.0], CPU)[0]
    assert on_noise.train_loss > clean.train_loss
    assert on_noise.test_loss == clean.test_loss


@pytest.mark.parametrize(("engine", "arch"), [("fused", NETS[0][1]), ("loop", "plugins:with_batchnorm")])
def test_how_nets_and_examples_are_grouped_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, engine: str, arch: str
) -> None:
    found, _ = pair(engine, {"arch": arch}, {"arch": arch})
    alphas = list(np.linspace(-0.2, 1.2, 7))
    whole = line(*ends(found), engine, alphas, CPU)
    monkeypatch.setattr(interpolation, "chunk_and_group", lambda *_: (7, 3))
    pieces = line(*ends(found), engine, alphas, CPU)
    for name in ("alpha", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert column(pieces, name) == pytest.approx(column(whole, name), rel=1e-12), name


def test_where_outputs_are_not_finite_there_is_no_number_and_the_loss_is_not_asked() -> None:
    found, _ = pair("vmap", *[{"loss": "plugins:refuses_what_is_not_finite"}] * 2)
    far, near = line(*ends(found), "vmap", [1e200, 0.5], CPU)
    assert np.isnan([far.train_loss, far.train_accuracy, far.test_loss, far.test_accuracy]).all()
    assert np.isfinite([near.train_loss, near.train_accuracy, near.test_loss, near.test_accuracy]).all()


def test_a_variance_below_zero_gives_no_number() -> None:
    found, _ = pair("vmap", *[{"arch": "plugins:with_batchnorm"}] * 2)
    a, b = ends(found)
    alpha = float(2 * (a.tensors["1.running_var"] / (a.tensors["1.running_var"] - b.tensors["1.running_var"])).max())
    (beyond,) = line(a, b, "vmap", [alpha], CPU)
    assert np.isnan([beyond.train_loss, beyond.test_accuracy]).all()


def test_a_net_that_has_changed_since_is_refused() -> None:
    found, _ = pair("fused", {}, {})
    a, b = ends(found)
    wider = Endpoint(b.trial, dict(b.tensors) | {"1.bias": np.zeros(9), "9.gain": np.zeros(1)})
    with pytest.raises(ValueError, match=r"arch \{.*mlp.*\} has changed since it was trained: 1\.bias, 9\.gain"):
        line(a, wider, "fused", [0.5], CPU)
