"""The axis grammar, and the check of single values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.axes import MAX_POINTS, check_value, expand_axis

positive = st.floats(1e-12, 1e12)
finite = st.floats(-1e12, 1e12)
sizes = st.integers(2, 200)


def test_list_is_its_values() -> None:
    assert expand_axis([3, 1, 2]) == [3, 1, 2]


@pytest.mark.parametrize("argument", [4, [4], [1, 4], [1, 8, 3], [5, 0, -2]])
def test_range_counts_like_python(argument: int | list[int]) -> None:
    assert expand_axis({"range": argument}) == list(range(*(argument if isinstance(argument, list) else [argument])))


@given(finite, finite, sizes)
def test_linspace_has_exact_ends_and_equal_steps(a: float, b: float, n: int) -> None:
    values = expand_axis({"linspace": [a, b, n]})
    assert (values[0], values[-1], len(values)) == (a, b, n)
    for k, value in enumerate(values):
        assert value == pytest.approx(a + (b - a) * k / (n - 1), rel=1e-11, abs=1e-11 * max(abs(a), abs(b)) + 1e-300)


@given(positive, positive, sizes)
def test_logspace_has_exact_ends_and_equal_ratios(a: float, b: float, n: int) -> None:
    values = expand_axis({"logspace": [a, b, n]})
    assert (values[0], values[-1], len(values)) == (a, b, n)
    for k, value in enumerate(values):
        assert math.log(value) == pytest.approx(math.log(a) + (math.log(b) - math.log(a)) * k / (n - 1), abs=1e-10)


def test_rules_meet_typed_values() -> None:
    """A computed value is the very number that a person types."""
    assert expand_axis({"logspace": [2.5e-4, 4e-3, 5]}) == [0.00025, 0.0005, 0.001, 0.002, 0.004]
    assert expand_axis({"logspace": [8, 128, 5]}) == [8, 16, 32, 64, 128]
    assert expand_axis({"linspace": [0, 0.3, 4]}) == [0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ([], "no values"),
        (3, "3 is no axis: an axis is a list, {range: n | [start, stop] | [start, stop, step]}, {linspace: [a, b, n]}"),
        ("mlp", "'mlp' is no axis"),
        ({"name": "mlp", "depth": 4}, "a single value stands in a list, or under train"),
        ({"rnge": 8}, "unknown rule 'rnge': an axis is a list, .*; did you mean 'range'"),
        ({"range": 8, "linspace": [0, 1, 2]}, "is no axis"),
        ({"range": 1.5}, r"range takes n, \[start, stop\] or \[start, stop, step\], all integers, not 1.5"),
        ({"range": True}, "range takes n"),
        ({"range": [1, 2, 3, 4]}, "range takes n"),
        ({"range": []}, "range takes n"),
        ({"range": 0}, "range 0 has no values"),
        ({"range": [3, 3]}, "has no values"),
        ({"range": [0, 9, 0]}, "the step must not be 0"),
        ({"range": 10**30}, f"at most {MAX_POINTS:,} are allowed"),
        ({"linspace": [0, 1]}, r"linspace takes \[a, b, n\]: from a to b in n >= 2 points, not \[0, 1\]"),
        ({"linspace": [0, 1, 1]}, "n >= 2"),
        ({"linspace": [0, 1, 2.0]}, "linspace takes"),
        ({"linspace": [0, math.inf, 3]}, "linspace takes"),
        ({"linspace": [0, 1, 10**9]}, "1,000,000,000 values"),
        ({"logspace": 3}, r"logspace takes \[a, b, n\]"),
        ({"logspace": [-4, -2, 3]}, r"logspace \[-4, -2, 3\]: both ends must be greater than 0 .*not exponents"),
    ],
)
def test_wrong_axes_say_what_is_allowed(axis: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_axis(axis)


@pytest.mark.parametrize(
    ("field", "given_", "kept"),
    [
        ("batch_size", 1e2, 100),
        ("epochs", 20, 20.0),
        ("label_noise", -0.0, 0.0),
        ("ratio", 1, 1.0),
        ("order_seed", None, None),
        ("call", None, None),
        ("arch", {"name": "mlp", "depth": 2}, "mlp"),
        ("arch", {"name": "mlp", "depth": 4}, '{"depth":4,"name":"mlp"}'),
    ],
)
def test_values_take_their_stored_form(field: str, given_: object, kept: object) -> None:
    checked = check_value(field, given_)
    assert checked == kept
    assert type(checked) is type(kept)
    assert math.copysign(1, checked) == 1 if isinstance(checked, float) else True


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", "0.1", "'0.1' should be a valid number"),
        ("lr", True, "True should be a valid number"),
        ("lr", 0, "0 should be greater than 0"),
        ("ratio", -1.0, "should be greater than 0"),
        ("lr", math.nan, "should be a finite number"),
        ("epochs", math.inf, "should be a finite number"),
        ("batch_size", 1.5, "1.5 should be a valid integer"),
        ("batch_size", 2**63, "should be less than 2^63"),
        ("seed", -1, "should be greater than or equal to 0"),
        ("momentum", 1, "1 should be less than 1"),
        ("sampler", "straem", "'straem' should be 'stream', 'replacement' or 'full'; did you mean 'stream'?"),
        (
            "arch",
            "mlpp",
            "unknown arch 'mlpp': allowed are alexnet-small, linear, mlp, resnet, simple-cnn, vgg11, or ",
        ),
        ("arch", {"depth": 4}, "needs a name"),
        ("loss", 3, "loss must be a name"),
        ("call", "train", "unknown call 'train': allowed are package.module:callable"),
        ("dataset", "no_such_module:f", "cannot import 'no_such_module'"),
        ("dataset", "json:dums", "module 'json' has no 'dums'; did you mean 'dumps'?"),
        ("call", {"name": "json:dumps", "p": math.nan}, "parameters must be plain JSON values"),
    ],
)
def test_wrong_values_say_what_is_allowed(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is tested)
        check_value(field, value)
    assert message in str(caught.value)
