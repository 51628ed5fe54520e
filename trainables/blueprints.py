"""Layers as plain descriptions: what the built-in nets consist of, countable before anything is built.

Imports neither torch nor ray. Nets are put together of these in :mod:`trainables.nets`, turned into modules by
:mod:`trainables.architectures` and counted by ``orchestrator.sizes``: one definition for all three. Shapes are those
of one example: (channels, height, width) or (units,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer; unless it says otherwise it keeps the shape, and has neither parameters nor multiply-adds."""

    def output(self, shape: Shape) -> Shape:
        """Shape of its output for an input of ``shape``."""
        return shape

    def parameters(self, shape: Shape) -> int:
        """How many numbers it learns."""
        return 0

    def multiply_adds(self, shape: Shape) -> int:
        """Of the forward pass of one example."""
        return 0


Layers = tuple[Layer, ...]


@dataclass(frozen=True)
class Image(Layer):
    """The input as an image."""

    shape: tuple[int, int, int]

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        return self.shape


@dataclass(frozen=True)
class Flatten(Layer):
    """All numbers of an example in a row."""

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        return (prod(shape),)


@dataclass(frozen=True)
class Dense(Layer):
    """An affine layer."""

    units: int
    bias: bool = True

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        return (self.units,)

    def parameters(self, shape: Shape) -> int:
        """See :class:`Layer`."""
        return self.units * (shape[0] + self.bias)

    def multiply_adds(self, shape: Shape) -> int:
        """See :class:`Layer`."""
        return self.units * shape[0]


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution with a square kernel of odd size, zero-padded so that only ``stride`` shrinks the image."""

    channels: int
    kernel: int = 3
    stride: int = 1
    bias: bool = True

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        return self.channels, -(-shape[1] // self.stride), -(-shape[2] // self.stride)

    def parameters(self, shape: Shape) -> int:
        """See :class:`Layer`."""
        return self.channels * (shape[0] * self.kernel**2 + self.bias)

    def multiply_adds(self, shape: Shape) -> int:
        """See :class:`Layer`."""
        return prod(self.output(shape)) * shape[0] * self.kernel**2


@dataclass(frozen=True)
class MaxPool(Layer):
    """Maxima over windows of ``kernel`` pixels squared, two apart; odd windows are padded as in :class:`Conv`."""

    kernel: int

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        height, width = (-(-size // 2) if self.kernel % 2 else size // 2 for size in shape[1:])
        return shape[0], height, width


@dataclass(frozen=True)
class GlobalAverage(Layer):
    """The mean over all positions."""

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        return shape[0], 1, 1


@dataclass(frozen=True)
class Norm(Layer):
    """A normalization with a scale and a shift for each channel; see :func:`trainables.layers.normalization`."""

    kind: str
    ghost_batch: int | None = None

    def parameters(self, shape: Shape) -> int:
        """See :class:`Layer`."""
        return 2 * shape[0]


@dataclass(frozen=True)
class Activation(Layer):
    """A nonlinearity, number by number."""

    kind: str


@dataclass(frozen=True)
class Drop(Layer):
    """Dropout, the ``number``-th of its net."""

    p: float
    number: int


@dataclass(frozen=True)
class Skip(Layer):
    """``shortcut(x) + branch(x)``; the shortcut takes every second pixel and adds zero channels as the branch does."""

    branch: Layers

    def output(self, shape: Shape) -> Shape:
        """See :class:`Layer`."""
        for layer, inputs in walk(self.branch, shape):
            shape = layer.output(inputs)
        return shape


def walk(layers: Layers, shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Layers with the shapes of their inputs, in order; poolings whose window is larger than the image are left out."""
    for layer in layers:
        if not isinstance(layer, MaxPool) or min(shape[1:]) >= layer.kernel:
            yield layer, shape
            shape = layer.output(shape)


def unfolded(layers: Layers, shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """As :func:`walk`, each residual block after the layers of its branch."""
    for layer, inputs in walk(layers, shape):
        if isinstance(layer, Skip):
            yield from unfolded(layer.branch, inputs)
        yield layer, inputs
