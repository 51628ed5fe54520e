"""Is there a loss whose curvature can be measured? Asked once for every pack, before its first Hessian product."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from trainables.engine import Tensors
from trainables.operators import gradient_and_outputs, hessian_of
from trainables.streams import Purpose
from trainables.study import Study

EXAMPLES = 64
"""Most curvature examples that the checks look at."""

AWAY = 1e-2
"""How far from the parameters, relative to their size: layers that start at zero hide nothing there."""

STEPS = (1e-9, 3e-9)
"""Of the difference quotients, likewise: large against rounding in float64, and most often too small to meet a kink."""


class CurvatureError(ValueError):
    """The loss of this net has no curvature that could be measured."""


def check(study: Study) -> None:
    """Refuses nets and losses of which a Hessian product would be a wrong number.

    Raises:
        CurvatureError: outputs or losses are random in evaluation mode (dropout or noise that stays active); those of
            an example depend on the others in its batch (BatchNorm without running statistics); second derivatives are
            missing; or they are not those of the loss (a backward pass of one's own that is not differentiable).
    """
    most = max(2, min(EXAMPLES, study.chunk))
    inputs, targets = study.inputs[:, :most], study.targets[:, :most]
    parameters = _moved(study, study.group.parameters, AWAY)
    first, again, apart = (_evaluate(study, parameters, inputs, targets, parts) for parts in (1, 1, 2))
    if not all(t.isfinite().all() for t in first):
        return  # a trial that is about to be recorded as diverged
    if _differ(first, again, 1e-5):
        _refuse(
            study,
            "its outputs or losses are random in evaluation mode, so there is no one loss to differentiate",
            "let random layers follow module.eval(), as torch.nn.Dropout does",
        )
    if _differ(first, apart, 1e-4):
        _refuse(
            study,
            "its output for an example depends on the other examples of the batch, in evaluation mode too",
            "give BatchNorm running statistics, or use GroupNorm or LayerNorm",
        )
    _check_products(study, parameters, inputs, targets)


@torch.no_grad()
def _evaluate(study: Study, parameters: Tensors, inputs: Tensor, targets: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Outputs and losses, of so many parts apart."""
    engine, buffers = study.group.engine, study.group.buffers
    parts = min(parts, inputs.shape[1])
    outputs = [engine.outputs(parameters, buffers, x) for x in inputs.tensor_split(parts, 1)]
    losses = [engine.losses(o, y) for o, y in zip(outputs, targets.tensor_split(parts, 1), strict=True)]
    return torch.cat(outputs, 1), torch.cat(losses, 1)


def _differ(some: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float) -> bool:
    """By more than rounding."""
    return any(bool((a - b).abs().max() > tolerance * a.abs().max()) for a, b in zip(some, other, strict=True))


def _check_products(study: Study, parameters: Tensors, inputs: Tensor, targets: Tensor) -> None:
    """Compares a product with the change of the gradient.

    Only a difference that does not depend on the step counts: those of kinks and of parts computed in single precision
    grow as it shrinks.
    """
    group = study.group
    try:
        hessian_of(group.engine, parameters, group.buffers, inputs, targets, EXAMPLES) @ study.signs(Purpose.CHECK, 0)
    except RuntimeError as refusal:
        reason = str(refusal).strip().splitlines()[0]
        _refuse(
            study, f"it cannot be differentiated twice: {reason}", "use functions whose backward pass PyTorch knows"
        )
    try:
        product, quotients, rounding = _in_double(study, parameters, inputs, targets)
    except Exception:
        return  # a net that insists on single precision, where a difference quotient says little
    errors = [quotient - product for quotient in quotients]
    tolerance = 1e-2 * torch.maximum(product.norm(), quotients[0].norm()) + rounding
    if errors[0].norm() > tolerance and (errors[0] - errors[1]).norm() < 0.1 * errors[0].norm():
        _refuse(
            study,
            "its second derivatives are not those of the loss: a Hessian product is not the change of the gradient",
            "a backward pass of your own must itself be differentiable, and nothing on the way may be detached",
        )


def _in_double(
    study: Study, parameters: Tensors, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """A product and its difference quotients in float64, and the size of what rounding may add to them."""
    engine, direction = study.group.engine, study.signs(Purpose.CHECK, 0).double()
    parameters, buffers = ({k: _double(v) for k, v in t.items()} for t in (parameters, study.group.buffers))
    inputs, targets = _double(inputs), _double(targets)
    product = hessian_of(engine, parameters, buffers, inputs, targets, EXAMPLES) @ direction
    quotients = []
    for step in STEPS:
        ends = (_moved(study, parameters, distance) for distance in (step, -step))
        chunks = [(inputs, targets)]
        up, down = (gradient_and_outputs(engine, end, buffers, chunks, inputs.shape[1])[0] for end in ends)
        quotients.append((up - down) / (2 * step * _scale(parameters)))
    return product, quotients, 1e-12 * up.norm() / (STEPS[0] * _scale(parameters))


def _moved(study: Study, parameters: Tensors, distance: float) -> Tensors:
    """Along the signs, by that share of the parameters' norm."""
    away = study.by_parameter(study.signs(Purpose.CHECK, 0).double() * distance * _scale(parameters))
    return {name: v + away[name].to(v) for name, v in parameters.items()}


def _scale(parameters: Tensors) -> Tensor:
    """Root mean square of the parameters of a trial."""
    return torch.cat([v.double().flatten(1) for v in parameters.values()], 1).square().mean().sqrt().clamp(min=1e-3)


def _refuse(study: Study, why: str, remedy: str) -> NoReturn:
    trial = study.group.trials[0]
    raise CurvatureError(
        f"curvature of arch {trial.arch} with loss {trial.loss} cannot be measured: {why}; {remedy}, or set "
        "measure: {hessian: false, gradient_noise: false}"
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
