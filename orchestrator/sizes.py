"""How large a built-in net is, before anything is built: for memory and cost. Imports neither torch nor ray."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from trainables.blueprints import Conv, Norm, unfolded
from trainables.nets import NETS
from trainables.registry import BUILT_IN, resolve


@dataclass(frozen=True)
class Size:
    """What one net holds and what one example costs it.

    Attributes:
        parameters: numbers that are learned.
        multiply_adds: of convolutions and dense layers in a forward pass.
        activations: numbers that all layers put out in a forward pass.
        convolves: whether there are convolutions.
        normalizes_numbers: whether there is a normalization of single numbers per channel, as of dense layers.
    """

    parameters: int
    multiply_adds: int
    activations: int
    convolves: bool
    normalizes_numbers: bool


@lru_cache(maxsize=256)
def size(arch: str, input_shape: tuple[int, ...], classes: int) -> Size | None:
    """Size of a built-in net for inputs of a shape; None for a plug-in.

    Raises:
        ValueError: for inputs that the net cannot take.
    """
    resolved = resolve("arch", arch)
    if resolved.name not in NETS:
        return None
    _, parameters = BUILT_IN["arch"][resolved.name]
    layers = NETS[resolved.name](parameters(**resolved.parameters), input_shape, classes)
    pairs = list(unfolded(layers, input_shape))
    return Size(
        sum(layer.parameters(shape) for layer, shape in pairs),
        sum(layer.multiply_adds(shape) for layer, shape in pairs),
        sum(prod(layer.output(shape)) for layer, shape in pairs),
        any(isinstance(layer, Conv) for layer, _ in pairs),
        any(isinstance(layer, Norm) and prod(shape[1:]) == 1 for layer, shape in pairs),
    )
