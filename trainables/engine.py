"""What every engine offers: the state of a pack's trials, and the step that advances it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from trainables.counters import BLOCK, bits, keys, normals
from trainables.layers import coupled_examples, draws_random_numbers
from trainables.registry import resolve
from trainables.streams import Purpose
from trainables.trial import Trial

Loss = Callable[[Tensor, Tensor], Tensor]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Minibatch:
    """What one step sees.

    Attributes:
        inputs: shape (trials, n, ...).
        targets: shape (trials, n[, outputs]).
        words: random bits of every example, for layers that draw from them; shape (trials, n).
        size: for which the noise of the gradient is scaled; more examples may stand in for so many.
    """

    inputs: Tensor
    targets: Tensor
    words: Tensor | None
    size: int

    def __len__(self) -> int:
        return self.targets.shape[1]

    def pieces(self, size: int | None) -> Iterator[Minibatch]:
        """Of at most ``size`` examples."""
        if size is None or len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            words = None if self.words is None else self.words[:, part]
            yield Minibatch(self.inputs[:, part], self.targets[:, part], words, self.size)


@dataclass(frozen=True)
class Hyperparameters:
    """What the optimizer is told.

    Attributes:
        lr: shape (trials,), like the next three.
        momentum: of SGD.
        weight_decay: of SGD and Adam.
        gradient_noise: sigma of the noise added to each example's gradient.
        seeds: those of random layers and of the noise.
        optimizer: its name and parameters, see :mod:`trainables.parameters`.
    """

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor
    gradient_noise: Tensor
    seeds: tuple[int, ...]
    optimizer: str

    @classmethod
    def of(cls, trials: Sequence[Trial], like: Tensor) -> Hyperparameters:
        """Columns of ``trials``, of the type and on the device of ``like``."""
        names = ("lr", "momentum", "weight_decay", "gradient_noise")
        columns = {name: like.new_tensor([getattr(t, name) for t in trials]) for name in names}
        return cls(**columns, seeds=tuple(t.seed for t in trials), optimizer=trials[0].optimizer)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Parameters of the optimizer, defaults included, and its name."""
        resolved = resolve("optimizer", self.optimizer)
        return {"name": resolved.name, **resolved.parameters}


class Engine(ABC):
    """The state of a pack's trials and the step that advances it; the leading dimension of every tensor counts trials.

    What happens to a trial after it has diverged or stopped says nothing: whoever wants its state takes it there.

    Args:
        modules: one freshly initialised net per trial.
        loss: per-example losses.
        hyper: what the optimizer is told.
        physical: most examples of a trial in one forward pass of a step; None: the whole minibatch.

    Attributes:
        diverged_at: step at which a trial's minibatch loss was first not finite, else -1; shape (trials,).
        stopped: trials that have ended; shape (trials,).
    """

    def __init__(
        self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters, physical: int | None = None
    ) -> None:
        self.module = modules[0]
        self.loss = loss
        self.hyper = hyper
        self.physical = _whole_groups(modules[0], physical)
        device = hyper.lr.device
        self.diverged_at = torch.full((len(modules),), -1, device=device)
        self.stopped = torch.zeros(len(modules), dtype=torch.bool, device=device)
        self.needs_words = draws_random_numbers(self.module)
        self.noise = InjectedNoise.of(hyper)

    @property
    def alive(self) -> Tensor:
        """Which trials have not diverged; shape (trials,)."""
        return self.diverged_at < 0

    @property
    def active(self) -> Tensor:
        """Which trials still train; shape (trials,)."""
        return self.alive & ~self.stopped

    def mark_diverged(self, losses: Tensor, step: int) -> Tensor:
        """Notes trials whose loss is not finite, and returns which still train; never waits for the device."""
        newly = self.active & ~losses.isfinite()
        self.diverged_at.masked_fill_(newly, step)
        return self.active

    @abstractmethod
    def step(self, batch: Minibatch, step: int, factor: float = 1.0) -> None:
        """One update of every trial on its minibatch.

        Args:
            batch: the minibatch.
            step: its number, from 0.
            factor: of the learning rate.
        """

    @abstractmethod
    def state(self) -> tuple[Tensors, Tensors]:
        """Parameters and buffers by name, stacked; each of shape (trials, ...)."""

    @abstractmethod
    def shift(self, displacement: Tensors) -> None:
        """Adds to the parameters, by name and stacked."""

    @abstractmethod
    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """Evaluation-mode outputs, differentiable in the parameters.

        Args:
            parameters: any number of trials, stacked.
            buffers: likewise.
            inputs: shape (trials, n, ...); expanded where trials share them, which is cheaper.

        Returns:
            shape (trials, n, outputs).
        """

    @abstractmethod
    def saved(self) -> Tensors:
        """Everything that training changes, copied; see :meth:`restore`."""

    @abstractmethod
    def restore(self, saved: Tensors) -> None:
        """Goes back to what :meth:`saved` returned, bit for bit."""

    def member(self, buffers: Tensors) -> tuple[nn.Module, Tensors]:
        """For one trial's buffers: the module to call with its parameters, in evaluation mode, and with what buffers.

        Called so, alone, its hooks see plain tensors.
        """
        return self.module.eval(), buffers

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per-example losses, shape (trials, n), of outputs (trials, n, outputs)."""
        return self._losses(outputs.flatten(0, 1), targets.flatten(0, 1)).view(outputs.shape[:2])

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of examples in a row: shape (n,)."""
        losses = self.loss(outputs, targets)
        if losses.shape != outputs.shape[:1]:
            raise ValueError(f"loss: returned shape {tuple(losses.shape)}; one number per example is needed")
        return losses

    def _rates(self, factor: float, active: Tensor) -> Tensor:
        """Learning rates of this step, 0 for trials that no longer train; shape (trials,)."""
        return torch.where(active, self.hyper.lr * factor, 0)


