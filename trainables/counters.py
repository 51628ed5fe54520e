"""Random numbers on the device, each a pure function of a key and a counter: SplitMix64, read at any position.

Where :mod:`trainables.streams` draws on the host, these are for what is made while a batch is gathered or a net is
called: nothing is stored, nothing is drawn twice, and a trial's numbers depend neither on its pack nor on the device
(bits not at all, normal numbers but for rounding).

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.streams import Purpose, words

BLOCK = 2**22
"""Numbers to make at once, so that their 64-bit words take some 100 MB at most."""

GAMMA = 0x9E3779B97F4A7C15 - 2**64
_M1, _M2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def keys(seeds: Sequence[int], purpose: Purpose, device: torch.device) -> Tensor:
    """A key for each seed; shape (seeds,), int64."""
    drawn = {seed: int(words(seed, purpose, 1).view("int64")[0]) for seed in set(seeds)}
    return torch.tensor([drawn[seed] for seed in seeds], device=device)


def bits(key: Tensor, counter: Tensor) -> Tensor:
    """64 random bits, int64, for each pair of key and counter; these broadcast against each other."""
    z = key + (counter + 1) * GAMMA
    z ^= _shifted(z, 30)
    z *= _M1
    z ^= _shifted(z, 27)
    z *= _M2
    z ^= _shifted(z, 31)
    return z


def uniforms(random: Tensor, dtype: torch.dtype) -> Tensor:
    """Bits as numbers in [0, 1), as many of them as the type holds."""
    kept = 53 if dtype == torch.float64 else 24
    return _shifted(random, 64 - kept).to(dtype).mul_(2.0**-kept)


def normals(random: Tensor, dtype: torch.dtype) -> Tensor:
    """Bits as independent standard normal numbers, by Box and Muller's transform; none is beyond 5.8."""
    radius = (_shifted(random, 40) + 1).to(dtype).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = (random & (2**40 - 1)).to(dtype).mul_(2 * torch.pi * 2.0**-40)
    return radius.mul_(angle.cos_())


def _shifted(z: Tensor, places: int) -> Tensor:
    """Logical shift to the right."""
    shifted = z >> places
    shifted &= (1 << (64 - places)) - 1
    return shifted
