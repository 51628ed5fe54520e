"""Built-in architectures: plain modules, initialised as PyTorch does."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def linear(input_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """One affine layer: softmax or linear regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))


def mlp(
    input_shape: tuple[int, ...], num_classes: int, depth: int = 2, width: int = 128, activation: str = "relu"
) -> nn.Sequential:
    """Fully connected net with ``depth`` hidden layers of ``width`` units."""
    sizes = [prod(input_shape), *[width] * depth]
    hidden = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), ACTIVATIONS[activation]())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], num_classes))


class Residual(nn.Module):
    """A residual block: ``shortcut(x) + branch(x)``, without a shortcut ``x + branch(x)``.

    Nets of the user's own that are built of it have `residual_cosine` measured.

    Example:
        ``Residual(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))``
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        return self.shortcut(x) + self.branch(x)  # type: ignore[no-any-return]