@dataclass(frozen=True)
class InjectedNoise:
    """Isotropic noise on the gradient: the mean over a minibatch of one N(0, sigma^2 I) for each example's gradient.

    Its scale sigma / sqrt(batch size) is that of sampling noise of covariance C = sigma^2 I.

    Attributes:
        keys: of its streams; shape (trials,).
        sigma: shape (trials,).
    """

    keys: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, hyper: Hyperparameters) -> InjectedNoise | None:
        """None where no trial has any."""
        sigma = hyper.gradient_noise
        return cls(keys(hyper.seeds, Purpose.GRADIENT_NOISE, sigma.device), sigma) if sigma.any() else None

    def take(self, part: slice) -> InjectedNoise:
        """The noise of some of the trials."""
        return InjectedNoise(self.keys[part], self.sigma[part])

    def add(self, gradients: Iterable[Tensor], step: int, size: int) -> None:
        """Adds that of a step on ``size`` examples to the stacked gradients of all parameters, in their order."""
        flat = [g.view(len(self.keys), -1) for g in gradients]
        first = step * sum(g.shape[1] for g in flat)
        scale = (self.sigma * size**-0.5)[:, None]
        for g in flat:
            for part in g.split(max(1, BLOCK // len(self.keys)), 1):
                counter = torch.arange(first, first + part.shape[1], device=g.device)
                part += scale * normals(bits(self.keys[:, None], counter), g.dtype)
                first += part.shape[1]


def _whole_groups(module: nn.Module, physical: int | None) -> int | None:
    """Examples in a piece of a minibatch: cut so that every example sees the company it would see uncut."""
    if physical is None:
        return None
    coupled = coupled_examples(module)
    if coupled is None:
        raise ValueError(
            f"physical_batch_size {physical}: the net normalizes over the whole minibatch, which cannot be cut without "
            "changing it; leave it out, or use ghost batches or another norm"
        )
    return max(coupled, physical // coupled * coupled)


def stacked(modules: Sequence[nn.Module]) -> tuple[Tensors, Tensors]:
    """What training changes, and everything else that a module registers: buffers and frozen parameters.

    Raises:
        ValueError: a module in which everything is frozen.
    """
    trained = {name for name, p in modules[0].named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("arch: the module has no parameter to train")
    parameters, buffers = stack_module_state([m.train() for m in modules])
    frozen = {k: v.detach() for k, v in parameters.items() if k not in trained}
    return {k: v.detach() for k, v in parameters.items() if k in trained}, {**buffers, **frozen}


def is_shared(stacked_tensor: Tensor) -> bool:
    """Whether all trials see the same memory."""
    return stacked_tensor.stride(0) == 0 or stacked_tensor.shape[0] == 1


def take(stacked_tensor: Tensor, part: list[int]) -> Tensor:
    """The trials at these positions; what they share stays shared."""
    if is_shared(stacked_tensor):
        return stacked_tensor[:1].expand(len(part), *stacked_tensor.shape[1:])
    return stacked_tensor[part]


def like(column: Tensor, tensor: Tensor) -> Tensor:
    """A column (trials,) shaped to broadcast against ``tensor`` (trials, ...)."""
    return column.view(-1, *[1] * (tensor.ndim - 1))
