"""Products with H, the Gauss-Newton matrix and the gradient covariance: closed forms, plain autograd, curvlinops."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from dense import covariance, dense, example_gradients, nets
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import SMALL_TEACHER, engine_for, stepper, study, study_of, trial
from torch import Tensor, nn

from trainables.datasets import load_dataset
from trainables.engine import Engine, Hyperparameters
from trainables.losses import mse
from trainables.operators import (
    DenseHessian,
    GaussNewton,
    GradientCovariance,
    Hessian,
    Operator,
    gradient_and_outputs,
    hessian_of,
    in_chunks,
)
from trainables.study import Study
from trainables.vmapped import VmapEngine

ENGINES = ["fused", "vmap", "loop"]
TIGHT = {"rtol": 1e-8, "atol": 1e-12}
Kind = Callable[..., Operator]
HESSIAN_LIKE: list[Kind] = [hessian_of, GaussNewton]
ALL: list[Kind] = [*HESSIAN_LIKE, GradientCovariance]
MLP = '{"depth":2,"name":"mlp","width":5}'


def operator_of(kind: Kind, engine: Engine, inputs: Tensor, targets: Tensor, chunk: int = 1000) -> Operator:
    return kind(engine, *engine.state(), inputs, targets, chunk)


def of_study(kind: Kind, seen: Study) -> Operator:
    group = seen.group
    return kind(group.engine, group.parameters, group.buffers, seen.inputs, seen.targets, seen.chunk)


def with_ones(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)


def by_weight_and_bias(blocks: Tensor, outputs: int, inputs: int) -> Tensor:
    """Reorders a Hessian in (output, (input, bias)) coordinates to (all weights, all biases)."""
    index = torch.arange(outputs * (inputs + 1)).view(outputs, inputs + 1)
    order = torch.cat([index[:, :-1].reshape(-1), index[:, -1]])
    return blocks[order][:, order]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk", [10, 4])
@pytest.mark.parametrize("kind", HESSIAN_LIKE)
def test_linear_regression(kind: Kind, engine: str, chunk: int) -> None:
    """G = H = (2/K) I (x) X'X/N, with ragged chunks 4 + 4 + 2: averaging chunk means is a classic wrong Hessian."""
    dataset = load_dataset("plugins:regression")
    pack = [trial(dataset="plugins:regression", arch="linear", loss="mse", seed=s) for s in range(3)]
    x, y = dataset.train_inputs[:10], dataset.train_targets[:10]
    found = dense(operator_of(kind, engine_for(pack, dataset, engine), x.expand(3, -1, -1), y.expand(3, -1, -1), chunk))
    gram = with_ones(x).T @ with_ones(x) / 10
    expected = by_weight_and_bias(torch.kron(torch.eye(2, dtype=torch.float64), gram), 2, 4)
    for i in range(3):
        torch.testing.assert_close(found[i], expected, **TIGHT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", HESSIAN_LIKE)
def test_softmax_regression(kind: Kind, engine: str) -> None:
    """G = H = mean[(diag p - pp') (x) xx'], for each trial its own parameters and labels."""
    dataset = load_dataset(SMALL_TEACHER)
    pack = [trial(arch="linear", seed=s) for s in range(2)]
    state = engine_for(pack, dataset, engine)
    x, y = dataset.train_inputs[:10].expand(2, -1, -1), dataset.train_targets[:10].expand(2, -1)
    found = dense(operator_of(kind, state, x, y, chunk=4))
    p = state.outputs(*state.state(), x).softmax(-1)
    ones = with_ones(x[0])
    for i in range(2):
        terms = [
            torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(v, v)) for q, v in zip(p[i], ones, strict=True)
        ]
        torch.testing.assert_close(found[i], by_weight_and_bias(sum(terms) / 10, 10, 6).detach(), **TIGHT)


