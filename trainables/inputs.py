"""The inputs of a data set as each trial of a pack sees them: pixels shuffled, replaced by noise, augmented.

The data set lies on the device once. What a trial sees is made when a batch is gathered, from random numbers keyed by
(seed, example) or (seed, stream position): nothing is stored, and neither pack nor chunk changes a bit of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.counters import BLOCK, bits, keys, normals
from trainables.data import Dataset
from trainables.streams import Purpose, uniforms, words
from trainables.trial import Trial

PADDING = 4
"""Pixels of zeros around an image of which a random crop is taken."""

Examples = Tensor | slice


@dataclass(frozen=True)
class Inputs:
    """Inputs of a pack's trials; results have shape (trials, n, ...) and the inputs' type.

    Attributes:
        dataset: on the device, in the precision of training.
        pixel_shuffle: the same for all trials; see :class:`trainables.trial.Trial`.
        augment: likewise.
        replaced: training inputs that are Gaussian noise; shape (trials, N).
        noise_keys: of each trial's noise values; shape (trials,).
        pixel_keys: of its permutations.
        augmentation_keys: of its flips and crops.
    """

    dataset: Dataset
    pixel_shuffle: str
    augment: str
    replaced: Tensor
    noise_keys: Tensor
    pixel_keys: Tensor
    augmentation_keys: Tensor

    @classmethod
    def of(cls, dataset: Dataset, trials: Sequence[Trial]) -> Inputs:
        """Draws which inputs are noise.

        Raises:
            ValueError: inputs whose shape allows no such shuffle or augmentation.
        """
        first, device = trials[0], dataset.train_inputs.device
        _check(first, dataset.input_shape)
        replaced = torch.from_numpy(_replaced(trials, dataset.train_size)).to(device)
        seeds = [t.seed for t in trials]
        drawn = (keys(seeds, p, device) for p in (Purpose.INPUT_NOISE, Purpose.PIXELS, Purpose.AUGMENTATION))
        return cls(dataset, first.pixel_shuffle, first.augment, replaced, *drawn)

    def take(self, part: list[int]) -> Inputs:
        """Of the trials at these positions."""
        own = (self.replaced, self.noise_keys, self.pixel_keys, self.augmentation_keys)
        return Inputs(self.dataset, self.pixel_shuffle, self.augment, *(tensor[part] for tensor in own))

    def training(self, examples: Examples) -> Tensor:
        """Training inputs, not augmented; where no trial corrupts them and all ask for the same, a view.

        Args:
            examples: a slice or indices of shape (n,) for all trials, or indices of shape (trials, n).
        """
        x = self._gathered(self.dataset.train_inputs, examples)
        if self.pixel_shuffle == "none" and not self._noisy:
            return x
        index = self._indices(examples)
        if self.pixel_shuffle != "none":
            order = self._fixed_pixels if self.pixel_shuffle == "fixed" else self._pixel_order(index)
            x = _shuffled(x, order)
        return self._with_noise(x, index) if self._noisy else x

    def minibatch(self, examples: Examples, positions: Tensor | None) -> Tensor:
        """Training inputs as a step sees them: augmented too.

        Args:
            examples: as of :meth:`training`.
            positions: theirs in the example stream, shape (n,) or (trials, n); None where nothing is augmented.
        """
        x = self.training(examples)
        if self.augment == "none":
            return x
        assert positions is not None
        return _augmented(x, self.augment, bits(self.augmentation_keys[:, None], positions))

    def test(self, examples: Examples) -> Tensor:
        """Test inputs: neither noise nor augmentation, and only fixed permutations of pixels."""
        x = self._gathered(self.dataset.test_inputs, examples)
        return _shuffled(x, self._fixed_pixels) if self.pixel_shuffle == "fixed" else x

    @cached_property
    def _noisy(self) -> bool:
        return bool(self.replaced.any())

    @cached_property
    def _fixed_pixels(self) -> Tensor:
        """Each trial's permutation of all images; shape (trials, 1, pixels)."""
        return self._pixel_order(torch.zeros_like(self.pixel_keys)[:, None])

    def _pixel_order(self, images: Tensor) -> Tensor:
        """A permutation for each image, numbered from 0 in every trial; shape (trials, n, pixels)."""
        pixels = math.prod(self.dataset.input_shape) // _channels(self.dataset.input_shape)
        counter = images[..., None] * pixels + torch.arange(pixels, device=images.device)
        return bits(self.pixel_keys[:, None, None], counter).argsort(-1)

    def _gathered(self, inputs: Tensor, examples: Examples) -> Tensor:
        if isinstance(examples, slice):
            return inputs[examples].expand(len(self.replaced), -1, *inputs.shape[1:])
        x = inputs.index_select(0, examples.reshape(-1)).view(*examples.shape, *inputs.shape[1:])
        return x.expand(len(self.replaced), -1, *inputs.shape[1:])

    def _indices(self, examples: Examples) -> Tensor:
        """Example indices of every trial; shape (trials, n)."""
        if isinstance(examples, slice):
            examples = torch.arange(self.dataset.train_size, device=self.replaced.device)[examples]
        return examples.expand(len(self.replaced), -1)

    def _with_noise(self, x: Tensor, index: Tensor) -> Tensor:
        """A copy of x, shape (trials, n, ...), with noise for the inputs that are replaced; values only for those."""
        x = x.clone(memory_format=torch.contiguous_format)
        mean, std = self.dataset.input_moments
        size = math.prod(self.dataset.input_shape)
        value = torch.arange(size, device=x.device)
        for rows in self.replaced.gather(1, index).nonzero().split(-(-BLOCK // size)):
            trial, place = rows.unbind(1)
            random = bits(self.noise_keys[trial, None], index[trial, place, None] * size + value)
            x[trial, place] = (normals(random, x.dtype) * std + mean).view(len(rows), *x.shape[2:])
        return x


def _check(trial: Trial, shape: tuple[int, ...]) -> None:
    """Refuses shapes in which there are no pixels to move."""
    images = "(channels, height, width)"
    for field, value, allowed, ranks in (
        ("augment", trial.augment, images, {3}),
        ("pixel_shuffle", trial.pixel_shuffle, f"(n,), (height, width) or {images}", {1, 2, 3}),
    ):
        if value != "none" and len(shape) not in ranks:
            raise ValueError(
                f'{field} "{value}": data set {trial.dataset} has inputs of shape {shape}, allowed is {allowed}; '
                f'leave {field} at "none" or choose another data set'
            )


def _channels(shape: tuple[int, ...]) -> int:
    """Numbers that make up a pixel; in flat inputs each number is one."""
    return shape[0] if len(shape) == 3 else 1


def _replaced(trials: Sequence[Trial], n: int) -> NDArray[np.bool_]:
    """Which of n inputs are noise; shape (trials, n).

    At one seed those of a smaller probability are among those of a larger one. The first block of the stream holds
    the key of the noise values.
    """
    chosen = np.zeros((len(trials), n), dtype=np.bool_)
    for row, trial in zip(chosen, trials, strict=True):
        if trial.input_noise:
            row[:] = uniforms(words(trial.seed, Purpose.INPUT_NOISE, n, block=1)) < trial.input_noise
    return chosen


def _shuffled(x: Tensor, order: Tensor) -> Tensor:
    """Pixel p is taken from ``order[..., p]``; order has shape (trials, n or 1, pixels)."""
    return _rearranged(x.flatten(2).unflatten(2, (-1, order.shape[-1])), order).view_as(x)


def _augmented(x: Tensor, kind: str, random: Tensor) -> Tensor:
    """A crop of the image with zeros around it, then flipped left to right with probability 1/2, as ``kind`` says.

    Each of the (2 * PADDING + 1)^2 crops is equally likely.

    Args:
        x: shape (trials, n, channels, height, width).
        kind: ``crop``, ``flip`` or ``crop_flip``.
        random: 64 bits for each image; shape (trials, n).
    """
    height, width = x.shape[-2:]
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    if "flip" in kind:
        column = torch.where((random & 1).bool()[..., None], column.flip(0), column)
    if "crop" in kind:
        row, column = row + _offset(random >> 1), column + _offset(random >> 32)
    row, column = row[..., :, None], column[..., None, :]
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    source = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = _rearranged(x.flatten(3), source.flatten(2)).view_as(x)
    return moved.masked_fill_(outside[:, :, None], 0)


def _offset(random: Tensor) -> Tensor:
    """-PADDING to PADDING from the low 31 bits of each number; shape (..., 1)."""
    return (random & (2**31 - 1))[..., None] % (2 * PADDING + 1) - PADDING


def _rearranged(pixels: Tensor, source: Tensor) -> Tensor:
    """Pixels, shape (trials, n, channels, pixels), each from ``source``, shape (trials, n or 1, pixels)."""
    return pixels.gather(3, source[:, :, None].expand_as(pixels))
