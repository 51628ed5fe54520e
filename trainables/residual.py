"""Whether residual branches move features down the loss: iterative inference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainables.architectures import Residual
from trainables.findings import Finding, Rows, Value
from trainables.functional import functional_call
from trainables.study import Study


def branch_cosines(study: Study) -> Iterator[Finding]:
    """Cosine of a residual branch's output f(h) and the negative gradient of an example's loss at its input h.

    Its mean over the curvature examples, for each block h -> shortcut(h) + f(h) in which f(h) has the shape of h, and
    the mean over these blocks. Blocks are numbered from 0 in the order of the forward pass; one that is used twice
    counts twice. Examples with f(h) = 0 or gradient 0 have no cosine and are left out. Nets without
    :class:`Residual` yield nothing.

    Source: Jastrzębski et al. 2018, arXiv:1710.04773, section 3 (there with the opposite sign).
    """
    if not any(isinstance(m, Residual) for m in study.group.engine.module.modules()):
        return
    cosines = torch.stack([_of_net(study, i, *net).nanmean(1) for i, net in enumerate(study.members())])
    yield Value("residual_cosine", cosines.nanmean(1), 0.0)
    columns = {"x": torch.arange(cosines.shape[1]), "value": cosines, "error": torch.zeros_like(cosines)}
    yield Rows("profiles", columns, "residual_cosine")


def _of_net(study: Study, trial: int, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
    """Cosines of one trial, shape (blocks, examples)."""
    engine = study.group.engine
    module, own = engine.member(buffers)
    passed: list[tuple[Tensor, Tensor]] = []  # input and output of each branch

    def note(branch: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        passed.append((arguments[0], output))

    branches = {m.branch for m in module.modules() if isinstance(m, Residual)}
    handles = [branch.register_forward_hook(note) for branch in branches]
    try:
        chunks = []
        for inputs, targets in zip(
            study.inputs[trial].split(study.chunk), study.targets[trial].split(study.chunk), strict=True
        ):
            passed.clear()
            outputs = functional_call(module, (parameters, own), (inputs.clone().requires_grad_(),))
            loss = engine.losses(outputs[None], targets[None]).sum()
            gradients = torch.autograd.grad(loss, [h for h, _ in passed], materialize_grads=True)
            chunks.append(torch.stack([_cosine(f, -g) for (_, f), g in zip(passed, gradients, strict=True)]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(chunks, 1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of each example's two vectors, shape (examples,); NaN where one is zero or their shapes differ."""
    if a.shape != b.shape:
        return torch.full((len(b),), torch.nan, dtype=torch.float64, device=b.device)
    a, b = a.detach().double().flatten(1), b.double().flatten(1)
    cosine: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return cosine
