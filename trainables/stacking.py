"""When a pack's nets are worth stacking. Imports neither torch nor ray."""

from __future__ import annotations

STACKED_CONVOLUTION = 10_000_000
"""Multiply-adds of a forward pass on a minibatch beyond which stacked convolutions are slower than a loop on a CPU; by
benchmarks/training.py."""


def pays(multiply_adds: float, *, convolves: bool, on_gpu: bool) -> bool:
    """Whether stacking a net beats a loop over nets.

    Dense layers always gain. PyTorch makes one grouped convolution of stacked ones, which on a CPU saves the overhead
    of each call, but takes longer itself than as many calls.

    Args:
        multiply_adds: of a forward pass on a minibatch.
        convolves: whether the net has convolutions.
        on_gpu: where it runs.
    """
    return on_gpu or not convolves or multiply_adds <= STACKED_CONVOLUTION
