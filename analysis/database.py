"""DuckDB views over the store: the same tables for every question, in Python, SQL and exports.

Rows stay in their Parquet files until a query asks for them. Each stored table is a PyArrow data set over the files
that exist when the store is opened (``stored_trials``, ``stored_curves``, ...), and the views are plain SQL over those,
so that a connection needs no file access of its own and :func:`analysis.sql.sql` can take it away.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from trainables.lease import has_ended, heartbeat, is_silent, latest
from trainables.schema import DERIVED, RESERVED, SIDE_TABLES, STATISTICS, TABLES
from trainables.storage import DamagedStoreError, is_damage
from trainables.store import Listing, Store, SweepStore, damaged
from trainables.trial import FIELDS

_FIRST = [
    *["arch", "dataset", "lr", "batch_size", "ratio", "label_noise", "input_noise", "gradient_noise"],
    *["seed", "optimizer", "momentum", "weight_decay", "epochs"],
]
CONFIGURATION = [*_FIRST, *(field for field in FIELDS if field not in _FIRST)]
"""Configuration columns of `trials` and `plan`."""

_GAPS = {"test_accuracy": ["loss_gap", "accuracy_gap"]}
MEASURED = [
    column for name, error in STATISTICS.items() for column in (name, error, *_GAPS.get(name, [])) if column is not None
]
"""Measured columns of every `trials`, each followed by its error, where it has one."""

_LATER = [
    *["lambda_min_residual", "gradient_covariance_trace_se", "noise_scale_se"],
    *["measure_id", "slot", "engine", "reached", "together", "physical_batch_size"],
]
"""Columns that every `trials` has after those of the contract."""

COLUMNS = {
    "trials": [
        *["sweep", "trial_id", *CONFIGURATION, "status", "error", "steps", "epochs_done"],
        *[column for column in MEASURED if column not in _LATER],
        *["stability", "pack_id", "attempt", "seconds", "device", "provenance_id", *_LATER],
    ],
    "curves": ["sweep", "trial_id", "step", "epoch", "statistic", "value", "error"],
    "eigenvalues": ["sweep", "trial_id", "step", "epoch", "index", "eigenvalue", "residual", "products"],
    "density": ["sweep", "trial_id", "step", "epoch", "probe", "node", "weight"],
    "profiles": ["sweep", "trial_id", "step", "epoch", "profile", "x", "value", "error"],
    "plan": [
        *["sweep", "trial_id", "pack_id", "slot", *CONFIGURATION, "status"],
        *["measure_id", "round", "engine", "physical_batch_size", "cost"],
    ],
    "provenance": TABLES["provenance"].names,
}
"""Views and their columns, in order; `trials` has further ones: see :func:`further_columns`."""

# A trial's rows: commits (no `round`) before failures, what the plan measures before what an older one did, then the
# latest failure. One row stays, always the same.
_TRIALS = """
WITH attempts AS (
    FROM stored_trials
    UNION ALL BY NAME
    SELECT *, 'failed' AS status FROM stored_failures
)
SELECT {columns}
FROM attempts
LEFT JOIN (SELECT DISTINCT sweep, measure_id, true AS planned FROM stored_plan) USING (sweep, measure_id)
QUALIFY 1 = row_number() OVER (
    PARTITION BY sweep, trial_id
    ORDER BY round IS NOT NULL, planned IS NULL, round DESC, pack_id, attempt
)"""

_SIDE = """
SELECT {columns}
FROM stored_{table} SEMI JOIN (FROM trials WHERE status <> 'failed') USING (sweep, trial_id, pack_id, attempt)"""

_PLAN = """
WITH done AS (
    SELECT sweep, trial_id, measure_id, arg_min(status, pack_id) AS committed FROM stored_trials GROUP BY ALL
), failures AS (
    SELECT DISTINCT sweep, trial_id, pack_id, 'failed' AS failed FROM stored_failures
), planned AS (
    SELECT *, coalesce(committed, failed, running, 'pending') AS status
    FROM stored_plan
    LEFT JOIN done USING (sweep, trial_id, measure_id)
    LEFT JOIN failures USING (sweep, trial_id, pack_id)
    LEFT JOIN running_packs USING (sweep, pack_id)
)
SELECT {columns} FROM planned"""

_PROVENANCE = "SELECT DISTINCT ON (provenance_id) {columns} FROM stored_provenance"

_VIEWS = {
    "trials": _TRIALS,
    **dict.fromkeys(SIDE_TABLES, _SIDE),
    "plan": _PLAN,
    "provenance": _PROVENANCE,
}


@dataclass(frozen=True)
class Launch:
    """The last launch of a sweep: what its heartbeat says, and whether it may still live."""

    alive: bool
    number: int = 0
    state: str | None = None  # running, stopped, complete or interrupted, as last written
    running_packs: tuple[str, ...] = ()
    trials_per_second: float | None = None
    eta_seconds: float | None = None

    @classmethod
    def of(cls, sweep: SweepStore, *, watch: bool = False) -> Launch:
        """Reads the heartbeat.

        Args:
            sweep: whose.
            watch: wait for the next beat, some seconds, to be sure that a launch on another machine lives.
        """
        holder = latest(sweep.storage)
        if holder is None:
            return cls(alive=False)
        beat = heartbeat(sweep.storage, holder.number)
        dead = has_ended(beat) or holder.is_gone() or holder.command != "launch"
        if dead or (watch and is_silent(sweep.storage, holder.number, beat, 2.5 * beat.get("every", 1.0))):
            return cls(False, holder.number, beat.get("state"))
        packs = tuple(beat.get("running_packs", ()))
        return cls(True, holder.number, "running", packs, beat.get("trials_per_second"), beat.get("eta_seconds"))


def connect(store: str | Path | Store, sweep: str | None = None) -> duckdb.DuckDBPyConnection:
    """Opens the store as the views `trials`, `curves`, `eigenvalues`, `density`, `profiles`, `plan`, `provenance`.

    The connection is in memory and shows the files of this moment; connect again to see later ones. A query on it that
    meets a damaged file raises ``duckdb.Error``; :func:`analysis.sql.sql` also says which file and how to go on.

    Example:
        >>> connect("results").sql("SELECT ratio, avg(test_accuracy) FROM trials GROUP BY ratio").df()  # doctest: +SKIP

    Args:
        store: its directory; a missing one is an empty store.
        sweep: open the files of this sweep only.

    Raises:
        StoreError: for a damaged file in `trials`, or a sweep that does not exist.
    """
    sweeps = select_sweeps(store, sweep)
    listings = [each.listing() for each in sweeps]
    return open_views(listings, {each.name: Launch.of(each) for each in sweeps}, further_columns(listings))


def as_store(store: str | Path | Store) -> Store:
    """The store, or the one in that directory."""
    return store if isinstance(store, Store) else Store(store)


def select_sweeps(store: str | Path | Store, sweep: str | None = None) -> list[SweepStore]:
    """The sweep of that name, or all sweeps of the store."""
    store = as_store(store)
    return [store.existing(sweep)] if sweep is not None else [store.sweep(name) for name in store.sweeps()]


def open_views(
    listings: Sequence[Listing], launches: Mapping[str, Launch], further: list[str]
) -> duckdb.DuckDBPyConnection:
    """The views of :func:`connect` over these files; last launches and further columns of `trials` are known."""
    spill = Path(tempfile.gettempdir()) / f"isoratio-{secrets.token_hex(8)}"  # DuckDB makes and removes it when needed
    extensions = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(config={**extensions, "temp_directory": str(spill)})
    for table, schema in TABLES.items():
        if table == "trials":
            schema = pa.schema([*schema, *(pa.field(name, pa.float64()) for name in further)])
        parts = [listing.dataset(table, schema) for listing in listings if listing.tables[table]]
        rows = ds.dataset(parts) if len(parts) > 1 else parts[0] if parts else schema.empty_table()
        connection.register(f"stored_{table}", rows)
    connection.register("running_packs", _running_packs(launches))
    for view, query in _VIEWS.items():
        names = COLUMNS[view] + (further if view == "trials" else [])
        columns = ", ".join(_column(view, name) for name in names)
        connection.execute(f"CREATE VIEW {view} AS {query.format(columns=columns, table=view)}")
    return connection


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def fetch(connection: duckdb.DuckDBPyConnection, query: str, sweeps: Iterable[SweepStore]) -> pa.Table:
    """The rows of one query over :func:`open_views`.

    Raises:
        StoreError: naming the damaged file that the query met.
        duckdb.Error: for all else.
    """
    with naming_damage(sweeps):
        return connection.sql(query).to_arrow_table()


@contextmanager
def naming_damage(sweeps: Iterable[SweepStore]) -> Iterator[None]:
    """Turns a failure to read a stored file into a DamagedStoreError that names the file and says how to go on."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, duckdb.Error) and "reading the stream" not in str(error):
            raise
        where = _first_unreadable(sweeps)
        if where is None:
            raise
        raise damaged(where, str(error).rpartition("failed: ")[2]) from error


