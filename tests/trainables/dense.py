"""Small nets in full, by plain autograd: what products and estimates are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from packs import engine_for
from torch import Tensor, nn

from trainables.operators import Operator
from trainables.study import Study


def dense(operator: Operator) -> Tensor:
    """All matrices, from their products with unit vectors; shape (trials, d, d)."""
    trials, d = operator.shape
    like = next(iter(operator.parameters.values()))
    return torch.stack([operator @ row.expand(trials, d) for row in torch.eye(d).to(like)], 2)


def nets(study: Study) -> Iterator[nn.Module]:
    """Every trial as a plain module in evaluation mode."""
    for trial, (parameters, buffers) in zip(study.group.trials, study.members(), strict=True):
        module = engine_for([trial], study.group.data.dataset, "loop").module.eval()
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                tensor.copy_((parameters | buffers)[name])
        yield module


def example_gradients(study: Study) -> Tensor:
    """Of the loss of one curvature example after the other; shape (trials, n, d)."""
    found = []
    for module, inputs, targets in zip(nets(study), study.inputs, study.targets, strict=True):
        tracked = [p for p in module.parameters() if p.requires_grad]
        for x, y in zip(inputs, targets, strict=True):
            loss = study.group.engine.losses(module(x[None])[None], y[None, None]).sum()
            gradient = torch.autograd.grad(loss, tracked, materialize_grads=True)
            found.append(torch.cat([g.reshape(-1) for g in gradient]))
    return torch.stack(found).view(*study.targets.shape[:2], -1)


def covariance(gradients: Tensor) -> Tensor:
    """C of gradients of shape (trials, n, d); shape (trials, d, d)."""
    off = gradients - gradients.mean(1, keepdim=True)
    return off.transpose(1, 2) @ off / off.shape[1]
