"""The built-in nets, layer by layer. Imports neither torch nor ray.

A hidden layer is a convolution or an affine map, then normalization, activation and, after dense layers, dropout.
Convolutional nets take whatever :func:`trainables.images.image_shape` calls an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

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
)
from trainables.images import image_shape
from trainables.parameters import MLP, VGG11, AlexNetSmall, Net, Parameters, ResNet, SimpleCNN


def linear(net: Parameters, input_shape: Shape, classes: int) -> Layers:
    """One affine layer: softmax or linear regression."""
    return Flatten(), Dense(classes)


def mlp(net: MLP, input_shape: Shape, classes: int) -> Layers:
    """Hidden layers of equal width."""
    return _classifier(net, [net.width] * net.depth, classes)


def simple_cnn(net: SimpleCNN, input_shape: Shape, classes: int) -> Layers:
    """Conv 32, conv 32, pool, conv 64, conv 64, pool, dense 128."""
    blocks = (layer for c in (32, 64) for layer in (*_conv(net, c), *_conv(net, c), MaxPool(2)))
    return *_image(input_shape), *blocks, *_classifier(net, [128], classes)


def alexnet_small(net: AlexNetSmall, input_shape: Shape, classes: int) -> Layers:
    """Conv 5x5 and pool 3x3 twice, dense 384, dense 192.

    Padding and strides are those of Zhang et al., whose parameter counts (table 1) fix them: each pooling halves the
    image, rounding up. Both papers crop CIFAR's images to 28x28; here the data set decides.
    """
    blocks = (*_conv(net, net.width, 5), MaxPool(3)) * 2
    return *_image(input_shape), *blocks, *_classifier(net, [384, 192], classes)


def vgg11(net: VGG11, input_shape: Shape, classes: int) -> Layers:
    """Stages of 64, 128, 256 twice, 512 twice and 512 twice, each ended by a pooling."""
    stages = (64,), (128,), (256, 256), (512, 512), (512, 512)
    blocks = (layer for stage in stages for layer in (*(m for c in stage for m in _conv(net, c)), MaxPool(2)))
    return *_image(input_shape), *blocks, *_classifier(net, [512] * (net.dense - 1), classes)


def resnet(net: ResNet, input_shape: Shape, classes: int) -> Layers:
    """A convolution, three stages of (depth - 2) / 6 blocks of two, the mean over all positions, an affine layer."""
    blocks = (net.depth - 2) // 6
    channels = [net.width << stage for stage in range(3) for _ in range(blocks)]
    body = (layer for before, after in pairwise([net.width, *channels]) for layer in _block(net, before, after))
    return (
        *_image(input_shape),
        *_conv(net, net.width),
        *body,
        GlobalAverage(),
        *_classifier(net, [], classes),
    )


NETS: dict[str, Callable[[Any, Shape, int], Layers]] = {
    "linear": linear,
    "mlp": mlp,
    "simple-cnn": simple_cnn,
    "alexnet-small": alexnet_small,
    "vgg11": vgg11,
    "resnet": resnet,
}
"""Name in a sweep file -> definition."""


def _image(input_shape: Shape) -> Iterator[Layer]:
    if input_shape != (image := image_shape(input_shape)):
        yield Image(image)


def _norm(net: Net) -> Iterator[Layer]:
    if net.norm != "none":
        yield Norm(net.norm, net.ghost_batch)


def _conv(net: Net, channels: int, kernel: int = 3, stride: int = 1) -> Layers:
    return Conv(channels, kernel, stride, net.norm == "none"), *_norm(net), Activation(net.activation)


def _block(net: ResNet, before: int, after: int) -> Iterator[Layer]:
    first = _conv(net, after, stride=1 if before == after else 2)
    branch = (*first, *_conv(net, after)[:-1])  # the last activation comes after the sum
    yield from [Skip(branch)] if net.residual else branch
    yield Activation(net.activation)


def _dropout(net: Net, number: int) -> Iterator[Layer]:
    if net.dropout:
        yield Drop(net.dropout, number)


def _hidden(net: Net, units: int, number: int) -> Layers:
    return Dense(units, net.norm == "none"), *_norm(net), Activation(net.activation), *_dropout(net, number)


def _classifier(net: Net, hidden: list[int], classes: int) -> Layers:
    """Dense layers; where none is hidden, dropout comes before the only one."""
    inner = (layer for number, units in enumerate(hidden) for layer in _hidden(net, units, number))
    return Flatten(), *(inner if hidden else _dropout(net, 0)), Dense(classes)
