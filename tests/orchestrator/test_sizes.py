"""Sizes counted without building a net against those of the modules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.sizes import Size, size
from trainables.architectures import PaddedShortcut, Residual
from trainables.registry import load, resolve

SHAPES = st.one_of(
    st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 33), st.integers(1, 33)),
    st.tuples(st.integers(1, 33), st.integers(1, 33)),
    st.sampled_from([(64,), (192,), (784,)]),
)
COMMON = {
    "activation": st.sampled_from(["relu", "tanh", "shaped_relu", "tailored_relu"]),
    "norm": st.sampled_from(["none", "batch", "group", "layer"]),
    "dropout": st.sampled_from([0.0, 0.5]),
}
WIDTH = st.integers(1, 40)
NETS = st.one_of(
    st.fixed_dictionaries({"name": st.just("linear")}),
    st.fixed_dictionaries({"name": st.just("mlp"), **COMMON}, optional={"depth": st.integers(1, 5), "width": WIDTH}),
    st.fixed_dictionaries({"name": st.just("simple-cnn"), **COMMON}),
    st.fixed_dictionaries({"name": st.just("alexnet-small"), **COMMON}, optional={"width": WIDTH}),
    st.fixed_dictionaries({"name": st.just("vgg11"), **COMMON}, optional={"dense": st.sampled_from([1, 3])}),
    st.fixed_dictionaries(
        {"name": st.just("resnet"), **COMMON},
        optional={"depth": st.sampled_from([8, 14, 32]), "width": WIDTH, "residual": st.booleans()},
    ),
)


def measured(net: nn.Module, shape: tuple[int, ...]) -> Size:
    """By hooks on a pass; outputs of shortcuts are part of their block's."""
    multiply_adds, activations, single = [], [], []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            multiply_adds.append(output[0].numel() * module.weight[0].numel())
        activations.append(output[0].numel())
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            single.append(output[0, 0].numel() == 1)

    for module in net.modules():
        if isinstance(module, Residual) or not (
            isinstance(module, nn.Identity | PaddedShortcut) or [*module.children()]
        ):
            module.register_forward_hook(note)
    net.eval()(torch.empty(2, *shape))
    convolves = any(isinstance(m, nn.Conv2d) for m in net.modules())
    parameters = sum(p.numel() for p in net.parameters())
    return Size(parameters, sum(multiply_adds), sum(activations), convolves, any(single))


@settings(deadline=None, max_examples=150)
@given(NETS, SHAPES, st.integers(1, 20))
def test_sizes_are_those_of_the_modules(arch: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
    resolved = resolve("arch", arch)
    with torch.device("meta"):
        net = load(resolved.target)(shape, classes, **resolved.parameters)
        assert size(json.dumps(arch), shape, classes) == measured(net, shape)


def test_a_dense_net_in_closed_form() -> None:
    found = size('{"depth":3,"name":"mlp","width":7}', (5,), 4)
    assert found == Size(5 * 7 + 7 + 2 * (49 + 7) + 28 + 4, 35 + 2 * 49 + 28, 5 + 3 * 2 * 7 + 4, False, False)


def test_a_plug_in_has_no_size_before_it_is_built() -> None:
    assert size("operator:add", (64,), 10) is None


def test_a_net_that_cannot_take_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \(6,\) are not images"):
        size("resnet", (6,), 10)


def test_sizes_are_known_without_torch() -> None:
    code = "import sys; from orchestrator.sizes import size; size('vgg11', (3, 32, 32), 10); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray"} & set(done.stdout.split())
