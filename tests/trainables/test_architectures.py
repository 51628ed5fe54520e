"""Built-in nets against the papers, against nets written out, and alone against stacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.nn.functional import batch_norm, conv2d, normalize

from trainables.architectures import Residual, alexnet_small, linear, mlp, resnet, simple_cnn, vgg11
from trainables.functional import functional_call
from trainables.layers import Dropout, GhostBatchNorm, ShapedReLU, coupled_examples, layer_words
from trainables.registry import FUSED_ACTIVATIONS, PluginError, can_fuse, resolve
from trainables.shaping import ETA, shaped_relu, tailored_relu
from trainables.units import ELEMENTWISE

Arch = Callable[..., nn.Module]
CIFAR = (3, 32, 32)
NAMES = {"simple-cnn": simple_cnn, "alexnet-small": alexnet_small, "vgg11": vgg11, "resnet": resnet}
ACTIVATIONS = ["relu", "tanh", "gelu", "selu", "shaped_relu", "tailored_relu"]
NORMS: list[dict[str, Any]] = [{"norm": n} for n in ("none", "batch", "group", "layer")]
NORMS.append({"norm": "batch", "ghost_batch": 3})


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def label(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


def kinds(net: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(
    ("arch", "shape", "parameters", "published"),
    [
        (resnet, CIFAR, {"depth": 20}, 269_722),  # He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M
        (resnet, CIFAR, {"depth": 32}, 464_154),
        (resnet, CIFAR, {"depth": 44}, 658_586),
        (resnet, CIFAR, {"depth": 56}, 853_018),
        (vgg11, CIFAR, {}, 9_220_480 + 5_130),  # configuration A's convolutions and 512 -> 10
        (vgg11, CIFAR, {"dense": 3}, 9_750_922),
        (alexnet_small, (3, 28, 28), {"width": 64, "norm": "none"}, 1_387_786),  # Zhang et al. 2017, table 1
        (mlp, (3, 28, 28), {"depth": 1, "width": 512}, 1_209_866),
        (mlp, (3, 28, 28), {"depth": 3, "width": 512}, 1_735_178),
        (simple_cnn, CIFAR, {}, 591_274),
    ],
)
def test_parameters_are_as_many_as_published(
    arch: Arch, shape: tuple[int, ...], parameters: dict[str, Any], published: int
) -> None:
    with torch.device("meta"):
        assert count(arch(shape, 10, **parameters)) == published


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_plain_dense_nets_are_pytorchs_bit_for_bit(activation: str) -> None:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation]
    torch.manual_seed(0)
    ours = mlp((2, 3), 4, depth=2, width=5, activation=activation), linear((2, 3), 4)
    torch.manual_seed(0)
    plain = (
        nn.Sequential(nn.Flatten(), nn.Linear(6, 5), act(), nn.Linear(5, 5), act(), nn.Linear(5, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 4)),
    )
    for a, b in zip(ours, plain, strict=True):
        assert repr(a) == repr(b)
        assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_hidden_dense_layer_is_linear_norm_activation_dropout() -> None:
    net = mlp((6,), 4, depth=2, width=16, norm="batch", dropout=0.25, activation="selu")
    assert [type(m).__name__ for m in net] == [
        *("Flatten", "Linear", "BatchNorm1d", "SELU", "Dropout", "Linear", "BatchNorm1d", "SELU", "Dropout", "Linear")
    ]
    assert [(d.p, d.layer) for d in kinds(net, Dropout)] == [(0.25, 0), (0.25, 1)]
    assert [m.bias is None for m in kinds(net, nn.Linear)] == [True, True, False]


def test_simple_cnn_is_the_one_of_the_paper() -> None:
    plain = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    assert repr(simple_cnn(CIFAR, 10)) == repr(plain)


def test_alexnet_pools_after_the_activation_and_halves_the_image_rounding_up() -> None:
    net = alexnet_small((1, 28, 28), 10)
    images, vectors = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"], ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in net] == [*images, *images, "Flatten", *vectors, *vectors, "Linear"]
    assert net[:8](torch.randn(2, 1, 27, 28)).shape == (2, 200, 7, 7)
    assert [m.out_features for m in kinds(net, nn.Linear)] == [384, 192, 10]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("side", [7, 8])
def test_resnet_is_the_one_of_the_paper(residual: bool, side: int) -> None:
    """Of depth 14, width 4: two blocks a stage, option A, activations after the sum."""
    torch.manual_seed(0)
    net = resnet((3, side, side), 5, depth=14, width=4, residual=residual).double()
    x = torch.randn(6, 3, side, side, dtype=torch.float64)
    tensors = iter([p for _, p in net.named_parameters()])

    def conv(h: Tensor, stride: int = 1) -> Tensor:
        h = conv2d(h, next(tensors), stride=stride, padding=1)
        return batch_norm(h, None, None, next(tensors), next(tensors), training=True)

    h = conv(x).relu()
    for width, stride in ((4, 1), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1)):
        f = conv(conv(h, stride).relu())
        kept = h[:, :, ::stride, ::stride]
        shortcut = torch.cat([kept, torch.zeros(6, width - h.shape[1], *kept.shape[2:])], 1)
        h = (f + shortcut * residual).relu()
    expected = nn.functional.linear(h.mean((2, 3)), next(tensors), next(tensors))
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    assert len(kinds(net, Residual)) == 6 * residual


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [CIFAR, (1, 28, 28), (28, 28), (8, 8), (64,), (192,), (2, 5, 9), (1, 1)], ids=str)
def test_convolutional_nets_take_images_of_any_size(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert NAMES[name](shape, 7)(torch.empty(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(("side", "poolings"), [(32, 5), (28, 4), (8, 3)])
def test_a_pooling_that_would_leave_nothing_is_left_out(side: int, poolings: int) -> None:
    with torch.device("meta"):
        assert len(kinds(vgg11((3, side, side), 10), nn.MaxPool2d)) == poolings


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_are_no_images_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not images: allowed are"):
        NAMES[name]((6,), 10)


SMALL: dict[str, tuple[Arch, tuple[int, ...], dict[str, Any]]] = {
    "mlp": (mlp, (6,), {"depth": 2, "width": 16}),
    "simple-cnn": (simple_cnn, (3, 8, 8), {}),
    "alexnet-small": (alexnet_small, (8, 8), {"width": 16}),
    "resnet": (resnet, (64,), {"depth": 8, "width": 16}),
    "plain resnet": (resnet, (64,), {"depth": 8, "width": 4, "residual": False}),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *[("mlp", norm | {"dropout": 0.3, "activation": a}) for norm in NORMS for a in ACTIVATIONS],
    *[(name, norm) for name in SMALL if name != "mlp" for norm in NORMS],
    *[("resnet", {"dropout": 0.5, "activation": a, "init": "orthogonal"}) for a in ("selu", "tailored_relu")],
]


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=label)
def test_stacked_and_alone_agree(name: str, parameters: dict[str, Any]) -> None:
    """A training pass with its buffers, then Hessian products in evaluation mode."""
    torch.manual_seed(0)
    arch, shape, fixed = SMALL[name]
    modules = [arch(shape, 5, **fixed, **parameters).double() for _ in range(2)]
    x, words = torch.randn(2, 6, *shape, dtype=torch.float64), torch.arange(12).view(2, 6) * 0x5DEECE66D
    weights, buffers = stack_module_state(modules)

    def call(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, w: Tensor) -> Tensor:
        with layer_words(w):
            return functional_call(modules[0], (p, b), (x,))

    together = vmap(call)(weights, buffers, x, words)
    for i, module in enumerate(modules):
        with layer_words(words[i]):
            torch.testing.assert_close(together[i], module(x[i]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            {k: v[i] for k, v in buffers.items()}, dict(module.named_buffers()), rtol=1e-12, atol=1e-12
        )
        module.eval()
    stacked = list(weights.values())
    products = _hessian_product(vmap(call)(weights, buffers, x, words), stacked)
    for i, module in enumerate(modules):
        for ours, own in zip(products, _hessian_product(module(x[i]), list(module.parameters())), strict=True):
            torch.testing.assert_close(ours[i], own, rtol=1e-9, atol=1e-12)


def _hessian_product(outputs: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """With the weights themselves, of a function of the outputs."""
    gradient = torch.autograd.grad(outputs.sin().sum(), weights, create_graph=True)
    return torch.autograd.grad(gradient, weights, [w.detach() for w in weights], materialize_grads=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_a_module_of_its_own_that_units_are_counted_of(activation: str) -> None:
    for net in (mlp((6,), 4, depth=3, activation=activation), simple_cnn((8, 8), 4, activation=activation)):
        assert len(kinds(net, ELEMENTWISE)) == (3 if len(net) < 9 else 5)  # type: ignore[arg-type]


def test_shaped_relus_know_their_width_and_tailored_ones_the_depth() -> None:
    shaped = kinds(simple_cnn((8, 8), 4, activation="shaped_relu"), ShapedReLU)
    assert [(m.negative, m.positive) for m in shaped] == [shaped_relu(w) for w in (32, 32, 64, 64, 128)]
    for residual in (True, False):  # one activation at the start, two in each of 9 blocks
        tailored = kinds(resnet((8, 8), 4, width=4, residual=residual, activation="tailored_relu"), ShapedReLU)
        assert [(m.negative, m.positive) for m in tailored] == [tailored_relu(19)] * 19


def test_a_deep_tailored_net_takes_orthogonal_inputs_to_the_wanted_cosine() -> None:
    """Up to what 512 units fluctuate; a ReLU net of that depth takes them nearly to one."""
    found = {}
    for activation in ("tailored_relu", "relu"):
        torch.manual_seed(0)
        net = mlp((512,), 4, depth=40, width=512, activation=activation, init="orthogonal").requires_grad_(False)
        features = normalize(net[:-1](torch.eye(32, 512)))
        found[activation] = float((features @ features.T).fill_diagonal_(0).sum()) / (32 * 31)
    assert found["tailored_relu"] == pytest.approx(ETA, abs=0.04)
    assert found["relu"] > 0.97


@pytest.mark.parametrize(("arch", "dropouts"), [(resnet, 1), (vgg11, 1), (simple_cnn, 1), (alexnet_small, 2)])
def test_dropout_follows_hidden_dense_layers_or_the_last_features(arch: Arch, dropouts: int) -> None:
    with torch.device("meta"):
        names = [type(m).__name__ for m in arch((8, 8), 4, dropout=0.5).children()]
    assert names.count("Dropout") == dropouts
    assert names[-2:] == ["Dropout", "Linear"]


def test_normalization_couples_as_it_says() -> None:
    for norm, coupled in zip(NORMS, (1, None, 1, 1, 3), strict=True):
        assert coupled_examples(resnet((8, 8), 4, depth=8, **norm)) == coupled
    assert kinds(resnet((8, 8), 4, depth=8, ghost_batch=3), GhostBatchNorm)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"name": "resnet", "depth": 22}, r"parameter 'depth': .*22 is not 6n \+ 2.*the nearest are 20 and 26"),
        ({"name": "resnet", "depth": 2}, "parameter 'depth': .*greater than or equal to 8"),
        ({"name": "mlp", "ghost_batch": 16}, "parameter 'ghost_batch': .*needs norm: batch, and norm is none"),
        (
            {"name": "resnet", "norm": "group", "ghost_batch": 16},
            "'ghost_batch': .*needs norm: batch, and norm is group",
        ),
        ({"name": "resnet", "ghost_batch": 1}, "parameter 'ghost_batch': .*greater than or equal to 2"),
        ({"name": "vgg11", "dense": 2}, "parameter 'dense': .*1 or 3"),
        ({"name": "simple-cnn", "dropout": 1}, "parameter 'dropout': .*less than 1"),
        ({"name": "alexnet-small", "norm": "instance"}, "parameter 'norm': .*'none', 'batch', 'group' or 'layer'"),
        ({"name": "mlp", "init_scale": 0}, "parameter 'init_scale': .*greater than 0"),
        ("resnet20", "unknown arch 'resnet20': .*did you mean 'resnet'"),
    ],
)
def test_what_makes_no_net_is_refused_when_it_is_read(reference: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        resolve("arch", reference)


@pytest.mark.parametrize(
    ("arch", "fused"),
    [
        ("linear", True),
        ({"name": "mlp", "init": "orthogonal", "init_scale": 2.0}, True),
        *[({"name": "mlp", "activation": a}, a in FUSED_ACTIVATIONS) for a in ACTIVATIONS],
        ({"name": "mlp", "norm": "layer"}, False),
        ({"name": "mlp", "dropout": 0.1}, False),
        *[(name, False) for name in NAMES],
    ],
)
def test_the_fused_step_is_for_plain_dense_nets(arch: Any, fused: bool) -> None:
    assert can_fuse(arch, "cross_entropy") == fused
    assert not can_fuse(arch, "plugins:refuses_what_is_not_finite")
