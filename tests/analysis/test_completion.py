"""What is offered at the prompt, and when a query is complete."""

from __future__ import annotations

import pytest

from analysis.completion import Vocabulary, is_complete


@pytest.mark.parametrize(
    ("query", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1;\n\n", True),
        ("SELECT 1; -- done", True),
        ("SELECT 'µ';", True),
        ("SELECT 1", False),
        ("", False),
        ("SELECT ';", False),
        ("SELECT 'a;\n", False),
        ("SELECT 1 -- ;", False),
        ("SELECT 1 /* ; */", False),
        (";", True),
    ],
)
def test_a_query_is_complete_with_its_semicolon(query, complete):
    assert is_complete(query) == complete


def test_tables_columns_macros_and_keywords_are_offered(build):
    build.commit("p", build.measured("t", my_metric=1.0))
    words = Vocabulary.of(build.store)
    assert words.completions("SELECT ", "test_acc") == ["test_accuracy"]
    assert words.completions("SELECT ", "my_") == ["my_metric"]
    assert words.completions("FROM ", "") == [*words.sources]
    assert words.completions("select * from ", "cu") == ["curves"]
    assert words.completions("SELECT 1 FROM trials JOIN ", "cell") == ["cell_means"]
    assert "standard_error" in words.completions("SELECT ", "st")
    assert words.completions("SELECT 1 ", "HAV") == ["HAVING"]
    assert words.completions("select 1 ", "hav") == ["having"]
    assert words.completions("SELECT ", "nothing_like_it") == []
    assert not any(word.startswith("stored_") for word in [*words.sources, *words.others])
