"""What stands beside verdicts, from a store, in rows and in words."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from planted import BATCH_SIZES, RATIOS, bent
from ruamel.yaml import YAML

from analysis import beside
from analysis.claims import claims_of
from analysis.invariance import read_trials
from analysis.predictors import LAST, PEAK
from trainables.schema import CURVES, TRIALS
from trainables.store import table

DOC = (Path(__file__).parents[2] / "docs" / "invariance.md").read_text()


@pytest.fixture
def store(build):
    """Broken from lr 0.128 on, where half diverge from lr 0.256 on; lambda_max is highest half way."""
    rng, rows = np.random.default_rng(0), []
    for ratio in RATIOS:
        for size in BATCH_SIZES:
            for seed in range(6):
                lr = float(f"{ratio * size:.12g}")
                value = math.exp(bent(lr, size) - 0.5 * math.log(max(lr / 0.064, 1)) + rng.normal(0, 0.02))
                lost = lr > 0.3 and seed < 3
                fields = {"lr": lr, "batch_size": size, "seed": seed, "status": "diverged" if lost else "finished"}
                value = None if lost else value
                rows.append(build.measured(f"{lr}-{size}-{seed}", **fields, lambda_max=value, steps=100))
    build.commit("p", *rows)
    return build.store.url, rows


def test_rules_in_rows_and_words(store):
    held, _ = store
    (found,) = beside.rules(held, "digits", ["lambda_max"])
    row = found.as_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert {fit["rule"] for fit in row["rules"]} | {s for fit in row["rules"] for s in fit["same_as"]} >= {
        "ratio",
        "square_root",
    }
    text = beside.rules_text([found])
    assert text.startswith("lambda_max\n  ")
    assert re.search(r"  \w+.*: misfit 0\.\d+ \(0\.\d+ to 0\.\d+\), explains .*, P ", text)


def test_predictors_in_rows_and_words(store):
    held, _ = store
    (found,) = beside.predictors(held, "digits", ["lambda_max"])
    assert found.n_broken > 0
    assert {p.predictor for p in found.predictions} >= {"lr", "batch_size", "stability"}
    assert "  lr: AUC " in beside.predictors_text([found])


def test_divergence_in_rows_and_words(store):
    held, rows = store
    (found,) = beside.divergences(held, "digits")
    lost = sum(row["status"] == "diverged" for row in rows)
    assert (found.model.n_diverged, found.model.n_trials) == (lost, len(rows))
    text = beside.divergences_text([found])
    assert text.startswith(f"{lost} of {len(rows)} trials diverged\n  batch size 8: half diverge at lr ")
    assert "that is lr ∝ batch size^" in text


def test_divergence_comes_with_the_verdicts_given_survival(store):
    held, rows = store
    (found,) = beside.divergences(held, "digits", ["lambda_max", "test_loss"], {"lambda_max": 0.5})
    lost = sum(row["status"] == "diverged" for row in rows)
    first, second = found.given_survival
    assert [(v.metric, v.margin, v.n_trials) for v in (first, second)] == [
        ("lambda_max", 0.5, len(rows) - lost),
        ("test_loss", 0.1, len(rows) - lost),
    ]
    assert first.note.startswith(f"given survival: {lost} diverged trials left out")
    row = found.as_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert [v["metric"] for v in row["given_survival"]] == ["lambda_max", "test_loss"]
    _, verdicts = beside.divergences_text([found]).split(f"\n  given survival, {lost} left out and one look at 5%:\n")
    assert verdicts.startswith(f"    lambda_max  {first.verdict.upper()}")
    (calm,) = beside.divergences(held, "digits", ["lambda_max"], 0.1)
    assert calm.given_survival[0].verdict == "different"


def test_nothing_survives_where_nothing_diverges(build):
    build.commit("p", *(build.measured(str(seed), seed=seed) for seed in range(3)))
    (found,) = beside.divergences(build.store.url, "digits")
    assert (found.given_survival, found.as_row()["given_survival"]) == ((), [])
    assert "given survival" not in beside.divergences_text([found])


def test_nothing_to_say_is_said(build):
    build.commit("p", *(build.measured(str(seed), seed=seed) for seed in range(3)))
    for found, text in (
        (beside.rules(build.store.url, "digits"), beside.rules_text),
        (beside.predictors(build.store.url, "digits"), beside.predictors_text),
        (beside.divergences(build.store.url, "digits"), beside.divergences_text),
    ):
        assert "\n  note: not " in text(found)


def test_the_peak_over_training_comes_from_curves(store):
    held, _ = store
    trials = read_trials(held, "digits", ["lambda_max"], ["steps", PEAK, "no_such_column"])
    assert {"steps", PEAK} <= {*trials.column_names}
    assert trials.num_rows == len(store[1])


def test_curves_before_divergence_count(build):
    """The highest lambda_max and the last noise_scale of a trial, as far as they are numbers."""
    row = build.measured("t", status="diverged", lambda_max=None, pack_id="p", attempt="a")
    keys = {k: row[k] for k in ("sweep", "trial_id", "pack_id", "attempt")}
    values = {"lambda_max": [5.0, 9.0, 7.0, math.nan], "noise_scale": [1.0, 2.0, 3.0, math.inf]}
    points = [
        keys | {"step": k, "epoch": float(k), "statistic": name, "value": value}
        for name, course in values.items()
        for k, value in enumerate(course)
    ]
    assert build.sweep().commit("p", "a", table([row], TRIALS), {"curves": table(points, CURVES)})
    (found,) = read_trials(build.store.url, "digits", ["lambda_max"], [PEAK]).to_pylist()
    assert (found[PEAK], found[LAST], found["lambda_max"]) == (9.0, 3.0, None)


def test_the_claims_of_the_page_are_right():
    (block,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    entries = YAML(typ="safe").load(block)["expect"]
    assert sum(len(claims_of(entry)) for entry in entries) == 6
