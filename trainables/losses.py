"""Built-in losses: one number per example."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the label under softmax, in nats; outputs (batch, classes) -> (batch,)."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error averaged over an example's outputs (no factor 1/2); class labels become one-hot."""
    return (outputs - as_values(targets, outputs)).square().mean(-1)


def as_values(targets: Tensor, outputs: Tensor) -> Tensor:
    """Class labels as one-hot rows of the outputs' type; real-valued targets as they are."""
    if targets.is_floating_point():
        return targets
    return functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
