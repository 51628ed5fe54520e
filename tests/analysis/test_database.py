"""The views of the store: their columns, one row per trial, and what must stay invisible."""

from __future__ import annotations

import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.database import COLUMNS, DERIVED, Launch, connect
from trainables.lease import Lease
from trainables.schema import TRIALS
from trainables.statistics import COLUMNS as BUILT_IN
from trainables.statistics import OF_ENDPOINT
from trainables.storage import StoreError
from trainables.trial import FIELDS, round_lr

CONTRACT_FIRST = "sweep trial_id arch dataset lr batch_size ratio label_noise input_noise gradient_noise seed optimizer"
CONTRACT_THEN = "momentum weight_decay epochs"
CONTRACT_LAST = (
    "status error steps epochs_done train_loss train_accuracy test_loss test_accuracy loss_gap accuracy_gap memorized "
    "lambda_max lambda_max_residual lambda_min hessian_trace hessian_trace_se hessian_frobenius hessian_frobenius_se "
    "gradient_norm gradient_covariance_trace noise_scale stability pack_id attempt seconds device provenance_id"
)
LATER = (
    "lambda_min_residual gradient_covariance_trace_se noise_scale_se measure_id slot engine reached together "
    "physical_batch_size"
)


def rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return connection.sql(query).fetchall()


def test_trials_have_the_columns_of_the_contract_in_its_order(build):
    names = connect(build.store).sql("FROM trials").columns
    first = CONTRACT_FIRST.split() + CONTRACT_THEN.split()
    others = [field for field in FIELDS if field not in first]
    assert names[: len(first)] == first
    assert names[len(first) :] == [*others, *CONTRACT_LAST.split(), *LATER.split()]
    assert set(TRIALS.names) <= set(names)


@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_store_has_typed_empty_views(tmp_path, exists):
    root = tmp_path / "results"
    if exists:
        root.mkdir()
    connection = connect(root)
    for view, names in COLUMNS.items():
        found = connection.sql(f"FROM {view}")
        assert found.columns == names
        assert found.fetchall() == []
    types = dict(zip(connection.sql("FROM trials").columns, connection.sql("FROM trials").types, strict=True))
    assert [str(types[n]) for n in ("arch", "lr", "batch_size", "ratio", "stability")] == [
        *["VARCHAR", "DOUBLE", "BIGINT", "DOUBLE", "DOUBLE"]
    ]
    assert root.exists() == exists


def test_derived_columns(build):
    build.commit("p", build.measured("t", lr=0.016, batch_size=32))
    names = "ratio, loss_gap, accuracy_gap, stability"
    assert rows(connect(build.store), f"SELECT {names} FROM trials") == [(0.0005, 0.25, 0.125, 0.1)]


@pytest.mark.parametrize(
    ("changes", "stability"),
    [
        ({"optimizer": '{"name":"nudged_sgd","top":2}'}, 0.1),
        ({"optimizer": "adam"}, None),
        ({"schedule": "constant"}, 0.1),
        ({"schedule": '{"cosine":{}}'}, None),
    ],
)
def test_adam_and_schedules_have_no_stability(build, changes, stability):
    build.commit("p", build.measured("t", lr=0.016, batch_size=32, **changes))
    assert rows(connect(build.store), "SELECT stability FROM trials") == [(stability,)]


@pytest.mark.parametrize(
    ("lr", "lambda_max", "momentum"), [(0.5, 4.0, 0.0), (0.1, 38.0, 0.9), (0.25, 12.0, 0.5), (1.0, 3.9, 0.95)]
)
def test_at_stability_1_heavy_ball_stops_converging(build, lr, lambda_max, momentum):
    build.commit("p", build.measured("t", lr=lr, lambda_max=lambda_max, momentum=momentum))
    ((stability,),) = rows(connect(build.store), "SELECT stability FROM trials")
    step = [[1 + momentum - lr * lambda_max, -momentum], [1.0, 0.0]]  # (x, the x before) on lambda_max x^2 / 2
    radius = abs(np.linalg.eigvals(step)).max()
    assert (stability > 1 + 1e-9) == (radius > 1 + 1e-6)
    assert stability == pytest.approx(lr * lambda_max / (2 * (1 + momentum)))


