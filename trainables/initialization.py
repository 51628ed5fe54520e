"""Initial weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from trainables.layers import Residual

RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "orthogonal": nn.init.orthogonal_,
}
"""N(0, 2 / fan-in): He et al. 2015. N(0, 1 / fan-in): LeCun et al. 1998. Orthonormal rows, or columns if there are
more rows, of the matrix (outputs, fan-in): Saxe et al. 2014.
"""


@torch.no_grad()
def initialize(module: nn.Module, rule: str, scale: float) -> None:
    """Draws all weights anew by one of RULES, biases 0, or leaves PyTorch's (``default``); then scales the weights.

    Without normalization a residual branch ends in a convolution: of B such branches each starts B^-1/2 as large, so
    that the size of the sum does not grow exponentially with depth. Jastrzębski et al. 2019 scale with depth likewise,
    following Taki 2017, arXiv:1709.02956.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if rule != "default":
                RULES[rule](layer.weight)
                if layer.bias is not None:
                    layer.bias.zero_()
            layer.weight *= scale
    ends = [block.branch[-1] for block in module.modules() if isinstance(block, Residual)]  # type: ignore[index]
    for end in ends:
        if isinstance(end, nn.Conv2d):
            end.weight *= len(ends) ** -0.5
