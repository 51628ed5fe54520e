"""Matrices of stacked trials that are known only by their products with stacked vectors.

The Hessian H, the Gauss-Newton matrix G and the covariance C of the per-example gradients, each of the mean loss over
fixed examples, in evaluation mode, weight decay excluded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.engine import Engine, Tensors, take
from trainables.fused import FusedEngine
from trainables.layers import convolves

GRAPH_BYTES = 2**30
"""What the graphs of one trial group may hold; together with the net it fixes how examples are chunked."""

VECTOR_BYTES = 2**31
"""What the Lanczos basis and other stored vectors of one trial group may hold."""

MAX_CHUNK = 2048
"""Most examples in one forward pass; fixed, since sums depend on it in the last bits."""

MAX_GROUP = 16
"""Trials whose products are formed together: more no longer helps, and the vectors leave the caches."""


class Operator(ABC):
    """A symmetric matrix for every trial.

    Where the examples fit one graph it is recorded once and every product passes through it; else they are chunked,
    each chunk weighted by its share, and graphs are recorded anew for each product.

    Args:
        engine: whose net and loss.
        parameters: stacked, each of shape (trials, ...).
        buffers: likewise.
        inputs: shape (trials, n, ...), expanded where trials share them.
        targets: shape (trials, n[, outputs]).
        chunk: most examples in one graph.

    Attributes:
        shape: (trials, number of parameters).
    """

    def __init__(
        self, engine: Engine, parameters: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor, chunk: int
    ) -> None:
        self.engine = engine
        self.parameters = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        self.buffers = buffers
        self.inputs, self.targets, self.chunk = inputs, targets, chunk
        self.shape = (targets.shape[0], sum(v[0].numel() for v in parameters.values()))
        self._values = list(self.parameters.values())
        self._recorded = self._record(slice(None)) if inputs.shape[1] <= chunk else None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product for every trial; vectors and result of shape (trials, parameters)."""
        product = torch.zeros_like(vectors)
        pieces = self._unflatten(vectors)
        for graph in self._graphs():
            product += _flatten(self._multiply(graph, pieces, keep=self._recorded is not None))
        return product

    def gradient(self) -> Tensor:
        """Gradient of the mean loss, shape (trials, parameters)."""
        batches = in_chunks(self.inputs, self.targets, self.chunk)
        return gradient_and_outputs(self.engine, self.parameters, self.buffers, batches, self._n)[0]

    def take(self, part: list[int]) -> Self:
        """The same for some of the trials."""
        parameters, buffers = ({k: v[part] for k, v in t.items()} for t in (self.parameters, self.buffers))
        data = take(self.inputs, part), take(self.targets, part)
        return type(self)(self.engine, parameters, buffers, *data, self.chunk)

    @property
    def _n(self) -> int:
        return self.inputs.shape[1]

    @abstractmethod
    def _record(self, part: slice) -> Any:
        """The graph of some examples' share of the mean loss."""

    @abstractmethod
    def _multiply(self, graph: Any, vectors: list[Tensor], *, keep: bool) -> tuple[Tensor, ...]:
        """Their share of the product, by parameter."""

    def _outputs(self, part: slice) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return self.engine.outputs(self.parameters, self.buffers, self.inputs[:, part])

    def _graphs(self) -> Iterator[Any]:
        if self._recorded is not None:
            yield self._recorded
            return
        for start in range(0, self._n, self.chunk):
            yield self._record(slice(start, start + self.chunk))

    def _unflatten(self, vectors: Tensor) -> list[Tensor]:
        pieces = vectors.split([v[0].numel() for v in self._values], 1)
        return [piece.view_as(value) for piece, value in zip(pieces, self._values, strict=True)]


class Hessian(Operator):
    """H of the mean loss.

    A product is one backward pass through the graph of the gradient (Pearlmutter 1994): reverse over reverse. By
    benchmarks/products.py it is the rule because a kept graph is as fast as kept forward-over-reverse, within a fifth,
    in a quarter of the memory, and either takes about half the time of what has to be recorded anew.
    """

    def _record(self, part: slice) -> tuple[Tensor, ...]:
        loss = self.engine.losses(self._outputs(part), self.targets[:, part]).sum() / self._n
        return torch.autograd.grad(loss, self._values, create_graph=True, materialize_grads=True)

    def _multiply(self, graph: tuple[Tensor, ...], vectors: list[Tensor], *, keep: bool) -> tuple[Tensor, ...]:
        # a parameter in which the loss is at most linear has no graph of its gradient, and a zero block
        tracked = [(g, v) for g, v in zip(graph, vectors, strict=True) if g.requires_grad]
        if not tracked:
            return tuple(torch.zeros_like(v) for v in vectors)
        return torch.autograd.grad(
            [g for g, _ in tracked],
            self._values,
            [v for _, v in tracked],
            retain_graph=keep,
            materialize_grads=True,
        )


