"""The next SGD steps against what training does, and against dense eigenvectors."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from dense import dense, nets
from packs import outcome, run, stepper, study_of, trial, values
from torch import Tensor, nn

from trainables.curvature import spectrum
from trainables.engine import Engine
from trainables.findings import Rows
from trainables.settings import Hessian, Measure
from trainables.sgd_steps import MULTIPLES, next_steps, sgd_steps
from trainables.stepping import Stepper
from trainables.streams import examples
from trainables.study import Study
from trainables.trial import Trial

MLP = '{"activation":"tanh","depth":1,"name":"mlp","width":4}'
EXACT = Hessian(top=3, tolerance=1e-11, max_iterations=300, trace_probes=1)


def vector(engine: Engine) -> Tensor:
    return torch.cat([v.flatten(1) for v in engine.state()[0].values()], 1)


def at_step(pack: list[Trial], engine: str, step: int, **how: int) -> Stepper:
    """Trials after so many steps of training."""
    trained = stepper(pack, engine, **how)
    trained.advance(0, step)
    return trained


@pytest.mark.parametrize(
    ("arch", "engine"),
    [
        *((MLP, engine) for engine in ("fused", "vmap", "loop")),
        ("plugins:with_batchnorm", "vmap"),
        ("plugins:with_batchnorm", "loop"),
        ("plugins:with_dropout", "loop"),
        ('{"depth":1,"dropout":0.5,"name":"mlp","width":4}', "vmap"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_first_is_what_training_does_next(arch: str, engine: str, precision: str, momentum: float) -> None:
    """Bit for bit, and the training that follows is that of trials which were never asked."""
    changes = {"arch": arch, "momentum": momentum, "weight_decay": 0.1, "precision": precision, "label_noise": 0.3}
    changes |= {"gradient_noise": 0.1, "schedule": '{"warmup":{"epochs":1.0}}'}
    pack = [trial(**changes, seed=s, lr=lr) for s, lr in ((0, 0.05), (1, 0.2), (0, 0.01))]
    asked, never_asked = (at_step(pack, engine, 3) for _ in range(2))
    before = vector(asked.engine).clone()
    steps = next_steps(asked, 3, 3)
    assert torch.equal(vector(asked.engine), before)
    asked.advance(3, 4)
    assert torch.equal(steps[0], vector(asked.engine) - before)
    asked.advance(4, 6)
    never_asked.advance(3, 6)
    for mine, its in zip(asked.engine.state(), never_asked.engine.state(), strict=True):
        assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_each_is_a_step_from_here_on_its_own_minibatch(engine: str) -> None:
    """-lr (g + weight_decay w), with g the gradient on the examples that the stream holds for step 5, 6 and 7."""
    pack = [trial(arch=MLP, seed=s, lr=lr, weight_decay=0.1, label_noise=0.3) for s, lr in ((0, 0.05), (1, 0.2))]
    trained = at_step(pack, engine, 5)
    steps = next_steps(trained, 5, 3)
    data = trained.data
    for i, (member, net) in enumerate(zip(pack, nets(study_of(trained, 5)), strict=True)):
        for j, step in enumerate(steps):
            rows = torch.from_numpy(examples(member.seed, 8 * (5 + j), 8 * (6 + j), 50, replacement=False))
            loss = nn.functional.cross_entropy(net(data.dataset.train_inputs[rows]), data.targets[i, rows])
            gradient = torch.autograd.grad(loss, list(net.parameters()))
            expected = [-member.lr * (g + 0.1 * w) for g, w in zip(gradient, net.parameters(), strict=True)]
            expected = torch.cat([e.detach().reshape(-1) for e in expected])
            torch.testing.assert_close(step[i], expected, rtol=1e-9, atol=1e-14)


def found_at(
    pack: list[Trial], engine: str, step: int, count: int, *, examples: int = 1000, chunk: int = 1000
) -> tuple[Study, dict[str, tuple[Tensor, Tensor]], Rows]:
    """What is said of so many next steps."""
    trained = at_step(pack, engine, step, examples=examples)
    seen = replace(study_of(trained, step, chunk=chunk), settings=Measure(at=[], hessian=EXACT))
    seen.steps = next_steps(trained, step, count)
    list(spectrum(seen, EXACT))
    *numbers, profile = sgd_steps(seen, seen.top)
    return seen, {f.name: (f.value, f.error) for f in numbers}, profile


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_against_dense_eigenvectors(engine: str) -> None:
    pack = [trial(arch=MLP, seed=s, lr=lr, momentum=0.5) for s, lr in ((0, 0.05), (1, 0.2))]
    seen, found, _ = found_at(pack, engine, 6, 4)
    for i, h in enumerate(dense(seen.hessian)):
        u = torch.linalg.eigh(h)[1].flip(1)[:, :3]
        steps = torch.stack([step[i] for step in seen.steps])
        fractions, squares = (steps @ u).square().sum(1) / steps.square().sum(1), (steps @ u[:, 0]).square()
        value, error = found["step_top_fraction"]
        assert float(value[i]) == pytest.approx(float(fractions.mean()), rel=1e-7)
        assert float(error[i]) == pytest.approx(float(fractions.std()) / 2, rel=1e-6)
        value, error = found["step_along_e1"]
        rms = sqrt(squares.mean())
        assert float(value[i]) == pytest.approx(rms, rel=1e-7)
        assert float(error[i]) == pytest.approx(float(squares.std()) / 2 / (2 * rms), rel=1e-6)


def test_one_step_has_no_error() -> None:
    _, found, _ = found_at([trial(arch=MLP)], "fused", 2, 1)
    for value, error in found.values():
        assert value.isfinite().all()
        assert error.isnan().all()


def test_a_step_along_one_direction_lies_wholly_in_it() -> None:
    """Steps that are multiples of e1 have all of their length there."""
    seen, _, _ = found_at([trial(arch=MLP)], "fused", 0, 1)
    seen = replace(seen, steps=[seen.top.vectors[:, 0] * c for c in (-0.3, 0.4)])
    found = values(sgd_steps(seen, seen.top))
    assert float(found["step_top_fraction"]) == pytest.approx(1, rel=1e-12)
    assert float(found["step_along_e1"]) == pytest.approx(sqrt((0.09 + 0.16) / 2), rel=1e-12)


@pytest.mark.parametrize("examples", [50, 17])
@pytest.mark.parametrize("chunk", [1000, 6])
def test_the_loss_here_is_that_of_the_curvature_examples(examples: int, chunk: int) -> None:
    pack = [trial(arch=MLP, seed=s, label_noise=0.4, input_noise=0.4) for s in range(2)]
    seen, _, profile = found_at(pack, "vmap", 4, 2, examples=examples, chunk=chunk)
    assert profile.profile == "loss_along_e1"
    assert profile.columns["x"].tolist() == list(MULTIPLES)
    here = profile.columns["value"][:, MULTIPLES.index(0)]
    for i, net in enumerate(nets(seen)):
        loss = nn.functional.cross_entropy(net(seen.inputs[i]), seen.targets[i]).item()
        assert float(here[i]) == pytest.approx(loss, rel=1e-12)
    assert not profile.columns["error"].any()


def test_a_quadratic_loss_is_a_parabola_along_e1() -> None:
    """L(x) = L(0) - x s |G.e1| + x^2 s^2 lambda_max / 2, with s the root-mean-square step along e1."""
    pack = [trial(dataset="plugins:regression", arch="linear", loss="mse", seed=s, lr=0.3) for s in range(3)]
    seen, found, profile = found_at(pack, "fused", 2, 5)
    x = torch.tensor(MULTIPLES, dtype=torch.float64)
    for i, h in enumerate(dense(seen.hessian)):
        eigenvalues, u = torch.linalg.eigh(h)
        # each eigenvalue comes twice, once per output: e1 is what was found in their plane
        e1 = seen.top.vectors[i, 0]
        assert float((u[:, -2:].T @ e1).norm()) == pytest.approx(1, rel=1e-9)
        s, slope = found["step_along_e1"][0][i], (seen.train_gradient[i] @ e1).abs()
        value = profile.columns["value"][i]
        expected = value[MULTIPLES.index(0)] - x * s * slope + x.square() * s.square() * eigenvalues[-1] / 2
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
        assert slope > 0.01


@pytest.mark.parametrize("seed", range(6))
def test_the_loss_falls_on_the_positive_side(seed: int) -> None:
    """To first order, whichever way e1 points."""
    _, _, profile = found_at([trial(arch=MLP, seed=seed, lr=1e-5)], "fused", 3, 2)
    value = profile.columns["value"][0]
    assert (value.diff() < 0).all()


SETTINGS = Measure(at=[], hessian={"top": 2, "trace_probes": 2, "sgd_steps": 3})


def test_at_the_start_every_trial_has_steps_of_its_own() -> None:
    """One net at three learning rates: steps in proportion, the same curvature; a net of its own after them."""
    pack = [trial(arch=MLP, lr=lr, seed=s) for lr, s in ((0.01, 0), (0.05, 0), (0.2, 0), (0.01, 1))]
    start = run(pack, settings=SETTINGS).moments[0]
    found = start.found
    assert start.step == 0
    along, fraction = found.values["step_along_e1"], found.values["step_top_fraction"]
    np.testing.assert_allclose(along[:3] / along[0], [1, 5, 20], rtol=1e-9)
    np.testing.assert_allclose(fraction[:3], fraction[0], rtol=1e-9)
    assert fraction[3] != pytest.approx(fraction[0], rel=1e-3)
    assert (found.errors["step_along_e1"] > 0).all()
    np.testing.assert_allclose(found.values["lambda_max"][:3], found.values["lambda_max"][0], rtol=1e-12)
    profile = found.rows["profiles", "loss_along_e1"]
    assert profile["value"].shape == (4, len(MULTIPLES))
    np.testing.assert_allclose(profile["value"][:, 4], found.values["train_loss"], rtol=1e-12)


def test_rows_of_the_store() -> None:
    done = outcome([trial(arch=MLP, seed=s) for s in range(2)], "fused", SETTINGS)
    rows = [r for r in done.side["profiles"] if r["profile"] == "loss_along_e1" and r["slot"] == 1 and r["step"] == 12]
    assert [r["x"] for r in rows] == list(MULTIPLES)
    assert rows[4]["value"] == pytest.approx(done.trials[1]["train_loss"], rel=1e-12)
    assert all(r["error"] == 0 for r in rows)
    assert done.trials[1]["step_top_fraction_se"] > 0
    assert 0 < done.trials[1]["step_top_fraction"] <= 1


def test_not_asked_for_not_measured() -> None:
    found = run([trial(arch=MLP)], settings=Measure(at=[], hessian={"top": 2, "trace_probes": 2})).moments[-1].found
    assert not [name for name in found.values if name.startswith("step")]
    assert ("profiles", "loss_along_e1") not in found.rows


def test_a_diverged_trial_leaves_its_neighbours_alone() -> None:
    pair = [trial(arch="linear", loss="mse", lr=lr) for lr in (0.01, 1e200)]
    together, alone = (run(pack, settings=SETTINGS).moments[-1].found for pack in (pair, pair[:1]))
    for name in ("step_top_fraction", "step_along_e1"):
        assert together.values[name][0] == pytest.approx(alone.values[name][0], rel=1e-9)
    profiles = (found.rows["profiles", "loss_along_e1"]["value"][0] for found in (together, alone))
    np.testing.assert_allclose(*profiles, rtol=1e-9)
    done = outcome(pair, "fused", SETTINGS)
    assert done.trials[1]["status"] == "diverged"
    assert "step_along_e1" not in done.trials[1]
