from __future__ import annotations

import numpy as np
import pytest
import torch
from packs import SMALL_TEACHER, endpoint, engine_for, run, stepper, trial

from trainables.datasets import load_dataset
from trainables.settings import Measure
from trainables.streams import label_noise

CURVATURE = {"top": 3, "trace_probes": 4, "examples": 1000}


def test_moments_are_the_start_the_epochs_asked_for_and_the_endpoint() -> None:
    moments = run([trial(epochs=2, batch_size=8)], settings=Measure(at=[0.5, 1.5, 7], hessian=False)).moments
    assert [(moment.step, moment.epoch) for moment in moments] == [(0, 0), (3, 0.5), (9, 1.5), (12, 2)]


def test_losses_and_accuracies_are_means_over_the_whole_sets() -> None:
    member = trial(label_noise=0.4, seed=2)
    dataset = load_dataset(SMALL_TEACHER)
    values = run([member], settings=Measure(at=[], hessian=False)).moments[0].found.values
    net = engine_for([member], dataset, "loop").module
    noisy = torch.from_numpy(label_noise(2, 0.4, dataset.train_targets.numpy(), 10))
    out = net(dataset.train_inputs).detach()
    assert values["train_loss"][0] == pytest.approx(float(torch.nn.functional.cross_entropy(out, noisy)), rel=1e-12)
    assert values["train_accuracy"][0] == pytest.approx(float((out.argmax(1) == noisy).double().mean()))
    changed = noisy != dataset.train_targets
    assert changed.any()
    assert values["memorized"][0] == pytest.approx(float((out.argmax(1) == noisy)[changed].double().mean()))
    test_out = net(dataset.test_inputs)
    assert values["test_accuracy"][0] == pytest.approx(
        float((test_out.argmax(1) == dataset.test_targets).double().mean())
    )


def test_without_noise_nothing_can_be_memorized() -> None:
    values = endpoint([trial(), trial(label_noise=0.5)])
    assert values["memorized"][0].isnan()
    assert 0 <= values["memorized"][1] <= 1


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_curvature_matches_the_dense_hessian_of_the_trained_net(engine: str) -> None:
    """Top eigenvalues, smallest, trace and Frobenius norm after training, each on its own noisy data."""
    pack = [trial(seed=s, label_noise=0.3, arch='{"depth":1,"name":"mlp","width":4}') for s in range(2)]
    settings = Measure(at=[], hessian={"top": 3, "trace_probes": 1000, "examples": 1000, "tolerance": 1e-10})
    found = run(pack, engine, settings).moments[-1].found
    for i, member in enumerate(pack):
        matrix = trained_hessian(member)
        eigenvalues = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(found.rows["eigenvalues", ""]["eigenvalue"][i], eigenvalues[::-1][:3], rtol=1e-8)
        assert found.values["lambda_max"][i] == pytest.approx(eigenvalues[-1], rel=1e-8)
        assert found.values["lambda_min"][i] == pytest.approx(eigenvalues[0], rel=1e-8)
        assert found.values["hessian_trace"][i] == pytest.approx(np.trace(matrix), rel=1e-8)
        assert found.values["hessian_frobenius"][i] == pytest.approx(np.linalg.norm(matrix), rel=1e-8)
        assert found.errors["hessian_trace"][i] == 0


