"""Any module that ``torch.func.vmap`` can vectorise, stacked; BatchNorm's running statistics like the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap

from trainables.engine import Engine, Hyperparameters, Loss, Minibatch, Tensors, is_shared, like, stacked
from trainables.functional import functional_call
from trainables.layers import layer_words
from trainables.optimizers import OPTIMIZERS


class StackedEngine(Engine):
    """Engines whose parameters are stacked tensors.

    Attributes:
        parameters: by name.
        buffers: likewise.
        optimizer: updates the parameters.
    """

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters, physical: int | None = None
    ) -> None:
        super().__init__(modules, loss, hyper, physical)
        self.parameters, self.buffers = stacked(modules)
        self.optimizer = OPTIMIZERS[str(hyper.settings["name"])](self.parameters, hyper)

    def state(self) -> tuple[Tensors, Tensors]:
        """See :meth:`Engine.state`."""
        return {k: v.detach() for k, v in self.parameters.items()}, self.buffers

    @torch.no_grad()
    def shift(self, displacement: Tensors) -> None:
        """See :meth:`Engine.shift`."""
        for name, w in self.parameters.items():
            w += displacement[name]

    def saved(self) -> Tensors:
        """See :meth:`Engine.saved`."""
        return {name: tensor.detach().clone() for name, tensor in self._all().items()}

    @torch.no_grad()
    def restore(self, saved: Tensors) -> None:
        """See :meth:`Engine.restore`."""
        for name, tensor in self._all().items():
            tensor.copy_(saved[name])

    def _all(self) -> Tensors:
        found = {"diverged_at": self.diverged_at, "stopped": self.stopped}
        for kind, tensors in {"parameter": self.parameters, "buffer": self.buffers, **self.optimizer.memory}.items():
            found |= {f"{kind} {name}": tensor for name, tensor in tensors.items()}
        return found


class VmapEngine(StackedEngine):
    """A forward pass of all trials at once, and its gradient."""

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters, physical: int | None = None
    ) -> None:
        super().__init__(modules, loss, hyper, physical)
        for w in self.parameters.values():
            w.requires_grad_()

    def step(self, batch: Minibatch, step: int, factor: float = 1.0) -> None:
        """See :meth:`Engine.step`."""
        if not self.module.training:
            self.module.train()
        first, *others = batch.pieces(self.physical)
        losses, share = self._backward(first, step, len(batch))
        gradients = dict(zip(self.parameters, _distinct(share), strict=True))
        for piece in others:
            loss, share = self._backward(piece, step, len(batch))
            losses += loss
            for total, more in zip(gradients.values(), share, strict=True):
                total += more
        active = self.mark_diverged(losses, step)
        with torch.no_grad():
            if self.noise is not None:
                self.noise.add(gradients.values(), step, batch.size)
            self.optimizer.update(self.parameters, gradients, self._rates(factor, active))

    def _backward(self, piece: Minibatch, step: int, n: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A piece's share of the mean loss, shape (trials,), and its gradient."""
        dims = (0, 0, None if is_shared(piece.inputs) else 0, None if piece.words is None else 0)
        inputs = piece.inputs[0] if dims[2] is None else piece.inputs
        outputs = vmap(self._call, in_dims=dims)(self.parameters, self.buffers, inputs, piece.words)
        sound = self.mark_diverged(outputs.detach().flatten(1).sum(1), step)
        outputs = torch.where(like(sound, outputs), outputs, 0)  # a loss may refuse what is not finite
        losses = self.losses(outputs, piece.targets).sum(1) / n
        return losses.detach(), torch.autograd.grad(losses.sum(), list(self.parameters.values()))

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        self.module.eval()
        if is_shared(inputs):
            return vmap(self._call, in_dims=(0, 0, None))(parameters, buffers, inputs[0])
        return vmap(self._call)(parameters, buffers, inputs)

    def _call(self, parameters: Tensors, buffers: Tensors, inputs: Tensor, words: Tensor | None = None) -> Tensor:
        with layer_words(words):
            return functional_call(self.module, (parameters, buffers), (inputs,))


def _distinct(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each in memory of its own, to be changed in place: of a sum, both terms get one and the same gradient."""
    seen: set[int] = set()
    for g in gradients:
        own = g.is_contiguous() and g.data_ptr() not in seen
        yield g if own else g.clone(memory_format=torch.contiguous_format)
        seen.add(g.data_ptr())
