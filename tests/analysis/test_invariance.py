import json

import pyarrow as pa
import pytest
from planted import bent, grid
from test_verdict import broken, spoil

import analysis.invariance
from analysis.database import connect
from analysis.invariance import invariance, metric_columns, read_trials
from analysis.report import verdict_text
from trainables.packs import plan_metadata
from trainables.schema import PLAN, STATISTICS, TRIALS
from trainables.settings import Measure
from trainables.statistics import ERROR_COLUMN, OF_ENDPOINT
from trainables.store import Store, table
from trainables.trial import Trial, trial_id


def stored(root, trials: pa.Table, name="digits", sweep_file=None, suffix=".yaml"):
    """Commits planted trials as a sweep of two packs, planned where there is a sweep file."""
    sweep = Store(root).sweep(name)
    rows = []
    for row in trials.to_pylist():
        fields = {k: v for k, v in row.items() if k in Trial.model_fields}
        resolved = Trial(dataset="digits", **fields).model_dump()
        rows.append(resolved | row | {"sweep": name, "trial_id": trial_id(resolved), "measure_id": "m"})
    for pack, part in (("even", rows[::2]), ("odd", rows[1::2])):
        assert sweep.commit(pack, "a", table([r | {"pack_id": pack, "attempt": "a"} for r in part], TRIALS), {})
    if sweep_file:
        planned = table([{k: row[k] for k in PLAN.names if k in row} for row in rows], PLAN)
        sweep.write_plan(planned.replace_schema_metadata(plan_metadata(Measure(), suffix, sweep_file)), 1, 1)
    return root


def test_the_verdict_on_a_stored_sweep(tmp_path):
    trials = pa.concat_tables([grid(bent, label_noise=0.25), grid(broken, label_noise=0.0)])
    first, second = invariance(stored(tmp_path, trials), "digits")
    assert (first.verdict, first.group, first.frontier) == ("different", {"label_noise": 0.0}, (0.064, 0.128))
    assert (second.verdict, second.group, second.frontier) == ("equivalent", {"label_noise": 0.25}, (0.512, None))
    assert first.metric == "lambda_max"
    json.dumps([v.as_row() for v in (first, second)], allow_nan=False)


def test_every_measured_metric_by_default(tmp_path):
    trials = grid(bent, seeds=4)
    value = trials["lambda_max"]
    for name in ("train_loss", "lambda_max_residual", "my_metric", "my_metric_se"):
        trials = trials.append_column(name, value)
    found = invariance(stored(tmp_path, trials), "digits")
    assert [v.metric for v in found] == ["train_loss", "lambda_max", "my_metric"]
    assert [v.margin for v in found] == [0.1, 0.1, None]
    assert "state one" in found[2].note


SECONDARY = sorted({*ERROR_COLUMN, *OF_ENDPOINT} - {*STATISTICS})


def test_secondary_statistics_are_judged_when_named_or_given_a_margin(tmp_path):
    trials = grid(bent, seeds=4)
    for name in [*SECONDARY, *filter(None, map(ERROR_COLUMN.get, SECONDARY))]:
        trials = trials.append_column(name, trials["lambda_max"])

    def judged(*arguments, sweep="digits"):
        return [v.metric for v in invariance(tmp_path, sweep, *arguments)]

    stored(tmp_path, trials)
    assert judged() == ["lambda_max"]
    assert judged(["dead_fraction", "subspace_overlap"]) == ["dead_fraction", "subspace_overlap"]
    assert judged(None, {"subspace_overlap": 0.1}) == ["lambda_max", "subspace_overlap"]
    assert judged(SECONDARY) == SECONDARY
    stored(tmp_path, trials, "stated", "margins: {residual_cosine: 0.1, lambda_max: 0.2}\n")
    assert judged(sweep="stated") == ["lambda_max", "residual_cosine"]


@pytest.mark.parametrize("metrics", [None, ["lambda_max"]])
def test_the_sweep_file_is_read_once(tmp_path, monkeypatch, metrics):
    stored(tmp_path, grid(bent, seeds=4), sweep_file="margins: {lambda_max: 0.2}\nlooks: [4, 8]\n")
    read, once = [], analysis.invariance.stated
    monkeypatch.setattr(analysis.invariance, "stated", lambda *of: read.append(of) or once(*of))
    verdicts = invariance(tmp_path, "digits", metrics)
    assert verdicts[0].margin == 0.2
    assert "lambda_max" in verdict_text(tmp_path, "digits", verdicts, in_full=True)
    assert len(read) == 1


def test_an_error_is_never_a_metric(tmp_path):
    errors = {column: name for name, column in ERROR_COLUMN.items() if column}
    trials = grid(bent, seeds=4)
    for name in {*errors, *errors.values()} - {*trials.column_names}:
        trials = trials.append_column(name, trials["lambda_max"])
    stored(tmp_path, trials)
    assert not {*errors} & {*metric_columns(connect(tmp_path).sql("FROM trials").columns)}
    for column in errors:
        with pytest.raises(ValueError, match=f"unknown metric '{column}'"):
            invariance(tmp_path, "digits", [column])


def test_derived_metrics_can_be_judged(tmp_path):
    trials = grid(bent, seeds=4)
    trials = trials.append_column("train_loss", pa.array([0.1] * 100)).append_column("test_loss", trials["lambda_max"])
    (gap,) = invariance(stored(tmp_path, trials), "digits", ["loss_gap"], 2.0)
    assert (gap.verdict, gap.scale, gap.margin) == ("equivalent", "absolute", 2.0)
    (stability,) = invariance(tmp_path, "digits", ["stability"])
    assert stability.verdict == "different"
    assert "stability" not in [v.metric for v in invariance(tmp_path, "digits")]


