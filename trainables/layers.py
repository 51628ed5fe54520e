"""Layers of the built-in nets that PyTorch lacks, or that must not depend on a trial's neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.counters import bits, uniforms

_WORDS: ContextVar[Tensor | None] = ContextVar("layer words", default=None)

MAX_GROUPS, MIN_CHANNELS = 32, 8
"""Of group norm: most groups (Wu and He 2018), and least channels in one; a group of one number would be constant."""


class Residual(nn.Module):
    """A residual block: ``shortcut(x) + branch(x)``, without a shortcut ``x + branch(x)``.

    Nets of the user's own that are built of it have `residual_cosine` measured.

    Example:
        ``Residual(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))``
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        return self.shortcut(x) + self.branch(x)  # type: ignore[no-any-return]


class PaddedShortcut(nn.Module):
    """Every second pixel, and ``channels`` zero channels more: option A of He et al. 2016, without parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) to (batch, C + channels, H / 2, W / 2), rounded up."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


class ShapedReLU(nn.Module):
    """``positive * x`` for x > 0, else ``negative * x``; for slopes see :mod:`trainables.shaping`."""

    def __init__(self, negative: float = 0.0, positive: float = 1.0) -> None:
        super().__init__()
        self.negative, self.positive = negative, positive

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return self.positive * nn.functional.leaky_relu(x, self.negative / self.positive)


class Dropout(nn.Module):
    """Dropout whose mask is a pure function of the example's place in its trial's stream and of the unit.

    In training mode unit u of an example with word w stays, scaled by 1 / (1 - p), where the uniform number of w at
    position layer * 2^32 + u is at least p: the same alone and in a pack, and for every batch size.

    Args:
        p: probability of 0.
        layer: number of the layer within its net.

    Source:
        Srivastava et al. 2014.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``, (batch, ...).

        Raises:
            RuntimeError: in training mode outside :func:`layer_words`.
        """
        if not self.training:
            return x
        words = _WORDS.get()
        if words is None:
            raise RuntimeError("Dropout in training mode needs random words: call the net within layer_words(words)")
        unit = self.layer * 2**32 + torch.arange(x[0].numel(), device=x.device)
        kept = uniforms(bits(words[:, None], unit), x.dtype) >= self.p
        return x * kept.view(x.shape) / (1 - self.p)


@contextmanager
def layer_words(words: Tensor | None) -> Iterator[None]:
    """Gives random layers called inside a word for each example of the pass; shape (batch,), int64."""
    token = _WORDS.set(words)
    try:
        yield
    finally:
        _WORDS.reset(token)


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether training passes of the module need :func:`layer_words`."""
    return any(isinstance(m, Dropout) for m in module.modules())


class GhostBatchNorm(_BatchNorm):
    """Batch norm over consecutive groups of ``ghost_batch`` examples of the minibatch; the last may be smaller.

    The running statistics take in one group after the other, so that per example seen they move alike at every batch
    size. In evaluation mode it is batch norm.

    Raises:
        ValueError: in training mode for a group with one number per channel, which has no variance.

    Source:
        Hoffer, Hubara and Soudry 2017, arXiv:1705.08741, algorithm 1.
    """

    def __init__(self, channels: int, ghost_batch: int) -> None:
        super().__init__(channels)
        self.ghost_batch = ghost_batch

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``, (batch, channels, ...)."""
        if not self.training:
            return super().forward(x)
        return torch.cat([super(GhostBatchNorm, self).forward(group) for group in x.split(self.ghost_batch)])

    def _check_input_dim(self, x: Tensor) -> None:
        """Images and vectors alike."""


def convolves(module: nn.Module) -> bool:
    """Whether the module has convolutions."""
    return any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in module.modules())


def coupled_examples(module: nn.Module) -> int | None:
    """In groups of how many consecutive examples a minibatch may be cut without changing training-mode outputs.

    1 where each example is for itself, the size of the ghost batches, or None: batch norm needs the whole minibatch.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    sizes = [m.ghost_batch for m in norms if isinstance(m, GhostBatchNorm)]
    return lcm(*sizes) if len(sizes) == len(norms) else None


def normalization(kind: str, channels: int, ghost_batch: int | None, *, image: bool) -> nn.Module:
    """``batch``, ``group`` or ``layer`` norm of vectors or images, each with a learned scale and shift per channel.

    Group norm has at most 32 groups of equally many channels, at least 8. Layer norm is over all numbers of an example.
    """
    if kind == "batch" and ghost_batch is not None:
        return GhostBatchNorm(channels, ghost_batch)
    if kind == "batch":
        return nn.BatchNorm2d(channels) if image else nn.BatchNorm1d(channels)
    return nn.GroupNorm(1 if kind == "layer" else norm_groups(channels), channels)


def norm_groups(channels: int) -> int:
    """The largest divisor of ``channels`` that makes at most 32 groups of at least 8."""
    most = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
