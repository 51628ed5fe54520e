"""Schedules: their closed forms, and the same lr / batch_size whichever of the two they change."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.registry import PluginError, resolve
from trainables.schedules import (
    MAX_STEPS,
    TOLERANCE,
    Cosine,
    Cyclic,
    Floats,
    Schedule,
    StepDecay,
    Timeline,
    Warmup,
    timeline,
)
from trainables.settings import Measure
from trainables.trial import canonical_json


def of(what: str, schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float) -> Timeline:
    return timeline(canonical_json(schedule | {"of": what}), batch_size, train_size, epochs, None)


def duals(schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float) -> tuple[Timeline, Timeline]:
    of_lr = of("lr", schedule, batch_size, train_size, epochs)
    return of_lr, of("batch_size", schedule, batch_size, train_size, epochs)


def sizes(time: Timeline) -> list[int]:
    return [time.batch(step) for step in range(time.steps)]


def ratios(time: Timeline) -> Floats:
    """Lr / batch_size of every example, as a part of the trial's lr."""
    return np.repeat(np.array(time.factors) / sizes(time), sizes(time))


factors = st.floats(0.01, 5).filter(lambda factor: factor != 1)
jumping = st.fixed_dictionaries(
    {
        "step": st.fixed_dictionaries(
            {
                "at": st.lists(st.integers(1, 80), min_size=1, max_size=4, unique=True).map(
                    lambda at: [a / 8 for a in sorted(at)]  # exact, so that no test depends on rounding
                ),
                "factor": factors,
            }
        )
    }
)
cyclic = st.builds(
    lambda low, rise, period, shape: {"low": low, "high": low * rise, "period": period, "shape": shape},
    st.floats(0.02, 2),
    st.floats(1.1, 10),
    st.floats(0.05, 12),
    st.sampled_from(["discrete", "triangular"]),
)
schedules = st.fixed_dictionaries(
    {},
    optional={
        "warmup": st.fixed_dictionaries({"epochs": st.floats(0.1, 12), "start": st.just(0.0) | st.floats(0, 0.9)}),
        "step": jumping.map(lambda schedule: schedule["step"]),
        "cosine": st.fixed_dictionaries({"to": st.just(0.0) | st.floats(0, 0.9)}),
        "cyclic": cyclic,
    },
).filter(bool)
batches = st.integers(1, 64)
train_sizes = st.integers(64, 1500)
lengths = st.floats(0.6, 12)


@settings(max_examples=300)
@given(schedules, batches, train_sizes, lengths)
def test_every_example_is_seen_at_the_same_ratio_whichever_of_the_two_changes(
    schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float
) -> None:
    of_lr, of_batch = duals(schedule, batch_size, train_size, epochs)
    assert of_lr.examples(of_lr.steps) == of_batch.examples(of_batch.steps)
    np.testing.assert_allclose(ratios(of_batch), ratios(of_lr), rtol=1e-12)
    assert {*sizes(of_lr)} == {batch_size}
    assert all(1 <= size <= train_size for size in sizes(of_batch))
    assert min(of_lr.factors) >= 0
    assert len(of_lr.factors) == of_lr.steps