class _Layers(NamedTuple):
    """What a product with the Hessian of a dense net needs of the forward and the backward pass.

    Attributes:
        inputs: h of each layer, shape (trials, examples, units).
        active: where each hidden layer's units are, as 0 or 1.
        deltas: gradient of the loss in each layer's outputs.
        outputs: of the net.
        slope: gradient of the loss in them, with its graph.
    """

    inputs: list[Tensor]
    active: list[Tensor]
    deltas: list[Tensor]
    outputs: Tensor
    slope: Tensor


class DenseHessian(Operator):
    """H of the mean loss of a dense net of ReLU layers: the same product, written out.

    With z = h W' + b, the next h = relu(z) and the gradient d of the loss in z, the tangents along (V, c) are
    Rz = h V' + Rh W' + c and, where the unit below is active, Rd W + d V; the product is Rd'h + d'Rh and the sum of Rd.
    """

    engine: FusedEngine

    def _record(self, part: slice) -> _Layers:
        inputs, pre = self.engine.forward(self.parameters, self.inputs[:, part].flatten(2))
        outputs = pre[-1].detach().requires_grad_()
        loss = self.engine.losses(outputs, self.targets[:, part]).sum() / self._n
        (slope,) = torch.autograd.grad(loss, outputs, create_graph=True)
        deltas = torch.autograd.grad(pre[-1], pre, slope.detach())
        active = [(z > 0).to(z) for z in pre[:-1]]
        return _Layers([h.detach() for h in inputs], active, list(deltas), outputs, slope)

    def _multiply(self, graph: _Layers, vectors: list[Tensor], *, keep: bool) -> tuple[Tensor, ...]:
        along = dict(zip(self.parameters, vectors, strict=True))
        with torch.no_grad():
            tangents: list[Tensor] = []  # Rh of each layer's inputs from the second on, then of the outputs
            for k, (weight, bias) in enumerate(self.engine.layers):
                tangent = torch.baddbmm(along[bias][:, None], graph.inputs[k], along[weight].mT)
                if k:
                    tangent.baddbmm_(tangents[-1], self.parameters[weight].mT)
                tangents.append(tangent.mul_(graph.active[k]) if k < len(graph.active) else tangent)
        delta = _along(graph.slope, graph.outputs, tangents[-1])
        product: Tensors = {}
        with torch.no_grad():
            for k in range(len(tangents) - 1, -1, -1):
                weight, bias = self.engine.layers[k]
                product[weight], product[bias] = torch.bmm(delta.mT, graph.inputs[k]), delta.sum(1)
                if k:
                    product[weight].baddbmm_(graph.deltas[k].mT, tangents[k - 1])
                    delta = torch.bmm(delta, self.parameters[weight]).baddbmm_(graph.deltas[k], along[weight])
                    delta.mul_(graph.active[k - 1])
        return tuple(product[name] for name in self.parameters)


def _along(slope: Tensor, outputs: Tensor, tangent: Tensor) -> Tensor:
    """Derivative of the loss gradient in the outputs, kept with its graph, along a tangent; 0 for a linear loss."""
    if not slope.requires_grad:
        return torch.zeros_like(tangent)
    return torch.autograd.grad(slope, outputs, tangent, retain_graph=True, materialize_grads=True)[0]


def hessian_of(engine: Engine, *arguments: Any) -> Operator:
    """The Hessian, its products written out where the net allows it; for arguments see :class:`Operator`."""
    written_out = isinstance(engine, FusedEngine) and isinstance(engine.activation, nn.ReLU | nn.Identity)
    return (DenseHessian if written_out else Hessian)(engine, *arguments)


