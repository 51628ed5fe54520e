"""The step of dense nets, written out as batched matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trainables.engine import Hyperparameters, Loss, Minibatch, Tensors
from trainables.layers import ShapedReLU
from trainables.losses import as_values, cross_entropy
from trainables.vmapped import StackedEngine


class FusedEngine(StackedEngine):
    """Dense nets without normalization or dropout.

    For SGD no gradient is ever stored: the output gradient is scaled by each trial's learning rate, propagated, and
    subtracted from the weights by the very matrix product that forms the gradient, ``W -= (lr delta)^T h``; with
    momentum that product adds to the velocity. All else that SGD can be told, and Adam, take the gradient written down.

    Attributes:
        layers: names of weight and bias, from the inputs on.
        activation: between them.
    """

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters, physical: int | None = None
    ) -> None:
        super().__init__(modules, loss, hyper, physical)
        layers = [name for name, child in modules[0].named_children() if isinstance(child, nn.Linear)]
        self.layers = [(f"{name}.weight", f"{name}.bias") for name in layers]
        hidden = [c for c in modules[0].children() if not isinstance(c, nn.Linear | nn.Flatten)]
        self.activation = hidden[0] if hidden else nn.Identity()
        settings = hyper.settings
        plain = settings["name"] != "adam" and not settings["nesterov"] and not settings["decoupled"]
        self._in_place = plain and self.noise is None

    @torch.no_grad()
    def step(self, batch: Minibatch, step: int, factor: float = 1.0) -> None:
        """See :meth:`Engine.step`."""
        pieces = list(batch.pieces(self.physical))
        if self._in_place and len(pieces) == 1:
            ins, pre = self.forward(self.parameters, batch.inputs.flatten(2))
            losses, delta = self._output_gradient(pre[-1], batch.targets, len(batch))
            active = self.mark_diverged(losses, step)
            delta.masked_fill_(~active[:, None, None], 0)
            self._descend(ins, pre, delta, self._rates(factor, active))
            return
        gradients = {name: torch.zeros_like(w) for name, w in self.parameters.items()}
        losses = torch.zeros_like(self.hyper.lr)
        for piece in pieces:
            ins, pre = self.forward(self.parameters, piece.inputs.flatten(2))
            loss, delta = self._output_gradient(pre[-1], piece.targets, len(batch))
            losses += loss
            for (weight, bias), d, h in self._backward(ins, pre, delta):
                gradients[weight].baddbmm_(d.transpose(1, 2), h)
                gradients[bias] += d.sum(1)
        active = self.mark_diverged(losses, step)
        if self.noise is not None:
            self.noise.add(gradients.values(), step, batch.size)
        self.optimizer.update(self.parameters, gradients, self._rates(factor, active))

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        return self.forward(parameters, inputs.flatten(2))[1][-1]

    def forward(self, parameters: Tensors, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and pre-activations of every layer, each of shape (trials, n, units)."""
        ins: list[Tensor] = [inputs]
        pre: list[Tensor] = []
        for weight, bias in self.layers:
            if pre:
                ins.append(self.activation(pre[-1]))
            pre.append(torch.baddbmm(parameters[bias][:, None], ins[-1], parameters[weight].transpose(1, 2)))
        return ins, pre

    def _output_gradient(self, outputs: Tensor, targets: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Share of the mean loss over n examples, shape (trials,), and its gradient in the outputs."""
        if self.loss is cross_entropy:
            label = targets[..., None]
            shifted = outputs.sub_(outputs.amax(-1, keepdim=True))
            chosen, p = shifted.gather(-1, label), shifted.exp()
            total = p.sum(-1, keepdim=True)
            losses = (total.log() - chosen).sum((1, 2)) / n
            return losses, p.div_(total).scatter_add_(-1, label, torch.full_like(chosen, -1)).div_(n)
        error = outputs - as_values(targets, outputs)
        count = n * outputs.shape[-1]
        return error.square().sum((1, 2)) / count, error.mul_(2 / count)

    def _backward(
        self, ins: list[Tensor], pre: list[Tensor], delta: Tensor
    ) -> Iterator[tuple[tuple[str, str], Tensor, Tensor]]:
        """From the last layer on: its names, the gradient in its outputs, and its inputs.

        The weights of a layer may be changed as soon as it is yielded.
        """
        for k in range(len(self.layers) - 1, -1, -1):
            below = torch.bmm(delta, self.parameters[self.layers[k][0]]) if k else delta
            yield self.layers[k], delta, ins[k]
            if k:
                delta = _activation_backward(self.activation, below, pre[k - 1], ins[k])

    def _descend(self, ins: list[Tensor], pre: list[Tensor], delta: Tensor, lr: Tensor) -> None:
        """The update of SGD from the gradient in the outputs."""
        rate, velocity = lr[:, None, None], self.optimizer.memory.get("velocity")
        if velocity is None:
            delta.mul_(rate)
        for (weight, bias), d, h in self._backward(ins, pre, delta):
            w, b = self.parameters[weight], self.parameters[bias]
            if velocity is None:
                if self.optimizer.decays:
                    w.mul_(1 - rate * self.hyper.weight_decay[:, None, None])
                    b.mul_(1 - rate[:, 0] * self.hyper.weight_decay[:, None])
                w.baddbmm_(d.transpose(1, 2), h, alpha=-1)
                b.sub_(d.sum(1))
                continue
            v, u = velocity[weight], velocity[bias]
            v.mul_(self.hyper.momentum[:, None, None]).baddbmm_(d.transpose(1, 2), h)
            u.mul_(self.hyper.momentum[:, None]).add_(d.sum(1))
            if self.optimizer.decays:
                v.addcmul_(w, self.hyper.weight_decay[:, None, None])
                u.addcmul_(b, self.hyper.weight_decay[:, None])
            w.addcmul_(v, rate, value=-1)
            b.addcmul_(u, rate[:, 0], value=-1)


def _activation_backward(activation: nn.Module, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
    backward: Tensor
    aten = torch.ops.aten
    match activation:
        case nn.ReLU():
            backward = aten.threshold_backward(gradient, after, 0)
        case nn.Tanh():
            backward = aten.tanh_backward(gradient, after)
        case nn.GELU():
            backward = aten.gelu_backward(gradient, before)
        case ShapedReLU():
            slope = activation.negative / activation.positive
            backward = aten.leaky_relu_backward(gradient * activation.positive, before, slope, False)
        case _:
            raise TypeError(f"no backward pass is written out for {activation}")
    return backward