class Chain(nn.Module):
    """f = w_1 w_2 ... w_n x."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(factors, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w.prod()


@pytest.mark.parametrize("factors", [[0.5, 2.0, 1.5], [0.5, 2.0, 1.0]])
def test_deep_linear_chain(factors: list[float]) -> None:
    """(prod w - 1)^2 / 2 is half our mse: H_ii = P^2/w_i^2, H_ij = (2P^2 - P)/(w_i w_j); indefinite off the minimum."""
    one = torch.ones(1, dtype=torch.float64)
    engine = VmapEngine([Chain(factors)], mse, Hyperparameters.of([trial()], one))
    found = dense(operator_of(hessian_of, engine, one[None, :, None], one[None, :, None]))[0] / 2
    w, p = np.array(factors), prod(factors)
    expected = (2 * p * p - p) / np.outer(w, w)
    np.fill_diagonal(expected, p * p / w**2)
    np.testing.assert_allclose(found, expected, **TIGHT)
    if p == 1:
        assert np.linalg.matrix_rank(found.numpy(), tol=1e-9) == 1


class MeanLoss(nn.Module):
    reduction = "mean"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.engine.losses(outputs[None], targets[None]).mean()


def by_curvlinops(oracle: type, module: nn.Module, engine: Engine, x: Tensor, y: Tensor, vectors: Tensor) -> Tensor:
    """Products with columns of shape (d, k)."""
    operator = oracle(module, MeanLoss(engine), list(module.parameters()), [(x, y)])
    return (operator @ vectors).detach()


def probes(operator: Operator) -> Tensor:
    """Random columns for each trial, no entry 0, so that every entry of a matrix shows; shape (trials, d, 20)."""
    trials, d = operator.shape
    return torch.randn(trials, d, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def products(operator: Operator, columns: Tensor) -> Tensor:
    return torch.stack([operator @ v for v in columns.unbind(2)], 2)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "plugins:quartic"])
@pytest.mark.parametrize(
    ("arch", "engines"),
    [
        ('{"depth":2,"name":"mlp","width":5}', ENGINES),
        ('{"activation":"tanh","depth":1,"name":"mlp","width":5}', ENGINES),
        ("plugins:convnet", ["vmap", "loop"]),
        ("plugins:with_batchnorm", ["vmap", "loop"]),
    ],
)
def test_agrees_with_curvlinops(arch: str, engines: list[str], loss: str) -> None:
    dataset = load_dataset(SMALL_TEACHER)
    pack = [trial(arch=arch, loss=loss, seed=s, weight_decay=0.1) for s in range(2)]
    x, y = dataset.train_inputs[:20], dataset.train_targets[:20]
    for name in engines:
        if name == "fused" and ":" in loss:
            continue
        engine = engine_for(pack, dataset, name)
        data = x.expand(2, -1, -1), y.expand(2, -1)
        hessian, g = (operator_of(kind, engine, *data, chunk=7) for kind in HESSIAN_LIKE)
        vectors = probes(hessian)
        found = products(hessian, vectors), products(g, vectors)
        gradient, outputs = gradient_and_outputs(engine, *engine.state(), in_chunks(*data, 7), 20)
        for i, member in enumerate(pack):
            module = engine_for([member], dataset, "loop").module.eval()
            for oracle, ours in zip((HessianLinearOperator, GGNLinearOperator), found, strict=True):
                expected = by_curvlinops(oracle, module, engine, x, y, vectors[i])
                torch.testing.assert_close(ours[i], expected, rtol=1e-8, atol=1e-10)
            plain = torch.autograd.grad(
                engine.losses(module(x)[None], y[None]).mean(), list(module.parameters()), materialize_grads=True
            )
            torch.testing.assert_close(gradient[i], torch.cat([g.reshape(-1) for g in plain]), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(hessian.gradient()[i], gradient[i], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(outputs[i], module(x).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_written_out_and_differentiated_products_are_the_same(depth: int, loss: str) -> None:
    arch = f'{{"depth":{depth},"name":"mlp","width":9}}' if depth else "linear"
    pack = [trial(arch=arch, loss=loss, seed=s, input_noise=0.3) for s in range(3)]
    seen = study(pack, "fused", examples=20, chunk=7)
    written, differentiated = of_study(hessian_of, seen), of_study(Hessian, seen)
    assert isinstance(written, DenseHessian)
    v = torch.randn(written.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(written @ v, differentiated @ v, rtol=1e-12, atol=1e-14)
    assert isinstance(written.take([1]), DenseHessian)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_resnet_whose_running_statistics_have_moved(engine: str) -> None:
    """H and G in evaluation mode against curvlinops, after a few steps of training."""
    pack = [trial(dataset="digits", arch="plugins:resnet", seed=s, lr=0.2) for s in range(2)]
    trained = stepper(pack, engine, examples=10)
    before = {k: v.clone() for k, v in trained.engine.state()[1].items()}
    trained.advance(0, 4)
    seen = study_of(trained, 4, chunk=4)
    moved = [k for k, v in seen.group.buffers.items() if k.endswith(("running_mean", "running_var"))]
    assert len(moved) == 14
    assert all((seen.group.buffers[k] - before[k]).abs().max() > 0.01 for k in moved)
    for kind, oracle in ((hessian_of, HessianLinearOperator), (GaussNewton, GGNLinearOperator)):
        operator = of_study(kind, seen)
        vectors = probes(operator)
        found = products(operator, vectors)
        for i, module in enumerate(nets(seen)):
            expected = by_curvlinops(oracle, module, trained.engine, seen.inputs[i], seen.targets[i], vectors[i])
            torch.testing.assert_close(found[i], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("loss", "chunk"), [("cross_entropy", 10), ("cross_entropy", 4), ("plugins:quartic", 4)])
@pytest.mark.parametrize(
    ("arch", "engines"),
    [
        ("linear", ENGINES),
        (MLP, ENGINES),
        *(
            (f"plugins:{name}", ["vmap", "loop"])
            for name in ("convnet", "with_batchnorm", "attention", "partly_frozen")
        ),
        ("plugins:gated", ["loop"]),
        ("plugins:cubes", ["loop"]),
    ],
)
def test_covariance_of_explicit_gradients(arch: str, engines: list[str], chunk: int, loss: str) -> None:
    pack = [trial(arch=arch, loss=loss, seed=s, label_noise=0.3, input_noise=0.3) for s in range(3)]
    for engine in engines:
        seen = study(pack, engine, examples=10, chunk=chunk)
        expected = covariance(example_gradients(seen))
        torch.testing.assert_close(dense(of_study(GradientCovariance, seen)), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_linear_loss_has_no_gauss_newton_matrix(engine: str) -> None:
    seen = study([trial(arch=MLP, loss="plugins:linear_loss")], engine, examples=10)
    assert not dense(of_study(GaussNewton, seen)).any()
    assert dense(of_study(hessian_of, seen)).norm() > 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("noise", [0, 0.3])
def test_some_of_the_trials(noise: float, kind: Kind, engine: str) -> None:
    """take: rows of the product; taken once more, rows of those."""
    pack = [trial(arch=MLP, seed=s, label_noise=0.3, input_noise=noise) for s in range(5)]
    whole = of_study(kind, study(pack, engine, chunk=20))
    vectors = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = whole @ vectors
    for part in ([3], [4, 0, 2], [1, 1]):
        some = whole.take(part)
        assert some.shape == (len(part), whole.shape[1])
        torch.testing.assert_close(some @ vectors[part], product[part], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(some.take([0]) @ vectors[part[:1]], product[part[:1]], rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ALL),
    st.sampled_from([(MLP, "fused"), (MLP, "vmap"), ("plugins:with_batchnorm", "vmap"), ("plugins:convnet", "loop")]),
    st.sampled_from(["cross_entropy", "mse", "plugins:quartic"]),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_symmetric_linear_and_of_the_right_sign(
    kind: Kind, net: tuple[str, str], loss: str, chunk: int, seed: int
) -> None:
    """v'Aw = w'Av, A(v + cw) = Av + cAw; G and C are positive semidefinite where the loss is convex."""
    arch, engine = net
    operator = of_study(
        kind, study([trial(arch=arch, loss=loss, seed=s) for s in (seed, 7)], engine, examples=11, chunk=chunk)
    )
    v, w = torch.randn(2, *operator.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    av, aw = operator @ v, operator @ w
    size = av.norm() * w.norm()
    assert ((v * aw).sum(1) - (w * av).sum(1)).abs().max() <= 1e-12 * size
    assert (operator @ (v - 3 * w) - av + 3 * aw).abs().max() <= 1e-12 * size
    if kind is not hessian_of:
        assert (v * av).sum(1).min() >= -1e-12 * size


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("chunk", [20, 7])
@pytest.mark.parametrize("kind", ALL)
def test_a_fixed_configuration_gives_the_same_bits(kind: Kind, chunk: int, precision: str) -> None:
    for arch, engine in ((MLP, "fused"), (MLP, "vmap"), ("plugins:resnet", "loop")):
        pack = [trial(dataset="digits", arch=arch, seed=s, precision=precision) for s in range(2)]
        first, second = (of_study(kind, study(pack, engine, examples=20, chunk=chunk)) for _ in range(2))
        vectors = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, precision))
        product = first @ vectors
        assert product.dtype == vectors.dtype
        assert torch.equal(product, second @ vectors)
        assert torch.equal(product, first @ vectors)


def test_weight_decay_enters_none_of_them() -> None:
    seen = study([trial(arch=MLP, weight_decay=d) for d in (0.0, 0.5)], "fused")
    for kind in ALL:
        without, with_ = dense(of_study(kind, seen))
        assert torch.equal(without, with_)
