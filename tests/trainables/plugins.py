"""Plug-ins as a user would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables import Dataset, Probe
from trainables.architectures import Residual


def convnet(input_shape: tuple[int, ...], num_classes: int, channels: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, -1)),
        nn.Conv2d(1, channels, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(channels * (input_shape[0] // 2 - 1), num_classes),
    )


def with_dropout(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.Dropout(0.5), nn.Linear(8, num_classes))


def with_batchnorm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def regression(root: Path, noise: float = 0.1) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.float64)
    y = y + noise * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    return Dataset(x[:40], y[:40], x[40:], y[40:], num_classes=2)


def quartic(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - nn.functional.one_hot(targets, outputs.shape[-1])).pow(4).mean(-1)


def weight_norm(probe: Probe) -> dict[str, float]:
    return {"weight_norm": float(probe.vector.norm())}


def fails_for_seed_one(probe: Probe) -> dict[str, float]:
    if probe.trial.seed == 1:
        raise RuntimeError("seed one is not to my liking")
    return {"fine": 1.0}


def whole_trial(config: dict[str, float]) -> dict[str, float]:
    if config["seed"] == 3:
        raise RuntimeError("no third seed")
    return {"test_accuracy": 1 - config["lr"], "my_metric": config.get("scale", 1.0) * config["batch_size"]}


def rayleigh_quotient(probe: Probe) -> dict[str, float]:
    """Everything a probe offers."""
    gradient = probe.gradient()
    losses = probe.loss(probe.model(probe.train_inputs()), probe.train_targets)
    return {
        "rayleigh": float(gradient @ probe.hvp(gradient) / (gradient @ gradient)),
        "probe_loss": float(losses.mean()),
        "probe_gradient": float(gradient.norm()),
        "ggn": float(gradient @ probe.ggn_vp(gradient) / (gradient @ gradient)),
        "along": float(gradient @ probe.covariance_vp(gradient) / (gradient @ gradient)),
    }


def partly_frozen(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, num_classes))
    net[0].requires_grad_(False)
    return net


class Masked(nn.Module):
    """State of its own that it does not register."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mask = (torch.rand(inputs) < 0.5).double()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.mask.to(x))


def masked(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Masked(input_shape[0], num_classes)


class Attention(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.embed = inputs, nn.Linear(1, 4)
        self.out = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unsqueeze(-1))
        return self.out(nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(-2))


def attention(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Attention(input_shape[0], num_classes)


def broken(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    raise RuntimeError("this net cannot be built")


def refuses_what_is_not_finite(outputs: Tensor, targets: Tensor) -> Tensor:
    if not outputs.isfinite().all():
        raise RuntimeError("not finite")
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def needs_finite_weights(probe: Probe) -> dict[str, float]:
    if not probe.vector.isfinite().all():
        raise RuntimeError("called for a trial that diverged")
    return {"seen": 1.0}


def gradient_norm_of_probe(probe: Probe) -> dict[str, float]:
    return {"g": float(probe.gradient().norm())}


def bad_name(probe: Probe) -> dict[str, float]:
    return {"Ratio": 1.0}


class Twice(nn.Module):
    """One activation module, used twice, the second time in place of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(inputs, 6), nn.Linear(6, 5), nn.Linear(5, outputs)
        self.activation = nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.second(self.activation(self.first(x)))))


def twice(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Twice(input_shape[0], num_classes)


def masked_tanh(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Masked(input_shape[0], 7), nn.Tanh(), nn.Linear(7, num_classes))


def linear_residual(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    n = input_shape[0]
    return nn.Sequential(
        Residual(nn.Linear(n, n, bias=False)),
        Residual(nn.Linear(n, n, bias=False)),
        nn.Linear(n, num_classes, bias=False),
    )


def residual(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Blocks after a stem: one that changes the shape, two plain ones of which one comes twice, one with a shortcut."""
    branch = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 5))
    shared = Residual(nn.Sequential(nn.Linear(5, 5), nn.ReLU()))
    return nn.Sequential(
        nn.Linear(input_shape[0], 7),
        Residual(nn.Linear(7, 5), nn.Linear(7, 5)),
        shared,
        Residual(branch, nn.Linear(5, 5)),
        shared,
        nn.Linear(5, num_classes),
    )


def one_class(root: Path) -> Dataset:
    x, y = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None], torch.zeros(12, dtype=torch.int64)
    return Dataset(x[:8], y[:8], x[8:], y[8:], num_classes=1)


def wide_regression(root: Path) -> Dataset:
    """More inputs than Lanczos takes steps; their covariance has a few large eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.cat([torch.tensor([9.0, 6, 4, 3]), torch.full((36,), 0.3)]).double()
    x = torch.randn(80, 40, generator=generator, dtype=torch.float64) * scale
    y = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    return Dataset(x[:60], y[:60], x[60:], y[60:], num_classes=2)


class Cube(torch.autograd.Function):
    """x^3 with a backward pass that is differentiable, but out of the reach of torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Activation(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


def cubes(input_shape: tuple[int, ...], num_classes: int, function: type[torch.autograd.Function] = Cube) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 5), Activation(function), nn.Linear(5, num_classes))


class Gated(nn.Module):
    """Which way an example goes depends on its numbers; takes one example or a batch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.here, self.there = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.here(row) if row.sum().item() > 0 else self.there(row).tanh() for row in x])


def gated(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Gated(input_shape[0], num_classes)


class SinglePrecisionNorm(nn.Module):
    """Root mean square norm that computes in float32, as transformers do."""

    def forward(self, x: Tensor) -> Tensor:
        single = x.float()
        return (single * torch.rsqrt(single.square().mean(-1, keepdim=True) + 1e-5)).type_as(x)


def single_precision_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.Tanh(), SinglePrecisionNorm(), nn.Linear(8, num_classes))


class OnlySingle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "single precision is all I know"
        return x.sin()


def only_single(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 4), OnlySingle(), nn.Linear(4, num_classes))


def linear_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.gather(-1, targets[:, None])[:, 0]


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1)


class Constant(nn.Module):
    """Whatever the input, the output is the parameter."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta + 0 * x[:, :1]


def constant(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Constant(num_classes)


def gaussian(root: Path, train_size: int = 40, dimension: int = 4) -> Dataset:
    """Targets x ~ N(m, S) for L = 1/2 ||theta - x||^2; inputs say nothing."""
    generator = torch.Generator().manual_seed(1)
    m, root_s = (torch.randn(*shape, dimension, generator=generator).double() for shape in ((), (dimension,)))
    x = m + torch.randn(train_size + 2, dimension, generator=generator, dtype=torch.float64) @ root_s
    nothing = torch.zeros(train_size + 2, 1, dtype=torch.float64)
    return Dataset(nothing[:-2], x[:-2], nothing[-2:], x[-2:], num_classes=dimension)


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm, added to a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


def resnet(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Of the digits' 8x8 images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        BasicBlock(2, 2, 1),
        BasicBlock(2, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, num_classes),
    )


def rectified(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Half a million ReLUs on 64 images of 16x16."""
    blocks = [(nn.Conv2d(c, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for c in (1, 16)]
    layers = [layer for block in blocks for layer in block]
    return nn.Sequential(
        nn.Unflatten(1, (1, 16, 16)), *layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, num_classes)
    )


class Twofold(nn.Module):
    """Two parameters that enter as a sum: autograd gives both one and the same gradient tensor."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(inputs, outputs))
        self.b = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.a + self.b)


def twofold(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Twofold(input_shape[0], num_classes)
