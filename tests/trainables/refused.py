"""Plug-ins whose curvature would be a wrong number."""

from __future__ import annotations

from typing import Any

import torch
from plugins import Cube, cubes
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FunctionalDropout(nn.Module):
    """Stays active in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


def functional_dropout(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 8), FunctionalDropout(), nn.Linear(8, num_classes))


def batch_statistics(input_shape: tuple[int, ...], num_classes: int, zero_head: bool = False) -> nn.Module:
    """BatchNorm without running statistics."""
    head = nn.Linear(8, num_classes)
    if zero_head:
        nn.init.zeros_(head.weight)
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8, track_running_stats=False), head)


class DetachedCube(Cube):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Cube.backward(ctx, gradient.detach())


class DetachedInput(Cube):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * gradient


class CubeOnce(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Cube.backward(ctx, gradient)


def partly_detached(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal weights that are taken for constants."""
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses * losses.detach()


def random_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(nn.functional.dropout(outputs, 0.2), targets, reduction="none")


def centred_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """That of an example depends on the others."""
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses / losses.mean()


class Distances(nn.Module):
    """From learnt centres; PyTorch knows one derivative of torch.cdist."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres, compute_mode="donot_use_mm_for_euclid_dist")


def distances(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Distances(input_shape[0], num_classes)


class StubbornBatchNorm(nn.BatchNorm1d):
    """Knows no evaluation mode."""

    def train(self, mode: bool = True) -> StubbornBatchNorm:
        return super().train(True)


def always_training(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 8), StubbornBatchNorm(8), nn.Linear(8, num_classes))


class Augmented(nn.Module):
    """A little noise on the inputs, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * torch.randn_like(x)


def augmented(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Augmented(), nn.Linear(input_shape[0], num_classes))


def detached_gradient(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return cubes(input_shape, num_classes, DetachedCube)


def detached_input(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return cubes(input_shape, num_classes, DetachedInput)


def once(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return cubes(input_shape, num_classes, CubeOnce)
