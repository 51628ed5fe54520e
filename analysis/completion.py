"""What may follow in a query that is being typed, and whether it is complete."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from analysis.database import COLUMNS
from analysis.sql import sql
from trainables.store import Store

_WORDS = """
SELECT 'column' AS kind, column_name AS word FROM duckdb_columns() WHERE NOT internal AND table_name IN $tables
UNION SELECT 'keyword', upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category = 'reserved'
UNION SELECT CASE WHEN function_type = 'table_macro' THEN 'source' ELSE 'function' END, function_name
FROM duckdb_functions()
WHERE function_type IN ('scalar', 'aggregate', 'macro') AND regexp_full_match(function_name, '[a-z][a-z0-9_]*')
    OR NOT internal"""

_AFTER_SOURCE = re.compile(r"\b(?:from|join|describe|summarize)\s+$", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """Words that a query over the store may contain."""

    sources: list[str]  # tables and macros that stand for one
    others: list[str]  # columns, functions, keywords

    @classmethod
    def of(cls, store: str | Path | Store) -> Vocabulary:
        """Reads the columns of the store, plug-ins' metrics included."""
        rows = sql(store, _WORDS, {"tables": list(COLUMNS)}).to_pylist()
        macros = sorted(row["word"] for row in rows if row["kind"] == "source")
        return cls([*COLUMNS, *macros], sorted({row["word"] for row in rows if row["kind"] != "source"}))

    def completions(self, before: str, word: str) -> list[str]:
        """What ``word`` may become after the text ``before``: tables after FROM, all else elsewhere.

        Keywords come in the case in which the word was begun.
        """
        words = self.sources if _AFTER_SOURCE.search(before) else [*self.others, *self.sources]
        found = [w for w in words if w.lower().startswith(word.lower())]
        return [w.lower() if w.isupper() and word.islower() else w for w in found]


def is_complete(query: str) -> bool:
    """Whether a query ends with a semicolon that stands neither in a text nor in a comment."""
    text = query.encode()
    tokens = [at for at, kind in duckdb.tokenize(query) if kind != duckdb.token_type.comment]
    return bool(tokens) and text[tokens[-1] :].lstrip().startswith(b";")
