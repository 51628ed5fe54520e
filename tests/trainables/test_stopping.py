from __future__ import annotations

import numpy as np
import pytest
from packs import ENDPOINT_ONLY, endpoint, run, trial

from trainables.settings import Measure
from trainables.stopping import Condition, canonical_condition, parse
from trainables.trial import Trial


def test_conditions_have_one_way_to_be_written() -> None:
    assert parse("train_loss<=.10") == Condition("train_loss", 0.1)
    assert canonical_condition(" train_accuracy  >= 1 every 0.50") == "train_accuracy >= 1.0 every 0.5"
    assert canonical_condition(canonical_condition("train_loss <= 1e-3")) == "train_loss <= 0.001"
    assert trial(until="train_loss<=0.5").until == "train_loss <= 0.5"


@pytest.mark.parametrize(
    "text", ["train_loss >= 1", "train_accuracy <= 0.5", "test_loss <= 1", "train_loss", "", "train_loss <= x"]
)
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition to stop at: allowed is `train_loss <= x` or"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_loss <= 1 every 0", "every 0 epochs is too often; 0.001 at least"),
        ("train_loss <= 1 every 1e-9", "is too often"),
        ("train_accuracy >= 99", "an accuracy is a fraction, at most 1"),
        ("train_loss <= 1e999", "a number is too large"),
    ],
)
def test_impossible_numbers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


PACK = [(0.3, 0), (0.001, 1), (0.1, 2)]


def pack(**changes: object) -> list[Trial]:
    return [trial(lr=lr, seed=seed, epochs=12, **changes) for lr, seed in PACK]


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_trial_ends_at_the_first_look_at_which_its_condition_holds(engine: str, momentum: float) -> None:
    """As if it had been told to train so long, and no longer."""
    until = "train_loss <= 1.5 every 0.5"
    done = run(pack(until=until, momentum=momentum), engine)
    reached = [at for at in done.reached_at if at >= 0]
    assert reached
    assert done.reached_at[1] == -1, "the slow one never gets there"
    for slot, at in enumerate(done.reached_at):
        last = next(m for m in reversed(done.moments) if slot in m.slots)
        values = {k: v[last.slots.index(slot)] for k, v in last.found.values.items()}
        assert (at >= 0) == (values["train_loss"] <= 1.5)
        alone = trial(lr=PACK[slot][0], seed=PACK[slot][1], momentum=momentum, epochs=last.epoch)
        for name, value in endpoint([alone], engine).items():
            np.testing.assert_allclose(values[name], value[0], rtol=1e-9, atol=1e-12, err_msg=name)
        before = [m.epoch for m in run([alone], engine, Measure(at={"every": 0.5}, hessian=False)).moments[1:-1]]
        losses = run([alone], engine, Measure(at={"every": 0.5}, hessian=False)).moments[1:-1]
        assert all(m.found.values["train_loss"][0] > 1.5 for m in losses), before


def test_accuracy_and_the_cap() -> None:
    done = run(pack(until="train_accuracy >= 0.9"))
    for slot in range(3):
        last = next(m for m in reversed(done.moments) if slot in m.slots)
        accuracy = last.found.values["train_accuracy"][last.slots.index(slot)]
        assert (done.reached_at[slot] >= 0) == (accuracy >= 0.9)
        assert done.steps(slot) == (done.reached_at[slot] if accuracy >= 0.9 else done.timeline.steps)


def test_a_stopped_trial_keeps_the_parameters_it_had() -> None:
    """BatchNorm's running statistics, too, while its neighbours go on."""
    arch = '{"depth":1,"name":"mlp","norm":"batch","width":8}'
    settings = ENDPOINT_ONLY.model_copy(update={"endpoints": True})
    done = run(pack(arch=arch, until="train_loss <= 1.2 every 0.5"), "vmap", settings)
    assert len({done.steps(slot) for slot in range(3)}) > 1
    for slot, (lr, seed) in enumerate(PACK):
        epochs = done.timeline.epoch(done.steps(slot))
        alone = run([trial(arch=arch, lr=lr, seed=seed, epochs=epochs)], "vmap", settings)
        for mine, its in zip(done.endpoints[slot], alone.endpoints[0], strict=True):
            for name, tensor in its.items():
                np.testing.assert_allclose(mine[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