def trained_hessian(member) -> np.ndarray:
    """The Hessian of the endpoint by plain autograd, weight decay excluded."""
    trained = stepper([member])
    trained.advance(0, 12)
    net, inputs, targets = trained.engine.module, load_dataset(member.dataset).train_inputs, trained.data.targets[0]
    names = [n for n, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    shapes = [p.shape for p in net.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        pieces = [v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True)]
        out = torch.func.functional_call(net, dict(zip(names, pieces, strict=True)), (inputs,))
        return torch.nn.functional.cross_entropy(out, targets)

    return torch.func.hessian(loss)(flat).detach().numpy()


def test_one_probe_leaves_the_standard_error_unknown() -> None:
    settings = Measure(at=[], hessian=CURVATURE | {"trace_probes": 1})
    found = run([trial()], settings=settings).moments[-1].found
    assert np.isnan(found.errors["hessian_trace"]).all()
    assert np.isfinite(found.values["hessian_trace"]).all()


def test_gradient_norm_is_that_of_the_whole_training_loss() -> None:
    member = trial()
    dataset = load_dataset(SMALL_TEACHER)
    net = engine_for([member], dataset, "loop").module
    loss = torch.nn.functional.cross_entropy(net(dataset.train_inputs), dataset.train_targets)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    expected = float(torch.cat([g.reshape(-1) for g in gradients]).norm())
    values = run([member], settings=Measure(at=[], hessian=False)).moments[0].found.values
    assert values["gradient_norm"][0] == pytest.approx(expected, rel=1e-12)


def test_a_metric_of_the_users_own_is_measured_and_fails_alone() -> None:
    settings = Measure(at=[1], hessian=False, metrics=["plugins:weight_norm", "plugins:fails_for_seed_one"])
    found = run([trial(seed=s) for s in range(3)], settings=settings).moments[-1].found
    assert found.values["weight_norm"][0] > 0
    assert found.values["fine"][[0, 2]].tolist() == [1, 1]
    assert list(found.failures) == [1]
    assert "seed one is not to my liking" in found.failures[1]


def test_a_probe_gives_gradient_products_and_model() -> None:
    settings = Measure(at=[], hessian=CURVATURE, metrics=["plugins:rayleigh_quotient"])
    found = run([trial(), trial(seed=1, input_noise=0.3)], settings=settings).moments[-1].found.values
    assert (found["rayleigh"] <= found["lambda_max"] + 1e-9).all()
    assert (found["rayleigh"] >= found["lambda_min"] - 1e-9).all()
    assert (found["ggn"] >= 0).all()
    assert (found["along"] > 0).all()
    assert (found["along"] <= found["gradient_covariance_trace"]).all()
    np.testing.assert_allclose(found["probe_loss"], found["train_loss"], rtol=1e-12)
    np.testing.assert_allclose(found["probe_gradient"], found["gradient_norm"], rtol=1e-9)


def test_the_start_keeps_its_name_and_the_endpoint_its_own() -> None:
    """Epochs that fall on one step: at a large batch the first of them are all step 0."""
    moments = run([trial(batch_size=50)], settings=Measure(at=[0.1, 1, 1.9], hessian=False)).moments
    assert [(moment.step, moment.epoch) for moment in moments] == [(0, 0), (1, 1), (2, 2)]


def test_without_curvature_a_probe_still_has_examples() -> None:
    with_, without = (
        run([trial()], settings=Measure(at=[], hessian=h, metrics=["plugins:gradient_norm_of_probe"])).moments[-1].found
        for h in ({"examples": 1000}, False)
    )
    assert with_.values["g"] == without.values["g"]


def test_a_metric_is_not_asked_about_a_trial_that_has_just_diverged() -> None:
    pack = [trial(arch="linear", loss="mse", lr=lr, epochs=0.5) for lr in (0.01, 1e200)]
    done = run(pack, settings=Measure(at=[], hessian=False, metrics=["plugins:needs_finite_weights"]))
    assert done.moments[-1].found.failures == {}
    assert done.diverged_at[0] == -1
    assert done.diverged_at[1] > 0


def test_a_metric_cannot_take_the_name_of_a_column() -> None:
    done = run([trial()], settings=Measure(at=[], hessian=False, metrics=["plugins:bad_name"]))
    assert "returned Ratio: taken by a column of `trials`" in done.moments[0].found.failures[0]


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_attention_has_curvature(engine: str) -> None:
    found = run([trial(arch="plugins:attention")], engine, Measure(at=[], hessian=CURVATURE)).moments[-1].found
    assert found.values["lambda_max"][0] > 0
