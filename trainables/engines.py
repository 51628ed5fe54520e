"""Which engine trains what, and how a pack starts: three engines behind the interface of :mod:`trainables.engine`.

``loop`` is a plain PyTorch loop, the reference; ``vmap`` stacks any module that ``torch.func`` can vectorise;
``fused`` writes out the step of dense nets as batched matrix products. Trials never mix: each result is what the trial
would give alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables import stacking
from trainables.datasets import dataset_of
from trainables.engine import Engine, Hyperparameters, Loss, Minibatch
from trainables.fused import FusedEngine
from trainables.layers import convolves
from trainables.loop import LoopEngine
from trainables.registry import can_fuse, load, resolve
from trainables.streams import init_seed
from trainables.trial import Trial
from trainables.vmapped import VmapEngine

ENGINES: dict[str, type[Engine]] = {"loop": LoopEngine, "vmap": VmapEngine, "fused": FusedEngine}


def build(trial: Trial, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The trial's freshly initialised net; the same for one seed, whatever else differs."""
    resolved = resolve("arch", trial.arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed(trial.seed))
        module = load(resolved.target)(input_shape, num_classes, **resolved.parameters)
    if not isinstance(module, nn.Module):
        raise TypeError(f"arch {trial.arch}: returned {type(module).__name__}, not a torch.nn.Module")
    return module


def load_loss(reference: str) -> Loss:
    """The loss that a trial names, with its parameters bound."""
    resolved = resolve("loss", reference)
    function: Loss = load(resolved.target)
    if not resolved.parameters:
        return function
    return partial(function, **resolved.parameters)


def start(
    trials: Sequence[Trial],
    engine: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    like: torch.Tensor,
    physical: int | None = None,
) -> Engine:
    """Freshly initialised trials, of the type and on the device of ``like``."""
    modules = [build(t, input_shape, num_classes).to(like.device, like.dtype) for t in trials]
    return ENGINES[engine](modules, load_loss(trials[0].loss), Hyperparameters.of(trials, like), physical)


def choose_engine(trial: Trial, *, on_gpu: bool = False) -> str:
    """The engine of a trial by a fixed rule: fused where it applies, vmap where that works and pays."""
    if trial.call is not None:
        return "call"
    if can_fuse(trial.arch, trial.loss):
        return "fused"
    try:
        return "vmap" if _stacking_pays(trial, on_gpu=on_gpu) and _vmap_agrees(trial) else "loop"
    except Exception:  # whatever a module of the user's own raises: the loop takes any, and reports what is wrong
        return "loop"


def _stacking_pays(trial: Trial, *, on_gpu: bool) -> bool:
    dataset = dataset_of(trial)
    module = build(trial, dataset.input_shape, dataset.num_classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(dataset.train_inputs[:1].to(next(module.parameters())))
    work = counter.get_total_flops() / 2 * trial.batch_size
    return stacking.pays(work, convolves=convolves(module), on_gpu=on_gpu)


def _vmap_agrees(trial: Trial) -> bool:
    """Takes a step of two trials, and compares the outputs with those of their own modules.

    They differ where a module has state of its own that is no parameter and no buffer.
    """
    dataset, dtype = dataset_of(trial), getattr(torch, trial.precision)
    inputs, targets = dataset.train_inputs[:2].to(dtype), dataset.train_targets[:2]
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    pair = [trial, trial.model_copy(update={"seed": trial.seed ^ 1})]
    modules = [build(t, dataset.input_shape, dataset.num_classes).to(dtype) for t in pair]
    engine = VmapEngine(modules, load_loss(trial.loss), Hyperparameters.of(pair, inputs))
    together = engine.outputs(*engine.state(), inputs.expand(2, *inputs.shape))
    apart = torch.stack([module.eval()(inputs) for module in modules])
    words = torch.zeros(2, 2, dtype=torch.int64) if engine.needs_words else None
    engine.step(Minibatch(torch.stack([inputs, inputs]), torch.stack([targets, targets]), words, 2), 0)
    return torch.allclose(together, apart, rtol=1e-4, atol=1e-5)
