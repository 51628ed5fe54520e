"""Which trials are trained together."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.cost import Costs, per_distinct
from orchestrator.engine import computation
from orchestrator.sweepfile import SweepFile
from trainables.trial import FIELDS, WITHIN_PACK

SHARED = tuple(f for f in FIELDS if f not in WITHIN_PACK)
"""Fields that are the same for all trials of a pack."""

_SWITCHES = ("momentum", "weight_decay", "input_noise", "gradient_noise")  # without them a step is cheaper
_KIND = ("round", "origin", *SHARED, *(f"{field} > 0" for field in _SWITCHES))
_ORDER = ("seed", "lr", *(f for f in WITHIN_PACK if f not in {"seed", "lr"}))

_KINDS = f"""
    CREATE TABLE kinds AS
    SELECT row_number() OVER () AS kind, *
    FROM (
        SELECT count(*) AS trials, {", ".join(f"{k} AS k{i}" for i, k in enumerate(_KIND))}
        FROM members JOIN grid USING (row) GROUP BY ALL)"""

_SETTINGS = f"SELECT kind, trials, {', '.join(f'k{_KIND.index(f)} AS {f}' for f in SHARED)} FROM kinds ORDER BY kind"

# Trial i of the n of its kind goes to part i * parts // n, whose first trial is number ceil(part * n / parts).
_PARTS = f"""
    CREATE TABLE parts AS
    WITH numbered AS (
        SELECT row, round, kind, count(*) OVER (PARTITION BY kind) AS n, ceil(n / max_trials)::BIGINT AS parts,
            row_number() OVER (PARTITION BY kind ORDER BY {", ".join(_ORDER)}) - 1 AS i
        FROM members JOIN grid USING (row)
            JOIN kinds ON {" AND ".join(f"{k} IS NOT DISTINCT FROM k{i}" for i, k in enumerate(_KIND))}
            JOIN computed USING (kind))
    SELECT row, round, kind, i * parts // n AS part, i - (part * n + parts - 1) // parts AS slot FROM numbered"""

_PACKS = f"""
    CREATE TABLE packs AS
    WITH identified AS (
        SELECT kind, part, any_value(round) AS round, count(*) AS trials,
            sha256(concat_ws(',', list_sort(list(trial_id)), $measure_id, any_value(round)))[:16] AS pack_id
        FROM parts JOIN grid USING (row) GROUP BY kind, part)
    SELECT pack_id, round, identified.trials, kind, part, {", ".join(f"k{_KIND.index(f)} AS {f}" for f in SHARED)},
        engine, physical_batch_size
    FROM identified JOIN kinds USING (kind) JOIN computed USING (kind)"""


def form_packs(connection: duckdb.DuckDBPyConnection, sweep: SweepFile, *, settle_engines: bool) -> None:
    """Puts the trials in the table ``members`` (row, round, origin) into packs; ``grid`` holds their settings.

    Trials go together when they share all of :data:`SHARED`, whether there is momentum, weight decay, noise on inputs
    and on gradients, and the round and origin of ``members``. Larger groups are cut evenly, ordered by seed and
    learning rate.

    It makes the tables ``formed``, of packs: pack_id, round, trials, the shared settings, engine, physical_batch_size
    and cost; and ``placed``, of trials: row, slot, pack_id.

    Args:
        connection: holds the tables.
        sweep: for the size of packs, the engine, and what is measured.
        settle_engines: try out plug-ins whose engine no rule tells, with torch; else it stays ``auto``.
    """
    connection.execute(_KINDS)
    connection.register("computed", _computed(connection.sql(_SETTINGS).to_arrow_table(), sweep, settle=settle_engines))
    connection.execute(_PARTS)
    connection.execute(_PACKS, {"measure_id": sweep.measure.measure_id})
    connection.execute("CREATE TABLE placed AS SELECT row, slot, pack_id FROM parts JOIN packs USING (kind, part)")
    packs = connection.sql("SELECT * EXCLUDE (kind, part) FROM packs").to_arrow_table()
    connection.register("formed", packs.append_column("cost", pa.array(Costs.of(packs, sweep.measure).total)))


def _computed(kinds: pa.Table, sweep: SweepFile, *, settle: bool) -> pa.Table:
    """How the packs of each kind are computed: kind, engine, physical_batch_size, max_trials."""
    looped = kinds.append_column("engine", pa.repeat("loop", kinds.num_rows))
    cost = Costs.of(looped, sweep.measure).total / kinds["trials"].to_numpy()
    names = [name for name in kinds.column_names if name not in {"kind", "trials"}]
    alone = pc.equal(kinds["trials"], 1)
    chosen = per_distinct(
        kinds.append_column("cost", pa.array(cost)).append_column("alone", alone),
        [*names, "cost", "alone"],
        lambda *values: computation(dict(zip([*names, "cost", "alone"], values, strict=True)), sweep, settle=settle),
    )
    columns = {name: [getattr(c, name) for c in chosen] for name in ("engine", "physical_batch_size", "max_trials")}
    return pa.table({"kind": kinds["kind"], **columns}, schema=_COMPUTED)


_COMPUTED = pa.schema(
    [
        pa.field("kind", pa.int64()),
        pa.field("engine", pa.string()),
        pa.field("physical_batch_size", pa.int64()),
        pa.field("max_trials", pa.int64()),
    ]
)
