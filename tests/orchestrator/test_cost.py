"""Costs of packs: in closed form, and in what direction every setting moves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import cost
from orchestrator.cost import ALONG_E1, PARTS, Costs
from trainables.schedules import timeline
from trainables.settings import At, CriticalSamples, Density, GradientNoise, Hessian, Measure
from trainables.sgd_steps import MULTIPLES

N = 1437  # examples of digits
LINEAR = 64 * 10  # multiply-adds of the linear net on them
NOTHING = Measure(at=[], hessian=False, gradient_noise=False)
SHARED = {"train_size": None, "max_steps": None, "schedule": "constant", "sampler": "stream", "precision": "float32"}
PACK: dict[str, Any] = {"trials": 2, "arch": "mlp", "dataset": "digits", "batch_size": 8, "epochs": 3.0} | SHARED
PACK |= {"engine": "fused", "optimizer": "sgd", "until": None, "call": None}
SEEN = 8 * round(3 * N / 8)  # examples in the steps of a trial


def _costs(measure: Measure = NOTHING, **settings: Any) -> Costs:
    return Costs.of(pa.Table.from_pylist([PACK | settings]), measure)


def _cost(measure: Measure = NOTHING, **settings: Any) -> float:
    return float(_costs(measure, **settings).total[0])


def _part(part: str, measure: Measure, **settings: Any) -> float:
    return float(_costs(measure, **settings).measuring[0, PARTS.index(part)])


def _share(measure: Measure) -> float:
    costs = _costs(measure)
    return float(costs.measuring.sum() / costs.total[0])


def test_costs_are_counted_in_multiply_adds() -> None:
    costs = _costs(arch="linear")
    assert costs.training[0] == pytest.approx(2 * 3 * LINEAR * SEEN / 1e9)
    losses = 3 * N + N / 4 + 2 * 1024  # training set, test set, twice the curvature examples; start and endpoint
    assert costs.measuring[0] == pytest.approx([2 * 2 * LINEAR * losses / 1e9, 0, 0, 0])
    assert _cost(trials=4) == pytest.approx(2 * _cost())
    assert _cost(engine="loop") > _cost(engine="vmap") > _cost(engine="fused")
    assert _cost(engine="loop", batch_size=4) > _cost(engine="loop")
    assert _cost(dataset='{"dimension":128,"name":"teacher"}') > _cost(dataset="teacher")


def test_nets_cost_their_multiply_adds() -> None:
    for arch, true in (("mlp", 64 * 128 + 128 * 128 + 128 * 10), ('{"depth":1,"name":"mlp","width":7}', 74 * 7)):
        assert _cost(arch=arch) / _cost(arch="linear") == pytest.approx(true / LINEAR)


def test_a_trial_costs_the_passes_of_its_steps() -> None:
    """Half the training set is half the epochs' examples; full batches pass over all of it at every step."""
    training = _costs().training[0]
    assert _costs(train_size=N // 2).training[0] == pytest.approx(training / 2, rel=1e-2)
    assert _costs(epochs=None, max_steps=10).training[0] == pytest.approx(training * 80 / SEEN)
    assert _costs(sampler="full").training[0] == pytest.approx(training * N / 8)
    grown = '{"of":"batch_size","step":{"at":[1.5],"factor":0.25}}'
    assert _costs(schedule=grown).training[0] == pytest.approx(training)
    assert _costs(schedule=grown, engine="loop").training[0] < _costs(engine="loop").training[0], "fewer steps"


@pytest.mark.parametrize(
    ("part", "group", "passes"),
    [
        ("hessian", Hessian(trace_probes=10, examples=100), 6 * (35 + 10) * 100),
        ("hessian", Hessian(trace_probes=10, examples=100, bottom=0), 6 * (25 + 10) * 100),
        ("hessian", Hessian(trace_probes=10, examples=100, max_iterations=20), 6 * (20 + 10) * 100),
        ("hessian", Hessian(trace_probes=10, examples=5000), 6 * (35 + 10) * N),
        ("hessian", Hessian(trace_probes=1, examples=100, density=Density(probes=3, steps=7)), 6 * (36 + 14) * 100),
        ("hessian", Hessian(trace_probes=1, examples=100, density=Density(probes=1)), 6 * 36 * 100),
        ("hessian", Hessian(trace_probes=1, examples=100, sgd_steps=5), 6 * 36 * 100 + 5 * 3 * 8 + 9 * 100),
        ("gradient_noise", GradientNoise(), 9 * 1024),
        ("gradient_noise", GradientNoise(lambda_max=True), (9 + 25 * 5) * 1024),
        ("critical_samples", CriticalSamples(examples=7, iterations=11), 3 * 77),
    ],
)
def test_a_group_costs_its_passes(part: str, group: Any, passes: float) -> None:
    found = _part(part, NOTHING.model_copy(update={part: group}), arch="linear")
    assert found == pytest.approx(2 * 2 * LINEAR * passes / 1e9)


def test_the_profile_along_e1_takes_as_many_passes_as_it_has_points() -> None:
    assert len(MULTIPLES) == ALONG_E1


def test_alignment_takes_products_with_both_matrices() -> None:
    hessian = Hessian(top=5, examples=100)
    with_it, without = (
        _part("gradient_noise", Measure(at=[], hessian=hessian, gradient_noise=GradientNoise(probes=probes)))
        for probes in (8, 0)
    )
    assert with_it == pytest.approx(without * (9 + 11 * (8 + 5)) / 9)


def test_only_the_fused_engine_need_not_write_down_every_gradient() -> None:
    noise = Measure(hessian=False)
    assert _part("gradient_noise", noise, engine="vmap") > 5 * _part("gradient_noise", noise, engine="fused")
    assert _part("losses", noise, engine="vmap") == _part("losses", noise, engine="fused")


def test_each_group_costs_at_its_own_moments() -> None:
    every = Measure(at=At(every=0.5), critical_samples=CriticalSamples())  # 7 moments in 3 epochs
    rarely = Measure(
        at=At(every=0.5),
        hessian=Hessian(at=[]),
        gradient_noise=GradientNoise(at=[1.0]),
        critical_samples=CriticalSamples(at=At(early_steps=4)),  # 0, 1, 2, 4 and the endpoint
    )
    ratio = _costs(rarely).measuring[0] / _costs(every).measuring[0]
    assert ratio == pytest.approx([10 / 7, 2 / 7, 3 / 7, 5 / 7])
    assert _costs(rarely, batch_size=64).measuring[0] == pytest.approx(_costs(rarely).measuring[0])


groups = st.fixed_dictionaries(
    {
        "hessian": st.booleans()
        | st.builds(Hessian, at=st.sampled_from([None, [], [1.0]]), density=st.just(Density())),
        "gradient_noise": st.booleans()
        | st.builds(GradientNoise, at=st.sampled_from([None, []]), lambda_max=st.just(True)),
        "critical_samples": st.booleans(),
    }
)


@given(st.lists(st.floats(0, 3), max_size=4), groups)
def test_shares_are_shares(at: list[float], chosen: dict[str, Any]) -> None:
    costs = _costs(Measure(at=at, **chosen))
    assert (costs.measuring >= 0).all()
    assert 0 < costs.measuring.sum() / costs.total[0] < 1
    assert costs.total == pytest.approx(costs.training + costs.measuring.sum(1))
    on = [part == "losses" or chosen[part] is not False for part in PARTS]
    assert ((costs.measuring[0] > 0) == on).all()


@given(st.lists(st.floats(0, 3), min_size=1, max_size=4), groups)
def test_less_measuring_costs_less(at: list[float], chosen: dict[str, Any]) -> None:
    measure = Measure(at=at, **chosen)
    for part in ("hessian", "gradient_noise", "critical_samples"):
        less = measure.model_copy(update={part: False})
        assert (_share(less) < _share(measure)) == (chosen[part] is not False)
        if group := getattr(measure, part):
            rarer = measure.model_copy(update={part: group.model_copy(update={"at": []})})
            assert _part(part, rarer) <= _part(part, measure)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (Hessian(examples=50), Hessian(examples=51)),
        (Hessian(trace_probes=8), Hessian(trace_probes=9)),
        (Hessian(bottom=0), Hessian(bottom=1)),
        (Hessian(), Hessian(density=Density())),
        (Hessian(density=Density(steps=20)), Hessian(density=Density(steps=21))),
        (Hessian(), Hessian(sgd_steps=1)),
        (GradientNoise(), GradientNoise(lambda_max=True)),
        (GradientNoise(), GradientNoise(probes=1)),
        (GradientNoise(probes=4), GradientNoise(probes=5)),
        (CriticalSamples(examples=9), CriticalSamples(examples=10)),
        (CriticalSamples(iterations=9), CriticalSamples(iterations=10)),
    ],
)
def test_more_of_anything_costs_more(less: Any, more: Any) -> None:
    part = {Hessian: "hessian", GradientNoise: "gradient_noise", CriticalSamples: "critical_samples"}[type(less)]
    assert _cost(Measure(**{part: less})) < _cost(Measure(**{part: more}))


