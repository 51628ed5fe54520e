"""All trials of a sweep are trained on the same data: what a plug-in loads has to be what it loaded the first time.

Built-in data sets need no such look: published files are compared with their MD5, the others are made by this code.
"""

from __future__ import annotations

import json

from trainables.registry import is_plugin
from trainables.sealed import is_whole, seal, unsealed
from trainables.storage import Storage
from trainables.trial import content_id

FOLDER = "datasets"


class ChangedDataError(ValueError):
    """A data set is not what earlier trials of the sweep were trained on."""


def refuse_changed_data(storage: Storage, dataset: str, sha256: str) -> None:
    """Compares a data set with the one of this name that the sweep has seen first; to be called before training.

    Args:
        storage: the sweep's.
        dataset: as the sweep file names it.
        sha256: of its content.

    Raises:
        ChangedDataError: it differs.
    """
    if not is_plugin("dataset", dataset):
        return
    record = seal(json.dumps({"dataset": dataset, "sha256": sha256}).encode())
    try:
        storage.create(record_name(dataset), record)
    except FileExistsError:
        first = storage.read(record_name(dataset))
        if not is_whole(first):
            storage.replace(record_name(dataset), record)
            return
        before = json.loads(unsealed(first))["sha256"]
        raise ChangedDataError(
            f"data set {dataset!r} is not what earlier trials of this sweep were trained on: its SHA-256 is "
            f"{sha256[:16]}..., it was {before[:16]}...; restore the data, or give its function a parameter, such as "
            "version=2, so that trials on other data are other trials"
        ) from None


def same_data_as(origin: Storage, into: Storage) -> None:
    """Holds what another sweep was trained on to be what this one is trained on, whose trials are copied.

    Raises:
        ChangedDataError: this one has seen other data.
    """
    for name in origin.names(FOLDER):
        try:
            into.create(f"{FOLDER}/{name}", origin.read(f"{FOLDER}/{name}"))
        except FileExistsError:
            raise ChangedDataError(
                f"trials in {origin.url} would be reused, and were trained on other data than those of {into.url}: "
                "give the data set's function a parameter, such as version=2, or use another store"
            ) from None


def record_name(dataset: str) -> str:
    """Of the file that tells what a data set was."""
    return f"{FOLDER}/{content_id(dataset)[:16]}.json"
