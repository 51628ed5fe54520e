"""The SGD step against the curvature: how much of it lies in the sharpest directions, and how the loss looks there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.engine import Engine
from trainables.findings import Finding, Rows, Value
from trainables.stepping import Stepper
from trainables.study import Study, Subspace
from trainables.trace import mean_and_error

MULTIPLES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
"""Of the SGD step along e1, at which the loss is evaluated; positive ones go where the training loss falls."""


def next_steps(stepper: Stepper, step: int, count: int) -> list[Tensor]:
    """What each of the next minibatches would add to the parameters if it were the next; each (trials, parameters)."""
    return [_step(stepper, step + j) for j in range(count)]


def sgd_steps(study: Study, top: Subspace) -> Iterator[Finding]:
    """The next SGD steps, each on its own minibatch from here, in the top eigenvectors.

    Source:
        Jastrzębski et al. 2019, "On the relation between the sharpest directions of DNN loss and the SGD step length".
    """
    inside = torch.stack([top.coordinates(step).double() for step in study.steps])
    length = torch.stack([step.double().square().sum(1) for step in study.steps])
    yield Value("step_top_fraction", *mean_and_error(inside.square().sum(2) / length))
    square, error = mean_and_error(inside[:, :, 0].square())
    yield Value("step_along_e1", square.sqrt(), error / (2 * square.sqrt()))
    yield _loss_along(study, top.vectors[:, 0], square.sqrt())


def _step(stepper: Stepper, step: int) -> Tensor:
    tried = stepper.copy()
    tried.advance(step, step + 1)
    return _vector(tried.engine) - _vector(stepper.engine)


def _vector(engine: Engine) -> Tensor:
    parameters, _ = engine.state()
    return torch.cat([v.flatten(1) for v in parameters.values()], 1)


def _loss_along(study: Study, e1: Tensor, length: Tensor) -> Rows:
    """Mean loss over the curvature examples at multiples of the root-mean-square step along e1."""
    downhill = torch.where((study.train_gradient * e1).sum(1) > 0, -1, 1)
    step = e1 * (downhill * length).to(e1)[:, None]
    value = torch.stack([_loss_at(study, x * step) for x in MULTIPLES], 1)
    return Rows("profiles", {"x": torch.tensor(MULTIPLES), "value": value, "error": value * 0}, "loss_along_e1")


@torch.no_grad()
def _loss_at(study: Study, displacement: Tensor) -> Tensor:
    group, moved = study.group, study.by_parameter(displacement)
    parameters = {name: v + moved[name] for name, v in group.parameters.items()}
    outputs = [group.engine.outputs(parameters, group.buffers, part) for part in study.inputs.split(study.chunk, 1)]
    return group.engine.losses(torch.cat(outputs, 1), study.targets).double().mean(1)
