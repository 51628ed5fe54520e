"""SGD on all trials of a pack at once: three engines behind one interface.

``loop`` is a plain PyTorch loop, the reference; ``vmap`` stacks any module that ``torch.func`` can vectorise;
``fused`` writes out the step of the built-in dense nets as batched matrix products. Trials never mix: each result is
what the trial would give alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap

from trainables.functional import functional_call
from trainables.losses import as_values, cross_entropy
from trainables.registry import can_fuse, load, resolve
from trainables.streams import init_seed, layer_seed
from trainables.trial import Trial

Loss = Callable[[Tensor, Tensor], Tensor]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Hyperparameters:
    """What SGD is told, one number per trial; each of shape (trials,). Seeds are those of random layers."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, trials: Sequence[Trial], like: Tensor) -> Hyperparameters:
        """Columns of ``trials``, of the type and on the device of ``like``."""
        lr, momentum, decay = ([getattr(t, n) for t in trials] for n in ("lr", "momentum", "weight_decay"))
        column = like.new_tensor
        return cls(column(lr), column(momentum), column(decay), tuple(t.seed for t in trials))


class Engine(ABC):
    """The state of a pack's trials and the step that advances it.

    The leading dimension of every tensor counts trials. The update is PyTorch's SGD: ``g += weight_decay * w``,
    ``v = momentum * v + g``, ``w -= lr * v``.

    Attributes:
        diverged_at: step at which a trial's minibatch loss was first not finite, else -1; shape (trials,).
    """

    def __init__(self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters) -> None:
        self.module = modules[0]
        self.loss = loss
        self.hyper = hyper
        self.diverged_at = torch.full((len(modules),), -1, device=hyper.lr.device)

    @property
    def alive(self) -> Tensor:
        """Which trials have not diverged; shape (trials,)."""
        return self.diverged_at < 0

    def mark_diverged(self, losses: Tensor, step: int) -> Tensor:
        """Notes trials whose loss is not finite, and returns which are alive; never waits for the device."""
        newly = self.alive & ~losses.isfinite()
        self.diverged_at.masked_fill_(newly, step)
        return self.alive

    @abstractmethod
    def step(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """One update on a minibatch per trial: inputs (trials, batch, ...), targets (trials, batch[, outputs])."""

    @abstractmethod
    def state(self) -> tuple[Tensors, Tensors]:
        """Parameters and buffers by name, stacked; each of shape (trials, ...)."""

    @abstractmethod
    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """Evaluation-mode outputs, differentiable in the parameters.

        Args:
            parameters: any number of trials, stacked.
            buffers: likewise.
            inputs: shared by the trials, shape (batch, ...).

        Returns:
            shape (trials, batch, outputs).
        """

    def member(self, buffers: Tensors) -> tuple[nn.Module, Tensors]:
        """For one trial's buffers: the module to call with its parameters, in evaluation mode, and with what buffers.

        Called so, alone, its hooks see plain tensors.
        """
        return self.module.eval(), buffers

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Per-example losses, shape (trials, batch), of outputs (trials, batch, outputs)."""
        flat = self.loss(outputs.flatten(0, 1), targets.flatten(0, 1))
        if flat.shape != (outputs.shape[0] * outputs.shape[1],):
            raise ValueError(f"loss: returned shape {tuple(flat.shape)}; one number per example is needed")
        return flat.view(outputs.shape[:2])


class LoopEngine(Engine):
    """One module and one ``torch.optim.SGD`` per trial, one after the other."""

    def __init__(self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters) -> None:
        super().__init__(modules, loss, hyper)
        self.modules = list(modules)
        self.optimizers = [
            torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
            for module, lr, momentum, weight_decay in zip(
                modules, hyper.lr.tolist(), hyper.momentum.tolist(), hyper.weight_decay.tolist(), strict=True
            )
        ]

    def step(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """See :meth:`Engine.step`."""
        alive = self.alive.tolist()
        losses = torch.zeros_like(self.hyper.lr)
        for i, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            if not alive[i]:
                continue
            module.train()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(layer_seed(self.hyper.seeds[i], step))
                loss = self.losses(module(inputs[i])[None], targets[i : i + 1]).mean()
            losses[i] = loss.detach()
            if loss.isfinite():
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.mark_diverged(losses, step)

    def state(self) -> tuple[Tensors, Tensors]:
        """See :meth:`Engine.state`."""
        parameters, buffers = stacked(self.modules)
        return parameters, buffers | {MEMBER: torch.arange(len(self.modules))}

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        calls = []
        for i in range(len(buffers[MEMBER])):
            module, own = self.member(_take(buffers, i))
            calls.append(functional_call(module, (_take(parameters, i), own), (inputs,)))
        return torch.stack(calls)

    def member(self, buffers: Tensors) -> tuple[nn.Module, Tensors]:
        """See :meth:`Engine.member`."""
        return self.modules[int(buffers[MEMBER])].eval(), {k: v for k, v in buffers.items() if k != MEMBER}


class VmapEngine(Engine):
    """Any module that ``torch.func.vmap`` can vectorise; BatchNorm's running statistics are stacked like the rest."""

    def __init__(self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters) -> None:
        super().__init__(modules, loss, hyper)
        parameters, self.buffers = stacked(modules)
        self.parameters = {k: v.requires_grad_() for k, v in parameters.items()}
        self.velocity = {k: torch.zeros_like(v) for k, v in self.parameters.items()} if hyper.momentum.any() else None

    def step(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """See :meth:`Engine.step`."""
        self.module.train()
        outputs = vmap(self._call)(self.parameters, self.buffers, inputs)
        sound = self.mark_diverged(outputs.detach().flatten(1).sum(1), step)
        outputs = torch.where(_like(sound, outputs), outputs, 0)  # a loss may refuse what is not finite
        losses = self.losses(outputs, targets).mean(1)
        alive = self.mark_diverged(losses.detach(), step)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        with torch.no_grad():
            for (name, w), gradient in zip(self.parameters.items(), gradients, strict=True):
                lr, momentum, decay = (
                    _like(h, w) for h in (self.hyper.lr, self.hyper.momentum, self.hyper.weight_decay)
                )
                update = torch.addcmul(gradient, w, decay)
                if self.velocity is not None:
                    update = self.velocity[name].mul_(momentum).add_(update)
                w.sub_(torch.where(_like(alive, w), lr * update, 0))

    def state(self) -> tuple[Tensors, Tensors]:
        """See :meth:`Engine.state`."""
        return {k: v.detach() for k, v in self.parameters.items()}, self.buffers

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        self.module.eval()
        return vmap(self._call, in_dims=(0, 0, None))(parameters, buffers, inputs)

    def _call(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        return functional_call(self.module, (parameters, buffers), (inputs,))


class FusedEngine(Engine):
    """The SGD step of dense nets, written out so that no gradient is ever stored.

    The output gradient is scaled by each trial's learning rate, propagated, and subtracted from the weights by the very
    matrix product that forms the gradient: ``W -= (lr delta)^T h``.
    """

    def __init__(self, modules: Sequence[nn.Module], loss: Loss, hyper: Hyperparameters) -> None:
        super().__init__(modules, loss, hyper)
        self.parameters, _ = stacked(modules)
        layers = [name for name, child in modules[0].named_children() if isinstance(child, nn.Linear)]
        self.layers = [(f"{name}.weight", f"{name}.bias") for name in layers]
        hidden = [c for c in modules[0].children() if not isinstance(c, nn.Linear | nn.Flatten)]
        self.activation = hidden[0] if hidden else nn.Identity()
        self.column = {n: getattr(hyper, n)[:, None, None] for n in ("lr", "momentum", "weight_decay")}
        self.decays = bool(hyper.weight_decay.any())
        self.velocity = {k: torch.zeros_like(v) for k, v in self.parameters.items()} if hyper.momentum.any() else None

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """See :meth:`Engine.step`."""
        ins, pre = self.forward(self.parameters, inputs.flatten(2))
        losses, delta = self._output_gradient(pre[-1], targets)
        alive = self.mark_diverged(losses, step)
        delta.masked_fill_(~alive[:, None, None], 0)
        if self.velocity is None:
            delta.mul_(self.column["lr"])
        for k in range(len(self.layers) - 1, -1, -1):
            weight, bias = self.layers[k]
            below = torch.bmm(delta, self.parameters[weight]) if k else delta
            self._update(weight, delta.transpose(1, 2), ins[k])
            self._update_bias(bias, delta)
            if k:
                delta = _activation_backward(self.activation, below, pre[k - 1], ins[k])

    def state(self) -> tuple[Tensors, Tensors]:
        """See :meth:`Engine.state`."""
        return self.parameters, {}

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
        """See :meth:`Engine.outputs`."""
        trials = len(parameters[self.layers[0][0]])
        return self.forward(parameters, inputs.flatten(1).expand(trials, -1, -1))[1][-1]

    def forward(self, parameters: Tensors, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and pre-activations of every layer, each of shape (trials, batch, units)."""
        ins: list[Tensor] = [inputs]
        pre: list[Tensor] = []
        for weight, bias in self.layers:
            if pre:
                ins.append(self.activation(pre[-1]))
            pre.append(torch.baddbmm(parameters[bias][:, None], ins[-1], parameters[weight].transpose(1, 2)))
        return ins, pre

    def _output_gradient(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss per trial, shape (trials,), and its gradient in the outputs."""
        batch = outputs.shape[1]
        if self.loss is cross_entropy:
            log_p = outputs.log_softmax(-1)
            label = targets[..., None]
            losses = -log_p.gather(-1, label).mean((1, 2))
            ones = torch.ones_like(label, dtype=outputs.dtype)
            return losses, log_p.exp_().scatter_add_(-1, label, -ones).div_(batch)
        error = outputs - as_values(targets, outputs)
        return error.square().mean((1, 2)), error.mul_(2 / (batch * outputs.shape[-1]))

    def _update(self, name: str, left: Tensor, right: Tensor) -> None:
        w = self.parameters[name]
        if self.velocity is not None:
            v = self.velocity[name].mul_(self.column["momentum"]).baddbmm_(left, right)
            if self.decays:
                v.addcmul_(w, self.column["weight_decay"])
            w.addcmul_(v, self.column["lr"], value=-1)
            return
        if self.decays:
            w.mul_(1 - self.column["lr"] * self.column["weight_decay"])
        w.baddbmm_(left, right, alpha=-1)

    def _update_bias(self, name: str, delta: Tensor) -> None:
        b, gradient = self.parameters[name], delta.sum(1)
        if self.velocity is not None:
            v = self.velocity[name].mul_(self.column["momentum"][:, 0]).add_(gradient)
            if self.decays:
                v.addcmul_(b, self.column["weight_decay"][:, 0])
            b.addcmul_(v, self.column["lr"][:, 0], value=-1)
            return
        if self.decays:
            b.mul_(1 - (self.column["lr"] * self.column["weight_decay"])[:, 0])
        b.sub_(gradient)


ENGINES: dict[str, type[Engine]] = {"loop": LoopEngine, "vmap": VmapEngine, "fused": FusedEngine}


def choose_engine(trial: Trial) -> str:
    """The engine of a trial by a fixed rule: fused where it applies, vmap where the module allows it, else loop."""
    if trial.call is not None:
        return "call"
    if can_fuse(trial.arch, trial.loss):
        return "fused"
    try:
        return "vmap" if _vmap_agrees(trial) else "loop"
    except Exception:  # whatever a module of the user's own raises: the loop takes any, and reports what is wrong
        return "loop"


def _vmap_agrees(trial: Trial) -> bool:
    """Takes a step of two trials, and compares the outputs with those of their own modules.

    They differ where a module has state of its own that is no parameter and no buffer.
    """
    from trainables.datasets import load_dataset

    dataset, dtype = load_dataset(trial.dataset), getattr(torch, trial.precision)
    pair = [trial, trial.model_copy(update={"seed": trial.seed ^ 1})]
    modules = [build(t, dataset.input_shape, dataset.num_classes).to(dtype) for t in pair]
    inputs, targets = dataset.train_inputs[:2].to(dtype), dataset.train_targets[:2]
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    engine = VmapEngine(modules, load_loss(trial.loss), Hyperparameters.of(pair, inputs))
    together = engine.outputs(*engine.state(), inputs)
    apart = torch.stack([module.eval()(inputs) for module in modules])
    engine.step(torch.stack([inputs, inputs]), torch.stack([targets, targets]), 0)
    return torch.allclose(together, apart, rtol=1e-4, atol=1e-5)


def build(trial: Trial, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The trial's freshly initialised net; the same for one seed, whatever else differs."""
    resolved = resolve("arch", trial.arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed(trial.seed))
        module = load(resolved.target)(input_shape, num_classes, **resolved.parameters)
    if not isinstance(module, nn.Module):
        raise TypeError(f"arch {trial.arch}: returned {type(module).__name__}, not a torch.nn.Module")
    return module


def stacked(modules: Sequence[nn.Module]) -> tuple[Tensors, Tensors]:
    """What training changes, and everything else that a module registers: buffers and frozen parameters.

    Raises:
        ValueError: a module in which everything is frozen.
    """
    trained = {name for name, p in modules[0].named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("arch: the module has no parameter to train")
    parameters, buffers = stack_module_state([m.train() for m in modules])
    frozen = {k: v.detach() for k, v in parameters.items() if k not in trained}
    return {k: v.detach() for k, v in parameters.items() if k in trained}, {**buffers, **frozen}


def load_loss(reference: str) -> Loss:
    """The loss that a trial names, with its parameters bound."""
    resolved = resolve("loss", reference)
    function: Loss = load(resolved.target)
    if not resolved.parameters:
        return function
    return partial(function, **resolved.parameters)


def _activation_backward(activation: nn.Module, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
    backward: Tensor
    if isinstance(activation, nn.ReLU):
        backward = torch.ops.aten.threshold_backward(gradient, after, 0)
    elif isinstance(activation, nn.Tanh):
        backward = torch.ops.aten.tanh_backward(gradient, after)
    else:
        backward = torch.ops.aten.gelu_backward(gradient, before)
    return backward


MEMBER = "isoratio.member"
"""Which module a trial of the loop belongs to, carried among its buffers."""


def _like(column: Tensor, tensor: Tensor) -> Tensor:
    """A column (trials,) shaped to broadcast against ``tensor`` (trials, ...)."""
    return column.view(-1, *[1] * (tensor.ndim - 1))


def _take(tensors: Tensors, trial: int) -> Tensors:
    return {k: v[trial] for k, v in tensors.items()}
