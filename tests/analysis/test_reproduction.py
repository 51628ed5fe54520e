"""Claims of a sweep file, and what becomes of them."""

import pyarrow as pa
import pytest
from planted import bent, grid, table
from test_verdict import broken

from analysis.claims import KINDS, Claim, claims_of
from analysis.reproduction import Result, checked, trend

REPRODUCED, CONTRADICTED, UNDECIDED = Result.REPRODUCED, Result.CONTRADICTED, Result.UNDECIDED


def results(trials, **expected):
    found = [each for claim in claims_of({"metric": "lambda_max", **expected}) for each in checked(claim, trials)]
    return [each.result for each in found]


@pytest.mark.parametrize(
    ("expected", "of_bent", "of_broken"),
    [
        ({"ratio": "decreasing"}, REPRODUCED, REPRODUCED),
        ({"ratio": "increasing"}, CONTRADICTED, CONTRADICTED),
        ({"invariant": 0.1}, REPRODUCED, CONTRADICTED),
        ({"varies": 0.1}, CONTRADICTED, REPRODUCED),
        ({"invariant": 0.001}, UNDECIDED, CONTRADICTED),
        ({"exponent": [0.9, 1.1]}, REPRODUCED, REPRODUCED),
        ({"exponent": [0.4, 0.6]}, CONTRADICTED, CONTRADICTED),
        ({"exponent": [0.9, 0.9999]}, UNDECIDED, UNDECIDED),
        ({"holds_to": 0.064}, REPRODUCED, REPRODUCED),
        ({"holds_to": 0.256}, REPRODUCED, CONTRADICTED),
        ({"broken_from": 0.128}, CONTRADICTED, REPRODUCED),
        ({"broken_from": 1.0}, UNDECIDED, REPRODUCED),
    ],
    ids=str,
)
def test_claims_of_planted_grids(expected, of_bent, of_broken):
    assert results(grid(bent), **expected) == [of_bent]
    assert results(grid(broken), **expected) == [of_broken]


def test_each_expectation_and_each_group_is_a_claim():
    trials = pa.concat_tables([grid(bent, label_noise=0.0), grid(broken, label_noise=0.25, rng=1)])
    assert results(trials, invariant=0.1, ratio="decreasing") == [REPRODUCED, CONTRADICTED, REPRODUCED, REPRODUCED]
    assert results(trials, invariant=0.1, where={"label_noise": 0.25}) == [CONTRADICTED]
    assert results(trials, invariant=0.1, where={"label_noise": 0.5}) == [UNDECIDED]


def test_a_trend_is_the_slope_at_equal_values_of_all_else():
    """Were the ratio not held fixed, its effect, which is opposite, would hide the trend."""
    low = grid(bent, label_noise=0.0, ratios=(2.5e-4, 5e-4), seed_sd=1.0)
    both = [
        grid(lambda lr, b, p=p: bent(lr, b) + 2 * p, label_noise=p, ratios=(5e-4, 4e-3), seed_sd=1.0)
        for p in (0.0, 0.25)
    ]
    slope = trend(pa.concat_tables([low, *both]), "lambda_max", "label_noise")
    assert slope.low < 2 < slope.high
    assert slope.high - slope.low < 0.2
    assert results(pa.concat_tables([low, *both]), label_noise="increasing") == [REPRODUCED]
    assert results(pa.concat_tables([low, *both]), label_noise="decreasing") == [CONTRADICTED]
    assert results(grid(bent, label_noise=0.0), label_noise="decreasing") == [UNDECIDED]


def test_what_a_trend_leaves_out_is_counted():
    rows = [row for p in (0.0, 0.25) for row in grid(lambda lr, b, p=p: bent(lr, b) + 2 * p, label_noise=p).to_pylist()]
    lost = {"diverged": 7, "failed": 3}
    for status, n in lost.items():
        for row in [r for r in rows if r["status"] == "finished"][:n]:
            row |= {"status": status, "lambda_max": None}
    rows[-1]["lambda_max"], rows[-2]["lambda_max"], rows[-3]["lambda_max"] = None, -1.0, float("inf")
    (claim,) = claims_of({"metric": "lambda_max", "label_noise": "increasing"})
    (found,) = checked(claim, table(rows))
    assert found.result is REPRODUCED
    assert found.why == (
        "slope in label_noise, all else equal; diverged trials, left out: 7; failed trials, left out: 3; "
        "values that are not usable, left out: 2; finished trials without the metric: 1"
    )
    (whole,) = checked(claim, table([r for r in rows if r["status"] == "finished"][:-3]))
    assert whole.why == "slope in label_noise, all else equal"


def test_rows_are_plain():
    (claim,) = claims_of({"metric": "lambda_max", "ratio": "decreasing", "where": {"arch": "mlp"}})
    (found,) = checked(claim, grid(bent, arch="mlp"))
    row = found.as_row()
    assert row["claim"] == "lambda_max decreasing with ratio, arch mlp"
    assert (row["result"], row["group"]) == ("reproduced", {})
    assert row["low"] < row["estimate"] < row["high"] < 0
    (none,) = checked(Claim("lambda_max", "invariant", 0.1, {"arch": "vgg11"}), grid(bent, arch="mlp"))
    assert (none.as_row()["estimate"], none.as_row()["why"]) == (None, "there are no such trials")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "metric is required"),
        ({"metric": "lambda_max"}, "nothing is expected of lambda_max: give one of invariant"),
        ({"metric": "lambda_max", "ratio": "up"}, "ratio: 'up' should be increasing or decreasing"),
        ({"metric": "lambda_max", "invariant": 0}, "invariant: 0 should be a positive number"),
        ({"metric": "lambda_max", "invariant": True}, "invariant: True should be a positive number"),
        ({"metric": "lambda_max", "exponent": [1.1, 0.9]}, r"exponent: \[1.1, 0.9\] should be an interval"),
        ({"metric": "lambda_max", "falls": 1}, "unknown key 'falls': allowed are metric, where, invariant"),
        ({"metric": "lambda_max", "invariant": 0.1, "where": {"lrr": 1}}, "where: should be a mapping of"),
    ],
)
def test_what_is_wrong_with_a_claim_is_said(expected, message):
    with pytest.raises(ValueError, match=message):
        claims_of(expected)


def test_all_kinds_are_known():
    trials = grid(bent, seeds=4)
    values = {"exponent": [0.5, 1.5], **dict.fromkeys(("invariant", "varies", "holds_to", "broken_from"), 0.1)}
    for kind in KINDS:
        if kind in trials.column_names or kind in values or kind == "ratio":
            assert results(trials, **{kind: values.get(kind, "decreasing")})
