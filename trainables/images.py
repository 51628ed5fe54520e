"""Inputs as images. Imports no torch of its own."""

from __future__ import annotations

from math import isqrt


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of an example; n = s * s or 3 * s * s numbers in a row are a square image.

    Raises:
        ValueError: where the shape is not that of an image.
    """
    match tuple(input_shape):
        case (channels, height, width):
            return channels, height, width
        case (height, width):
            return 1, height, width
        case (n,):
            for channels in (1, 3):
                side = isqrt(n // channels)
                if n == channels * side * side:
                    return channels, side, side
    raise ValueError(
        f"inputs of shape {tuple(input_shape)} are not images: allowed are (channels, height, width), (height, width), "
        "or n numbers where n is s * s or 3 * s * s; give the data set such a shape, or take arch mlp or linear"
    )
