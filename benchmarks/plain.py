"""The same trial written the usual way: a PyTorch loop, one net at a time; curvature by scipy on autograd products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from trainables.architectures import mlp
from trainables.datasets import load_dataset


def trial(config: dict[str, Any], epochs: int, hessian: dict[str, int] | None) -> dict[str, float]:
    """Trains on digits with plain SGD; measures at the start and the endpoint."""
    data = load_dataset("digits")
    x, y = data.train_inputs.float(), data.train_targets.clone()
    generator = torch.Generator().manual_seed(config["seed"])
    redrawn = torch.rand(len(y), generator=generator) < config["label_noise"]
    y[redrawn] = torch.randint(0, 10, (int(redrawn.sum()),), generator=generator)
    torch.manual_seed(config["seed"])
    net = mlp((64,), 10)
    lr, batch = config["ratio"] * config["batch_size"], config["batch_size"]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    found = measure(net, x, y, data.test_inputs.float(), data.test_targets, hessian)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(batch):
            loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return found | measure(net, x, y, data.test_inputs.float(), data.test_targets, hessian)


def measure(
    net: nn.Module, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, hessian: dict[str, int] | None
) -> dict[str, float]:
    """Losses, accuracies and gradient norm; if asked, the largest eigenvalues, trace and Frobenius norm."""
    parameters = list(net.parameters())
    loss = nn.functional.cross_entropy(net(x), y)
    gradient = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        out = net(test_x)
        values = {
            "train_loss": float(loss),
            "train_accuracy": float((net(x).argmax(1) == y).float().mean()),
            "test_loss": float(nn.functional.cross_entropy(out, test_y)),
            "test_accuracy": float((out.argmax(1) == test_y).float().mean()),
            "gradient_norm": float(flat(gradient).norm()),
        }
    return values | (curvature(net, x[: hessian["examples"]], y[: hessian["examples"]], **hessian) if hessian else {})


def curvature(net: nn.Module, x: Tensor, y: Tensor, top: int, trace_probes: int, examples: int) -> dict[str, float]:
    """Largest eigenvalues by scipy, trace and Frobenius norm by Hutchinson."""
    parameters = list(net.parameters())
    gradient = flat(torch.autograd.grad(nn.functional.cross_entropy(net(x), y), parameters, create_graph=True))

    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        v = torch.from_numpy(np.asarray(vector, dtype=np.float32).reshape(-1))
        return flat(torch.autograd.grad(gradient, parameters, v, retain_graph=True)).numpy()

    d = len(gradient)
    operator = LinearOperator((d, d), matvec=product, dtype=np.float32)
    largest = eigsh(operator, k=top, which="LA", tol=1e-3, return_eigenvectors=False)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (trace_probes, d)).astype(np.float32)
    products = np.stack([product(v) for v in signs])
    return {
        "lambda_max": float(largest.max()),
        "hessian_trace": float((signs * products).sum(1).mean()),
        "hessian_frobenius": float(np.sqrt(np.square(products).sum(1).mean())),
    }


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    """One vector."""
    return torch.cat([t.reshape(-1) for t in tensors])
