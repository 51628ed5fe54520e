"""Update rules on stacked parameters, with PyTorch's conventions; every trial has its own lr, momentum and decay."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trainables.engine import Hyperparameters, Tensors, like


class Optimizer(ABC):
    """Turns gradients into updates, in place.

    Attributes:
        memory: what it keeps between steps, by kind and parameter.
    """

    def __init__(self, parameters: Tensors, hyper: Hyperparameters) -> None:
        self.hyper = hyper
        self.settings = hyper.settings
        self.decays = bool(hyper.weight_decay.any())
        self.memory: dict[str, Tensors] = {}

    @abstractmethod
    def update(self, parameters: Tensors, gradients: Tensors, lr: Tensor) -> None:
        """One step of every parameter; gradients may be overwritten, lr of shape (trials,)."""

    def _remember(self, kind: str, parameters: Tensors) -> None:
        self.memory[kind] = {name: torch.zeros_like(w) for name, w in parameters.items()}

    def _decay(self, w: Tensor, gradient: Tensor, lr: Tensor) -> None:
        """In the gradient, or decoupled: w shrinks by lr * weight_decay."""
        if not self.decays:
            return
        decay = like(self.hyper.weight_decay, w)
        if self.settings["decoupled"]:
            w.mul_(1 - lr * decay)
        else:
            gradient.addcmul_(w, decay)


class SGD(Optimizer):
    """``v = momentum v + g``, ``w -= lr v``; Nesterov's ``w -= lr (g + momentum v)`` (Sutskever et al. 2013)."""

    def __init__(self, parameters: Tensors, hyper: Hyperparameters) -> None:
        super().__init__(parameters, hyper)
        if hyper.momentum.any():
            self._remember("velocity", parameters)

    def update(self, parameters: Tensors, gradients: Tensors, lr: Tensor) -> None:
        """See :meth:`Optimizer.update`."""
        for name, w in parameters.items():
            g, rate = gradients[name], like(lr, w)
            self._decay(w, g, rate)
            if self.memory:
                momentum = like(self.hyper.momentum, w)
                v = self.memory["velocity"][name].mul_(momentum).add_(g)
                g = g.addcmul_(v, momentum) if self.settings["nesterov"] else v
            w.addcmul_(g, rate, value=-1)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with decoupled weight decay AdamW (Loshchilov and Hutter 2019)."""

    def __init__(self, parameters: Tensors, hyper: Hyperparameters) -> None:
        super().__init__(parameters, hyper)
        self._remember("first", parameters)
        self._remember("second", parameters)
        self.memory["steps"] = {"taken": torch.zeros_like(hyper.lr)}

    def update(self, parameters: Tensors, gradients: Tensors, lr: Tensor) -> None:
        """See :meth:`Optimizer.update`."""
        beta1, beta2, eps = (self.settings[name] for name in ("beta1", "beta2", "eps"))
        steps = self.memory["steps"]["taken"].add_(1)
        rate, correction = lr / (1 - beta1**steps), (1 - beta2**steps).sqrt()
        for name, w in parameters.items():
            g = gradients[name]
            self._decay(w, g, like(lr, w))
            first = self.memory["first"][name].lerp_(g, 1 - beta1)
            second = self.memory["second"][name].mul_(beta2).addcmul_(g, g, value=1 - beta2)
            size = second.sqrt().div_(like(correction, w)).add_(eps)
            w.addcmul_(first / size, like(rate, w), value=-1)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "nudged_sgd": SGD}
"""By the name in a sweep file; what nudged SGD adds is in :mod:`trainables.nudging`."""