@pytest.mark.parametrize("missing", ["lambda_max", "momentum"])
def test_stability_is_null_where_it_is_not_known(build, missing):
    build.commit("p", build.measured("t", **{missing: None}))
    assert rows(connect(build.store), "SELECT stability FROM trials") == [(None,)]


@given(
    ratio=st.floats(1e-6, 10, allow_nan=False),
    batch_sizes=st.lists(st.integers(1, 10_000), min_size=2, max_size=5, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_a_line_of_equal_ratio_is_one_group(ratio, batch_sizes):
    """What round_lr leaves of a ratio, at most 5e-12 relative, is gone at nine digits, but for values between two."""
    nine = float(f"{ratio:.9g}")
    grid = ", ".join(f"({round_lr(nine * b)!r}::DOUBLE, {b})" for b in batch_sizes)
    found = duckdb.sql(f"SELECT DISTINCT {DERIVED['ratio']} FROM (VALUES {grid}) t(lr, batch_size)").fetchall()
    assert found == [(nine,)]


def test_side_rows_of_an_attempt_that_was_not_accepted_are_invisible(build):
    trial = build.measured("t")
    assert build.commit("p", trial, attempt="first")
    assert not build.commit("p", trial, attempt="late")
    build.orphan("p", trial, attempt="cut-short")
    build.orphan("never", build.measured("u"), attempt="x")
    connection = connect(build.store)
    assert rows(connection, "SELECT trial_id, attempt FROM trials") == [("t", "first")]
    assert rows(connection, "SELECT trial_id, step, value FROM curves ORDER BY step") == [("t", 0, 2.0), ("t", 9, 0.2)]
    assert rows(connection, "SELECT trial_id, eigenvalue FROM eigenvalues") == [("t", 12.5)]
    assert rows(connection, "SELECT trial_id, node, weight FROM density") == [("t", 12.5, 1.0)]
    assert rows(connection, "SELECT trial_id, profile, x, value FROM profiles") == [("t", "loss_along_e1", 1.0, 0.5)]


def test_side_rows_of_a_failed_member_are_invisible(build):
    build.plan(build.trial("t", pack_id="p"))
    build.orphan("p", build.trial("t"), attempt="a")
    build.fail("p", build.trial("t"), attempt="a")
    connection = connect(build.store)
    assert rows(connection, "SELECT status FROM trials") == [("failed",)]
    assert rows(connection, "FROM curves") == []


def test_a_failed_trial_shows_its_latest_error_until_it_is_committed(build):
    trial = build.trial("t", lr=0.5)
    build.plan(trial | {"pack_id": "p2"})
    build.fail("p0", trial, tried=0, error="first")
    build.fail("p1", trial, tried=1, error="second")
    query = "SELECT trial_id, lr, status, error, pack_id FROM trials"
    assert rows(connect(build.store), query) == [("t", 0.5, "failed", "second", "p1")]
    build.commit("p2", build.measured("t", lr=0.5))
    assert rows(connect(build.store), query) == [("t", 0.5, "finished", None, "p2")]


@given(order=st.permutations(["p0", "p1", "p2"]))
@settings(max_examples=6, deadline=None)
def test_a_trial_in_several_packs_is_one_row_whatever_came_first(builder, tmp_path_factory, order):
    build = builder(tmp_path_factory.mktemp("store"))
    for pack in order:
        build.commit(pack, build.measured("t", test_loss=float(pack[1])), build.measured(f"other-{pack}"))
    connection = connect(build.store)
    assert rows(connection, "SELECT test_loss, pack_id FROM trials WHERE trial_id = 't'") == [(0.0, "p0")]
    assert rows(connection, "SELECT count(*) FROM trials") == [(4,)]
    assert rows(connection, "SELECT count(*), count(DISTINCT trial_id) FROM curves") == [(8, 4)]


def test_what_the_plan_measures_goes_before_what_an_older_one_did(build):
    build.commit("p0", build.measured("t", measure_id="old", test_loss=1.0))
    build.commit("p1", build.measured("t", measure_id="new", test_loss=2.0))
    build.plan(build.trial("t", measure_id="new", pack_id="p1"))
    connection = connect(build.store)
    assert rows(connection, "SELECT measure_id, test_loss FROM trials") == [("new", 2.0)]
    assert rows(connection, "SELECT status FROM plan") == [("finished",)]


def test_metrics_of_plugins_are_columns_at_the_end(build):
    build.commit("p0", build.measured("t"))
    build.commit("p1", build.measured("u", sparsity=0.5, **{"dead units": 3.0}))
    connection = connect(build.store)
    assert connection.sql("FROM trials").columns[-2:] == ["dead units", "sparsity"]
    found = rows(connection, 'SELECT trial_id, sparsity, "dead units" FROM trials ORDER BY ALL')
    assert found == [("t", None, None), ("u", 0.5, 3.0)]


def test_statistics_that_not_every_sweep_measures_are_columns_where_they_were(build):
    found = {name: 1 + k / 8 for k, name in enumerate(BUILT_IN)}
    build.commit("p0", build.measured("t", **found, best_test_accuracy=0.875, best_test_epoch=5.0))
    build.commit("p1", build.measured("u", "plain"), sweep="plain")
    names = connect(build.store).sql("FROM trials").columns
    assert len(names) == len(set(names))
    assert names[: len(COLUMNS["trials"])] == COLUMNS["trials"]
    assert names[len(COLUMNS["trials"]) :] == sorted({*BUILT_IN, *OF_ENDPOINT} - {*COLUMNS["trials"]})
    assert connect(build.store, "plain").sql("FROM trials").columns == COLUMNS["trials"]
    stored = rows(connect(build.store), f"SELECT {', '.join(BUILT_IN)} FROM trials ORDER BY trial_id")
    assert stored[0] == tuple(found.values())
    only_in_t = [k for k, name in enumerate(BUILT_IN) if name not in COLUMNS["trials"]]
    assert only_in_t
    assert all(stored[1][k] is None for k in only_in_t)


def test_a_metric_with_a_taken_name_breaks_nothing(build):
    build.commit("p0", build.measured("t", Ratio=7.0, round=1.0, planned=2.0, sparsity=1.0, Sparsity=2.0))
    connection = connect(build.store)
    assert rows(connection, "SELECT ratio FROM trials") == [(0.0005,)]
    assert [c.lower() for c in connection.sql("FROM trials").columns].count("sparsity") == 1


def test_plan_status(build):
    names = ("finished", "diverged", "failed", "running", "pending", "retried")
    build.plan(*(build.trial(name, pack_id=f"p-{name}") for name in names))
    build.commit("p-finished", build.measured("finished"))
    build.commit("p-diverged", build.trial("diverged", status="diverged"))
    build.fail("p-failed", build.trial("failed"))
    build.fail("earlier-pack", build.trial("retried"))
    build.hold("elsewhere", running_packs=["p-running", "p-finished"])
    status = dict(rows(connect(build.store), "SELECT trial_id, status FROM plan"))
    assert status == {name: name for name in names} | {"retried": "pending"}


def test_plan_sees_only_planned_sweeps(build):
    build.plan(build.trial("t", pack_id="p"))
    build.commit("q", build.measured("u", sweep="imported"), sweep="imported")
    connection = connect(build.store)
    assert rows(connection, "SELECT sweep, ratio, round, cost FROM plan") == [("digits", 0.0005, 0, 1.0)]
    assert rows(connection, "SELECT sweep FROM trials") == [("imported",)]


def test_one_sweep_alone(build):
    for sweep in ("a", "b"):
        build.commit("p", build.measured("t", sweep), sweep=sweep)
    assert rows(connect(build.store), "SELECT sweep FROM trials ORDER BY ALL") == [("a",), ("b",)]
    assert rows(connect(build.store, "b"), "SELECT sweep FROM trials") == [("b",)]
    with pytest.raises(StoreError, match=r"no sweep 'c' in .*: it holds a, b"):
        connect(build.store, "c")


def test_provenance_is_shared_by_sweeps(build):
    for sweep in ("a", "b"):
        build.commit("p", build.measured("t", sweep, provenance_id="v"), sweep=sweep)
        build.provenance("v", sweep)
    assert rows(connect(build.store), "SELECT provenance_id, torch FROM provenance") == [("v", "2.13.0")]


def test_hidden_and_partial_files_are_ignored(build):
    build.commit("p", build.measured("t"))
    committed = build.sweep().storage.root / "trials" / "p.parquet"
    for name in (".p.parquet", "p.parquet.0123.partial", ".0123.partial", "._p.parquet"):
        (committed.parent / name).write_bytes(b"half")
    (build.store.storage.root / ".snapshot" / "trials").mkdir(parents=True)
    (build.store.storage.root / ".snapshot" / "trials" / "p.parquet").write_bytes(b"half")
    assert rows(connect(build.store), "SELECT trial_id FROM trials") == [("t",)]


def test_a_store_may_lie_anywhere(builder, tmp_path):
    build = builder(tmp_path / "it's [a] *store* {x}?")
    build.commit("p", build.measured("t"))
    assert rows(connect(str(build.store.storage.root)), "SELECT trial_id FROM trials") == [("t",)]


def test_a_connection_shows_one_moment(build):
    build.commit("p0", build.measured("t"))
    before = connect(build.store)
    build.commit("p1", build.measured("u"))
    assert rows(before, "SELECT count(*) FROM trials") == [(1,)]
    assert rows(connect(build.store), "SELECT count(*) FROM trials") == [(2,)]


def test_a_file_without_a_footer_is_named_when_the_store_is_opened(build):
    build.commit("p", build.measured("t"))
    path = build.sweep().storage.root / "trials" / "p.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"digits/trials/p\.parquet: cannot be read: .*`isoratio verify`.*resume"):
        connect(build.store)


def test_files_of_an_older_version_lack_columns(build):
    """A column added later is NULL in rows that were stored before."""
    build.commit("p", build.measured("t"))
    path = build.sweep().storage.root / "trials" / "p.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["weight_decay", "noise_scale"]), path)
    assert rows(connect(build.store), "SELECT trial_id, weight_decay, noise_scale FROM trials") == [("t", None, None)]


def test_rows_of_an_older_format_stand_beside_new_ones(build):
    """A store of format 1: its plan lay elsewhere, and nothing marks it."""
    build.plan(*(build.trial(key, pack_id=key) for key in "tu"))
    build.commit("t", build.measured("t"))
    root = build.sweep().storage.root
    (plan,) = (root / "plan").iterdir()
    plan.rename(root / "plan.parquet")
    path = root / "trials" / "t.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["together", "weight_decay"]), path)
    query = "SELECT trial_id, status, together FROM trials ORDER BY trial_id"
    assert rows(connect(build.store), query) == [("t", "finished", None)]
    build.commit("u", build.measured("u", together=1))
    assert rows(connect(build.store), query) == [("t", "finished", None), ("u", "finished", 1)]
    assert rows(connect(build.store), "SELECT status FROM plan") == [("finished",), ("finished",)]


def test_a_store_of_a_newer_version_is_refused(build):
    build.commit("p", build.measured("t"))
    build.sweep().storage.replace("format.json", b'{"format": 3, "isoratio": "9.1"}')
    with pytest.raises(
        StoreError, match=r"digits: written by Isoratio 9\.1 in format 3; .* up to format 2: install a n"
    ):
        connect(build.store)


def test_no_row_is_read_when_the_store_is_opened(build, damage):
    build.commit("p", build.measured("t"))
    damage(build.sweep().storage.root / "trials" / "p.parquet")
    connection = connect(build.store)
    with pytest.raises(duckdb.Error):
        connection.sql("SELECT sweep FROM trials").fetchall()


@pytest.mark.parametrize(
    ("where", "beats", "watch", "alive"),
    [
        ("here", {}, False, True),
        ("here", {}, True, False),  # the process is there, and does not beat
        ("here", {"state": "stopped"}, False, False),
        ("elsewhere", {}, False, True),
        ("elsewhere", {}, True, False),
        ("elsewhere", {"state": "stopped"}, False, False),
        ("gone", {}, False, False),  # which needs no watching
        ("here", {"command": "compact"}, False, False),
    ],
)
def test_a_launch_that_does_not_beat(build, where, beats, watch, alive):
    build.hold(where, running_packs=["p"], trials_per_second=2.0, **beats)
    launch = Launch.of(build.sweep(), watch=watch)
    assert launch.alive == alive
    assert launch.running_packs == (("p",) if alive else ())
    assert launch.trials_per_second == (2.0 if alive else None)
    assert (launch.number, launch.state) == (1, beats.get("state", "running"))


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_launch_lives_while_it_beats(build, monkeypatch, machine):
    with Lease(build.sweep()) as lease:
        lease.end()
        lease.beat(running_packs=["p"])
        if machine == "another":
            monkeypatch.setattr("trainables.lease._machine", lambda: "another")
        next_beat = threading.Timer(0.02, lease.beat, kwargs={"every": 0.01})
        next_beat.start()
        assert Launch.of(build.sweep(), watch=True) == Launch(True, 1, "running", ("p",))
        next_beat.join()
    assert Launch.of(build.sweep(), watch=True) == Launch(False, 1, "running")


def test_a_launch_that_has_ended_says_so(build):
    with Lease(build.sweep()):
        pass
    assert Launch.of(build.sweep()) == Launch(False, 1, "interrupted")


def test_the_last_launch_counts(build):
    build.hold(state="stopped")
    build.hold(running_packs=["p"])
    assert Launch.of(build.sweep()) == Launch(True, 2, "running", ("p",))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_heartbeat_that_is_not_one_is_none(build, text):
    build.hold("elsewhere")
    build.sweep().storage.path("log/000001.json").write_text(text)
    assert Launch.of(build.sweep()) == Launch(True, 1, "running")
    build.hold("gone")
    build.sweep().storage.path("log/000002.json").write_text(text)
    assert Launch.of(build.sweep(), watch=True) == Launch(False, 2)


def test_a_lease_that_is_not_one_still_counts(build):
    """Whatever its file says, its number and the heartbeat under that number remain."""
    build.hold("gone", running_packs=["p"])
    build.sweep().storage.path("lease/000001.json").write_text("{")
    build.sweep().storage.path("lease/notes.txt").write_text("")
    assert Launch.of(build.sweep()) == Launch(True, 1, "running", ("p",))
    assert not Launch.of(build.sweep(), watch=True).alive


def test_values_that_are_not_finite_compare_as_duckdb_says(build):
    """NaN is the largest number, also where the condition is evaluated by PyArrow."""
    values = [1.0, float("nan"), float("inf"), None]
    build.commit("p", *(build.measured(str(k), test_loss=v) for k, v in enumerate(values)))
    connection = connect(build.store)
    for relation in ("trials", "stored_trials"):
        assert len(rows(connection, f"FROM {relation} WHERE test_loss > 2")) == 2
        assert len(rows(connection, f"FROM {relation} WHERE test_loss < 2")) == 1


def test_many_files_while_others_are_written(build):
    """Reads during writes see whole packs only."""
    per_pack, packs = 4, 30

    def write() -> None:
        for pack in range(packs):
            build.commit(f"p{pack}", *(build.measured(f"{pack}-{k}") for k in range(per_pack)))

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(rows(connect(build.store), "SELECT count(*) FROM trials")[0][0])
        time.sleep(random.random() / 100)
    writer.join()
    assert [n % per_pack for n in seen] == [0] * len(seen)
    assert seen == sorted(seen)
    assert rows(connect(build.store), "SELECT count(*) FROM trials") == [(per_pack * packs,)]
    assert rows(connect(build.store), "SELECT count(*) FROM curves") == [(2 * per_pack * packs,)]


def test_a_copy_of_the_store_answers_alike(build, tmp_path: Path):
    build.commit("p", build.measured("t"))
    shutil.copytree(build.store.storage.root, tmp_path / "copy")
    query = "FROM trials"
    assert rows(connect(tmp_path / "copy"), query) == rows(connect(build.store), query)
