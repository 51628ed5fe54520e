from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trainables.lease import FOLDER, Holder
from trainables.schema import FAILURES, PLAN, PROVENANCE, TABLES, TRIALS
from trainables.store import Store, SweepStore, parquet_bytes, side_name, table

Row = dict[str, Any]


@dataclass(frozen=True)
class StoreBuilder:
    """Fills a store through the same calls as a launch, with made-up trials."""

    store: Store

    def sweep(self, name: str = "digits") -> SweepStore:
        return self.store.sweep(name)

    def trial(self, key: str, sweep: str = "digits", **values: Any) -> Row:
        """Trial ``key``; identities other than its name follow from it."""
        return {
            "sweep": sweep,
            "trial_id": key,
            "measure_id": "m",
            "arch": "mlp",
            "dataset": "digits",
            "lr": 0.016,
            "batch_size": 32,
            "label_noise": 0.0,
            "seed": 0,
            "epochs": 20.0,
            "momentum": 0.0,
            **values,
        }

    def measured(self, key: str, sweep: str = "digits", **values: Any) -> Row:
        row = self.trial(key, sweep, status="finished", steps=900, train_loss=0.5, test_loss=0.75)
        return row | {"train_accuracy": 1.0, "test_accuracy": 0.875, "lambda_max": 12.5} | values

    def plan(self, *rows: Row, sweep: str = "digits") -> None:
        """Plans rows; each names its ``pack_id``."""
        fields = ("slot", "round", "engine", "cost")
        planned = [dict.fromkeys(fields, 0) | {"engine": "fused", "cost": 1.0} | row for row in rows]
        there = self.sweep(sweep)
        there.write_plan(table(planned, PLAN), 1, 1 + len(there.storage.names("plan")))

    def commit(self, pack: str, *rows: Row, attempt: str = "a", sweep: str = "digits") -> bool:
        """Commits a pack with two curve points and a row of every other side table per trial."""
        keys = {"pack_id": pack, "attempt": attempt}
        full = [row | keys | {"slot": slot, "engine": "fused"} for slot, row in enumerate(rows)]
        return self.sweep(sweep).commit(pack, attempt, table(full, TRIALS), self._side(rows, keys))

    def fail(self, pack: str, *rows: Row, attempt: str = "a", tried: int = 0, error: str = "Traceback: no") -> None:
        keys = {"pack_id": pack, "attempt": attempt, "round": tried, "cause": "exception", "error": error}
        sweep = rows[0]["sweep"]
        self.sweep(sweep).write_failures(pack, attempt, table([row | keys for row in rows], FAILURES))

    def orphan(self, pack: str, *rows: Row, attempt: str, sweep: str = "digits") -> None:
        """Side files of an attempt that was never accepted."""
        for name, side in self._side(rows, {"pack_id": pack, "attempt": attempt}).items():
            self.sweep(sweep).storage.create(side_name(name, pack, attempt), parquet_bytes(side))

    def provenance(self, key: str, sweep: str = "digits") -> None:
        self.sweep(sweep).write_provenance(key, table([{"provenance_id": key, "torch": "2.13.0"}], PROVENANCE))

    def hold(self, where: str = "here", sweep: str = "digits", command: str = "launch", **beat: Any) -> None:
        """What a launch leaves behind: its lease, and a heartbeat that nothing keeps going."""
        storage = self.sweep(sweep).storage
        number = 1 + len(storage.names(FOLDER))
        me = Holder.of_this_process(number, command)
        changes = {"here": {}, "gone": {"started": -1}, "elsewhere": {"machine": "another", "host": "elsewhere"}}
        storage.create(f"{FOLDER}/{number:06d}.json", json.dumps(asdict(replace(me, **changes[where]))).encode())
        told = {"every": 0.01, "state": "running", "running_packs": []} | beat
        storage.replace(f"log/{number:06d}.json", json.dumps(told).encode())

    @staticmethod
    def _side(rows: tuple[Row, ...], keys: Row) -> dict[str, pa.Table]:
        at = [
            {"sweep": row["sweep"], "trial_id": row["trial_id"], "step": step, "epoch": float(step)} | keys
            for row in rows
            for step in (0, 9)
        ]
        curves = [point | {"statistic": "test_loss", "value": 2.0 / (1 + point["step"])} for point in at]
        top = [point | {"index": 0, "eigenvalue": 12.5, "residual": 0.01} for point in at if point["step"]]
        nodes = [point | {"probe": 0, "node": 12.5, "weight": 1.0} for point in at if point["step"]]
        profiles = [point | {"profile": "loss_along_e1", "x": 1.0, "value": 0.5} for point in at if point["step"]]
        side = {"curves": curves, "eigenvalues": top, "density": nodes, "profiles": profiles}
        return {name: table(rows, TABLES[name]) for name, rows in side.items()}


@pytest.fixture(scope="session")
def builder() -> Callable[[Path], StoreBuilder]:
    return lambda root: StoreBuilder(Store(root))


@pytest.fixture
def build(tmp_path: Path) -> StoreBuilder:
    return StoreBuilder(Store(tmp_path / "results"))


@pytest.fixture
def damage() -> Callable[[Path], None]:
    """Overwrites the data pages of a Parquet file and leaves its footer."""

    def overwrite(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[4:400] = b"\xff" * 396
        path.write_bytes(bytes(data))

    return overwrite
