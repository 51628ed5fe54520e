"""The sandbox: what a query may ask, and every way out of it that we know."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

import analysis.sql
from analysis.database import connect
from analysis.macros import MACROS
from analysis.sql import LOCK, QueryError, sql, stream
from trainables.storage import StoreError

ROOT = Path(__file__).parents[2]


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
    "WITH x AS (ATTACH '{outside}') FROM x",
    "WITH x AS (SET memory_limit = '1TB') FROM x",
    "UPDATE trials SET lr = 1",
    "ALTER TABLE trials RENAME TO x",
    "MERGE INTO trials USING trials t ON true WHEN MATCHED THEN DELETE",
    "USE memory",
    "DETACH memory",
    "VACUUM",
    "SET VARIABLE x = 1",
    "FORCE INSTALL httpfs FROM 'http://localhost'",
    "UPDATE EXTENSIONS",
    "CREATE MACRO x() AS 1",
    "CREATE TEMP TABLE x AS FROM read_csv('{secret}')",
    "SELECT * FROM read_ndjson_objects('{secret}')",
    "SELECT * FROM parquet_scan('{store}/digits/trials/p.parquet')",
    "SELECT * FROM parquet_file_metadata('{store}/digits/trials/p.parquet')",
    "SELECT * FROM query_table('{secret}')",
    "SELECT * FROM sqlite_scan('{outside}', 'x')",
    "PIVOT (FROM read_csv('{secret}')) ON word USING count(*)",
    "SUMMARIZE '{secret}'",
    "DESCRIBE FROM '{secret}'",
    "WITH x AS (COPY (SELECT 1) TO (current_setting('temp_directory') || '/x.csv')) FROM x",
    "FROM read_text(current_setting('temp_directory') || '/../{secret}')",
    "FROM read_text(getvariable('x'))",
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
    with pytest.raises(QueryError, match="no table trials_of_mine"):
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
        (
            "SELECT test_acuracy FROM trials",
            "no column test_acuracy: did you mean test_accuracy or train_accuracy?\nLINE 1: SELECT test_acuracy FROM",
        ),
        ("SELECT x FROM trials", "no column x\nLINE 1: SELECT x FROM trials\n               ^"),
        (
            "SELECT * FROM trails",
            "did you mean trials? (tables: trials, curves, eigenvalues, density, profiles, plan, provenance)\nLINE 1: ",
        ),
        ("SELECT medain(lr) FROM trials", "no function medain: did you mean median?\nLINE 1: "),
        ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"\nLINE 1: SELEC 1\n        ^^^^^'),
        ("SELECT 1 +\nFROM trials WHERE", 'Parser Error: syntax error at or near "FROM"\nLINE 2: FROM trials'),
        ("SELECT error('too bad')", "Invalid Input Error: too bad"),
        ("SELECT $lr", "no value was given for $lr"),
        ("SELECT 1; SELECT 2", "one statement is expected, 2 were given"),
        ("DROP VIEW trials", "DROP is not allowed: queries only read"),
        ("FROM '/etc/passwd.csv'", "Queries see the tables trials, curves, eigenvalues, density, profiles, plan"),
    ],
)
def test_a_refusal_says_what_to_do(store, query, says):
    with pytest.raises(QueryError) as refusal:
        sql(store, query)
    assert says in str(refusal.value)
    with pytest.raises(QueryError) as refusal, stream(store, query) as rows:
        list(rows.batches)
    assert says in str(refusal.value)


def test_parameters_have_values(store):
    assert sql(store, "SELECT $a + 1 AS b, $t AS t", {"a": 1, "t": "'; DROP"}).to_pylist() == [{"b": 2, "t": "'; DROP"}]
    with pytest.raises(QueryError, match=r"the query has no parameter \$b"):
        sql(store, "SELECT $a", {"a": 1, "b": 2})


ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE hash(a.range + b.range) = 3"


def test_a_query_is_given_up_after_its_time(store):
    with pytest.raises(QueryError, match=r"given up after 0\.2 seconds"):
        sql(store, ENDLESS, timeout=0.2)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interruption_reaches_a_running_query(store, streamed):
    root = str(store.storage.root)
    ask = f"stream({root!r}, {ENDLESS!r}).__enter__()" if streamed else f"sql({root!r}, {ENDLESS!r})"
    code = (
        "import signal, threading, os; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from analysis.sql import sql, stream\n"
        "threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"try: {ask}\nexcept KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_an_answer_of_any_size_needs_the_memory_of_a_few_batches(store):
    """Two million rows of 120 bytes and more: all at once, they take 240 MB."""
    resource = pytest.importorskip("resource")
    sql(store, "SELECT 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n = 0
    with stream(store, "SELECT range, repeat('x', 100) || range AS text FROM range(2000000)") as rows:
        for batch in rows.batches:
            assert len(batch) <= 60_000
            n += len(batch)
    assert n == 2_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000 * (1 if sys.platform == "linux" else 1024)


def test_an_error_may_come_late(store):
    query = "SELECT CASE WHEN range > 500000 THEN error('late') END FROM range(1000000)"
    with pytest.raises(QueryError, match="Invalid Input Error: late"), stream(store, query) as rows:
        list(rows.batches)


def test_what_the_reader_of_a_stream_raises_is_left_alone(store):
    with pytest.raises(BrokenPipeError), stream(store, "FROM trials"):
        raise BrokenPipeError


@pytest.mark.parametrize("times", [1, 2])
def test_a_query_that_meets_a_file_that_is_gone_is_asked_again_once(build, monkeypatch, times):
    build.commit("p", build.measured("t"))
    file = build.sweep().storage.root / "trials" / "p.parquet"
    data = file.read_bytes()
    opened = []

    def opening(*arguments):
        file.write_bytes(data)
        connection = connect(*arguments)
        if len(opened) < times:
            file.unlink()
        opened.append(1)
        return connection

    monkeypatch.setattr(analysis.sql, "connect", opening)

    def streamed():
        with stream(build.store, "FROM trials") as rows:
            return sum(map(len, rows.batches))

    for ask in (lambda: sql(build.store, "FROM trials").num_rows, streamed):
        opened.clear()
        if times == 1:
            assert ask() == 1
        else:
            with pytest.raises(StoreError, match="the store changed while the query read it: ask again"):
                ask()
        assert len(opened) == 2


def test_macros(build):
    lines = [(8, 0.008), (16, 0.016)]
    values = {(8, 0): 2.0, (8, 1): 4.0, (16, 0): 5.0, (16, 1): 9.0}
    rows = [
        build.measured(f"{b}-{seed}", batch_size=b, lr=lr, seed=seed, lambda_max=values[b, seed])
        for b, lr in lines
        for seed in (0, 1)
    ]
    rows.append(build.measured("alone", batch_size=16, lr=0.016, seed=2, lambda_max=100.0))
    rows.append(build.measured("gone", batch_size=8, lr=0.008, seed=3, lambda_max=float("nan"), status="diverged"))
    build.commit("p", *rows)
    cells = sql(build.store, "FROM cell_means(lambda_max) ORDER BY batch_size").to_pylist()
    assert [(c["n_trials"], c["n_diverged"], c["n"], c["mean"]) for c in cells] == [(3, 1, 2, 3.0), (3, 0, 3, 38.0)]
    assert cells[0]["standard_error"] == pytest.approx(1.0)  # sd of 2 and 4 is sqrt(2)
    assert cells[0]["line"] == cells[1]["line"]
    contrasts = sql(build.store, "FROM line_contrasts(ln(lambda_max)) ORDER BY seed").to_pylist()
    assert [(c["seed"], c["batch_size"], c["reference_batch_size"]) for c in contrasts] == [
        (s, 16, 8) for s in range(3)
    ]
    assert [c["difference"] for c in contrasts] == [pytest.approx(math.log(2.5)), pytest.approx(math.log(2.25)), None]
    assert sql(build.store, "SELECT standard_error(x) FROM (VALUES (1)) t(x)").to_pylist()[0].popitem()[1] is None
    ratios = sql(
        build.store, "SELECT iso_ratio(.35, 5) = iso_ratio(.14, 2) AS same, .35::DOUBLE / 5 = .14::DOUBLE / 2 AS not_so"
    )
    assert ratios.to_pylist() == [{"same": True, "not_so": False}]


@given(n=st.integers(1, 400), share=st.floats(0, 1))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_the_interval_of_a_share_is_wilsons(n, share):
    k = round(n * share)
    with duckdb.connect() as connection:
        connection.execute(MACROS.split("CREATE MACRO cell_means")[0])
        found = connection.execute("SELECT wilson($k, $n)", {"k": k, "n": n}).fetchone()[0]
    low, high = proportion_confint(k, n, method="wilson")
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


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