def test_groups_without_the_metric_are_passed_over_unless_it_is_named(tmp_path):
    clean = grid(bent, label_noise=0.0, seeds=4)
    noisy = grid(bent, label_noise=0.25, seeds=4).append_column("memorized", pa.array([0.5] * 100))
    root = stored(tmp_path, pa.concat_tables([clean, noisy], promote_options="default"))
    assert [v.group["label_noise"] for v in invariance(root, "digits") if v.metric == "memorized"] == [0.25]
    first, _ = invariance(root, "digits", ["memorized"])
    assert "finished trials without the metric: 100" in first.note


def test_a_sweep_in_which_all_diverged_has_a_stated_non_answer(tmp_path):
    trials = spoil(grid(bent, seeds=4), range(100), status="diverged", lambda_max=None)
    (verdict,) = invariance(stored(tmp_path, trials), "digits")
    assert (verdict.metric, verdict.verdict, verdict.n_diverged) == ("train_loss", "inconclusive", 100)
    assert "diverged trials: 100" in verdict.note


def test_margins_as_given_then_of_the_sweep_file_then_of_the_metric(tmp_path):
    trials = grid(bent, seeds=4)
    for name in ("test_loss", "hessian_trace"):
        trials = trials.append_column(name, trials["lambda_max"])
    root = stored(tmp_path, trials, sweep_file="name: digits\nmargins: {hessian_trace: 3e-1, test_loss: 0.2}\n")

    def margins(given=None, metrics=None):
        return {v.metric: v.margin for v in invariance(root, "digits", metrics, given)}

    assert margins() == {"test_loss": 0.2, "lambda_max": 0.1, "hessian_trace": 0.3}
    assert margins({"test_loss": 0.05}) == {"test_loss": 0.05, "lambda_max": 0.1, "hessian_trace": 0.3}
    assert margins(0.5) == {"test_loss": 0.5, "lambda_max": 0.5, "hessian_trace": 0.5}
    assert margins(0.5, ["lambda_max"]) == {"lambda_max": 0.5}


def test_margins_in_toml(tmp_path):
    text = 'name = "digits"\n[margins]\nlambda_max = 0.3\n'
    stored(tmp_path, grid(bent, seeds=4), sweep_file=text, suffix=".toml")
    assert invariance(tmp_path, "digits")[0].margin == 0.3


def test_margins_are_those_of_the_plan_and_of_its_copy_where_it_is_lost(tmp_path):
    stored(tmp_path, grid(bent, seeds=4), sweep_file="margins: {lambda_max: 0.3}\n")
    (tmp_path / "digits" / "sweep.yaml").write_text("margins: {lambda_max: 0.2}\n")
    assert invariance(tmp_path, "digits")[0].margin == 0.3
    (plan,) = (tmp_path / "digits" / "plan").iterdir()
    plan.unlink()
    assert invariance(tmp_path, "digits")[0].margin == 0.2


@pytest.mark.parametrize("margin", [0, -0.1, float("nan"), float("inf")])
def test_a_margin_must_be_positive(tmp_path, margin):
    with pytest.raises(ValueError, match=r"margin of lambda_max: .* is not a positive number"):
        invariance(stored(tmp_path, grid(bent, seeds=2)), "digits", margins=margin)


def test_unknown_names_come_with_suggestions(tmp_path):
    root = stored(tmp_path, grid(bent, seeds=2))
    with pytest.raises(
        ValueError, match=r"unknown metric 'lambda_mx': did you mean 'lambda_max'\?; .*'zzz' \(known are "
    ):
        invariance(root, "digits", ["lambda_mx", "zzz"])
    with pytest.raises(ValueError, match=r"unknown sweep 'digit': did you mean 'digits'\? \(.* holds digits\)"):
        invariance(root, "digit")
    with pytest.raises(ValueError, match="unknown metric 'test_los': did you mean 'test_loss'"):
        invariance(root, "digits", margins={"test_los": 0.1})
    with pytest.raises(ValueError, match=r"unknown metric 'seconds' \(known are"):
        invariance(root, "digits", ["seconds"])
    with pytest.raises(ValueError, match="holds none"):
        invariance(root / "elsewhere", "digits")


def test_a_sweep_without_trials_has_no_verdicts(tmp_path):
    sweep = Store(tmp_path).sweep("digits")
    (sweep.storage.root / "trials").mkdir(parents=True)
    assert invariance(tmp_path, "digits") == []
    assert verdict_text(tmp_path, "digits", []).startswith("No trial has ended yet")


def test_only_the_sweep_asked_for_is_read(tmp_path):
    stored(tmp_path, grid(broken), "other")
    assert len(read_trials(stored(tmp_path, grid(bent)), "digits")) == 200


def test_text_has_conclusion_map_and_summary(tmp_path):
    root = stored(tmp_path, pa.concat_tables([grid(bent, label_noise=0.25), grid(broken, label_noise=0.0)]))
    verdicts = invariance(root, "digits")
    parts = verdict_text(root, "digits", verdicts, in_full=True).split("\n\n")
    assert [p.split(" (")[0] for p in parts[:4]] == ["lambda_max"] * 4
    assert "geometric mean over 8 seeds" in parts[1]
    assert parts[4].startswith("lambda_max  label_noise 0.0   DIFFERENT")
    short = verdict_text(root, "digits", verdicts).split("\n\n")
    assert short[:-1] == parts[4:]
    assert short[-1] == "with intervals and a map: isoratio invariance digits --metric lambda_max"