@given(schedules, batches, train_sizes, lengths)
def test_what_is_held_adds_up_to_the_schedule(
    schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float
) -> None:
    time = of("lr", schedule, batch_size, train_size, epochs)
    middle = (np.arange(time.steps) + 0.5) * batch_size / train_size
    scale = Schedule.model_validate(schedule).scale(middle, time.epoch(time.steps))
    assert sum(time.factors) == pytest.approx(scale.sum(), rel=1e-9)
    held = np.array(time.factors)
    epoch = max(1, train_size // batch_size)
    around = [scale[max(0, s - epoch) : s + epoch] for s in range(time.steps)]
    assert all(a.min() - 1e-9 <= h <= a.max() + 1e-9 for a, h in zip(around, held, strict=True))  # at most an epoch


@given(jumping, st.sampled_from([1, 2, 4, 8, 16, 32]), train_sizes, lengths)
def test_jumps_fall_on_the_nearest_step_and_nothing_else_changes(
    schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float
) -> None:
    time = of("lr", schedule, batch_size, train_size, epochs)
    at, factor = np.array(schedule["step"]["at"]), schedule["step"]["factor"]
    passed = [(at * train_size <= (step + 0.5) * batch_size).sum() for step in range(time.steps)]
    assert [*time.factors] == pytest.approx([factor**n for n in passed], rel=1e-13)


@given(jumping, st.integers(1, 64), st.floats(2, 12))
def test_the_lr_stays_where_it_is_while_the_batch_size_changes(
    schedule: dict[str, Any], batch_size: int, epochs: float
) -> None:
    """Within the tolerance and rounding of a size by at most 1, but for the last ten minibatches before a jump."""
    schedule["step"]["factor"] = max(schedule["step"]["factor"], 0.4)
    smallest = min(1, schedule["step"]["factor"] ** len(schedule["step"]["at"]))
    train_size = round(12 * batch_size / smallest)
    of_lr, of_batch = duals(schedule, batch_size, train_size, epochs)
    f, total = np.array(of_lr.factors), of_lr.examples(of_lr.steps)
    jumps = np.array([*(np.flatnonzero(np.diff(f)) + 1) * batch_size, total])
    for step in range(of_batch.steps):
        seen = of_batch.examples(step)
        held = f[seen // batch_size]
        to_jump = jumps[np.searchsorted(jumps, seen, side="right")] - seen
        if to_jump > 11 * batch_size * max(1, 1 / held):
            assert abs(of_batch.factor(step) - 1) <= TOLERANCE + held / batch_size + 1e-9


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"cyclic": {"low": 0.2, "high": 1.0, "period": 10}}, {128, 640}),
        ({"step": {"at": [2, 5, 8], "factor": 0.2}}, {128, 640, 3200, 16000}),
        ({"step": {"at": [3], "factor": 4}}, {128, 32}),
        ({"step": {"at": [4], "factor": 2}, "cyclic": {"low": 0.5, "high": 1.0, "period": 4}}, {256, 128, 64}),
    ],
)
def test_whole_multiples_are_exact(schedule: dict[str, Any], expected: set[int]) -> None:
    time = of("batch_size", schedule, 128, 16000, 10)
    assert {*sizes(time)} == expected
    assert [*time.factors] == pytest.approx([1] * time.steps, rel=1e-15)


def test_a_smooth_schedule_keeps_the_lr_until_the_batch_is_most_of_the_data() -> None:
    """CIFAR-10 with a cosine: the last epochs' minibatches would be larger than the training set."""
    of_lr, of_batch = duals({"cosine": {}}, 128, 50_000, 50)
    small = [f for f, size in zip(of_batch.factors, sizes(of_batch), strict=True) if size <= 5000]
    assert np.abs(np.array(small) - 1).max() <= TOLERANCE + 1 / 128
    middle = (np.arange(of_lr.steps) + 0.5) / of_lr.steps
    assert np.abs(np.array(of_lr.factors) - (1 + np.cos(np.pi * middle)) / 2).max() < 0.03
    assert of_batch.steps == pytest.approx(of_lr.steps / 2, rel=0.01)  # the mean of f


def test_a_steep_warm_up_is_still_one() -> None:
    """Of 45 steps from 0: held over at most a quarter of its height."""
    of_lr, of_batch = duals({"warmup": {"epochs": 1, "start": 0}}, 32, 1437, 3)
    assert np.abs(np.array(of_lr.factors)[:45] - (np.arange(45) + 0.5) / 45).max() < 0.13
    assert np.abs(np.array(of_batch.factors) - 1).max() < 0.2