def test_a_trial_of_the_users_own_measures_nothing() -> None:
    own = PACK | {"call": "mine:train", "engine": "call", "batch_size": N + 1}  # whose data are not known, nor how long
    costs = Costs.of(pa.Table.from_pylist([own, PACK]), Measure())
    assert costs.training == pytest.approx([2.0, _costs().training[0]])
    assert costs.measuring.sum(axis=1) == pytest.approx([0, _costs(Measure()).measuring.sum()])


@pytest.mark.parametrize(("every", "examples"), [(100, 50), (7, 50), (100, 5000)])
def test_nudged_sgd_measures_eigenvectors_now_and_then(every: int, examples: int) -> None:
    optimizer = f'{{"every":{every},"examples":{examples},"name":"nudged_sgd"}}'
    more = _cost(arch="linear", optimizer=optimizer) - _cost(arch="linear")
    passes = 6 * 25 * min(examples, N) * -(-(SEEN // 8) // every)  # before the first step, too
    assert more == pytest.approx(2 * LINEAR * passes / 1e9)


@pytest.mark.parametrize(("until", "looks"), [("", 3), (" every 0.5", 6), (" every 0.001", SEEN // 8), (" every 9", 1)])
def test_a_look_at_whether_to_stop_is_a_forward_pass(until: str, looks: int) -> None:
    more = _cost(arch="linear", until=f"train_loss <= 0.1{until}") - _cost(arch="linear")
    assert more == pytest.approx(2 * LINEAR * looks * N / 1e9)


def test_a_timeline_is_made_once_however_often_costs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(cost, "timeline", lambda *of: made.append(of[1]) or timeline(*of))
    cost._run_of.cache_clear()
    packs = pa.Table.from_pylist(
        [PACK | {"batch_size": b, "engine": e} for b in range(1, 101) for e in ("vmap", "loop")]
    )
    for _ in range(2):
        Costs.of(packs, NOTHING)
    assert cost.largest_batch(PACK, NOTHING) == 8
    assert sorted(made) == [*range(1, 101)]


def test_no_packs_cost_nothing() -> None:
    costs = Costs.of(pa.Table.from_pylist([PACK]).slice(0, 0), Measure())
    assert costs.total.shape == (0,)
    assert np.shape(costs.measuring) == (0, len(PARTS))
