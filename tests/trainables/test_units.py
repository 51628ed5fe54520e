"""Dead and saturated units against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packs import study, trial, values
from torch import Tensor, nn

from trainables.study import Study
from trainables.units import ELEMENTWISE, FLAT, _is_flat, flat_units

NETS = [
    '{"activation":"tanh","depth":2,"name":"mlp","width":8}',
    "plugins:convnet",
    "plugins:with_batchnorm",
    "plugins:twice",
    "plugins:residual",
]


def with_parameters(of: Study, parameters: dict[str, Tensor]) -> Study:
    return replace(of, group=replace(of.group, parameters=of.group.parameters | parameters))


def grown(of: Study, factor: float) -> Study:
    return with_parameters(of, {k: factor * v for k, v in of.group.parameters.items()})


def relu_study(bias: Tensor, chunk: int = 1000) -> Study:
    """One hidden layer of 4 ReLUs whose pre-activations are ``bias``, plus the first input for the last unit."""
    of = study([trial(arch='{"depth":1,"name":"mlp","width":4}')], examples=49, chunk=chunk)
    weight = torch.zeros(1, 4, 6, dtype=torch.float64)
    weight[0, 3, 0] = 1
    return with_parameters(of, {"1.weight": weight, "1.bias": bias[None].double()})


@pytest.mark.parametrize("chunk", [1000, 7, 1])
def test_relu_units_that_are_never_or_sometimes_on(chunk: int) -> None:
    of = relu_study(torch.tensor([-1.0, 2.0, -3.0, 0.0]), chunk)
    found = values(flat_units(of))
    off = float((of.inputs[0, :, 0] <= 0).double().mean())
    assert 0 < off < 1
    assert float(found["dead_fraction"]) == 2 / 4
    assert float(found["saturated_fraction"]) == pytest.approx((2 + off) / 4, rel=1e-12)


def test_a_unit_is_dead_only_if_it_is_flat_in_every_chunk() -> None:
    of = relu_study(torch.tensor([0.0, 0.0, 0.0, 0.0]), chunk=1)
    rest = with_parameters(of, {"1.bias": torch.tensor([[1.0, 1, 1, -of.inputs[0, :, 0].max() + 1e-9]]).double()})
    assert float(values(flat_units(rest))["dead_fraction"]) == 0
    rest = with_parameters(of, {"1.bias": torch.tensor([[1.0, 1, 1, -of.inputs[0, :, 0].max() - 1e-9]]).double()})
    assert float(values(flat_units(rest))["dead_fraction"]) == 1 / 4


def test_tanh_saturates_where_its_derivative_is_small() -> None:
    """1 - tanh(x)^2 < 0.05 beyond |x| = artanh(sqrt(0.95))."""
    edge = float(torch.tensor(1 - FLAT, dtype=torch.float64).sqrt().arctanh())
    of = study([trial(arch='{"activation":"tanh","depth":1,"name":"mlp","width":4}')])
    bias = torch.tensor([[edge - 1e-9, edge + 1e-9, -edge - 1e-9, 0]], dtype=torch.float64)
    found = values(flat_units(with_parameters(of, {"1.weight": torch.zeros(1, 4, 6).double(), "1.bias": bias})))
    assert float(found["dead_fraction"]) == float(found["saturated_fraction"]) == 2 / 4


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_every_activation_maps_each_number_by_itself(kind: type[nn.Module]) -> None:
    """Its derivative is the difference quotient at that number alone."""
    made = (kind(0.3, 0.0) if kind is nn.Threshold else kind()).double().eval()
    x = torch.linspace(-8, 8, 320, dtype=torch.float64).view(4, 80)  # off the kinks, which are at integers and halves
    step = 1e-6
    with torch.no_grad():
        slope = (made(x + step) - made(x - step)) / (2 * step)
    clear = (slope.abs() - FLAT).abs() > 1e-4
    assert clear.double().mean() > 0.9
    assert torch.equal(_is_flat(made, x)[clear], (slope.abs() < FLAT)[clear])


def test_a_convolution_has_a_unit_for_each_channel_and_position() -> None:
    of = study([trial(arch="plugins:convnet")], examples=9, chunk=4)
    net = of.group.engine.module
    with torch.no_grad():
        before = net[1](net[0](of.inputs[0])).flatten(1)
    flat = 1 - (40 * before).tanh().square() < FLAT
    assert flat.shape[1] == 2 * 2
    assert 0 < flat.double().mean() < 1
    found = values(flat_units(grown(of, 40)))
    assert float(found["saturated_fraction"]) == pytest.approx(float(flat.double().mean()))
    assert float(found["dead_fraction"]) == pytest.approx(float(flat.all(0).double().mean()))


def test_a_module_used_twice_in_place_counts_twice() -> None:
    """ELU's derivative exp(x) is below 0.05 for x < log 0.05, on its input, not on what it left there."""
    of = study([trial(arch="plugins:twice")])
    net = of.group.engine.module
    of = grown(of, 30)
    net.load_state_dict({k: v[0] for k, v in of.group.parameters.items()})
    with torch.no_grad():
        first = net.first(of.inputs[0])
        second = net.second(nn.functional.elu(first))
    flat = torch.cat([first, second], 1) < torch.tensor(FLAT).log()
    found = values(flat_units(of))
    assert 0 < flat.double().mean() < 1
    assert float(found["saturated_fraction"]) == pytest.approx(float(flat.double().mean()))
    assert float(found["dead_fraction"]) == pytest.approx(float(flat.all(0).double().mean()))


@pytest.mark.parametrize("arch", ["linear", "plugins:with_dropout", "plugins:attention"])
def test_a_net_without_activation_modules_has_no_fraction(arch: str) -> None:
    found = values(flat_units(study([trial(arch=arch), trial(arch=arch, seed=1)])))
    assert set(found) == {"dead_fraction", "saturated_fraction"}
    assert all(v.isnan().all() and len(v) == 2 for v in found.values())


def test_each_trial_of_the_loop_keeps_its_own_module() -> None:
    """Its mask is no buffer: the module of another trial would give another number."""
    pack = [trial(arch="plugins:masked_tanh", seed=s) for s in range(3)]
    found = values(flat_units(grown(study(pack), 4)))
    for i, one in enumerate(pack):
        assert found["saturated_fraction"][i] == values(flat_units(grown(study([one]), 4)))["saturated_fraction"][0]
    assert len(set(found["saturated_fraction"].tolist())) == 3


@pytest.mark.parametrize("arch", NETS)
def test_engines_packs_and_chunks_agree(arch: str) -> None:
    pack = [trial(arch=arch, seed=s, input_noise=0.3) for s in range(3)]
    alone = [values(flat_units(study([t], "loop"))) for t in pack]
    for engine in ("vmap", "fused") if arch.startswith("{") else ("vmap",):
        for name, found in values(flat_units(study(pack, engine, chunk=7))).items():
            assert found.tolist() == [float(a[name]) for a in alone]


def test_hooks_are_gone_afterwards() -> None:
    of = study([trial()])
    list(flat_units(of))
    assert not any(m._forward_pre_hooks for m in of.group.engine.module.modules())
