"""What is wrong with committed rows in files that are what was written: among themselves, and against the plan."""

from __future__ import annotations

from collections.abc import Collection

import duckdb

from analysis.database import quoted
from trainables.schema import PLAN, TRIALS
from trainables.storage import StoreError
from trainables.store import SweepStore, dataset
from trainables.trial import FIELDS

AT_ONCE = 2500
"""Files of one query, each of which keeps some 100 kB of memory until it ends."""

# A trial may have left its pack, as one that failed does, and be committed all the same: it only has to be planned.
_JOINED = f"""
    INSERT INTO joined
    SELECT stored.pack_id, stored.slot, trial_id, stored.sweep,
        plan.trial_id IS NULL AND stored.pack_id IN (SELECT pack_id FROM plan) AS unplanned,
        coalesce({" OR ".join(f"stored.{quoted(f)} <> plan.{quoted(f)}" for f in FIELDS)}, false) AS differs
    FROM stored LEFT JOIN plan USING (trial_id)"""

_TABLE = """
    CREATE TABLE joined (pack_id TEXT, slot BIGINT, trial_id TEXT, sweep TEXT, unplanned BOOLEAN, differs BOOLEAN)"""

_STRANGE = """
    SELECT pack_id, 'holds trials that are not planned, such as ' || min(trial_id) AS problem
    FROM joined WHERE unplanned GROUP BY pack_id
    UNION ALL
    SELECT pack_id, 'holds trials with another configuration than planned, such as ' || min(trial_id)
    FROM joined WHERE differs GROUP BY pack_id
    UNION ALL
    SELECT pack_id, 'holds rows of sweep ' || min(sweep) FROM joined WHERE sweep <> $sweep GROUP BY pack_id
    UNION ALL
    SELECT pack_id, 'holds more than one row of slot ' || slot
    FROM joined WHERE slot IS NOT NULL GROUP BY pack_id, slot HAVING count(*) > 1
    UNION ALL
    SELECT pack_id, 'holds more than one row of trial ' || trial_id
    FROM joined GROUP BY pack_id, trial_id HAVING count(*) > 1"""


def strange_packs(sweep: SweepStore, files: list[str], plan: str | None, packs: Collection[str]) -> dict[str, str]:
    """Packs whose rows are not as they should be, and why.

    Args:
        sweep: whose.
        files: those that hold rows of ``trials``.
        plan: the file that holds the plan; None for trials that were imported.
        packs: those that the files are to hold.

    Raises:
        StoreError: the sweep's directory has been given another name.
    """
    with duckdb.connect() as connection:
        connection.register("plan", dataset(sweep.storage, [plan] if plan else [], PLAN))
        connection.execute(_TABLE)
        for start in range(0, len(files), AT_ONCE):
            connection.register("stored", dataset(sweep.storage, files[start : start + AT_ONCE], TRIALS))
            connection.execute(_JOINED)
        source = "plan" if plan else "joined"
        names = [name for (name,) in connection.sql(f"SELECT DISTINCT sweep FROM {source}").fetchall()]
        if len(names) == 1 and names != [sweep.name]:
            raise StoreError(
                f"{sweep.storage.url}: rows of sweep {names[0]!r} lie in a directory of another name; rename it back"
            )
        found = dict(connection.execute(_STRANGE, {"sweep": sweep.name}).fetchall())
        there = {pack for (pack,) in connection.sql("SELECT DISTINCT pack_id FROM joined").fetchall()}
    return dict.fromkeys({*packs} - there, "holds no rows of its pack") | found
