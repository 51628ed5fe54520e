"""The reference: one module and one ``torch.optim`` optimizer per trial, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.engine import Engine, Hyperparameters, Loss, Minibatch, Tensors, stacked
from trainables.functional import functional_call
from trainables.layers import layer_words
from trainables.streams import layer_seed

MEMBER = "isoratio.member"
"""Which module a trial of the loop belongs to, carried among its buffers."""


class LoopEngine(Engine):
    """A plain PyTorch loop, which takes any module."""

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters, physical: int | None = None
    ) -> None:
        super().__init__(modules, loss, hyper, physical)
        self.modules = list(modules)
        self.optimizers = [_optimizer(module, hyper, i) for i, module in enumerate(modules)]

    def step(self, batch: Minibatch, step: int, factor: float = 1.0) -> None:
        """See :meth:`Engine.step`."""
        losses = torch.zeros_like(self.hyper.lr)
        for i in self.active.nonzero()[:, 0].tolist():
            module, optimizer = self.modules[i], self.optimizers[i]
            with _seeded(layer_seed(self.hyper.seeds[i]) + step, self.hyper.lr.device):
                optimizer.zero_grad()
                losses[i] = loss = self._backward(module, _alone(batch, i))
            if loss.isfinite():
                if self.noise is not None:
                    gradients = (p.grad[None] for p in module.parameters() if p.grad is not None)
                    self.noise.take(slice(i, i + 1)).add(gradients, step, batch.size)
                _update(optimizer, float(self.hyper.lr[i]) * factor)
        self.mark_diverged(losses, step)

    def _backward(self, module: nn.Module, batch: Minibatch) -> Tensor:
        """Mean loss of a minibatch of one trial; its gradient, the sum over pieces, is left in the module."""
        if not module.training:
            module.train()
        losses = []
        for piece in batch.pieces(self.physical):
            with layer_words(None if piece.words is None else piece.words[0]):
                outputs = module(piece.inputs[0])
            loss = self._losses(outputs, piece.targets[0]).sum() / len(batch)
            loss.backward()
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def state(self) -> tuple[Tensors, Tensors]:
        """See :meth:`Engine.state`."""
        parameters, buffers = stacked(self.modules)
        return parameters, buffers | {MEMBER: torch.arange(len(self.modules))}

    @torch.no_grad()
    def shift(self, displacement: Tensors) -> None:
        """See :meth:`Engine.shift`."""
        for i, module in enumerate(self.modules):
            for name, w in module.named_parameters():
                if name in displacement:
                    w.add_(displacement[name][i])

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        calls = []
        for i in range(len(buffers[MEMBER])):
            module, own = self.member({k: v[i] for k, v in buffers.items()})
            calls.append(functional_call(module, ({k: v[i] for k, v in parameters.items()}, own), (inputs[i],)))
        return torch.stack(calls)

    def member(self, buffers: Tensors) -> tuple[nn.Module, Tensors]:
        """See :meth:`Engine.member`."""
        return self.modules[int(buffers[MEMBER])].eval(), {k: v for k, v in buffers.items() if k != MEMBER}

    def saved(self) -> dict[str, Any]:
        """See :meth:`Engine.saved`."""
        return copy.deepcopy(
            {
                "modules": [m.state_dict() for m in self.modules],
                "optimizers": [o.state_dict() for o in self.optimizers],
                "ended": (self.diverged_at, self.stopped),
            }
        )

    def restore(self, saved: dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        saved = copy.deepcopy(saved)
        for module, values in zip(self.modules, saved["modules"], strict=True):
            module.load_state_dict(values)
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.diverged_at, self.stopped = saved["ended"]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The framework's random numbers within, as if they had not been drawn without.

    On the generators themselves: :func:`torch.manual_seed` takes longer than a small step.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [g.get_state() for g in generators]
    for g in generators:
        g.manual_seed(seed)
    try:
        yield
    finally:
        for g, state in zip(generators, before, strict=True):
            g.set_state(state)


def _alone(batch: Minibatch, i: int) -> Minibatch:
    part = slice(i, i + 1)
    words = None if batch.words is None else batch.words[part]
    return Minibatch(batch.inputs[part], batch.targets[part], words, batch.size)


def _optimizer(module: nn.Module, hyper: Hyperparameters, i: int) -> torch.optim.Optimizer:
    settings, weights = hyper.settings, [p for p in module.parameters() if p.requires_grad]
    lr, momentum, decay = (float(getattr(hyper, name)[i]) for name in ("lr", "momentum", "weight_decay"))
    if settings["name"] == "adam":
        kind = torch.optim.AdamW if settings["decoupled"] else torch.optim.Adam
        betas = settings["beta1"], settings["beta2"]
        return kind(weights, lr, betas, settings["eps"], decay)
    coupled = 0.0 if settings["decoupled"] else decay
    nesterov = bool(settings["nesterov"] and momentum)
    optimizer = torch.optim.SGD(weights, lr, momentum, weight_decay=coupled, nesterov=nesterov)
    optimizer.param_groups[0]["shrink"] = decay - coupled
    return optimizer


@torch.no_grad()
def _update(optimizer: torch.optim.Optimizer, lr: float) -> None:
    (group,) = optimizer.param_groups
    group["lr"] = lr
    for w in group["params"] if group.get("shrink") else ():  # decoupled decay, which torch.optim.SGD does not know
        w.mul_(1 - lr * group["shrink"])
    optimizer.step()
