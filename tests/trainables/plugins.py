"""Plug-ins as a user would write them."""

from __future__ import annotations

from pathlib import Path

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
    losses = probe.loss(probe.model(probe.dataset.train_inputs), probe.train_targets)
    return {
        "rayleigh": float(gradient @ probe.hvp(gradient) / (gradient @ gradient)),
        "probe_loss": float(losses.mean()),
        "probe_gradient": float(gradient.norm()),
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
