"""The contracts hold for sound plug-ins and built-ins, and each of their tests catches a plug-in that breaks it."""

from __future__ import annotations

import inspect
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables import Dataset, Probe
from trainables.contract import ArchContract, CallContract, Contract, DatasetContract, LossContract, MetricContract

SMALL_DIGITS = {"name": "mlp", "depth": 1, "width": 4}


class TestMLP(ArchContract):
    arch: ClassVar = {"name": "mlp", "width": 8}


class TestLinear(ArchContract):
    arch = "linear"


class TestNormalizedMLP(ArchContract):
    arch: ClassVar = {"name": "mlp", "width": 8, "norm": "batch"}


class TestDroppedOut(ArchContract):
    """A mask that belongs to the example can be cut."""

    arch: ClassVar = {"name": "mlp", "width": 8, "dropout": 0.5}


class TestConvnet(ArchContract):
    arch: ClassVar = {"name": "plugins:convnet", "channels": 3}
    loss = "mse"


class TestBatchNorm(ArchContract):
    arch = "plugins:with_batchnorm"


class TestTorchDropout(ArchContract):
    arch = "plugins:with_dropout"
    can_be_cut = False


class TestGated(ArchContract):
    """A net that torch.func cannot take."""

    arch = "plugins:gated"
    train: ClassVar = {"lr": 0.001, "momentum": 0.9}


class TestPartlyFrozen(ArchContract):
    arch = "plugins:partly_frozen"


class TestOnceDifferentiable(ArchContract):
    arch = "refused:once"
    curvature = False


class TestDigits(DatasetContract):
    dataset = "digits"


class TestRegression(DatasetContract):
    dataset: ClassVar = {"name": "plugins:regression", "noise": 0.2}


class TestCrossEntropy(LossContract):
    loss = "cross_entropy"


class TestMeanSquaredError(LossContract):
    loss = "mse"
    dataset = "plugins:regression"


class TestQuartic(LossContract):
    loss = "plugins:quartic"


class TestDetachedWeights(LossContract):
    loss = "refused:partly_detached"
    curvature = False


class TestEverythingOfAProbe(MetricContract):
    metric = "plugins:rayleigh_quotient"
    dataset = "digits"
    arch = SMALL_DIGITS


class TestWholeTrial(CallContract):
    call: ClassVar = {"name": "plugins:whole_trial", "scale": 2.0}
    random_trial = False


# Plug-ins each of which breaks one thing


def hidden_default(input_shape: tuple[int, ...], num_classes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Linear(input_shape[0], num_classes)


def frozen(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], num_classes).requires_grad_(False)


def too_wide(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], num_classes + 1)


