"""Loss along the line through two endpoints (Goodfellow et al. 2015, arXiv:1412.6544)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.datasets import dataset_of
from trainables.endpoints import Endpoint
from trainables.engine import Engine, Tensors
from trainables.engines import start
from trainables.loop import MEMBER
from trainables.operators import chunk_and_group
from trainables.snapshot import PackData
from trainables.training import reproducible


@dataclass(frozen=True)
class Point:
    """The net at one point of the line; NaN where its outputs are not finite.

    Attributes:
        alpha: where on the line: 0 is A, 1 is B.
        train_loss: mean over A's training set, its label noise included.
        train_accuracy: fraction of the same; NaN for real-valued targets.
        test_loss: mean over the test set.
        test_accuracy: fraction of the same; NaN for real-valued targets.
    """

    alpha: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


def line(a: Endpoint, b: Endpoint, engine: str, alphas: Sequence[float], device: torch.device) -> list[Point]:
    """Evaluates the nets with parameters (1 - alpha) A + alpha B, stacked as if they were the trials of a pack.

    BatchNorm's running statistics are interpolated like parameters: beyond the endpoints (alpha < 0 or > 1) a variance
    may become negative, and the loss NaN. Buffers that are not floating point are A's.

    Args:
        a: where alpha is 0.
        b: where alpha is 1; of the same arch, data set, precision and loss.
        engine: loop, vmap or fused.
        alphas: where to evaluate.
        device: where to compute.

    Raises:
        ValueError: the trials' net no longer has the parameters that were stored.
    """
    dataset, dtype = dataset_of(a.trial), getattr(torch, a.trial.precision)
    points: list[Point] = []
    with reproducible(torch.get_num_threads()), torch.no_grad():
        data = PackData.of(dataset, [a.trial], 1, dtype, device)
        like = torch.zeros(1, dtype=dtype, device=device)
        net = start([a.trial], engine, dataset.input_shape, dataset.num_classes, like)
        parameters, buffers = net.state()
        ends = [_state(end, parameters | buffers, device) for end in (a, b)]
        chunk, size = chunk_and_group(net, data.dataset.train_inputs, 1)
        for first in range(0, len(alphas), size):
            part = alphas[first : first + size]
            weights = torch.tensor(part, dtype=torch.float64, device=device)
            mixed = {name: _between(ends[0][name], ends[1][name], weights) for name in ends[0]}
            state = {k: mixed[k] for k in parameters}, {k: mixed[k] for k in buffers}
            everything = slice(None)
            train = _loss_and_accuracy(net, state, data.inputs.training(everything)[0], data.targets[0], chunk)
            test = _loss_and_accuracy(net, state, data.inputs.test(everything)[0], data.dataset.test_targets, chunk)
            points += [Point(*row) for row in zip(part, *train, *test, strict=True)]
    return points


def _state(endpoint: Endpoint, net: Mapping[str, Tensor], device: torch.device) -> Tensors:
    """The endpoint's tensors by the names of a freshly built net's state, of shape (1, ...)."""
    found = {name: torch.from_numpy(array).to(device) for name, array in endpoint.tensors.items()}
    now = {name: tuple(tensor.shape[1:]) for name, tensor in net.items() if name != MEMBER}
    then = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if now != then:
        differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        raise ValueError(f"arch {endpoint.trial.arch} has changed since it was trained: {', '.join(differing)}")
    return {name: found.get(name, net[name][0]) for name in net}


def _between(a: Tensor, b: Tensor, alphas: Tensor) -> Tensor:
    """(1 - alpha) a + alpha b, shape (alphas, ...), exact at 0 and 1; a where there is nothing in between."""
    if not a.is_floating_point():
        return a.expand(len(alphas), *a.shape)
    alphas = alphas.view(-1, *[1] * a.ndim)
    return (1 - alphas).to(a) * a + alphas.to(a) * b


def _loss_and_accuracy(
    net: Engine, state: tuple[Tensors, Tensors], inputs: Tensor, targets: Tensor, chunk: int
) -> tuple[list[float], list[float]]:
    """Means over the examples, one of each per net of the stack."""
    trials = len(next(iter(state[0].values())))
    losses, right = [], []
    for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        outputs = net.outputs(*state, x.expand(trials, *x.shape))
        finite = outputs.isfinite().all(-1)
        outputs = outputs.where(finite[..., None], 0)  # a loss may refuse what is not finite
        wanted = y.expand(len(outputs), *y.shape)
        hits = torch.full_like(finite, torch.nan, dtype=torch.float64)
        if not y.is_floating_point():
            hits = (outputs.argmax(-1) == wanted).double()
        losses.append(net.losses(outputs, wanted).double().where(finite, torch.nan))
        right.append(hits.where(finite, torch.nan))
    return torch.cat(losses, 1).mean(1).tolist(), torch.cat(right, 1).mean(1).tolist()
