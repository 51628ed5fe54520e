"""What plug-ins must hold to, as tests: a test file of the user's own inherits them, and pytest collects them.

    from trainables.contract import ArchContract

    class TestBottleneck(ArchContract):
        arch = {"name": "mine:bottleneck", "rank": 8}
        dataset = "mine:rings"

What does not hold of a plug-in is declared, such as ``curvature = False`` for a loss without a Hessian.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.data import Dataset
from trainables.datasets import load_dataset
from trainables.differentiable import CurvatureError
from trainables.engine import Loss
from trainables.engines import build, choose_engine, load_loss
from trainables.layers import coupled_examples
from trainables.probe import Probe
from trainables.registry import Kind, Reference, Resolved, load, resolve
from trainables.rehearsal import CURVATURE, agree, called, differ, endpoints, flat, probes, trained, watched
from trainables.schema import TAKEN, metric_values
from trainables.trial import Trial

PARTS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


class Contract:
    """What every plug-in must hold to; the attribute that is named like its kind holds a reference to it."""

    kind: ClassVar[Kind]

    def test_every_parameter_is_part_of_the_identity(self) -> None:
        """Else trials that differ in it would count as one."""
        parameters = inspect.signature(load(self._resolved.target)).parameters.values()
        hidden = [p.name for p in parameters if p.default is not p.empty and p.name not in self._resolved.identity]
        found = f"the default of {hidden} is not part of a trial's identity"
        self._require(not hidden, f"{found}; make it a number, a text, true, false or null")

    @property
    def _resolved(self) -> Resolved:
        return resolve(self.kind, getattr(self, self.kind))

    def _require(self, holds: object, otherwise: str) -> None:
        assert holds, f"{self.kind} {self._resolved.column}: {otherwise}"


class Trained(Contract):
    """Plug-ins that take part in training; what is not given is a small net on a small data set.

    Attributes:
        arch: name, or mapping of name and parameters, as in a sweep file; likewise the next two.
        dataset: what is trained on.
        loss: what is minimized.
        train: changes to the fields of the trials, such as ``{"lr": 0.001}``.
    """

    arch: ClassVar[Reference] = {"name": "mlp", "width": 8, "activation": "tanh"}
    dataset: ClassVar[Reference] = {"name": "teacher", "train_size": 48, "test_size": 16, "dimension": 6, "classes": 3}
    loss: ClassVar[Reference] = "cross_entropy"
    train: ClassVar[Mapping[str, Any]] = {}

    @property
    def _trials(self) -> list[Trial]:
        """Three of a few steps, which differ as those of one pack may."""
        fields: dict[str, Any] = {"lr": 0.01, "batch_size": 6, "max_steps": 4, "epochs": None, "precision": "float64"}
        fields |= {"train_size": 64 if self._data.train_size > 64 else None, **self.train}
        fields |= {kind: resolve(kind, getattr(self, kind)).column for kind in ("arch", "dataset", "loss")}
        noise, lr = 0.5 if self._data.is_classification else 0.0, fields["lr"]
        own: list[dict[str, Any]] = [{}, {"seed": 1, "lr": lr / 2, "label_noise": noise}, {"seed": 2, "lr": lr / 4}]
        return [Trial.model_validate(fields | changes) for changes in own]

    @property
    def _data(self) -> Dataset:
        return load_dataset(resolve("dataset", self.dataset).column)


class Differentiated(Trained):
    """Plug-ins through which gradients flow.

    Attributes:
        curvature: whether a Hessian can be measured; without, sweeps need ``hessian: false, gradient_noise: false``.
    """

    curvature: ClassVar[bool] = True

    def test_a_pack_gives_what_each_trial_gives_alone(self) -> None:
        """By the engine that a sweep would choose, against a plain PyTorch loop."""
        trials = self._trials
        engine = choose_engine(trials[0])
        together, alone = endpoints(trials, engine), torch.cat([endpoints([trial], "loop") for trial in trials])
        found = f"trials in a pack (engine {engine}) end elsewhere than alone"
        self._require(
            not differ(together, alone), f"{found}; nets must share no state and compute in the type of their inputs"
        )

    def test_curvature_can_be_measured(self) -> None:
        """See :mod:`trainables.differentiable`."""
        trial, refusal = self._trials[0], ""
        try:
            trained([trial], choose_engine(trial), CURVATURE)
        except CurvatureError as error:
            refusal = f"{error}; and say curvature = False"
        self._require(not (self.curvature and refusal), refusal)
        self._require(self.curvature or refusal, "curvature can be measured; leave out curvature = False")

    def test_nothing_global_changes(self) -> None:
        """The generator from which torch draws initial weights is lent, and taken back."""
        with watched():
            trained(self._trials[:1], "loop")


class ArchContract(Differentiated):
    """An architecture: ``arch(input_shape, num_classes, **parameters) -> torch.nn.Module``.

    Attributes:
        random_start: whether the seed decides the initial parameters.
        can_be_cut: whether gradients of the pieces of a minibatch add up to that of the whole. Not so where examples
            meet, but for torch's BatchNorm, which is never cut, and where chance depends on the pieces, as with torch's
            dropout.
    """

    kind = "arch"
    random_start: ClassVar[bool] = True
    can_be_cut: ClassVar[bool] = True

    def test_there_is_something_to_train(self) -> None:
        """A module with a parameter that requires a gradient."""
        trains = any(p.requires_grad for p in self._net().parameters())
        self._require(trains, "no parameter to train; register them as torch.nn.Parameter")

    def test_one_row_of_finite_outputs_per_example(self) -> None:
        """Of shape (batch, classes), in the type of the inputs."""
        for dtype in (torch.float32, torch.float64):
            x, shape = self._inputs.to(dtype), (len(self._inputs), self._data.num_classes)
            y = self._net().to(dtype)(x)
            found = f"outputs for {tuple(x.shape)} {dtype} are {tuple(y.shape)} {y.dtype}"
            self._require(y.shape == shape and y.dtype == dtype, f"{found}; needed are {shape} {dtype}")
            self._require(y.isfinite().all(), f"{found}, not all finite; scale the initial weights down")

    def test_the_seed_decides_the_initial_net(self) -> None:
        """And nothing else does."""
        one, again, other = (flat(self._net(seed).state_dict()) for seed in (0, 0, 1))
        self._require(torch.equal(one, again), "one seed gives two nets; draw weights from torch's own generator only")
        same = torch.equal(one, other)
        self._require(not (same and self.random_start), "two seeds give one net; say random_start = False")
        self._require(same or self.random_start, "two seeds give two nets; leave out random_start = False")

    def test_evaluation_treats_each_example_alone(self) -> None:
        """Whatever else is in the batch, and however often."""
        net, x = self._net(), self._inputs
        before = flat(net.state_dict())
        whole, again, halves = net(x), net(x), torch.cat([net(half) for half in x.tensor_split(2)])
        remedy = "in evaluation mode; give BatchNorm running statistics and let layers follow module.eval()"
        self._require(torch.equal(whole, again), f"outputs are random {remedy}")
        self._require(not differ(halves, whole), f"outputs depend on the other examples of the batch {remedy}")
        self._require(torch.equal(before, flat(net.state_dict())), f"a forward pass changes the net {remedy}")

    def test_inputs_stay_as_they_are(self) -> None:
        """They may be the data set itself."""
        x = self._inputs
        self._net()(x)
        self._require(torch.equal(x, self._inputs), "changes its inputs; the first layer must not work in place")

    def test_a_minibatch_can_be_cut(self) -> None:
        """It is when one trial alone does not fit memory."""
        if coupled_examples(self._net()) != 1 or not self.can_be_cut:
            return
        whole, cut = (endpoints(self._trials[:1], "loop", physical) for physical in (None, 4))
        remedy = "use trainables.layers.Dropout and no batch statistics but BatchNorm's, or say can_be_cut = False"
        self._require(not differ(cut, whole), f"a minibatch that is cut gives another gradient; {remedy}")

    def _net(self, seed: int = 0) -> nn.Module:
        """In evaluation mode, float64."""
        trial = self._trials[0].model_copy(update={"seed": seed})
        return build(trial, self._data.input_shape, self._data.num_classes).double().eval()

    @property
    def _inputs(self) -> Tensor:
        return self._data.train_inputs[:7].to(torch.float64, copy=True)


class DatasetContract(Contract):
    """A data set: ``dataset(root, **parameters) -> trainables.Dataset``, which checks shapes, types and labels."""

    kind = "dataset"
    dataset: ClassVar[Reference]

    def test_it_is_the_same_every_time(self) -> None:
        """To the byte: trials are compared across processes and machines."""
        same = self._load().sha256() == self._load().sha256()
        self._require(same, "loaded twice it differs; draw from a torch.Generator with a fixed seed")

    def test_every_number_is_finite(self) -> None:
        """Of inputs and targets."""
        data = self._load()
        bad = [part for part in PARTS if not getattr(data, part).isfinite().all()]
        self._require(not bad, f"{bad} are not all finite; leave such examples out, or replace the numbers")

    def test_nothing_global_changes(self) -> None:
        """A data set draws from a generator of its own."""
        with watched():
            self._load()

    def _load(self) -> Dataset:
        return load_dataset.__wrapped__(self._resolved.column)


class LossContract(Differentiated):
    """A loss: ``loss(outputs, targets, **parameters) -> losses``, one per example."""

    kind = "loss"

    def test_one_finite_number_per_example(self) -> None:
        """In the type of the outputs."""
        for dtype in (torch.float32, torch.float64):
            outputs, targets = self._batch(dtype)
            y = self._loss(outputs, targets)
            found = f"losses of {len(outputs)} outputs {dtype} are {tuple(y.shape)} {y.dtype}"
            fits = y.shape == (len(outputs),) and y.dtype == dtype
            self._require(fits, f"{found}; one number per example is needed, of their type (reduction='none'?)")
            self._require(y.isfinite().all(), f"{found}, not all finite")

    def test_each_number_depends_on_its_example_alone(self) -> None:
        """Trials of a pack go through it in one call."""
        outputs, targets = self._batch()
        whole, again = self._loss(outputs, targets), self._loss(outputs, targets)
        self._require(torch.equal(whole, again), "is random; it must be a function of outputs and targets")
        single = torch.cat([self._loss(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])
        self._require(
            not differ(single, whole), "an example's loss depends on the others of its batch; no means or ranks"
        )

    def test_it_has_a_gradient(self) -> None:
        """Finite, and not zero everywhere."""
        outputs, targets = self._batch()
        losses = self._loss(outputs.requires_grad_(), targets)
        self._require(losses.requires_grad, "has no gradient; neither detach outputs nor take their argmax")
        (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        fine = gradient.isfinite().all() and gradient.any()
        self._require(fine, "its gradient is zero or not finite; mind roots and logarithms at 0")

    def test_arguments_stay_as_they_are(self) -> None:
        """Targets may be the data set itself."""
        outputs, targets = self._batch()
        self._loss(outputs, targets)
        same = all(map(torch.equal, (outputs, targets), self._batch()))
        self._require(same, "changes its arguments, which may be the data set itself; work on a copy")

    @property
    def _loss(self) -> Loss:
        return load_loss(self._resolved.column)

    def _batch(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Normal outputs, and copies of some targets."""
        targets = self._data.train_targets[:7].clone()
        shape, generator = (len(targets), self._data.num_classes), torch.Generator().manual_seed(0)
        outputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return outputs, targets.to(dtype) if targets.is_floating_point() else targets


