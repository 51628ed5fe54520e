"""Units that no longer respond: activations that are flat where the net uses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainables.findings import Value
from trainables.functional import functional_call
from trainables.layers import ShapedReLU
from trainables.study import Study

FLAT = 0.05
"""An activation is flat where its derivative is smaller than this in magnitude."""

_MIXING = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(getattr(nn, name) for name in nn.modules.activation.__all__ if name not in _MIXING),
    ShapedReLU,
)
"""Activations that map each number by itself: PyTorch's and ours."""


def flat_units(study: Study) -> Iterator[Value]:
    """Dead and saturated units over the curvature examples.

    A unit is one number that an activation module is applied to for each example: in a convolutional net each channel
    at each position; a module that is used twice has its units twice. It is flat on an example where the derivative of
    the activation is below 0.05 in magnitude. `saturated_fraction` counts pairs of unit and example that are flat,
    `dead_fraction` units that are flat on every example; NaN for a net without activation modules (calls of
    `nn.functional` are not seen).
    """
    found = [_count(study, seen, *net) for seen, net in zip(study.inputs, study.members(), strict=True)]
    yield Value("dead_fraction", torch.tensor([f.dead for f in found], dtype=torch.float64), 0.0)
    yield Value("saturated_fraction", torch.tensor([f.saturated for f in found], dtype=torch.float64), 0.0)


@dataclass
class _Units:
    """What was seen of one trial's units.

    Attributes:
        always_flat: call of an activation module -> whether each unit was flat on all examples so far.
        flat: pairs of unit and example that were flat.
        pairs: all pairs.
    """

    always_flat: dict[int, Tensor] = field(default_factory=dict)
    flat: int = 0
    pairs: int = 0

    def add(self, call: int, flat: Tensor) -> None:
        """Flat pairs of one call, shape (examples, units)."""
        everywhere = flat.all(0)
        self.always_flat[call] = everywhere & self.always_flat.get(call, everywhere)
        self.flat += int(flat.sum())
        self.pairs += flat.numel()

    @property
    def saturated(self) -> float:
        return self.flat / self.pairs if self.pairs else torch.nan

    @property
    def dead(self) -> float:
        units = sum(len(a) for a in self.always_flat.values())
        return sum(int(a.sum()) for a in self.always_flat.values()) / units if units else torch.nan


@torch.no_grad()
def _count(study: Study, examples: Tensor, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> _Units:
    module, own = study.group.engine.member(buffers)
    units = _Units()
    calls = 0

    def look(activation: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal calls
        if arguments and arguments[0].shape[:1] == inputs.shape[:1]:  # else no example is a row of it
            units.add(calls, _is_flat(activation, arguments[0]).flatten(1))
        calls += 1

    handles = [m.register_forward_pre_hook(look) for m in module.modules() if isinstance(m, ELEMENTWISE)]
    try:
        for inputs in examples.split(study.chunk) if handles else ():
            calls = 0
            functional_call(module, (parameters, own), (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    return units


def _is_flat(activation: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation.forward(x.clone()).sum(), x)  # a clone: it may work in place
    return slope.abs() < FLAT
