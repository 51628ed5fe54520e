"""Is there a loss whose curvature can be measured? Asked once for every pack, before its first Hessian product."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from trainables.operators import Hessian, gradient_and_outputs
from trainables.streams import Purpose
from trainables.study import Study

EXAMPLES = 64
"""Curvature examples that the checks look at."""


class CurvatureError(ValueError):
    """The loss of this net has no curvature that could be measured."""


def check(study: Study) -> None:
    """Refuses nets and losses of which a Hessian product would be a wrong number.

    Raises:
        CurvatureError: outputs are random in evaluation mode (dropout or noise that stays active); the output for an
            example depends on the others in its batch (BatchNorm without running statistics); second derivatives are
            missing; or they are not those of the loss (a backward pass of one's own that is not differentiable).
    """
    group = study.group
    inputs, targets = study.inputs[:EXAMPLES], study.targets[:, :EXAMPLES]
    halves = [half for half in inputs.tensor_split(2) if len(half)]
    with torch.no_grad():
        first, again, *apart = (
            group.engine.outputs(group.parameters, group.buffers, x) for x in (inputs, inputs, *halves)
        )
    if not first.isfinite().all():
        return  # a trial that is about to be recorded as diverged
    if not torch.equal(first, again):
        _refuse(
            study,
            "its outputs are random in evaluation mode, so there is no one loss to differentiate",
            "let random layers follow module.eval(), as torch.nn.Dropout does",
        )
    if (first - torch.cat(apart, 1)).abs().max() > 1e-4 * first.abs().max():
        _refuse(
            study,
            "its output for an example depends on the other examples of the batch, in evaluation mode too",
            "give BatchNorm running statistics, or use GroupNorm or LayerNorm",
        )
    _check_products(study, inputs, targets)


def _check_products(study: Study, inputs: Tensor, targets: Tensor) -> None:
    """Compares a product with the change of the gradient, in float64, over a step too small to meet a kink."""
    group = study.group
    try:
        Hessian(group.engine, group.parameters, group.buffers, inputs, targets, EXAMPLES) @ study.signs(
            Purpose.CHECK, 0
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        _refuse(
            study, f"it cannot be differentiated twice: {reason}", "use functions whose backward pass PyTorch knows"
        )
    parameters, buffers = ({k: _double(v) for k, v in t.items()} for t in (group.parameters, group.buffers))
    inputs, targets, direction = _double(inputs), _double(targets), study.signs(Purpose.CHECK, 0).double()
    try:
        product = Hessian(group.engine, parameters, buffers, inputs, targets, EXAMPLES) @ direction
        length = torch.cat([v.flatten(1) for v in parameters.values()], 1).norm(dim=1, keepdim=True)
        step = 1e-6 * length.clamp(min=1e-3) / direction.norm(dim=1, keepdim=True)
        moved = (
            {
                k: v + sign * d
                for (k, v), d in zip(parameters.items(), study.by_parameter(step * direction).values(), strict=True)
            }
            for sign in (1, -1)
        )
        up, down = (gradient_and_outputs(group.engine, there, buffers, inputs, targets, EXAMPLES)[0] for there in moved)
    except (RuntimeError, TypeError):
        return  # a net that insists on single precision, where a difference quotient says little
    quotient = (up - down) / (2 * step)
    rounding = 1e-9 * up.norm() / step.max()
    if (quotient - product).norm() > 1e-2 * torch.maximum(quotient.norm(), product.norm()) + rounding:
        _refuse(
            study,
            "its second derivatives are not those of the loss: a Hessian product differs from the change of the gradient",
            "a backward pass of your own must itself be differentiable, and nothing on the way may be detached",
        )


def _refuse(study: Study, why: str, remedy: str) -> NoReturn:
    trial = study.group.trials[0]
    raise CurvatureError(
        f"curvature of arch {trial.arch} with loss {trial.loss} cannot be measured: {why}; {remedy}, or set "
        "measure: {hessian: false, gradient_noise: false}"
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
