"""Products of stacked Hessians with stacked vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.engines import Engine, Tensors

GRAPH_BYTES = 2**30
"""What the graphs of one trial group may hold; together with the net it fixes how examples are chunked."""

MAX_CHUNK = 2048
"""Most examples in one forward pass; fixed, since sums depend on it in the last bits."""

MAX_GROUP = 16
"""Trials whose products are formed together: more no longer helps, and the vectors leave the caches."""


class Hessian:
    """H of the mean loss of every trial over fixed examples, evaluation mode, weight decay excluded.

    A product is one backward pass through the retained graph of the gradient (Pearlmutter 1994), so the forward
    pass is paid once. Where the examples do not fit one graph they are chunked, each chunk weighted by its share, and
    graphs are built anew for each product.

    Args:
        engine: whose net and loss.
        parameters: stacked, each of shape (trials, ...).
        buffers: likewise.
        inputs: shared by all trials, shape (n, ...).
        targets: per trial, shape (trials, n[, outputs]).
        chunk: most examples in one graph.

    Attributes:
        shape: (trials, number of parameters).
    """

    def __init__(
        self,
        engine: Engine,
        parameters: Tensors,
        buffers: Tensors,
        inputs: Tensor,
        targets: Tensor,
        chunk: int,
    ) -> None:
        self.engine = engine
        self.parameters = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        self.buffers = buffers
        self.inputs, self.targets, self.chunk = inputs, targets, chunk
        trials = targets.shape[0]
        self.shape = (trials, sum(v[0].numel() for v in parameters.values()))
        self._retained = self._gradient(slice(None)) if len(inputs) <= chunk else None

    def gradient(self) -> Tensor:
        """Gradient of the mean loss, shape (trials, parameters)."""
        parts = (_flatten(g).detach() for g in self._gradients())
        return sum(parts, torch.zeros(self.shape, dtype=self.inputs.dtype, device=self.inputs.device))

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """H v for every trial; vectors and result of shape (trials, parameters)."""
        product = torch.zeros_like(vectors)
        pieces = self._unflatten(vectors)
        for gradients in self._gradients():
            # a parameter in which the loss is at most linear has no graph of its gradient, and a zero block
            tracked = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g.requires_grad]
            if not tracked:
                continue
            kept = self._retained is not None
            second = torch.autograd.grad(
                [g for g, _ in tracked],
                list(self.parameters.values()),
                [v for _, v in tracked],
                retain_graph=kept,
                materialize_grads=True,
            )
            product += _flatten(second)
        return product

    def _gradients(self) -> Iterator[tuple[Tensor, ...]]:
        if self._retained is not None:
            yield self._retained
            return
        for start in range(0, len(self.inputs), self.chunk):
            yield self._gradient(slice(start, start + self.chunk))

    def _gradient(self, part: slice) -> tuple[Tensor, ...]:
        """Gradient of the chunk's share of the mean loss, with its graph."""
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            outputs = self.engine.outputs(self.parameters, self.buffers, self.inputs[part])
        loss = self.engine.losses(outputs, self.targets[:, part]).sum() / len(self.inputs)
        return torch.autograd.grad(loss, list(self.parameters.values()), create_graph=True, materialize_grads=True)

    def _unflatten(self, vectors: Tensor) -> list[Tensor]:
        values = list(self.parameters.values())
        return [
            piece.view_as(value)
            for piece, value in zip(vectors.split([v[0].numel() for v in values], 1), values, strict=True)
        ]


def graph_bytes(engine: Engine, inputs: Tensor) -> int:
    """Memory that the graph of a gradient takes per trial and example, counted from the outputs of all modules."""
    counted = 0

    def count(module: object, arguments: object, output: object) -> None:
        nonlocal counted
        if isinstance(output, Tensor):
            counted += output.numel()

    handles = [m.register_forward_hook(count) for m in engine.module.modules()]
    try:
        with torch.no_grad():
            engine.module.eval()(inputs[:1].to(next(engine.module.parameters())))
    finally:
        for handle in handles:
            handle.remove()
    return 6 * counted * inputs.element_size()  # forward, backward, and what the second backward keeps of both


def chunk_and_group(engine: Engine, inputs: Tensor) -> tuple[int, int]:
    """Examples per graph and trials per group: a fixed rule, so that numbers depend on the net alone."""
    per_example = max(1, graph_bytes(engine, inputs))
    chunk = max(1, min(MAX_CHUNK, GRAPH_BYTES // per_example))
    return chunk, max(1, min(MAX_GROUP, GRAPH_BYTES // (per_example * min(chunk, len(inputs)))))


def gradient_and_outputs(
    engine: Engine, parameters: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss, shape (trials, parameters), and outputs, (trials, n, outputs), in one pass."""
    tracked = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
    outputs, gradient = [], []
    for start in range(0, len(inputs), chunk):
        part = slice(start, start + chunk)
        outputs.append(engine.outputs(tracked, buffers, inputs[part]))
        loss = engine.losses(outputs[-1], targets[:, part]).sum() / len(inputs)
        gradient.append(_flatten(torch.autograd.grad(loss, list(tracked.values()), materialize_grads=True)))
        outputs[-1] = outputs[-1].detach()
    return torch.stack(gradient).sum(0), torch.cat(outputs, 1)


def _flatten(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(t.shape[0], -1) for t in tensors], 1)