class _Factored(Operator):
    """A'MA, where A is the Jacobian of some function of the parameters and M is block-diagonal over examples.

    A v is the derivative, in u, of the vector-Jacobian product A'u, which is linear in u: no forward mode is needed.
    """

    def _record(self, part: slice) -> tuple[Tensor, Tensor, tuple[Tensor, ...], slice]:
        values = self._function(part)
        cotangent = torch.zeros_like(values, requires_grad=True)
        transposed = torch.autograd.grad(values, self._values, cotangent, create_graph=True, materialize_grads=True)
        return values, cotangent, transposed, part

    def _multiply(self, graph: Any, vectors: list[Tensor], *, keep: bool) -> tuple[Tensor, ...]:
        values, cotangent, transposed, part = graph
        tracked = [(g, v) for g, v in zip(transposed, vectors, strict=True) if g.requires_grad]
        (tangent,) = torch.autograd.grad(
            [g for g, _ in tracked], [cotangent], [v for _, v in tracked], retain_graph=True
        )
        middle = self._middle(values, tangent, vectors, part) / self._n
        return torch.autograd.grad(values, self._values, middle, retain_graph=keep, materialize_grads=True)

    @abstractmethod
    def _function(self, part: slice) -> Tensor:
        """Whose Jacobian A is; shape (trials, examples, ...)."""

    @abstractmethod
    def _middle(self, values: Tensor, tangent: Tensor, vectors: list[Tensor], part: slice) -> Tensor:
        """M A v, of the shape of the values."""


class GaussNewton(_Factored):
    """G = mean of J' (Hessian of the loss in the outputs) J, with J the Jacobian of an example's outputs.

    Source:
        Schraudolph 2002.
    """

    def _function(self, part: slice) -> Tensor:
        return self._outputs(part)

    def _middle(self, values: Tensor, tangent: Tensor, vectors: list[Tensor], part: slice) -> Tensor:
        with torch.enable_grad():
            outputs = values.detach().requires_grad_()
            losses = self.engine.losses(outputs, self.targets[:, part])
            (first,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
        return _along(first, outputs, tangent)


class GradientCovariance(_Factored):
    """C = mean of (g_i - g)(g_i - g)' over the examples, with g_i an example's gradient and g their mean."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._mean = self._unflatten(self.gradient())

    def _function(self, part: slice) -> Tensor:
        return self.engine.losses(self._outputs(part), self.targets[:, part])

    def _middle(self, values: Tensor, tangent: Tensor, vectors: list[Tensor], part: slice) -> Tensor:
        pairs = zip(self._mean, vectors, strict=True)
        return tangent - sum((m * v).flatten(1).sum(1) for m, v in pairs)[:, None]  # type: ignore[index]


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


def chunk_and_group(engine: Engine, inputs: Tensor, vectors: int) -> tuple[int, int]:
    """Examples per graph and trials per group: a fixed rule, so that numbers depend on the net alone.

    Args:
        engine: whose net.
        inputs: the training set, shape (N, ...).
        vectors: how many vectors of the size of the parameters are kept for each trial.
    """
    per_example = max(1, graph_bytes(engine, inputs))
    chunk = max(1, min(MAX_CHUNK, GRAPH_BYTES // per_example))
    if _is_faster_alone(engine.module, inputs.device):
        return chunk, 1
    parameters = sum(p.numel() for p in engine.module.parameters())
    fitting = min(
        GRAPH_BYTES // (per_example * min(chunk, len(inputs))),
        VECTOR_BYTES // (parameters * inputs.element_size() * max(1, vectors)),
    )
    return chunk, max(1, min(MAX_GROUP, fitting))


def _is_faster_alone(module: nn.Module, device: torch.device) -> bool:
    """Stacked convolutions gain nothing on a CPU, and their memory goes to and fro; see benchmarks/products.py."""
    return device.type == "cpu" and convolves(module)


def in_chunks(inputs: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of at most ``size`` examples at a time, each of shape (trials, size, ...)."""
    return zip(inputs.split(size, 1), targets.split(size, 1), strict=True)


def gradient_and_outputs(
    engine: Engine, parameters: Tensors, buffers: Tensors, batches: Iterable[tuple[Tensor, Tensor]], n: int
) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss, shape (trials, parameters), and outputs, (trials, n, outputs), in one pass.

    Args:
        engine: whose net and loss.
        parameters: stacked.
        buffers: likewise.
        batches: inputs and targets, one chunk after the other, of shape (trials, chunk, ...).
        n: examples in all chunks.
    """
    tracked = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
    outputs, total = [], torch.zeros(0)
    for inputs, targets in batches:
        outputs.append(engine.outputs(tracked, buffers, inputs))
        loss = engine.losses(outputs[-1], targets).sum() / n
        gradient = _flatten(torch.autograd.grad(loss, list(tracked.values()), materialize_grads=True))
        total = total.add_(gradient) if len(outputs) > 1 else gradient
        outputs[-1] = outputs[-1].detach()
    return total, torch.cat(outputs, 1)


def _flatten(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.reshape(t.shape[0], -1) for t in tensors], 1)
