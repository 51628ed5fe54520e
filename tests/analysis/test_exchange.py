"""Trials in and out: nothing is assumed, replaced or half-written, and a second import adds nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.database import COLUMNS, connect
from analysis.exchange import Imported, export, import_trials
from analysis.sql import sql
from trainables.storage import StoreError
from trainables.trial import FIELDS


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "theirs.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def stored(store, columns: str, sweep: str = "theirs") -> list[tuple]:
    query = f"SELECT {columns} FROM trials WHERE sweep = '{sweep}' ORDER BY slot"
    return list(zip(*(c.to_pylist() for c in sql(store, query).columns), strict=True))


# --- import ---


def test_the_least_that_can_be_imported(build, written):
    done = import_trials(build.store, written("lr,batch_size,test_accuracy\n0.1,32,0.9\n0.2,64,0.8\n"), "theirs")
    assert done == Imported("theirs", added=2, known=0, diverged=0, metrics=("test_accuracy",), ignored=())
    found = stored(build.store, "lr, batch_size, ratio, seed, status, test_accuracy, engine")
    assert found == [
        (0.1, 32, 0.003125, 0, "finished", 0.9, "import"),
        (0.2, 64, 0.003125, 0, "finished", 0.8, "import"),
    ]


def test_configuration_that_is_not_given_is_null(build, written):
    import_trials(build.store, written("lr,batch_size,test_loss\n0.1,32,0.9\n"), "theirs")
    others = [f for f in FIELDS if f not in ("lr", "batch_size", "seed")]
    assert stored(build.store, ", ".join(others)) == [(None,) * len(others)]


def test_configuration_may_be_of_other_tools(build, written):
    text = "lr,batch_size,arch,dataset,optimizer,epochs,test_loss\n1e-3,128,ResNet-50,ImageNet,adam,90,1.2\n"
    import_trials(build.store, written(text), "theirs")
    assert stored(build.store, "arch, dataset, optimizer, epochs") == [("ResNet-50", "ImageNet", "adam", 90.0)]


def test_every_other_column_is_a_metric(build, written):
    text = "lr,batch_size,dead units,test_loss,memorized\n0.1,32,12,,\n0.2,32,,1.5,\n"
    assert import_trials(build.store, written(text), "theirs").metrics == ("dead units", "test_loss")
    assert stored(build.store, 'lr, test_loss, "dead units"') == [(0.1, None, 12.0), (0.2, 1.5, None)]


def test_the_same_file_again_adds_nothing(build, written):
    file = written("lr,batch_size,test_loss\n" + "".join(f"0.1,32,{k}.5\n" for k in range(5)))
    assert import_trials(build.store, file, "theirs").added == 5
    before = {p: p.read_bytes() for p in build.store.storage.root.rglob("*") if p.is_file()}
    again = import_trials(build.store, file, "theirs")
    assert (again.added, again.known) == (0, 5)
    assert {p: p.read_bytes() for p in build.store.storage.root.rglob("*") if p.is_file()} == before


def test_a_longer_file_adds_what_is_new(build, written):
    head = "lr,batch_size,test_loss\n0.1,32,1.5\n"
    import_trials(build.store, written(head), "theirs")
    done = import_trials(build.store, written(head + "0.1,32,2.5\n"), "theirs")
    assert (done.added, done.known) == (1, 1)
    assert sql(build.store, "SELECT seed, test_loss FROM trials ORDER BY ALL").to_pylist() == [
        {"seed": 0, "test_loss": 1.5},
        {"seed": 1, "test_loss": 2.5},
    ]


def test_other_values_for_a_known_trial_are_refused(build, written):
    import_trials(build.store, written("lr,batch_size,seed,test_loss\n0.1,32,3,1.5\n"), "theirs")
    with pytest.raises(
        ValueError, match=r"row 1, column 'test_loss': 2\.5, but this trial is in sweep 'theirs' with 1\.5"
    ):
        import_trials(build.store, written("lr,batch_size,seed,test_loss\n0.1,32,3,2.5\n"), "theirs")
    assert stored(build.store, "test_loss") == [(1.5,)]


@given(
    rows=st.lists(
        st.tuples(st.floats(1e-6, 10), st.integers(1, 4096), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=25, deadline=None)
def test_seeds_number_the_rows_of_one_configuration(builder, tmp_path_factory, rows):
    rows = rows + rows[:2]  # repetitions
    root = tmp_path_factory.mktemp("import")
    file = root / "theirs.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("lr", "batch_size", "test_loss"), *rows])
    store = builder(root / "results").store
    assert import_trials(store, file, "theirs").added == len(rows)
    assert import_trials(store, file, "theirs").added == 0
    found = stored(store, "lr, batch_size, seed, test_loss")
    assert [row[3] for row in found] == [row[2] for row in rows]
    for k, (lr, batch_size, seed, _) in enumerate(found):
        assert lr == pytest.approx(rows[k][0], rel=1e-11)
        assert seed == sum(row[:2] == (lr, batch_size) for row in found[:k])


def test_what_is_not_finite_is_a_divergence(build, written):
    text = "lr,batch_size,test_loss,test_accuracy\n0.1,32,nan,0.1\n0.2,32,inf,\n0.3,32,1.5,0.5\n"
    assert import_trials(build.store, written(text), "theirs").diverged == 2
    assert stored(build.store, "status, error, test_loss, test_accuracy") == [
        ("diverged", "not finite: test_loss", None, 0.1),
        ("diverged", "not finite: test_loss", None, None),
        ("finished", None, 1.5, 0.5),
    ]


def test_a_status_column_decides(build, written):
    text = "lr,batch_size,test_loss,status\n0.1,32,nan,finished\n0.2,32,,failed\n0.3,32,7,diverged\n0.4,32,1,\n"
    with pytest.raises(ValueError, match="row 1: no metric has a value"):
        import_trials(build.store, written(text), "theirs")
    import_trials(build.store, written(text.replace("nan", "1")), "theirs")
    assert [row[0] for row in stored(build.store, "status")] == ["finished", "failed", "diverged", "finished"]


BAD = [
    (
        "learning_rate,batch_size,test_loss\n1,2,3\n",
        "column 'lr' is missing; it has learning_rate, batch_size, test_loss",
    ),
    ("lr,batchsize,test_loss\n1,2,3\n", "column 'batch_size' is missing; did you mean 'batchsize'?"),
    ("lr,batch_size\n1,2\n", "a metric is needed, such as test_accuracy"),
    ("lr,batch_size,ratio\n1,2,0.5\n", "a metric is needed"),
    ("lr,batch_size,test_loss\n", "it has no rows"),
    ("", "it has no rows"),
    ("lr,LR,batch_size,test_loss\n1,1,2,3\n", "more than one column is called 'lr'"),
    ("lr,batch_size,test_loss\n1,2\n", "row 1: 3 values are expected, one per column"),
    ("lr,batch_size,test_loss\n1,2,3\n0,2,3\n", "row 2, column 'lr': '0': Input should be greater than 0"),
    ("lr,batch_size,test_loss\ninf,2,3\n", "row 1, column 'lr': 'inf': Input should be a finite number"),
    ("lr,batch_size,test_loss\n1,2.5,3\n", "row 1, column 'batch_size': '2.5': Input should be a valid integer"),
    ("lr,batch_size,test_loss\n,2,3\n", "row 1, column 'lr': nothing: Input should be a valid number"),
    ("lr,batch_size,seed,test_loss\n1,2,,3\n", "row 1, column 'seed': nothing: Input should be a valid integer"),
    ("lr,batch_size,test_loss\n1,2,bad\n", "row 1, column 'test_loss': 'bad': Input should be a valid number"),
    ("lr,batch_size,note,test_loss\n1,2,good,3\n", "row 1, column 'note': 'good': Input should be a valid number"),
    ("lr,batch_size,test_accuracy\n1,2,93.5\n", "row 1, column 'test_accuracy': '93.5': a fraction between 0 and 1"),
    ("lr,batch_size,momentum,test_loss\n1,2,1,3\n", "row 1, column 'momentum': '1': Input should be less than 1"),
    ("lr,batch_size,test_loss,status\n1,2,3,ok\n", "row 1, column 'status': 'ok': Input should be 'finished'"),
    ("lr,batch_size,seed,test_loss\n1,2,5,3\n1,2,5,4\n", "row 2: the same configuration and seed as row 1"),
    ("lr,batch_size,test_loss\n1,2,\n", "row 1: no metric has a value"),
    ("lr,batch_size,cause,round\n1,2,3,4\n", "no metric may be called 'cause', 'round'"),
    ('lr,batch_size,test_loss\n1,2,"3\n', "cannot be read: unexpected end of data"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_a_bad_file_is_refused_and_nothing_is_written(build, written, text, says):
    with pytest.raises(ValueError, match=r"theirs\.csv: ") as refusal:
        import_trials(build.store, written(text), "theirs")
    assert says in str(refusal.value)
    assert not build.store.storage.root.exists()


def test_all_bad_values_are_reported_at_once(build, written):
    text = "lr,batch_size,test_loss\n" + "x,y,1\n" * 30
    with pytest.raises(ValueError, match="and 40 more") as refusal:
        import_trials(build.store, written(text), "theirs")
    assert str(refusal.value).count("\n") == 20


@pytest.mark.parametrize("name", ["theirs.xlsx", "theirs"])
def test_other_formats_are_refused(build, written, name):
    with pytest.raises(ValueError, match=r"a \.parquet or \.csv file is expected"):
        import_trials(build.store, written("lr", name), "theirs")


def test_a_file_that_is_not_what_it_says_or_not_there(build, written, tmp_path):
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read"):
        import_trials(build.store, written("lr", "x.parquet"), "theirs")
    with pytest.raises(ValueError, match=r"gone\.csv: cannot be read"):
        import_trials(build.store, tmp_path / "gone.csv", "theirs")


def test_a_launched_sweep_is_not_mixed(build, written):
    build.plan(build.trial("t", pack_id="p"))
    with pytest.raises(StoreError, match="sweep 'digits' was launched"):
        import_trials(build.store, written("lr,batch_size,test_loss\n1,2,3\n"), "digits")
    with pytest.raises(StoreError, match="sweep name"):
        import_trials(build.store, written("lr,batch_size,test_loss\n1,2,3\n"), "../up")


def test_parquet_of_other_types(build, tmp_path):
    file = tmp_path / "theirs.parquet"
    columns = {
        "lr": pa.array([0.1, 0.2], pa.float32()),
        "batch_size": pa.array([32.0, 64.0]),
        "seed": pa.array([1, 2], pa.uint8()),
        "arch": pa.array(["mlp", "cnn"]).dictionary_encode(),
        "test_loss": pa.array([1, 2], pa.int32()),
    }
    pq.write_table(pa.table(columns), file)
    import_trials(build.store, file, "theirs")
    found = stored(build.store, "lr, batch_size, seed, arch, test_loss")
    assert [row[1:] for row in found] == [(32, 1, "mlp", 1.0), (64, 2, "cnn", 2.0)]
    assert [row[0] for row in found] == pytest.approx([0.1, 0.2], rel=1e-6)


# --- export ---


@pytest.fixture
def filled(build):
    build.plan(*(build.trial(key, pack_id="p") for key in "ab"), build.trial("c", pack_id="q"))
    found = {"sparsity": 0.5, "subspace_overlap": 0.75, "subspace_overlap_bound": 0.125, "noise_scale_se": 2.0}
    build.commit("p", build.measured("b", provenance_id="v", **found), build.trial("a", seed=1, status="diverged"))
    build.commit("p", build.measured("t", "other"), sweep="other")
    build.provenance("v")
    return build.store


def expected(store, view: str) -> list[tuple]:
    return sorted(connect(store, "digits").sql(f"FROM {view}").fetchall(), key=repr)


def test_export_of_trials(filled, tmp_path):
    path = export(filled, "digits", tmp_path / "it's.parquet")
    found = duckdb.read_parquet(str(path))
    assert found.columns == [*COLUMNS["trials"], "sparsity", "subspace_overlap", "subspace_overlap_bound"]
    assert sorted(found.fetchall(), key=repr) == expected(filled, "trials")
    header, *lines = csv.reader(export(filled, "digits", tmp_path / "trials.csv").open(newline=""))
    assert header == found.columns
    assert [line[1] for line in lines] == ["a", "b"]
    assert math.isclose(float(lines[1][header.index("ratio")]), 0.0005)


def test_export_of_every_view(filled, tmp_path):
    directory = export(filled, "digits", tmp_path / "all")
    with duckdb.connect(str(export(filled, "digits", tmp_path / "all.duckdb")), read_only=True) as database:
        for view in COLUMNS:
            rows = sorted(duckdb.read_parquet(str(directory / f"{view}.parquet")).fetchall(), key=repr)
            assert rows == expected(filled, view) == sorted(database.sql(f"FROM {view}").fetchall(), key=repr)
            assert rows
        assert {name for (name,) in database.sql("SHOW TABLES").fetchall()} == set(COLUMNS)


def test_an_export_is_never_replaced(filled, tmp_path):
    for name in ("x.csv", "x.parquet", "x.duckdb", "x"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match="exists and is not replaced"):
            export(filled, "digits", tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"


def test_a_failed_export_leaves_nothing(filled, tmp_path, damage):
    damage(filled.storage.root / "digits" / "curves" / "p.a.parquet")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("x", "x.duckdb"):
        with pytest.raises(StoreError, match=r"curves/p\.a\.parquet: cannot be read"):
            export(filled, "digits", out / name)
    with pytest.raises(ValueError, match=r"allowed are \.parquet, \.csv, \.duckdb, or no suffix"):
        export(filled, "digits", out / "x.xlsx")
    with pytest.raises(ValueError, match=r"cannot be written"):
        export(filled, "digits", out / "no" / "x.csv")
    with pytest.raises(StoreError, match="no sweep 'nix'"):
        export(filled, "nix", out / "x.csv")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["trials.csv", "trials.parquet"])
def test_an_export_can_be_imported(filled, tmp_path, name):
    done = import_trials(filled, export(filled, "digits", tmp_path / name), "copied")
    assert (done.added, done.diverged) == (2, 1)
    assert {"trial_id", "ratio", "stability", "pack_id"} <= set(done.ignored)
    columns = "lr, seed, status, steps, test_loss, loss_gap, sparsity, subspace_overlap_bound, noise_scale_se"
    assert sorted(stored(filled, columns, "copied"), key=repr) == sorted(stored(filled, columns, "digits"), key=repr)
