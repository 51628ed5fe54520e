"""The covariance of per-example gradients against explicit gradients, the Gaussian problem and dense matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from dense import covariance, dense, example_gradients
from packs import run, study, trial, values
from scipy.stats import t as student
from torch import Tensor

from trainables import per_example
from trainables.curvature import spectrum
from trainables.findings import Finding, Rows, Value
from trainables.gradient_noise import gradient_noise
from trainables.per_example import squared_deviations
from trainables.settings import GradientNoise, Hessian, Measure
from trainables.study import Study

MLP = '{"activation":"%s","depth":2,"name":"mlp","width":5}'
SMALL = '{"activation":"tanh","depth":1,"name":"mlp","width":3}'
TIGHT = Hessian(top=3, tolerance=1e-10, max_iterations=300, trace_probes=1)


def deviations(seen: Study) -> Tensor:
    of, mean = seen.group, seen.by_parameter(seen.curvature_gradient)
    return squared_deviations(of.engine, of.parameters, of.buffers, seen.inputs, seen.targets, mean)


def explicit(seen: Study) -> Tensor:
    gradients = example_gradients(seen)
    return (gradients - gradients.mean(1, keepdim=True)).square().sum(2)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "plugins:quartic"])
@pytest.mark.parametrize(
    ("arch", "engines"),
    [
        *((MLP % activation, ["fused", "vmap", "loop"]) for activation in ("relu", "tanh", "gelu")),
        ("linear", ["fused", "vmap", "loop"]),
        *(
            (f"plugins:{name}", ["vmap", "loop"])
            for name in ("convnet", "with_batchnorm", "attention", "residual", "partly_frozen", "with_dropout")
        ),
        ("plugins:gated", ["loop"]),  # goes where the numbers say
        ("plugins:cubes", ["loop"]),  # a function that torch.func does not take
    ],
)
def test_squared_deviations_by_every_engine(arch: str, engines: list[str], loss: str) -> None:
    pack = [trial(arch=arch, loss=loss, seed=s, label_noise=0.3, input_noise=0.3) for s in range(2)]
    for name in engines:
        seen = study(pack, name, examples=9)
        torch.testing.assert_close(deviations(seen), explicit(seen), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("arch", ["plugins:convnet", "plugins:gated"])
@pytest.mark.parametrize("most", [1, 4])
def test_so_many_gradients_at_a_time(arch: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = study([trial(arch=arch), trial(arch=arch, seed=1)], examples=10)
    monkeypatch.setattr(per_example, "GRADIENT_BYTES", most * 8 * seen.hessian.shape[1])
    torch.testing.assert_close(deviations(seen), explicit(seen), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("engine", ["fused", "vmap"])
def test_single_precision(engine: str) -> None:
    single, double = (study([trial(precision=p)], engine) for p in ("float32", "float64"))
    torch.testing.assert_close(deviations(single), deviations(double), rtol=1e-4, atol=0)


GAUSSIAN = {"dataset": "plugins:gaussian", "arch": "plugins:constant", "loss": "plugins:half_squared_error", "lr": 0.01}


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_the_gaussian_problem(engine: str) -> None:
    """L = 1/2 ||theta - x||^2: g = theta - x, so that C is the covariance of the data, and H = I."""
    settings = Measure(
        at=[], hessian={"top": 4, "examples": 1000}, gradient_noise={"lambda_max": True, "probes": 3}, endpoints=True
    )
    pack = [trial(**GAUSSIAN, seed=s) for s in range(3)]
    done = run(pack, engine, settings)
    x = study(pack).group.data.dataset.train_targets
    c = covariance(x[None])[0]
    found = done.moments[-1].found
    for i, (parameters, _) in sorted(done.endpoints.items()):
        theta = parameters["theta"]
        v, e = ({name: float(of[i]) for name, of in table.items()} for table in (found.values, found.errors))
        assert v["gradient_covariance_trace"] == pytest.approx(float(c.trace()), rel=1e-12)
        assert v["noise_scale"] == pytest.approx(float(c.trace() / (theta - x.mean(0)).square().sum()), rel=1e-12)
        assert e["gradient_covariance_trace"] == e["noise_scale"] == 0
        assert v["covariance_lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(c)[-1]), rel=1e-12)
        assert v["covariance_frobenius"] == pytest.approx(float(c.norm()), rel=1e-12)
        assert v["covariance_alignment"] == pytest.approx(float(c.trace() / (c.norm() * sqrt(4))), rel=1e-12)
        assert v["covariance_top_fraction"] == pytest.approx(1, rel=1e-12)
        assert e["covariance_frobenius"] + e["covariance_alignment"] < 1e-12


def test_the_noise_scale_is_what_two_batch_sizes_say() -> None:
    """|G|^2 and tr C from the squared norms of mean gradients over batches of 4 and 32, drawn with replacement."""
    seen = study([trial(**GAUSSIAN)], "vmap")
    found = values(gradient_noise(seen, GradientNoise()))
    gradients, generator = example_gradients(seen)[0], torch.Generator().manual_seed(0)
    small, big, draws = 4, 32, 40_000

    def squared_norms(batch: int) -> Tensor:
        chosen = torch.randint(len(gradients), (draws, batch), generator=generator)
        return gradients[chosen].mean(1).square().sum(1)

    g_s, g_b = squared_norms(small), squared_norms(big)
    per_draw = (g_s - g_b) / (1 / small - 1 / big)
    trace, se = float(per_draw.mean()), float(per_draw.std()) / sqrt(draws)
    assert abs(float(found["gradient_covariance_trace"]) - trace) < 4 * se
    norm = (big * g_b - small * g_s) / (big - small)
    ratio = trace / float(norm.mean())
    relative = sqrt((se / trace) ** 2 + float(norm.var()) / draws / float(norm.mean()) ** 2)
    assert float(found["noise_scale"]) == pytest.approx(ratio, rel=4 * relative)


def named(findings: Iterable[Finding]) -> dict[str, Value]:
    return {f.name: f for f in findings if isinstance(f, Value)}


def many_data_sets(repetitions: int, train_size: int, examples: int) -> tuple[dict[str, Value], Tensor]:
    """What n of N examples say of tr C, for as many data sets as trials, and what it is.

    A linear net sees inputs of zero, so that its bias is the parameter of the Gaussian problem.
    """
    dataset = f'{{"dimension":8,"name":"plugins:gaussian","train_size":{train_size}}}'
    member = trial(dataset=dataset, arch="linear", loss="mse")
    one = study([member], "fused", examples=examples)
    shape = (repetitions, *one.group.data.dataset.train_targets.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    group = replace(
        one.group,
        trials=[member] * repetitions,
        inputs=one.group.inputs.take([0] * repetitions),
        parameters={k: v.expand(repetitions, *v.shape[1:]) for k, v in one.group.parameters.items()},
        targets=x,
    )
    found = named(gradient_noise(Study(group, one.settings, one.chunk), GradientNoise()))
    return found, (2 / 8) ** 2 * x.var(1, correction=0).sum(1)


@pytest.mark.parametrize(("train_size", "examples"), [(64, 32), (400, 40), (100, 90)])
def test_the_trace_is_unbiased_with_an_honest_error(train_size: int, examples: int) -> None:
    """t-intervals cover 93 to 97% of 4000 data sets of N examples."""
    repetitions = 4000
    found, truth = many_data_sets(repetitions, train_size, examples)
    _, value, error = found["gradient_covariance_trace"]
    off = value - truth
    assert abs(float(off.mean())) < 4 * float(off.std()) / sqrt(repetitions)
    assert float(error.square().mean()) == pytest.approx(float(off.square().mean()), rel=0.1)
    covered = (off.abs() <= student.ppf(0.975, examples - 1) * error).double().mean()
    assert 0.93 <= float(covered) <= 0.97
    _, scale, scale_error = found["noise_scale"]
    torch.testing.assert_close(scale_error / scale, error / value)


@pytest.mark.parametrize("examples", [2, 3])
def test_the_trace_is_unbiased_from_few_examples(examples: int) -> None:
    found, truth = many_data_sets(8000, 20, examples)
    off = found["gradient_covariance_trace"].value - truth
    assert abs(float(off.mean())) < 4 * float(off.std()) / sqrt(8000)


def with_top(pack: list, engine: str, examples: int = 30, hessian: Hessian = TIGHT) -> Study:
    """Trials whose top eigenvectors are known."""
    settings = Measure(at=[], hessian=hessian)
    seen = replace(study(pack, engine, examples=examples, chunk=13), settings=settings)
    list(spectrum(seen, hessian))
    return seen


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
@pytest.mark.parametrize("arch", ["linear", SMALL])
def test_against_dense_matrices(arch: str, engine: str) -> None:
    pack = [trial(arch=arch, seed=s, label_noise=0.2, input_noise=0.2) for s in range(2)]
    seen = with_top(pack, engine)
    findings = list(gradient_noise(seen, GradientNoise(lambda_max=True, probes=300)))
    found = named(findings)
    (profile,) = (f for f in findings if isinstance(f, Rows))
    assert (profile.table, profile.profile) == ("profiles", "covariance_along_eigenvectors")
    assert profile.columns["x"].tolist() == [0, 1, 2]
    for i, (h, c) in enumerate(zip(dense(seen.hessian), covariance(example_gradients(seen)), strict=True)):
        u = torch.linalg.eigh(h)[1].flip(1)[:, :3]
        along = (u * (c @ u)).sum(0) / c.trace()
        torch.testing.assert_close(profile.columns["value"][i], along, rtol=1e-6, atol=1e-9)
        assert float(found["covariance_top_fraction"].value[i]) == pytest.approx(float(along.sum()), rel=1e-7)
        largest = found["covariance_lambda_max"]
        assert float(largest.value[i]) == pytest.approx(float(torch.linalg.eigvalsh(c)[-1]), rel=1e-9)
        assert float(largest.error[i]) < 1e-8
        for name, truth in (
            ("covariance_frobenius", c.norm()),
            ("covariance_alignment", (c * h).sum() / (c.norm() * h.norm())),
        ):
            _, value, error = found[name]
            assert 0 < float(error[i]) < 0.1 * float(truth)
            assert abs(float(value[i] - truth)) < 4 * float(error[i])


@pytest.mark.parametrize("probes", [8, 40])
def test_jackknife_errors_are_honest(probes: int) -> None:
    """One net with the probes of 2000 seeds: t-intervals of Frobenius norm and alignment cover 93 to 97%."""
    repetitions, hessian = 2000, Hessian(top=2, tolerance=1e-8, max_iterations=70, trace_probes=1)
    seen = with_top([trial(arch=SMALL)], "fused", hessian=hessian)
    h, c = dense(seen.hessian)[0], covariance(example_gradients(seen))[0]
    place = [0] * repetitions
    group = replace(seen.group.take(place), trials=[trial(arch=SMALL, seed=s) for s in range(repetitions)])
    copies = Study(group, seen.settings, 1000, top=seen.top.take(place))
    found = named(gradient_noise(copies, GradientNoise(probes=probes)))
    for name, truth in (
        ("covariance_frobenius", c.norm()),
        ("covariance_alignment", (c * h).sum() / (c.norm() * h.norm())),
    ):
        _, value, error = found[name]
        covered = ((value - truth).abs() <= student.ppf(0.975, probes - 1) * error).double().mean()
        assert 0.93 <= float(covered) <= 0.97
        assert float(error.square().mean()) == pytest.approx(float(value.var()), rel=0.15)


def test_one_example_has_no_covariance() -> None:
    seen = with_top([trial()], "fused", examples=1)
    assert list(gradient_noise(seen, GradientNoise(lambda_max=True, probes=2))) == []


def test_one_probe_has_no_error() -> None:
    found = named(gradient_noise(with_top([trial()], "fused"), GradientNoise(probes=1)))
    assert found["covariance_alignment"].error.isnan().all()
    assert found["covariance_frobenius"].error.isnan().all()
    assert found["covariance_frobenius"].value.isfinite().all()


def test_without_a_hessian_there_is_nothing_to_align_with() -> None:
    with pytest.raises(ValueError, match="the alignment of C with H needs hessian, which is off"):
        Measure(hessian=False, gradient_noise={"probes": 4})
    settings = Measure(hessian={"at": []}, gradient_noise={"lambda_max": True, "probes": 4, "at": [1]})
    found = run([trial()], settings=settings).moments[1].found  # at this moment it is not measured
    assert {n for n in found.values if n.startswith(("covariance", "noise", "gradient_c"))} == {
        "gradient_covariance_trace",
        "noise_scale",
        "covariance_lambda_max",
    }
    assert found.rows == {}


def test_a_diverged_trial_leaves_its_neighbours_alone() -> None:
    settings = Measure(at=[1], hessian={"trace_probes": 2}, gradient_noise={"lambda_max": True, "probes": 3})
    pair = [trial(arch="linear", loss="mse", lr=lr, epochs=2) for lr in (0.01, 1e200)]
    together, alone = (run(pack, settings=settings).moments[-1].found.values for pack in (pair, pair[:1]))
    for name in ("gradient_covariance_trace", "covariance_lambda_max", "covariance_alignment"):
        assert together[name][0] == pytest.approx(alone[name][0], rel=1e-9)
        assert np.isfinite(alone[name][0])