@pytest.mark.parametrize(
    ("part", "epochs", "expected"),
    [
        (Warmup(epochs=4, start=0.2), [0, 1, 2, 4, 9], [0.2, 0.4, 0.6, 1, 1]),
        (StepDecay(at=(2, 5), factor=0.5), [0, 1.9, 2, 5, 9], [1, 1, 0.5, 0.25, 0.25]),
        (Cosine(), [0, 10 / 3, 5, 10], [1, 0.75, 0.5, 0]),
        (Cosine(to=0.2), [0, 5, 10], [1, 0.6, 0.2]),
        (Cyclic(period=4), [0, 1.9, 2, 3.9, 4, 6], [0.2, 0.2, 1, 1, 0.2, 1]),
        (Cyclic(period=4, shape="triangular"), [0, 1, 2, 3, 4, 5], [0.2, 0.6, 1, 0.6, 0.2, 0.6]),
        (Schedule(warmup=Warmup(epochs=2, start=0), step=StepDecay(at=(1,), factor=0.1)), [0, 1, 3], [0, 0.05, 0.1]),
    ],
)
def test_closed_forms(part: Any, epochs: list[float], expected: list[float]) -> None:
    assert part.scale(np.array(epochs, float), 10.0) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 50), st.floats(0, 60))
def test_constant_is_arithmetic(batch_size: int, train_size: int, epochs: float, epoch: float) -> None:
    batch_size, steps = min(batch_size, train_size), round(epochs * train_size / min(batch_size, train_size))
    if not steps:
        return
    time = timeline("constant", batch_size, train_size, epochs, None)
    assert (time.steps, time.end, time.examples(steps)) == (steps, epochs, steps * batch_size)
    assert (time.batch(0), time.batch(steps - 1), time.factor(steps - 1)) == (batch_size, batch_size, 1)
    assert time.step_at(epoch) == min(steps, round(epoch * train_size / batch_size))
    assert time.epoch(steps) == steps * batch_size / train_size


def test_a_long_constant_run_takes_no_memory() -> None:
    time = timeline("constant", 1, 50_000, None, 10**8)
    assert isinstance(time.ends, range)
    assert (time.steps, time.epoch(10**8), time.end, len(time.factors)) == (10**8, 2000, 2000, 0)


