"""The store in Python and notebooks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import analysis
from analysis.opening import Answer, OpenStore
from analysis.sql import QueryError

EVIL = "<script>alert('x')</script>\x1b[2J"


@pytest.fixture
def opened(build):
    rows = [
        build.measured(f"{b}-{seed}", batch_size=b, lr=b / 1000, seed=seed, lambda_max=10.0 + seed)
        for b in (8, 16)
        for seed in range(4)
    ]
    build.commit("p", *rows)
    return analysis.open(build.store)


def test_what_was_asked_comes_in_many_forms(opened):
    answer = opened.sql("SELECT batch_size, count(*) AS n FROM trials WHERE seed < $s GROUP BY ALL ORDER BY ALL", s=3)
    assert answer.columns == ["batch_size", "n"]
    assert answer.fetchall() == [(8, 3), (16, 3)]
    assert list(answer) == [{"batch_size": 8, "n": 3}, {"batch_size": 16, "n": 3}]
    assert len(answer) == 2
    assert answer.arrow().to_pylist() == list(answer)
    assert answer.pandas().to_dict("records") == list(answer)
    assert duckdb.sql("SELECT sum(n) FROM answer").fetchall() == [(6,)]
    assert repr(answer).splitlines()[0].split() == ["batch_size", "n"]
    assert opened.sql("SELECT 1 WHERE false").fetchall() == []


def test_polars_where_it_is_installed(opened):
    polars = pytest.importorskip("polars")
    assert isinstance(opened.trials().polars(), polars.DataFrame)


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_package_that_is_missing_is_named(opened, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{package} is not installed: `pip install {package}`, or use .arrow"):
        getattr(opened.trials(), package)()


def test_tables_named_queries_status_and_verdicts(opened):
    assert len(opened.trials()) == len(opened.trials("digits")) == 8
    assert len(opened.trials("nothing")) == 0
    assert [row["step"] for row in opened.curves("digits", "test_loss")][:2] == [0, 9]
    assert len(opened.curves(statistic="nothing")) == 0
    assert [row["relative"] for row in opened.named("collapse", "digits", "lambda_max")] == [1.0, 1.0]
    assert opened.status().fetchall()[0][:2] == ("digits", "complete")
    (verdict,) = opened.invariance("digits", ["lambda_max"])
    assert verdict.n_seeds == 4


def test_each_call_sees_the_rows_of_its_moment(build):
    with analysis.open(build.store.storage.root) as opened:
        assert len(opened.trials()) == 0
        build.commit("p", build.measured("t"))
        assert len(opened.trials()) == 1
        kept = opened.trials()
        build.commit("q", build.measured("u"))
        assert (len(opened.trials()), len(kept)) == (2, 1)


def test_queries_stay_in_the_sandbox(opened):
    with pytest.raises(QueryError, match="no files"):
        opened.sql("FROM read_text('/etc/passwd')")


def test_a_representation_is_short_and_drives_nothing(opened):
    answer = opened.sql('SELECT $evil AS "<b>", range AS n, 0.1 + range AS x FROM range(1000)', evil=EVIL)
    assert len(repr(answer).splitlines()) < 50
    assert repr(answer).endswith("... and 960 more of 1,000 rows")
    assert "\x1b" not in repr(answer)
    html = answer._repr_html_()
    assert html.count("<tr>") == 41
    assert "<th>&lt;b&gt;</th>" in html
    assert "<td>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\\x1b[2J</td><td>0</td><td>0.1</td>" in html
    assert "... and 960 more of 1,000 rows" in html
    assert "2 rows" in opened.sql("FROM range(2)")._repr_html_()
    assert "no rows" in repr(opened.sql("SELECT 1 AS a WHERE false"))


def test_nan_and_null_stay_apart(opened):
    (row,) = opened.sql("SELECT 'nan'::DOUBLE AS a, NULL::DOUBLE AS b")
    assert math.isnan(row["a"])
    assert row["b"] is None


def test_the_package_imports_nothing_before_it_is_needed():
    code = "import analysis, sys; print({'duckdb', 'pyarrow', 'torch'} & {*sys.modules}); print(analysis.open)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert done.stdout.startswith("set()\n<function open")
    with pytest.raises(AttributeError, match="has no attribute 'opn'; it has open"):
        _ = analysis.opn


def test_what_is_opened_has_a_type(build):
    assert isinstance(analysis.open(build.store), OpenStore)
    assert isinstance(analysis.open(build.store).trials(), Answer)
