"""The library of named queries: each runs, and says what was put in."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from analysis.queries import named, queries, query, values, varied
from analysis.sql import QueryError, sql
from trainables.schema import PLAN
from trainables.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text("utf-8")


@pytest.fixture
def store(build):
    """Two lines of equal ratio, three seeds, clean and noisy labels; large batches at the higher ratio are 10% off."""
    rows = []
    for noise in (0.0, 0.25):
        for ratio in (0.001, 0.002):
            for b in (8, 16, 32):
                for seed in range(3):
                    off = 1.1 if (ratio, b) == (0.002, 32) else 1.0
                    row = build.measured(f"{noise}-{ratio}-{b}-{seed}", lr=ratio * b, batch_size=b, label_noise=noise)
                    row |= {"seed": seed, "lambda_max": off * (10 - 1000 * ratio + seed), "seconds": float(b)}
                    row |= {"test_accuracy": 0.9 - 0.01 * seed, "noise_scale": 4.0, "memorized": noise or None}
                    row |= {"provenance_id": "here"}
                    rows.append(row)
    lost = build.measured("lost", lr=1.0, batch_size=8, status="diverged", lambda_max=None, train_loss=float("nan"))
    planned = [*rows, lost, build.trial("todo", lr=2.0)]
    build.plan(*({k: v for k, v in row.items() if k in PLAN.names} | {"pack_id": "p"} for row in planned))
    build.commit("p", *rows, lost)
    build.fail("q", build.trial("bad", lr=3.0), error="Traceback ...\nValueError: too steep\n")
    build.provenance("here")
    build.commit("r", build.measured("other", sweep="second", arch="linear"), sweep="second")
    return build.store


def rows(store: Store, *arguments, **named_ones):
    return named(store, *arguments, **named_ones).to_pylist()


@pytest.mark.parametrize("name", queries())
def test_each_says_what_it_does_and_answers(store, name):
    asked = query(name)
    assert re.fullmatch(r"-- [A-Z].*[.?].*", asked.text.splitlines()[0])
    assert set(asked.parameters) == set(re.findall(r"\$(\w+)", re.sub(r"(?m)^--.*$", "", asked.text)))
    assert len(max(asked.text.splitlines(), key=len)) <= 130
    assert named(store, name).num_rows > 0
    assert {row["sweep"] for row in rows(store, name, "digits")} == {"digits"}
    assert named(store, name, "second").num_columns > 0
    assert named(Store(store.storage.root / "nothing"), name).num_rows == 0


def test_collapse(store):
    found = rows(store, "collapse", "digits")
    assert list(found[0])[:4] == ["sweep", "label_noise", "ratio", "batch_size"]
    seen = {(r["label_noise"], r["ratio"], r["batch_size"]): r["relative"] for r in found if r["n"]}
    assert seen.pop((0.25, 0.002, 32)) == seen.pop((0.0, 0.002, 32)) == pytest.approx(1.1)
    assert {round(x, 12) for x in seen.values()} == {1.0}
    assert found[0]["mean"] == pytest.approx(10.0)
    assert found[0]["standard_error"] == pytest.approx(1 / math.sqrt(3))


def test_heat_has_a_scale_of_its_own_for_each_group(build):
    values = [
        (noise, lr, size * 10**noise) for noise in (0.0, 3.0) for lr, size in ((0.1, 1.0), (0.2, 3.0), (0.4, 5.0))
    ]
    build.commit(
        "p", *(build.measured(str(k), label_noise=n, lr=lr, lambda_max=v) for k, (n, lr, v) in enumerate(values))
    )
    found = rows(build.store, "heat", "digits", "lambda_max")
    assert [r["mean"] for r in found] == [v for _, _, v in values]
    assert [len(r["bar"].strip()) for r in found] == [0, 12, 24] * 2


def test_frontier_shows_the_largest_change_of_each_learning_rate(store):
    found = {(r["label_noise"], round(r["lr"], 6)): r for r in rows(store, "frontier", "digits")}
    assert found[0.0, 0.064]["change"] == pytest.approx(0.1)
    assert found[0.0, 0.032]["change"] == pytest.approx(0.0)
    assert (found[0.0, 0.064]["ratio"], found[0.0, 0.064]["batch_size"], found[0.0, 0.064]["n"]) == (0.002, 32, 3)


def test_divergence_has_an_interval(store):
    (lost,) = [r for r in rows(store, "divergence", "digits") if r["lr"] == 1.0]
    assert (lost["n"], lost["n_diverged"], lost["share"]) == (1, 1, 1.0)
    assert lost["share_low"] == pytest.approx(1 / (1 + 1.96**2), abs=1e-4)


def test_seeds_name_the_one_that_is_farthest(build):
    spread = [1.0, 1.1, 0.9, 1.0, 9.0]
    build.commit("p", *(build.measured(str(s), seed=s, lambda_max=v) for s, v in enumerate(spread)))
    (found,) = rows(build.store, "seeds")
    assert (found["farthest_seed"], found["n"], found["highest"]) == (4, 5, 9.0)
    assert found["distance"] == pytest.approx(8.0 / 0.1)


def test_sharpness_within_the_ratio_is_free_of_the_ratio(build):
    """Between ratios, sharper goes with better; at one ratio with worse."""
    cells = [(0.01 * r, r + s, 0.5 + 0.1 * r - 0.01 * s) for r in (1, 2, 3) for s in (0.0, 0.1, 0.2)]
    trials = [
        build.measured(str(i), seed=i, lr=lr, lambda_max=math.exp(sharp), test_accuracy=accuracy)
        for i, (lr, sharp, accuracy) in enumerate(cells)
    ]
    build.commit("p", *trials)
    (found,) = rows(build.store, "sharpness")
    assert found["test_accuracy"] > 0.9
    assert found["test_accuracy_within_ratio"] == pytest.approx(-1.0)


def test_progress_failures_origins_and_packs(store):
    totals = [sum(r[c] for r in rows(store, "progress", "digits")) for c in ("planned", "finished", "pending")]
    assert totals == [38, 36, 1]
    (problem,) = rows(store, "failures", "digits")
    assert (problem["problem"], problem["n_trials"], problem["for_example"]) == ("ValueError: too steep", 1, "bad")
    assert sum(r["n_trials"] for r in rows(store, "origins", "digits")) == 38
    assert {r["torch"] for r in rows(store, "origins", "digits")} == {"2.13.0", None}
    packs = rows(store, "packs", "digits")
    assert packs[0]["seconds"] == max(p["seconds"] or 0 for p in packs)


def test_training_and_eigenvalues_go_over_time(store):
    assert {r["epoch"]: r["mean"] for r in rows(store, "training", "second", "test_loss")} == {0.0: 2.0, 9.0: 0.2}
    (top,) = rows(store, "eigenvalues", "second")
    assert (top["index"], top["eigenvalue"], top["largest_residual"], top["n"]) == (0, 12.5, 0.01, 1)


def test_conditions_are_what_varies(store):
    assert varied(store, "digits") == ["sweep", "label_noise"]
    assert varied(store, "second") == ["sweep"]
    assert varied(store) == ["sweep", "arch", "label_noise"]


def test_what_is_set_in_some_trials_only_is_a_condition(build):
    build.commit("p", build.measured("t", train_size=None), build.measured("u", train_size=100, seed=1))
    assert varied(build.store) == ["sweep", "train_size"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("colapse",), r"unknown named query 'colapse': did you mean 'collapse'\? \(there are collapse, divergence, "),
        (("collapse", "digit"), r"unknown sweep 'digit': did you mean 'digits'\? \(the store holds digits, second\)"),
        (
            ("collapse", None, "lambdamax"),
            r"unknown metric 'lambdamax': did you mean 'lambda_max'\? \(there are lr, ratio",
        ),
        (
            ("training", None, "tst_loss"),
            r"unknown metric 'tst_loss': did you mean 'test_loss'\? \(there are test_loss\)",
        ),
        (("packs", None, "lambda_max"), "the query packs has no metric to choose"),
    ],
)
def test_unknown_names_are_refused(store, arguments, says):
    with pytest.raises(QueryError, match=says):
        named(store, *arguments)


def test_parameters_are_as_given_or_the_default(store):
    assert values(store, "heat", "digits") == {
        "sweep": "digits",
        "metric": "test_accuracy",
        "conditions": ["sweep", "label_noise"],
    }
    assert values(store, "packs") == {"sweep": None}


def test_the_text_is_sql_that_can_be_changed(store):
    text = query("packs").text.replace("DESC", "ASC")
    assert sql(store, text, {"sweep": "digits"}).num_rows > 0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("sql"))
def test_the_sql_of_the_documentation_answers(store, text):
    assert sql(store, text).num_rows > 0


def test_the_python_of_the_documentation_runs(store, monkeypatch):
    """All but what polars may not be there for."""
    monkeypatch.chdir(store.storage.root.parent)
    for text in blocks("python"):
        exec(re.sub(r"(?m)^.*polars.*\n", "", text), {})


def test_the_documentation_lists_queries_and_macros(store):
    table = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", PAGE, re.MULTILINE))
    assert {name: table.get(name) for name in queries()} == {name: asked.answers for name, asked in queries().items()}
    macros = sql(store, "SELECT function_name, parameters FROM duckdb_functions() WHERE NOT internal").to_pylist()
    named_there = set(re.findall(r"^\| `(\w+\(.*?\))`", PAGE, re.MULTILINE))
    assert named_there == {f"{m['function_name']}({', '.join(m['parameters'])})" for m in macros}