class MetricContract(Trained):
    """A metric: ``metric(probe) -> dict[str, float]``; see :class:`trainables.Probe`."""

    kind = "metric"
    metric: ClassVar[str]

    def test_numbers_under_free_names(self) -> None:
        """Names that are no column of `trials` yet."""
        self._require(self._values(*probes(self._trials[:1])), "returned no number; give each a name")

    def test_one_net_gives_one_answer(self) -> None:
        """A metric that samples has a generator of its own."""
        (probe,) = probes(self._trials[:1])
        once, again = self._values(probe), self._values(probe)
        found = f"of one net it is {once}, then {again}"
        self._require(agree(once, again), f"{found}; seed a torch.Generator with probe.trial.seed")

    def test_a_pack_gives_what_each_trial_gives_alone(self) -> None:
        """A metric keeps nothing from one trial to the next."""
        trials = self._trials
        together = [self._values(probe) for probe in probes(trials)]
        alone = [self._values(*probes([trial])) for trial in trials]
        self._require(all(map(agree, together, alone)), f"in a pack it is {together}, alone {alone}; keep no state")

    def test_it_only_looks(self) -> None:
        """Training goes on with the same tensors."""
        (probe,) = probes(self._trials[:1])
        before = self._seen(probe)
        with watched():
            self._values(probe)
        self._require(torch.equal(before, self._seen(probe)), "changes parameters or data; work on a copy")

    def _values(self, probe: Probe) -> dict[str, float]:
        return metric_values(f"metric {self.metric}", load(self.metric)(probe), TAKEN)

    def _seen(self, probe: Probe) -> Tensor:
        data = {part: getattr(probe.dataset, part) for part in PARTS}
        return torch.cat([flat(probe.parameters), flat(data), flat({"noisy": probe.train_targets})])


