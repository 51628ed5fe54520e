"""Which trials are trained together."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from orchestrator.cost import Costs, per_distinct
from orchestrator.engine import engine_of, settle
from orchestrator.sweepfile import SweepFile
from trainables.trial import FIELDS, WITHIN_PACK

SHARED = tuple(f for f in FIELDS if f not in WITHIN_PACK)
"""Fields that are the same for all trials of a pack."""

_KIND = ("round", "origin", *SHARED, "momentum > 0", "weight_decay > 0")
_ORDER = ("seed", "lr", *(f for f in WITHIN_PACK if f not in {"seed", "lr"}))

_KINDS = f"""
    CREATE TABLE kinds AS
    SELECT row_number() OVER () AS kind, *
    FROM (
        SELECT DISTINCT {", ".join(f"{k} AS k{i}" for i, k in enumerate(_KIND))} FROM members JOIN grid USING (row))"""

# Trial i of the n of its kind goes to part i * parts // n, whose first trial is number ceil(part * n / parts).
_PARTS = f"""
    CREATE TABLE parts AS
    WITH numbered AS (
        SELECT row, round, kind, count(*) OVER (PARTITION BY kind) AS n, ceil(n / $max_trials)::BIGINT AS parts,
            row_number() OVER (PARTITION BY kind ORDER BY {", ".join(_ORDER)}) - 1 AS i
        FROM members JOIN grid USING (row)
            JOIN kinds ON {" AND ".join(f"{k} IS NOT DISTINCT FROM k{i}" for i, k in enumerate(_KIND))})
    SELECT row, round, kind, i * parts // n AS part, i - (part * n + parts - 1) // parts AS slot FROM numbered"""

_PACKS = f"""
    CREATE TABLE packs AS
    WITH identified AS (
        SELECT kind, part, any_value(round) AS round, count(*) AS trials,
            sha256(concat_ws(',', list_sort(list(trial_id)), $measure_id, any_value(round)))[:16] AS pack_id
        FROM parts JOIN grid USING (row) GROUP BY kind, part)
    SELECT pack_id, round, trials, kind, part, {", ".join(f"k{_KIND.index(f)} AS {f}" for f in SHARED)}
    FROM identified JOIN kinds USING (kind)"""


def form_packs(connection: duckdb.DuckDBPyConnection, sweep: SweepFile, *, settle_engines: bool) -> None:
    """Puts the trials in the table ``members`` (row, round, origin) into packs; ``grid`` holds their settings.

    Trials go together when they share all of :data:`SHARED`, whether there is momentum, whether there is weight decay,
    and the round and origin of ``members``. Larger groups are cut evenly, ordered by seed and learning rate.

    It makes the tables ``formed``, of packs: pack_id, round, trials, the shared settings, engine and cost; and
    ``placed``, of trials: row, slot, pack_id.

    Args:
        connection: holds the tables.
        sweep: for the size of packs, the engine, and what is measured.
        settle_engines: try out plug-ins whose engine no rule tells, with torch; else it stays ``auto``.
    """
    connection.execute(_KINDS)
    connection.execute(_PARTS, {"max_trials": sweep.pack.max_trials})
    connection.execute(_PACKS, {"measure_id": sweep.measure.measure_id})
    connection.execute("CREATE TABLE placed AS SELECT row, slot, pack_id FROM parts JOIN packs USING (kind, part)")
    packs = connection.sql("SELECT * EXCLUDE (kind, part) FROM packs").to_arrow_table()

    def engine(arch: str, dataset: str, loss: str, precision: str, call: str | None) -> str:
        chosen = engine_of(arch, loss, call, sweep.pack.engine)
        return settle(arch, dataset, loss, precision) if chosen == "auto" and settle_engines else chosen

    engines = per_distinct(packs, ["arch", "dataset", "loss", "precision", "call"], engine)
    packs = packs.append_column("engine", pa.array(engines.tolist(), pa.string()))
    connection.register("formed", packs.append_column("cost", pa.array(Costs.of(packs, sweep.measure).total)))
