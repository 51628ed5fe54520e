"""How far each example's gradient lies from their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from trainables.engine import Engine, Tensors
from trainables.functional import functional_call
from trainables.fused import FusedEngine

GRADIENT_BYTES = 2**23
"""What the gradients of single examples may hold at a time: more leaves the caches."""


def squared_deviations(
    engine: Engine, parameters: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor, mean: Tensors
) -> Tensor:
    """||g_i - g||^2 for the loss gradient g_i of every example, in evaluation mode.

    Args:
        engine: whose net and loss.
        parameters: stacked, each of shape (trials, ...).
        buffers: likewise.
        inputs: shape (trials, n, ...).
        targets: shape (trials, n[, outputs]).
        mean: g, by parameter, stacked.

    Returns:
        shape (trials, n), float64.
    """
    if isinstance(engine, FusedEngine):
        return _dense(engine, parameters, inputs, targets, mean)
    chunk = max(1, GRADIENT_BYTES // sum(v[0].numel() * v.element_size() for v in parameters.values()))
    return torch.stack(
        [
            torch.cat([_alone(engine, trial, x, y) for x, y in zip(seen.split(chunk), of.split(chunk), strict=True)])
            for seen, of, trial in zip(inputs, targets, _members(parameters, buffers, mean), strict=True)
        ]
    )


def _dense(engine: FusedEngine, parameters: Tensors, inputs: Tensor, targets: Tensor, mean: Tensors) -> Tensor:
    """Of a layer the gradient is delta h', so with its mean M it is ||delta||^2 ||h||^2 - 2 delta'Mh + ||M||^2."""
    tracked = {k: v.detach().requires_grad_() for k, v in parameters.items()}
    hidden, outputs = engine.forward(tracked, inputs.flatten(2))
    deltas = torch.autograd.grad(engine.losses(outputs[-1], targets).sum(), outputs)
    total = torch.zeros(targets.shape[:2], dtype=torch.float64, device=inputs.device)
    for (weight, bias), delta, h in zip(engine.layers, deltas, hidden, strict=True):
        along = torch.baddbmm(mean[bias][:, None], h, mean[weight].transpose(1, 2))
        d = delta.double()
        constant = torch.cat([mean[name].double().flatten(1) for name in (weight, bias)], 1).square().sum(1)
        total += d.square().sum(2) * (1 + h.double().square().sum(2)) - 2 * (d * along).sum(2) + constant[:, None]
    return total.clamp(min=0).detach()


def _members(parameters: Tensors, buffers: Tensors, mean: Tensors) -> list[tuple[Tensors, Tensors, Tensors]]:
    trials = len(next(iter(parameters.values())))
    return [tuple({k: v[i] for k, v in t.items()} for t in (parameters, buffers, mean)) for i in range(trials)]  # type: ignore[misc]


def _alone(engine: Engine, trial: tuple[Tensors, Tensors, Tensors], inputs: Tensor, targets: Tensor) -> Tensor:
    """Of one trial, by the gradients themselves; shape (n,)."""
    parameters, buffers, mean = trial
    module, own = engine.member(buffers)

    def loss(values: Tensors, x: Tensor, y: Tensor) -> Tensor:
        return engine.losses(functional_call(module, (values, own), (x[None],))[None], y[None, None]).sum()

    try:
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    except (RuntimeError, ValueError):  # a module that torch.func cannot take: one example after the other
        tracked = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        losses = (loss(tracked, x, y) for x, y in zip(inputs, targets, strict=True))
        each = [torch.autograd.grad(of, list(tracked.values()), materialize_grads=True) for of in losses]
        gradients = {k: torch.stack(of) for k, of in zip(tracked, zip(*each, strict=True), strict=True)}
    lengths = [
        torch.linalg.vector_norm((g - mean[k]).flatten(1), dim=1, dtype=torch.float64) for k, g in gradients.items()
    ]
    return torch.stack(lengths).square().sum(0).detach()