class CallContract(Contract):
    """A whole trial of one's own: ``call(config) -> dict[str, float]``.

    Attributes:
        call: name, or mapping of name and parameters.
        train: changes to the fields of the trials.
        random_trial: whether the seed decides the result.
    """

    kind = "call"
    call: ClassVar[Reference]
    train: ClassVar[Mapping[str, Any]] = {}
    random_trial: ClassVar[bool] = True

    def test_finite_numbers_under_allowed_names(self) -> None:
        """Those of built-in statistics, such as test_loss, among them."""
        self._require(all(self._values(0)), "returned no number; give each a name")

    def test_the_configuration_decides_the_result(self) -> None:
        """Whatever ran before in the same process."""
        once, _, again = self._values(0, 1, 0)
        found = f"one configuration gave {once}, then {again}"
        self._require(once == again, f'{found}; seed a generator of its own with config["seed"], and keep no state')

    def test_the_seed_matters(self) -> None:
        """Seeds are the replicates of which the verdict makes intervals."""
        one, other = self._values(0, 1)
        self._require(one != other or not self.random_trial, "two seeds give the same; say random_trial = False")
        self._require(one == other or self.random_trial, "two seeds differ; leave out random_trial = False")

    def _values(self, *seeds: int) -> list[dict[str, float]]:
        fields = {"dataset": "digits", "lr": 0.01, "batch_size": 8, "epochs": 1, **self.train}
        return called([Trial.model_validate(fields | {"call": self._resolved.column, "seed": s}) for s in seeds])
