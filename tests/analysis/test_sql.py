"""The sandbox: what a query may ask, and every way out of it that we know."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.database import connect
from analysis.sql import LOCK, QueryError, sql
from trainables.storage import StoreError


def snapshot(*directories: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for d in directories for p in d.rglob("*") if p.is_file()}


@pytest.fixture
def store(build, tmp_path, monkeypatch):
    """A store with one trial, beside a file that nobody may read; the working directory is empty."""
    build.commit("p", build.measured("t"))
    (tmp_path / "secret.csv").write_text("word\nswordfish\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return build.store


@pytest.mark.parametrize(
    "query",
    [
        "SELECT trial_id FROM trials",
        "FROM trials SELECT trial_id;",
        "-- the only trial\nWITH x AS (FROM trials) SELECT trial_id FROM x",
        "SELECT trial_id FROM trials WHERE ratio = 0.0005 AND arch = 'mlp'",
        "VALUES ('t')",
        "PIVOT (SELECT trial_id, batch_size, 1 AS n FROM trials) ON batch_size USING sum(n)",
    ],
)
def test_questions_are_answered(store, query):
    assert sql(store, query).column(0).to_pylist() == ["t"]


@pytest.mark.parametrize("query", ["DESCRIBE trials", "SUMMARIZE trials", "SHOW TABLES", "EXPLAIN FROM trials"])
def test_questions_about_the_tables_are_answered(store, query):
    assert sql(store, query).num_rows > 0


def test_json_and_statistics_need_no_extension(store):
    arch = '{"name":"mlp","depth":4}'
    found = sql(store, f"SELECT '{arch}'->>'depth', median(lr), regr_count(lr, lr), now() > '2020-01-01' FROM trials")
    assert [column[0].as_py() for column in found.columns] == ["4", 0.016, 1, True]


ESCAPES = [
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM read_text('{store}/../secret.csv')",
    "SELECT * FROM read_text('{store}/digits/trials/p.parquet')",
    "SELECT * FROM parquet_metadata('{store}/digits/trials/p.parquet')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{store}/*')",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
    "SELECT * FROM read_duckdb('{outside}')",
    "SELECT getenv('HOME')",
    "SELECT * FROM 'https://example.com/x.parquet'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_config = {{'path': '{outside}'}})",
    "SELECT * FROM enable_profiling(save_location = '{outside}')",
    "COPY (SELECT 1) TO '{outside}'",
    "COPY (SELECT 1) TO '{store}/x.csv'",
    "COPY trials FROM '{secret}'",
    "WITH x AS (COPY (SELECT 1) TO '{outside}') SELECT * FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{store}/x.csv') SELECT * FROM x",
    "WITH x AS (COPY (SELECT 1) TO 'x.csv') SELECT * FROM x",
    "COPY (PIVOT trials ON batch_size USING sum(lr)) TO '{store}/x.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{store}/x.csv'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{store}/x.csv') SELECT * FROM x",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{outside}'",
    "EXPLAIN ANALYZE ATTACH '{outside}'",
    "ATTACH '{outside}'",
    "ATTACH '{store}/x.duckdb'",
    "EXPORT DATABASE '{outside}'",
    "IMPORT DATABASE '{outside}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '1TB'",
    "RESET enable_external_access",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "CREATE TABLE x AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "DROP VIEW trials",
    "INSERT INTO trials SELECT * FROM trials",
    "DELETE FROM trials",
    "CHECKPOINT",
    "PREPARE x AS SELECT 1",
    "BEGIN",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{outside}'",
    "",
    " ; ",
    "-- nothing",
]


@pytest.mark.parametrize("query", ESCAPES)
def test_no_way_out(store, tmp_path, query):
    outside = tmp_path / "outside"
    before = snapshot(tmp_path)
    text = query.format(secret=tmp_path / "secret.csv", store=store.storage.root, outside=outside)
    with pytest.raises(QueryError) as refusal:
        sql(store, text)
    assert "swordfish" not in str(refusal.value)
    assert snapshot(tmp_path) == before
    assert not outside.exists()


@pytest.mark.parametrize("query", ESCAPES)
def test_the_wall_holds_without_the_gate(store, tmp_path, query):
    """What a statement may be is one question; that it can reach no file must not depend on the answer."""
    before = snapshot(tmp_path)
    text = query.format(secret=tmp_path / "secret.csv", store=store.storage.root, outside=tmp_path / "outside")
    with connect(store) as connection:
        connection.execute(LOCK)
        try:
            connection.execute(text)
            found = str(connection.fetchall())
        except duckdb.Error as error:
            found = str(error)
    assert not re.search("swordfish|root:|PATH=", found)
    assert snapshot(tmp_path) == before


def test_the_wall_is_what_stops_them(store, tmp_path):
    """The same statements do harm on a connection that is not locked: the tests above can fail."""
    with connect(store) as connection:
        text = f"WITH x AS (COPY (SELECT 1) TO '{tmp_path / 'outside'}') SELECT * FROM x"
        assert connection.extract_statements(text)[0].type == duckdb.StatementType.SELECT
        connection.execute(text)
        assert (tmp_path / "outside").exists()
        assert connection.execute(f"FROM read_csv('{tmp_path / 'secret.csv'}')").fetchall() == [("swordfish",)]


def test_python_variables_are_out_of_reach(store):
    trials_of_mine = sql(store, "FROM trials")
    assert trials_of_mine.num_rows == 1
    with pytest.raises(QueryError, match="trials_of_mine does not exist"):
        sql(store, "FROM trials_of_mine")


WORDS = ["SELECT", "FROM", "trials", "COPY", "TO", "'x'", "WITH", "AS", "(", ")", ";", "1", "*", "EXPLAIN", "ANALYZE"]


@given(
    query=st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map(" ".join),
)
@settings(max_examples=100, deadline=None)
def test_any_text_is_answered_or_refused(builder, tmp_path_factory, query):
    build = builder(tmp_path_factory.getbasetemp() / "any-text")
    if not build.store.sweeps():
        build.commit("p", build.measured("t"))
    before = snapshot(build.store.storage.root)
    try:
        sql(build.store, query)
    except QueryError:
        pass
    except UnicodeEncodeError:
        assert any("\ud800" <= c <= "\udfff" for c in query)
    assert snapshot(build.store.storage.root) == before


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT test_acuracy FROM trials", 'Candidate bindings: "test_accuracy"'),
        (
            "SELECT * FROM trails",
            'Did you mean "trials"?\nTables: trials, curves, eigenvalues, density, profiles, plan, provenance',
        ),
        ("SELECT medain(lr) FROM trials", 'Did you mean "median"'),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT 1; SELECT 2", "one statement is expected, 2 were given"),
        ("DROP VIEW trials", "DROP is not allowed: queries only read"),
        ("FROM '/etc/passwd.csv'", "Queries see the tables trials, curves, eigenvalues, density, profiles, plan"),
    ],
)
def test_a_refusal_says_what_to_do(store, query, says):
    with pytest.raises(QueryError) as refusal:
        sql(store, query)
    assert says in str(refusal.value)


def test_a_damaged_file_is_named(build, damage):
    build.commit("p", build.measured("t"))
    build.commit("q", build.measured("u"))
    damage(build.sweep().storage.root / "trials" / "q.parquet")
    with pytest.raises(StoreError, match=r"digits/trials/q\.parquet: cannot be read: .*`isoratio verify`"):
        sql(build.store, "SELECT * FROM trials")


def test_a_damaged_side_file_harms_no_other_table(build, damage):
    build.commit("p", build.measured("t"))
    damage(build.sweep().storage.root / "curves" / "p.a.parquet")
    assert sql(build.store, "FROM trials").num_rows == 1
    with pytest.raises(StoreError, match=r"digits/curves/p\.a\.parquet: cannot be read"):
        sql(build.store, "FROM curves")


def test_two_columns_of_one_name(store):
    assert sql(store, "SELECT 1 AS a, 2 AS a").column_names == ["a", "a"]


def test_neither_torch_nor_ray_nor_scipy_is_imported(store):
    code = (
        "import sys; from analysis.sql import sql; from analysis.status import status; import analysis.exchange;"
        f"sql({str(store.storage.root)!r}, 'FROM trials'); status({str(store.storage.root)!r});"
        "print(sorted({'torch', 'ray', 'scipy', 'typer'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
