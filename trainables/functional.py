"""Calling a module with other tensors than its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


def functional_call(module: nn.Module, tensors: tuple[Tensors, Tensors], inputs: tuple[Tensor]) -> Tensor:
    """Outputs of ``module`` with parameters and buffers replaced, each under the first of its names.

    As :func:`torch.func.functional_call`, which leaves its replacements behind in a module that is registered twice
    (pytorch/pytorch#164759): here every place of a tensor is named once.
    """
    given = tensors[0] | tensors[1]
    placed = {place: given[first] for place, first in _places(module) if first in given}
    return torch.func.functional_call(module, placed, inputs, tie_weights=False)  # type: ignore[no-any-return]


def _places(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of all parameters and buffers, one for each module that has it, and the first name of the same tensor."""
    first: dict[Tensor, str] = {}
    for prefix, part in module.named_modules():
        for name, tensor in (
            *part.named_parameters(prefix, recurse=False, remove_duplicate=False),
            *part.named_buffers(prefix, recurse=False, remove_duplicate=False),
        ):
            yield name, first.setdefault(tensor, name)
