from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainables.architectures import Residual, mlp, resnet, simple_cnn
from trainables.initialization import RULES


def weights(net: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize(("rule", "times_fan_in"), [("he", 2.0), ("lecun", 1.0)])
def test_the_variance_goes_with_the_inputs_of_a_unit(rule: str, times_fan_in: float) -> None:
    torch.manual_seed(0)
    dense = mlp((300,), 10, width=300, depth=2, init=rule)
    image = simple_cnn((3, 32, 32), 10, init=rule)
    for w in [*weights(dense), *weights(image)]:
        fan_in = w[0].numel()
        error = 5 * (2 / w.numel()) ** 0.5  # five standard errors of a variance
        assert float(w.var()) * fan_in == pytest.approx(times_fan_in, rel=error)
        assert abs(float(w.mean())) < 5 * (times_fan_in / fan_in / w.numel()) ** 0.5


def test_orthogonal_weights_have_orthonormal_rows_or_columns() -> None:
    torch.manual_seed(0)
    for w in [
        *weights(mlp((20,), 10, width=40, init="orthogonal")),
        *weights(simple_cnn((8, 8), 10, init="orthogonal")),
    ]:
        matrix = w.flatten(1).double()
        matrix = matrix.T if len(matrix) > matrix.shape[1] else matrix
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_biases_start_at_zero_and_scale_and_shift_of_norms_stay(rule: str) -> None:
    net = simple_cnn((8, 8), 10, init=rule, norm="layer", init_scale=3.0)
    for m in net.modules():
        if isinstance(m, nn.Linear | nn.Conv2d | nn.GroupNorm) and m.bias is not None:
            assert not m.bias.any()
        if isinstance(m, nn.GroupNorm):
            assert torch.equal(m.weight, torch.ones_like(m.weight))


@pytest.mark.parametrize("rule", ["default", *RULES])
def test_the_scale_multiplies_the_weights_alone(rule: str) -> None:
    plain, scaled = [], []
    for nets, scale in ((plain, 1.0), (scaled, 0.25)):
        torch.manual_seed(0)
        nets.extend(resnet((8, 8), 3, depth=8, width=4, norm="none", init=rule, init_scale=scale).named_parameters())
    for (name, before), (_, after) in zip(plain, scaled, strict=True):
        torch.testing.assert_close(after, before * (0.25 if name.endswith("weight") else 1.0))


@pytest.mark.parametrize("depth", [8, 32])
def test_without_normalization_residual_branches_start_smaller_the_more_there_are(depth: int) -> None:
    torch.manual_seed(0)
    net = resnet((3, 8, 8), 10, depth=depth, norm="none").requires_grad_(False)
    ends = [m.branch[-1].weight for m in net.modules() if isinstance(m, Residual)]
    variance = sum(float(w.var()) * w[0].numel() for w in ends) / len(ends)
    assert variance == pytest.approx(2 / len(ends), rel=0.1)


def test_so_that_outputs_do_not_grow_exponentially_with_depth() -> None:
    """From depth 8 to 32 each of 12 blocks more would double their mean square."""
    sizes, x = [], torch.randn(50, 3, 8, 8)
    for depth in (8, 32):
        torch.manual_seed(0)
        net = resnet((3, 8, 8), 10, depth=depth, norm="none").requires_grad_(False)
        sizes.append(float(net(x).square().mean()))
    assert 1 / 4 < sizes[1] / sizes[0] < 4


def test_with_normalization_they_do_not() -> None:
    torch.manual_seed(0)
    net = resnet((3, 16, 16), 10, depth=20)
    for w in weights(net)[1:-1]:
        assert float(w.var()) * w[0].numel() == pytest.approx(2, rel=5 * (2 / w.numel()) ** 0.5)