def exploding(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    net = nn.Linear(input_shape[0], num_classes)
    nn.init.constant_(net.bias, float("inf"))
    return net


def numpy_weights(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    net = nn.Linear(input_shape[0], num_classes)
    net.weight.data = torch.from_numpy(np.random.randn(num_classes, input_shape[0])).float()  # noqa: NPY002
    return net


def zero_weights(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    net = nn.Linear(input_shape[0], num_classes)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


class Counting(nn.Module):
    """Keeps a running count in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def counting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], num_classes), Counting())


def in_place(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(input_shape[0], num_classes))


class Centred(nn.Module):
    """Normalizes by the minibatch, but is no BatchNorm of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def centred(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 5), Centred(), nn.Tanh(), nn.Linear(5, num_classes))


SHARED = nn.Linear(6, 6, dtype=torch.float64)


def shared(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """All nets have one first layer."""
    return nn.Sequential(SHARED, nn.Tanh(), nn.Linear(6, num_classes))


def drifting(root: Path) -> Dataset:
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    return Dataset(x, y, x, y, num_classes=3)


def seeding(root: Path) -> Dataset:
    torch.manual_seed(0)
    return drifting(root)


def with_gaps(root: Path) -> Dataset:
    x, y = torch.ones(20, 4), torch.zeros(20, dtype=torch.int64)
    return Dataset(x.log().log(), y, x, y, num_classes=3)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def logarithm_of_zero(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs.argmax(-1) == targets).to(outputs).log()


def zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) != targets).to(outputs)


def no_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sign().sum(-1)


def relabelling(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    targets.zero_()
    return losses


def nothing(probe: Probe) -> dict[str, float]:
    return {}


def sampling(probe: Probe) -> dict[str, float]:
    return {"sampled": float(torch.rand(()))}


SEEN: set[int] = set()


def counting_trials(probe: Probe) -> dict[str, float]:
    SEEN.add(probe.trial.seed)
    return {"trials": float(len(SEEN))}


def meddling(probe: Probe) -> dict[str, float]:
    next(iter(probe.parameters.values())).mul_(0.5)
    return {"half": 0.5}


def reseeding(probe: Probe) -> dict[str, float]:
    random.seed(0)
    return {"fair": random.random()}


def silent(config: dict[str, Any]) -> dict[str, float]:
    return {}


def not_finite(config: dict[str, Any]) -> dict[str, float]:
    return {"test_loss": float("nan")}


def unseeded(config: dict[str, Any]) -> dict[str, float]:
    return {"test_loss": random.random()}


def case(contract: type[Contract], test: str, message: str, plugin: str, **declared: object) -> Any:
    plugin = plugin if ":" in plugin else f"{__name__}:{plugin}"
    return pytest.param(contract, test, {contract.kind: plugin, **declared}, message, id=f"{plugin}-{test}")


IDENTITY = "test_every_parameter_is_part_of_the_identity"
PACK = "test_a_pack_gives_what_each_trial_gives_alone"
BAD = [
    case(ArchContract, IDENTITY, r"default of \['activation'\] is not part of a trial's identity", "hidden_default"),
    case(ArchContract, PACK, r"in a pack \(engine .*\) end elsewhere than alone", "shared"),
    case(ArchContract, PACK, "diverged at step 1 with lr 1e[+]200", "plugins:convnet", loss="mse", train={"lr": 1e200}),
    case(ArchContract, "test_curvature_can_be_measured", "cannot be measured: .*say curvature = False", "refused:once"),
    case(
        ArchContract,
        "test_curvature_can_be_measured",
        "leave out curvature = False",
        "plugins:convnet",
        curvature=False,
    ),
    case(ArchContract, "test_nothing_global_changes", "numpy's random state", "numpy_weights"),
    case(ArchContract, "test_there_is_something_to_train", "no parameter to train", "frozen"),
    case(
        ArchContract,
        "test_one_row_of_finite_outputs_per_example",
        r"are \(7, 4\) torch.float32; needed are \(7, 3\)",
        "too_wide",
    ),
    case(ArchContract, "test_one_row_of_finite_outputs_per_example", "not all finite; scale", "exploding"),
    case(
        ArchContract, "test_one_row_of_finite_outputs_per_example", "single precision is all I", "plugins:only_single"
    ),
    case(ArchContract, "test_the_seed_decides_the_initial_net", "one seed gives two nets", "numpy_weights"),
    case(ArchContract, "test_the_seed_decides_the_initial_net", "say random_start = False", "zero_weights"),
    case(
        ArchContract,
        "test_the_seed_decides_the_initial_net",
        "leave out random_start = False",
        "plugins:convnet",
        random_start=False,
    ),
    case(ArchContract, "test_evaluation_treats_each_example_alone", "are random in", "refused:functional_dropout"),
    case(ArchContract, "test_evaluation_treats_each_example_alone", "depend on the other", "refused:batch_statistics"),
    case(ArchContract, "test_evaluation_treats_each_example_alone", "changes the net", "counting"),
    case(ArchContract, "test_inputs_stay_as_they_are", "first layer must not work in place", "in_place"),
    case(ArchContract, "test_a_minibatch_can_be_cut", "gives another gradient.*say can_be_cut = False", "centred"),
    case(DatasetContract, "test_it_is_the_same_every_time", "loaded twice it differs", "drifting"),
    case(DatasetContract, "test_every_number_is_finite", r"\['train_inputs'\] are not all finite", "with_gaps"),
    case(DatasetContract, "test_nothing_global_changes", "torch's random state; use a torch.Generator", "seeding"),
    case(LossContract, "test_one_finite_number_per_example", r"are \(\) torch.float32; one number per", "mean_loss"),
    case(LossContract, "test_one_finite_number_per_example", "not all finite", "logarithm_of_zero"),
    case(LossContract, "test_each_number_depends_on_its_example_alone", "is random", "refused:random_loss"),
    case(
        LossContract, "test_each_number_depends_on_its_example_alone", "depends on the others", "refused:centred_loss"
    ),
    case(LossContract, "test_it_has_a_gradient", "has no gradient", "zero_one"),
    case(LossContract, "test_it_has_a_gradient", "is zero or not finite", "no_slope"),
    case(LossContract, "test_arguments_stay_as_they_are", "changes its arguments", "relabelling"),
    case(MetricContract, "test_numbers_under_free_names", "returned Ratio: taken by a column", "plugins:bad_name"),
    case(MetricContract, "test_numbers_under_free_names", "returned no number", "nothing"),
    case(MetricContract, "test_one_net_gives_one_answer", "of one net it is {'sampled'", "sampling"),
    case(MetricContract, PACK, "keep no state", "counting_trials"),
    case(MetricContract, "test_it_only_looks", "changes parameters or data", "meddling"),
    case(MetricContract, "test_it_only_looks", "Python's random state", "reseeding"),
    case(CallContract, "test_finite_numbers_under_allowed_names", "returned no number", "silent"),
    case(CallContract, "test_finite_numbers_under_allowed_names", "not finite: test_loss; such a", "not_finite"),
    case(CallContract, "test_the_configuration_decides_the_result", "one configuration gave", "unseeded"),
    case(CallContract, "test_the_seed_matters", "say random_trial = False", "plugins:whole_trial"),
    case(CallContract, "test_the_seed_matters", "leave out random_trial", "unseeded", random_trial=False),
]


@pytest.mark.parametrize(("contract", "test", "attributes", "message"), BAD)
def test_what_breaks_a_contract_is_caught(
    contract: type[Contract], test: str, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        getattr(type("Broken", (contract,), attributes)(), test)()


@pytest.mark.parametrize("contract", [ArchContract, DatasetContract, LossContract, MetricContract, CallContract])
def test_every_test_of_a_contract_catches_something(contract: type[Contract]) -> None:
    caught = {getattr(bad.values[0], bad.values[1]) for bad in BAD}
    tests = {test for name, test in inspect.getmembers(contract, inspect.isfunction) if name.startswith("test_")}
    assert tests <= caught


def test_a_failing_trial_of_ones_own_shows_its_traceback() -> None:
    broken = type("Broken", (CallContract,), {"call": f"{__name__}:raising"})()
    with pytest.raises(AssertionError, match=r"failed:\nTraceback(.|\n)*no such luck"):
        broken.test_finite_numbers_under_allowed_names()


def raising(config: dict[str, Any]) -> dict[str, float]:
    raise RuntimeError("no such luck")
