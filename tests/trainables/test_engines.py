"""Packed equals alone, and every engine equals the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import SMALL_TEACHER, endpoint, engine_for, minibatch, run, trial

from trainables.datasets import load_dataset
from trainables.engines import choose_engine
from trainables.settings import Measure
from trainables.trial import Trial

NESTEROV = '{"name":"sgd","nesterov":true}'
TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], i: int) -> None:
    for name, value in a.items():
        np.testing.assert_allclose(b[name][0].numpy(), value[i].numpy(), err_msg=name, **TIGHT)


@st.composite
def random_packs(draw: st.DrawFn) -> list[Trial]:
    shared = {
        "arch": draw(
            st.sampled_from(
                [
                    "linear",
                    '{"depth":1,"name":"mlp","width":5}',
                    '{"activation":"tanh","depth":3,"name":"mlp","width":6}',
                    '{"activation":"gelu","depth":2,"name":"mlp","width":7}',
                    '{"activation":"shaped_relu","depth":2,"name":"mlp","width":7}',
                ]
            )
        ),
        "batch_size": draw(st.sampled_from([1, 7, 50])),
        "loss": draw(st.sampled_from(["cross_entropy", "mse"])),
        "sampler": draw(st.sampled_from(["stream", "replacement"])),
    }
    has_momentum, has_decay = draw(st.booleans()), draw(st.booleans())
    one = st.fixed_dictionaries(
        {
            "lr": st.sampled_from([0.001, 0.01, 0.03]),
            "seed": st.integers(0, 3),
            "order_seed": st.sampled_from([None, 5]),
            "label_noise": st.sampled_from([0.0, 0.5]),
            "momentum": st.sampled_from([0.5, 0.9]) if has_momentum else st.just(0.0),
            "weight_decay": st.sampled_from([1e-3, 0.1]) if has_decay else st.just(0.0),
        }
    )
    return [trial(**shared, **differing) for differing in draw(st.lists(one, min_size=2, max_size=6))]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_packs(), st.sampled_from(["fused", "vmap"]))
def test_a_trial_is_the_same_alone_in_any_pack_and_in_the_plain_loop(pack: list[Trial], engine: str) -> None:
    packed = endpoint(pack, engine)
    for i, member in enumerate(pack):
        close(packed, endpoint([member], engine), i)
        close(packed, endpoint([member], "loop"), i)


@pytest.mark.parametrize("engine", ["fused", "vmap"])
@pytest.mark.parametrize(("precision", "rtol"), [("float32", 2e-3), ("float64", 1e-9)])
def test_curvature_does_not_depend_on_the_neighbours(engine: str, precision: str, rtol: float) -> None:
    """Not a claim about bits: kernels for one matrix and for many round differently in the last ones."""
    measure = Measure(at=[1], hessian={"top": 2, "trace_probes": 3, "examples": 20})
    pack = [trial(precision=precision, seed=s, lr=lr) for s in range(7) for lr in (0.01, 0.1, 0.2)]
    packed = endpoint(pack, engine, measure)
    for i in (0, 8, 20):
        alone = endpoint([pack[i]], engine, measure)
        for name, values in packed.items():
            np.testing.assert_allclose(alone[name][0], values[i], rtol=rtol, err_msg=name)


def test_the_same_pack_gives_the_same_bits() -> None:
    """What makes a resumed sweep equal to an uninterrupted one."""
    measure = Measure(at=[1], hessian={"top": 2, "trace_probes": 3, "examples": 20})
    pack = [trial(precision="float32", seed=s, lr=lr) for s in range(5) for lr in (0.01, 0.2)]
    for engine in ("fused", "vmap", "loop"):
        first, second = (endpoint(pack, engine, measure) for _ in range(2))
        assert first.keys() == second.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])


def test_the_fused_step_is_the_gradient_step() -> None:
    """One step by hand, from autograd on the plain module."""
    dataset = load_dataset(SMALL_TEACHER)
    member = trial(lr=0.3)
    fused, plain = engine_for([member], dataset, "fused"), engine_for([member], dataset, "loop")
    x, y = dataset.train_inputs[:8], dataset.train_targets[:8]
    loss = plain.losses(plain.module(x)[None], y[None]).mean()
    gradients = torch.autograd.grad(loss, list(plain.module.parameters()))
    fused.step(minibatch(x[None], y[None]), 0)
    for (name, before), gradient in zip(plain.module.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(fused.state()[0][name][0], before - 0.3 * gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["fused", "vmap", "loop"])
def test_a_diverged_trial_is_recorded_and_disturbs_nobody(engine: str) -> None:
    wild = trial(lr=1e60, loss="mse", arch="linear")
    calm = [trial(lr=0.01, loss="mse", arch="linear", seed=s) for s in (1, 2)]
    together = run([calm[0], wild, calm[1]], engine, Measure(at=[1], hessian={"examples": 10, "trace_probes": 2}))
    apart = run(calm, engine, Measure(at=[1], hessian={"examples": 10, "trace_probes": 2}))
    assert together.diverged_at[0] == together.diverged_at[2] == -1
    assert 0 < together.diverged_at[1] < together.timeline.steps
    assert together.moments[-1].slots == [0, 2]
    for name, values in apart.moments[-1].found.values.items():
        np.testing.assert_array_equal(together.moments[-1].found.values[name], values, err_msg=name)


def test_iso_ratio_trials_of_a_seed_start_alike_and_see_the_same_examples() -> None:
    measure = Measure(at=[], hessian=False)
    small, large = (run([trial(batch_size=b, lr=0.01 * b)], "fused", measure) for b in (5, 25))
    assert small.moments[0].found.values["train_loss"] == large.moments[0].found.values["train_loss"]
    assert small.timeline.steps * 5 == large.timeline.steps * 25


def test_every_seed_order_and_noise_matters() -> None:
    losses = endpoint([trial(), trial(seed=1), trial(order_seed=1), trial(label_noise=0.5)])["train_loss"]
    assert len(set(losses.tolist())) == 4


def test_measuring_does_not_change_training() -> None:
    often = Measure(at={"every": 0.25}, hessian={"examples": 10, "trace_probes": 2})
    for engine in ("fused", "vmap", "loop"):
        assert torch.equal(endpoint([trial()], engine, often)["train_loss"], endpoint([trial()], engine)["train_loss"])


def test_a_batch_beyond_the_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 51: the training set has 50 examples"):
        run([trial(batch_size=51)])


def test_label_noise_needs_labels() -> None:
    with pytest.raises(ValueError, match="real-valued targets"):
        run([trial(dataset="plugins:regression", label_noise=0.1, loss="mse", arch="linear")])


@pytest.mark.parametrize(
    ("arch", "engine"),
    [
        ("mlp", "fused"),
        ("plugins:convnet", "vmap"),
        ("plugins:with_dropout", "loop"),
        ("plugins:with_batchnorm", "vmap"),
    ],
)
def test_the_engine_is_chosen_by_what_the_module_allows(arch: str, engine: str) -> None:
    assert choose_engine(trial(arch=arch)) == engine


def test_batchnorm_statistics_belong_to_each_trial() -> None:
    pack = [trial(arch="plugins:with_batchnorm", seed=s, lr=0.01) for s in range(3)]
    packed = endpoint(pack, "vmap")
    for i, member in enumerate(pack):
        close(packed, endpoint([member], "loop"), i)


def test_mse_on_real_valued_targets_has_no_accuracy() -> None:
    values = endpoint([trial(dataset="plugins:regression", loss="mse", arch="linear")])
    assert "train_accuracy" not in values
    assert values["train_loss"][0] > 0


@pytest.mark.parametrize("arch", ["plugins:with_dropout", "plugins:masked"])
def test_random_layers_and_unregistered_state_belong_to_the_trial(arch: str) -> None:
    """Whatever ran before, and beside it, on the same worker."""
    pack = [trial(arch=arch, seed=s) for s in range(3)]
    packed = endpoint(pack, "loop")
    torch.rand(7)
    for i in (2, 0):
        close(packed, endpoint([pack[i]], "loop"), i)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_frozen_parameters_stay_what_they_were_and_have_no_curvature(engine: str) -> None:
    dataset = load_dataset(SMALL_TEACHER)
    pack = [trial(arch="plugins:partly_frozen", seed=s, momentum=0.9, weight_decay=0.1) for s in range(2)]
    state = engine_for(pack, dataset, engine)
    before = {k: v.clone() for k, v in state.state()[1].items()}
    x, y = dataset.train_inputs[:8].expand(2, -1, -1), dataset.train_targets[:8].expand(2, -1)
    state.step(minibatch(x, y), 0)
    parameters, others = state.state()
    assert set(parameters) == {"2.weight", "2.bias"}
    assert torch.equal(others["0.weight"], before["0.weight"])
    values = endpoint(pack, engine, Measure(at=[], hessian={"examples": 20, "trace_probes": 1000, "top": 2}))
    close(
        values, endpoint([pack[0]], "loop", Measure(at=[], hessian={"examples": 20, "trace_probes": 1000, "top": 2})), 0
    )


def test_a_loss_never_sees_a_trial_that_diverged() -> None:
    pack = [trial(loss="plugins:refuses_what_is_not_finite", arch="linear", lr=lr) for lr in (0.01, 1.7e308)]
    done = run(pack, "vmap")
    assert done.diverged_at[0] == -1
    assert done.diverged_at[1] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0.01}, "epochs 0.01: not one step at batch size 8 of 50 examples"),
        ({"dataset": "plugins:regression"}, "loss cross_entropy: data set plugins:regression has real-valued targets"),
    ],
)
def test_settings_that_the_data_do_not_allow_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([trial(**changes)])


@pytest.mark.parametrize("changes", [{"weight_decay": 0.1}, {"gradient_noise": 0.3}, {"optimizer": NESTEROV}])
def test_parameters_that_share_a_gradient_are_updated_once_each(changes: dict[str, object]) -> None:
    pack = [trial(arch="plugins:twofold", seed=s, momentum=0.5, **changes) for s in range(2)]
    packed = endpoint(pack, "vmap")
    for i, member in enumerate(pack):
        close(packed, endpoint([member], "loop"), i)