def _first_unreadable(sweeps: Iterable[SweepStore]) -> str | None:
    for sweep in sweeps:
        for name in (name for names in sweep.listing().tables.values() for name in names):
            try:
                sweep.read_table(name)
            except (DamagedStoreError, FileNotFoundError):
                return sweep.storage.where(name)
            except OSError as error:
                if not is_damage(error):
                    raise
                return sweep.storage.where(name)
    return None


def further_columns(listings: Sequence[Listing]) -> list[str]:
    """Metrics of plug-ins, and statistics that not every sweep measures: what only some footers in `trials` have."""
    names: set[str] = set()
    with naming_damage([listing.sweep for listing in listings]):
        for listing in listings:
            if files := listing.tables["trials"]:
                filesystem = listing.sweep.storage.filesystem()
                factory = ds.FileSystemDatasetFactory(filesystem, files, ds.ParquetFileFormat())
                names |= set(factory.inspect(promote_options="permissive", fragments=None).names)
    distinct = {name.lower(): name for name in sorted(names)}  # as SQL sees them
    return [name for lower, name in distinct.items() if lower not in RESERVED]


def _column(view: str, name: str) -> str:
    stored = name in TABLES[view].names or name not in DERIVED
    return quoted(name) if stored else f"{DERIVED[name]} AS {name}"


def _running_packs(launches: Mapping[str, Launch]) -> pa.Table:
    rows = [(name, pack) for name, launch in launches.items() for pack in launch.running_packs]
    return pa.table(
        {
            "sweep": pa.array([name for name, _ in rows], pa.string()),
            "pack_id": pa.array([pack for _, pack in rows], pa.string()),
            "running": pa.array(["running"] * len(rows), pa.string()),
        }
    )


def query_files(
    connection: duckdb.DuckDBPyConnection, listing: Listing, table: str, columns: list[str], query: str
) -> pa.Table:
    """A query over ``rows``, some columns of a stored table, read in half the time that the views take.

    Raises:
        DamagedStoreError: a file cannot be read.
    """

    def ask(rows: duckdb.DuckDBPyRelation) -> pa.Table:
        rows.select(*columns).create_view("rows", replace=True)
        return connection.sql(query).to_arrow_table()

    if paths := listing.local_paths(table):
        with suppress(duckdb.Error):  # one is damaged or has not all columns, which is found out and mended below
            return ask(connection.read_parquet(paths, hive_partitioning=False))  # in half the time
    return ask(connection.from_arrow(listing.read(table, columns)))
