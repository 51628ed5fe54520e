"""When what is measured: the moments of a group, and their steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainables.schedules import Timeline, timeline
from trainables.settings import (
    GROUPS,
    At,
    CriticalSamples,
    Density,
    GradientNoise,
    Hessian,
    Measure,
    Moment,
    Moments,
)


def constant(epochs: float, examples: int, batch_size: int) -> Timeline:
    return timeline("constant", batch_size, examples, epochs, None)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ([1, 7.5, 30], [0, 1, 7.5, 20]),
        ({"every": 5}, [0, 5, 10, 15, 20]),
        ({"every": 8}, [0, 8, 16, 20]),
        ({"every": 50}, [0, 20]),
        ({"log": 3}, [0, 5, 10, 20]),
        ({"log": 1}, [0, 20]),
        ({"every": 8, "log": 3}, [0, 5, 8, 10, 16, 20]),
        ({"early_steps": 4}, [0, 0.01, 0.02, 0.04, 20]),
        ({"early_steps": 3, "log": 2}, [0, 0.01, 0.02, 10, 20]),
        ([], [0, 20]),
    ],
)
def test_measurement_epochs_include_the_start_and_the_endpoint(at: Any, expected: list[float]) -> None:
    assert [moment.epoch for moment in Measure(at=at).moments(constant(20, 1000, 10)).values()] == expected


def _due(moments: dict[int, Moment]) -> dict[str, list[int]]:
    """Steps at which each group is measured, and metrics."""
    found = {group: [s for s, m in moments.items() if getattr(m.due, group)] for group in GROUPS}
    return found | {"metrics": [s for s, m in moments.items() if m.due.metrics]}


def test_each_group_has_its_own_moments() -> None:
    measure = Measure(
        at=[1],
        hessian=Hessian(at=At(early_steps=8)),
        gradient_noise=GradientNoise(at=[]),
        critical_samples=CriticalSamples(),
        metrics=["a:b"],
    )
    moments = measure.moments(constant(2, 100, 10))
    assert [*moments] == [0, 1, 2, 4, 8, 10, 20]
    assert _due(moments) == {
        "hessian": [0, 1, 2, 4, 8, 20],
        "gradient_noise": [0, 20],
        "critical_samples": [0, 10, 20],
        "metrics": [0, 10, 20],
    }
    assert moments[1].due.hessian == measure.hessian
    assert [m.epoch for m in moments.values()] == [0, 0.1, 0.2, 0.4, 0.8, 1, 2]


def test_moments_that_fall_on_one_step_are_one() -> None:
    """Steps of 0.5 epochs: 0.6 and 0.7 fall on step 1, 1.9 on the last."""
    moments = Measure(at=[0.1, 0.6, 0.7, 1.9], hessian=Hessian(at=[0.7])).moments(constant(2, 100, 50))
    assert {step: moment.epoch for step, moment in moments.items()} == {0: 0, 1: 0.6, 4: 2}
    assert _due(moments)["hessian"] == [0, 1, 4]


numbers = st.floats(0.001, 40, allow_nan=False)
rules = st.builds(
    At,
    every=st.none() | st.floats(0.1, 40),
    log=st.integers(1, 40),
    early_steps=st.none() | st.integers(1, 3000),
)
at = st.lists(numbers | st.just(0.0), max_size=5) | rules
measures = st.builds(
    Measure,
    at=at,
    hessian=st.just(False) | st.builds(Hessian, at=st.none() | at),
    gradient_noise=st.just(False) | st.builds(GradientNoise, at=st.none() | at),
    critical_samples=st.just(False) | st.builds(CriticalSamples, at=st.none() | at),
    metrics=st.sampled_from([(), ("a:b",)]),
)


def _expected(at: Moments, time: Timeline) -> set[int]:
    epochs = at if isinstance(at, list) else at.epochs(time.end)
    early = [] if isinstance(at, list) or not at.early_steps else [2**k for k in range(12) if 2**k <= at.early_steps]
    regular = {time.step_at(e) for e in epochs if e < time.end}
    return {0, time.steps} | regular | {s for s in early if s < time.steps}


SCHEDULES = ["constant", '{"cosine":{},"of":"lr"}', '{"cyclic":{"period":4},"of":"batch_size"}']
timelines = st.builds(
    timeline,
    st.sampled_from(SCHEDULES),
    batch_size=st.integers(1, 20),
    train_size=st.integers(20, 2000),
    epochs=st.floats(1, 40),
    max_steps=st.none(),
)


@given(measures, timelines)
def test_every_group_is_due_at_its_moments_at_the_start_and_at_the_end(measure: Measure, time: Timeline) -> None:
    moments = measure.moments(time)
    steps = [*moments]
    assert steps == sorted({*steps})
    assert (steps[0], steps[-1]) == (0, time.steps)
    assert (moments[0].epoch, moments[time.steps].epoch) == (0, time.end)
    for step, moment in [*moments.items()][:-1]:
        distance = abs(time.examples(step) - moment.epoch * time.train_size)
        assert distance <= 0.5 * max(time.batch(step), time.batch(max(step - 1, 0))) + 1e-6
    epochs = [m.epoch for m in moments.values()]
    assert epochs == sorted(epochs)
    due, common = _due(moments), _expected(measure.at, time)
    expected = {"metrics": common if measure.metrics else set()}
    for group in GROUPS:
        wanted = getattr(measure, group)
        own = common if not wanted or wanted.at is None else _expected(wanted.at, time)
        expected[group] = own if wanted else set()
    assert {name: {*found} for name, found in due.items()} == expected
    assert {*steps} == common.union(*expected.values())


@given(measures, timelines)
def test_what_is_due_is_measured_as_it_was_asked_for(measure: Measure, time: Timeline) -> None:
    for moment in measure.moments(time).values():
        for group in GROUPS:
            assert getattr(moment.due, group) in (getattr(measure, group), False)
        assert moment.due.metrics in (measure.metrics, ())


@given(st.integers(1, 3000), st.integers(1, 4000))
def test_early_steps_are_the_powers_of_two_below_the_end(early: int, last: int) -> None:
    found = [*Measure(at=At(early_steps=early)).moments(constant(1, last, 1))]
    assert found == [0, *(2**k for k in range(13) if 2**k <= early and 2**k < last), last]


def test_identity_depends_on_what_is_measured() -> None:
    assert Measure().measure_id == Measure(hessian=Hessian(top=5)).measure_id
    assert Measure(hessian=True, gradient_noise=True, critical_samples=False).measure_id == Measure().measure_id
    others = [
        Measure(),
        Measure(hessian=False),
        Measure(at=[1]),
        Measure(metrics=["a:b"]),
        Measure(hessian=Hessian(at=[1])),
        Measure(hessian=Hessian(density=Density())),
        Measure(gradient_noise=GradientNoise(probes=1)),
        Measure(critical_samples=True),
        Measure(endpoints=True),
    ]
    assert len({m.measure_id for m in others}) == len(others)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"package\.module:callable, not 'weight_norm'"):
        Measure(metrics="weight_norm")
    with pytest.raises(ValidationError, match="at least one of every, log and early_steps is needed"):
        At()
