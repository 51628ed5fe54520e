"""Built-in architectures as modules: each is called ``arch(input_shape, num_classes, **parameters)``.

What they consist of is in :mod:`trainables.nets`, their parameters in :mod:`trainables.parameters`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from trainables.blueprints import (
    Activation,
    Conv,
    Dense,
    Drop,
    Flatten,
    GlobalAverage,
    Image,
    Layer,
    Layers,
    MaxPool,
    Norm,
    Shape,
    Skip,
    unfolded,
    walk,
)
from trainables.initialization import initialize
from trainables.layers import Dropout, PaddedShortcut, Residual, ShapedReLU, normalization
from trainables.nets import NETS
from trainables.parameters import MLP, VGG11, AlexNetSmall, Net, ResNet, SimpleCNN
from trainables.shaping import shaped_relu, tailored_relu

__all__ = ["Residual", "alexnet_small", "linear", "mlp", "resnet", "simple_cnn", "vgg11"]

PLAIN: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "selu": nn.SELU}
"""Activations that are the same in every net."""


def linear(input_shape: Shape, num_classes: int) -> nn.Sequential:
    """One affine layer, initialised as PyTorch does."""
    return _modules(NETS["linear"](None, input_shape, num_classes), input_shape, 0)


def mlp(input_shape: Shape, num_classes: int, **parameters: Any) -> nn.Sequential:
    """Fully connected net; for its parameters see :class:`trainables.parameters.MLP`."""
    return _build("mlp", MLP(**parameters), input_shape, num_classes)


def simple_cnn(input_shape: Shape, num_classes: int, **parameters: Any) -> nn.Sequential:
    """Four convolutions; for its parameters see :class:`trainables.parameters.SimpleCNN`."""
    return _build("simple-cnn", SimpleCNN(**parameters), input_shape, num_classes)


def alexnet_small(input_shape: Shape, num_classes: int, **parameters: Any) -> nn.Sequential:
    """Two large convolutions; for its parameters see :class:`trainables.parameters.AlexNetSmall`."""
    return _build("alexnet-small", AlexNetSmall(**parameters), input_shape, num_classes)


def vgg11(input_shape: Shape, num_classes: int, **parameters: Any) -> nn.Sequential:
    """Eight convolutions; for its parameters see :class:`trainables.parameters.VGG11`."""
    return _build("vgg11", VGG11(**parameters), input_shape, num_classes)


def resnet(input_shape: Shape, num_classes: int, **parameters: Any) -> nn.Sequential:
    """Residual net; for its parameters see :class:`trainables.parameters.ResNet`."""
    return _build("resnet", ResNet(**parameters), input_shape, num_classes)


def _build(name: str, net: Net, input_shape: Shape, num_classes: int) -> nn.Sequential:
    layers = NETS[name](net, input_shape, num_classes)
    depth = sum(isinstance(layer, Activation) for layer, _ in unfolded(layers, input_shape))
    module = _modules(layers, input_shape, depth)
    initialize(module, net.init, net.init_scale)
    return module


def _modules(layers: Layers, shape: Shape, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_module(layer, inputs, depth) for layer, inputs in walk(layers, shape)))


def _module(layer: Layer, shape: Shape, depth: int) -> nn.Module:
    """The module of one layer for inputs of ``shape``, in a net with so many nonlinear layers."""
    match layer:
        case Image():  # a row of numbers becomes all three dimensions, a matrix gets one channel
            return nn.Unflatten(1, layer.shape[: 4 - len(shape)])
        case Flatten():
            return nn.Flatten()
        case Dense():
            return nn.Linear(shape[0], layer.units, layer.bias)
        case Conv():
            return nn.Conv2d(
                shape[0], layer.channels, layer.kernel, layer.stride, padding=layer.kernel // 2, bias=layer.bias
            )
        case MaxPool():
            return nn.MaxPool2d(layer.kernel, stride=2, padding=layer.kernel // 2 if layer.kernel % 2 else 0)
        case GlobalAverage():
            return nn.AdaptiveAvgPool2d(1)
        case Norm():
            return normalization(layer.kind, shape[0], layer.ghost_batch, image=len(shape) == 3)
        case Drop():
            return Dropout(layer.p, layer.number)
        case Activation():
            return _activation(layer.kind, shape[0], depth)
        case Skip():
            more = layer.output(shape)[0] - shape[0]
            return Residual(_modules(layer.branch, shape, depth), PaddedShortcut(more) if more else None)
    raise TypeError(f"no module for {layer}")


def _activation(kind: str, width: int, depth: int) -> nn.Module:
    if kind in PLAIN:
        return PLAIN[kind]()
    return ShapedReLU(*(shaped_relu(width) if kind == "shaped_relu" else tailored_relu(depth)))
