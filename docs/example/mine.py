"""Plug-ins of one's own: an architecture, a data set, a loss, a metric, and a whole trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables import Dataset, Probe


def bottleneck(input_shape: tuple[int, ...], num_classes: int, width: int = 16, rank: int = 4) -> nn.Module:
    """A net whose middle layer is narrow. Its parameters are set in the sweep file, and so can be swept."""
    return nn.Sequential(
        nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, rank), nn.Tanh(), nn.Linear(rank, num_classes)
    )


def rings(root: Path, train_size: int = 256, test_size: int = 64) -> Dataset:
    """Three noisy rings in the plane; ``root`` is where data files lie, for data sets that have any."""
    generator = torch.Generator().manual_seed(0)
    n = train_size + test_size
    labels = torch.randint(0, 3, (n,), generator=generator)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    radius = 1 + labels + 0.15 * torch.randn(n, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Dataset(points[:train_size], labels[:train_size], points[train_size:], labels[train_size:], num_classes=3)


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with label smoothing: one number per example."""
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")


def confidence(probe: Probe) -> dict[str, float]:
    """Each key becomes a statistic in `curves` and a column in `trials`."""
    outputs = probe.model(probe.dataset.test_inputs)
    return {"test_confidence": float(outputs.softmax(-1).amax(-1).mean()), "weight_norm": float(probe.vector.norm())}


def whole_trial(config: dict[str, Any]) -> dict[str, float]:
    """A trial that trains nothing of ours: noisy gradient descent on a quadratic, in closed steps."""
    generator = torch.Generator().manual_seed(config["seed"])
    x, steps = torch.ones(8), round(config["epochs"] * 256 / config["batch_size"])
    for _ in range(steps):
        noise = torch.randn(8, generator=generator) * config["batch_size"] ** -0.5
        x = x - config["lr"] * (config["curvature"] * x + noise)
    return {"test_loss": float(0.5 * config["curvature"] * x.square().mean())}