@given(schedules, batches, train_sizes, lengths, st.floats(0, 15))
def test_an_epoch_falls_on_the_nearest_step(
    schedule: dict[str, Any], batch_size: int, train_size: int, epochs: float, epoch: float
) -> None:
    for time in duals(schedule, batch_size, train_size, epochs):
        seen = [time.examples(step) for step in range(time.steps + 1)]
        assert seen == [0, *time.ends]
        nearest = min(abs(e - epoch * train_size) for e in seen)
        assert abs(seen[time.step_at(epoch)] - epoch * train_size) == pytest.approx(nearest, abs=1e-6)
        assert all(time.step_at(time.epoch(step)) == step for step in (0, time.steps // 2, time.steps))


@given(st.integers(1, 40), st.integers(0, 4000))
def test_of_two_steps_equally_near_the_even_one_counts(batch_size: int, halves: int) -> None:
    """In either form of a timeline, as round() does."""
    whole = range(batch_size, 50 * batch_size + 1, batch_size)
    listed = Timeline(1, 50, array("q", whole))
    assert Timeline(1, 50, whole).step_at(halves / 2) == listed.step_at(halves / 2)


def test_moments_of_the_two_fall_on_the_same_examples() -> None:
    of_lr, of_batch = duals({"cyclic": {"period": 4}}, 32, 6400, 12)
    at = [0.5, 1, 2, 3.5, 7, 10.9]
    one, other = (Measure(at=at).moments(time) for time in (of_lr, of_batch))
    assert [m.epoch for m in one.values()] == [m.epoch for m in other.values()] == [0, *at, 12]
    assert [of_lr.examples(step) for step in one] == [of_batch.examples(step) for step in other]


def test_length_in_steps_counts_steps_of_the_trials_own_batch_size() -> None:
    for what in ("lr", "batch_size"):
        time = timeline(canonical_json({"cosine": {}, "of": what}), 32, 1437, None, 101)
        assert (time.examples(time.steps), time.end) == (101 * 32, 101 * 32 / 1437)


@pytest.mark.parametrize("schedule", ["constant", '{"cosine":{}}', '{"cosine":{},"of":"batch_size"}'])
def test_impossible_runs_are_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match=r"^batch_size 33: the training set has 32 examples$"):
        timeline(schedule, 33, 32, 1.0, None)
    with pytest.raises(ValueError, match=r"^epochs 0.1: not one step at batch size 16 of 32 examples$"):
        timeline(schedule, 16, 32, 0.1, None)
    assert timeline(schedule, 32, 32, 1.0, None).steps == 1


def test_too_many_steps_of_a_schedule_are_refused() -> None:
    said = r"^{} steps at batch_size 1: at most 20,000,000 are allowed with a schedule; take a larger batch_size, "
    for what in ("lr", "batch_size"):
        with pytest.raises(ValueError, match=said.format("20,000,001")):
            timeline(canonical_json({"cosine": {}, "of": what}), 1, 100, None, MAX_STEPS + 1)
    many = canonical_json({"step": {"at": [1], "factor": 1000}, "of": "batch_size"})
    with pytest.raises(ValueError, match="steps at batch_size 500: at most 20,000,000"):
        timeline(many, 500, 500, None, 50_000)


@pytest.mark.parametrize(
    ("reference", "column", "identity"),
    [
        ("constant", "constant", "constant"),
        ({"cosine": {"to": 0}}, '{"cosine":{}}', {"cosine": {"to": 0.0}, "of": "lr"}),
        (
            {"of": "batch_size", "warmup": {"epochs": 5}, "step": {"at": [60, 120], "factor": 0.2}},
            '{"of":"batch_size","step":{"at":[60.0,120.0],"factor":0.2},"warmup":{"epochs":5.0}}',
            {
                "of": "batch_size",
                "warmup": {"epochs": 5.0, "start": 0.1},
                "step": {"at": [60.0, 120.0], "factor": 0.2},
            },
        ),
    ],
)
def test_parameters_at_their_defaults_do_not_show(reference: Any, column: str, identity: Any) -> None:
    resolved = resolve("schedule", reference)
    assert (resolved.column, resolved.identity) == (column, identity)
    assert resolve("schedule", column) == resolved
    assert timeline(column, 2, 100, 1, None).steps > 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cosine", "unknown schedule 'cosine': allowed are constant, or a mapping of cosine, cyclic, of, step, warmup"),
        (3, "unknown schedule 3: allowed are constant"),
        ({}, "schedule: at least one of warmup, step, cosine and cyclic is needed; constant is the one without"),
        ({"of": "lr"}, "at least one of warmup"),
        ({"warmpu": {}}, "parameter 'warmpu'.*it takes cosine, cyclic, of, step, warmup; did you mean 'warmup'?"),
        ({"warmup": {"epoch": 3}}, "parameter 'warmup.epoch': .*it takes epochs, start; did you mean 'epochs'?"),
        ({"warmup": {"epochs": 3, "start": 1}}, "parameter 'warmup.start': Input should be less than 1"),
        ({"step": {"at": [3, 2]}}, "parameter 'step.at': epochs must ascend; it takes at, factor"),
        ({"step": {"at": [2], "factor": 1}}, "parameter 'step.factor': 1 changes nothing"),
        ({"step": {"at": []}}, "parameter 'step.at': Tuple should have at least 1 item"),
        ({"step": {"at": [1, 0]}}, "parameter 'step.at.1': Input should be greater than 0"),
        ({"cyclic": {"low": 2, "period": 1}}, "parameter 'cyclic': low 2 must be less than high 1"),
        ({"cosine": {}, "of": "batchsize"}, "parameter 'of': Input should be 'lr' or 'batch_size'"),
    ],
)
def test_a_wrong_schedule_gets_a_message_that_helps(reference: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        resolve("schedule", reference)
