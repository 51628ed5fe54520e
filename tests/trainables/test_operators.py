"""Hessian-vector products against closed forms and against curvlinops."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from curvlinops import HessianLinearOperator
from packs import SMALL_TEACHER, engine_for, trial
from torch import Tensor, nn

from trainables.datasets import load_dataset
from trainables.engines import Engine
from trainables.operators import Hessian, gradient_and_outputs

ENGINES = ["fused", "vmap", "loop"]
TIGHT = {"rtol": 1e-8, "atol": 1e-12}


def dense(hessian: Hessian) -> Tensor:
    """All Hessians as matrices, shape (trials, d, d)."""
    trials, d = hessian.shape
    return torch.stack([hessian @ torch.eye(d, dtype=torch.float64)[i].expand(trials, d) for i in range(d)], 2)


def hessian_of(engine: Engine, inputs: Tensor, targets: Tensor, chunk: int = 1000) -> Hessian:
    return Hessian(engine, *engine.state(), inputs, targets, chunk)


def with_ones(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)


def by_weight_and_bias(blocks: Tensor, outputs: int, inputs: int) -> Tensor:
    """Reorders a Hessian in (output, (input, bias)) coordinates to (all weights, all biases)."""
    index = torch.arange(outputs * (inputs + 1)).view(outputs, inputs + 1)
    order = torch.cat([index[:, :-1].reshape(-1), index[:, -1]])
    return blocks[order][:, order]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk", [10, 4])
def test_linear_regression(engine: str, chunk: int) -> None:
    """(2/K) I (x) X'X/N, with ragged chunks 4 + 4 + 2: averaging chunk means is a classic wrong Hessian."""
    dataset = load_dataset("plugins:regression")
    pack = [trial(dataset="plugins:regression", arch="linear", loss="mse", seed=s) for s in range(3)]
    x, y = dataset.train_inputs[:10], dataset.train_targets[:10]
    found = dense(hessian_of(engine_for(pack, dataset, engine), x, y.expand(3, -1, -1), chunk))
    gram = with_ones(x).T @ with_ones(x) / 10
    expected = by_weight_and_bias(torch.kron(torch.eye(2, dtype=torch.float64), gram), 2, 4)
    for i in range(3):
        torch.testing.assert_close(found[i], expected, **TIGHT)


@pytest.mark.parametrize("engine", ENGINES)
def test_softmax_regression(engine: str) -> None:
    """mean[(diag p - pp') (x) xx'], for each trial its own parameters and labels."""
    dataset = load_dataset(SMALL_TEACHER)
    pack = [trial(arch="linear", seed=s) for s in range(2)]
    state = engine_for(pack, dataset, engine)
    x, y = dataset.train_inputs[:10], dataset.train_targets[:10].expand(2, -1)
    found = dense(hessian_of(state, x, y, chunk=4))
    p = state.outputs(*state.state(), x).softmax(-1)
    ones = with_ones(x)
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
    from trainables.engines import Hyperparameters, VmapEngine
    from trainables.losses import mse

    one = torch.ones(1, dtype=torch.float64)
    engine = VmapEngine([Chain(factors)], mse, Hyperparameters(one, one * 0, one * 0, (0,)))
    found = dense(hessian_of(engine, one[:, None], one[None, :, None]))[0] / 2
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
        hessian = hessian_of(engine, x, y.expand(2, -1), chunk=7)
        found = dense(hessian)
        gradient, outputs = gradient_and_outputs(engine, *engine.state(), x, y.expand(2, -1), chunk=7)
        for i, member in enumerate(pack):
            module = engine_for([member], dataset, "loop").module.eval()
            oracle = HessianLinearOperator(module, MeanLoss(engine), list(module.parameters()), [(x, y)])
            expected = oracle @ torch.eye(oracle.shape[1], dtype=torch.float64)
            torch.testing.assert_close(found[i], expected.detach(), rtol=1e-8, atol=1e-10)
            plain = torch.autograd.grad(
                engine.losses(module(x)[None], y[None]).mean(), list(module.parameters()), materialize_grads=True
            )
            torch.testing.assert_close(gradient[i], torch.cat([g.reshape(-1) for g in plain]), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(hessian.gradient()[i], gradient[i], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(outputs[i], module(x).detach(), rtol=1e-9, atol=1e-12)
