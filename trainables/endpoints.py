"""What trials had learned at their end: one safetensors file per pack, which any program can read. Imports no torch.

A tensor is called ``<trial_id>/<name>``, as the module calls its parameter or buffer; PyTorch gives no two of them one
name, and a trial_id holds no slash. The file's metadata has one entry, ``isoratio``: JSON with the ``format``, and
under ``trials`` by trial_id the configuration (arch, dataset, precision, ...) and the names of the ``buffers``; what
else there is was trained. Read a trial from Python with::

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["isoratio"])["trials"][trial_id]
        state = {k.partition("/")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(trial_id)}
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from trainables.schema import FORMAT
from trainables.storage import Storage
from trainables.store import damaged
from trainables.trial import Trial, canonical_json

_KEY = "isoratio"  # one entry: several come out in any order, and equal endpoints should be equal files


@dataclass(frozen=True)
class Endpoint:
    """What one trial had learned.

    Attributes:
        trial: its configuration.
        tensors: parameters and buffers by name.
        buffers: the names of those that were not trained: BatchNorm's running statistics, frozen parameters.
    """

    trial: Trial
    tensors: Mapping[str, NDArray[Any]]
    buffers: tuple[str, ...] = ()


def as_file(endpoints: Mapping[str, Endpoint]) -> bytes:
    """A whole file in memory: the endpoints by trial_id."""
    tensors = {
        f"{trial_id}/{name}": np.asarray(array, order="C")  # safetensors takes the memory as it lies
        for trial_id, endpoint in endpoints.items()
        for name, array in endpoint.tensors.items()
    }
    trials = {i: e.trial.model_dump() | {"buffers": e.buffers} for i, e in endpoints.items()}
    return save(tensors, {_KEY: canonical_json({"format": FORMAT, "trials": trials})})


def read(storage: Storage, name: str, trial_ids: Collection[str]) -> dict[str, Endpoint]:
    """The endpoints of some trials by trial_id.

    Raises:
        DamagedStoreError: the file cannot be read, or one of them is not in it.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {trial_id: {} for trial_id in trial_ids}
    try:
        data = storage.read(name)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"][_KEY])["trials"]
        for key, tensor in load(data).items():
            trial_id, _, parameter = key.partition("/")
            if trial_id in found:
                found[trial_id][parameter] = tensor
        return {i: _endpoint(about[i], tensors) for i, tensors in found.items()}
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise damaged(storage.where(name), error) from error


def _endpoint(about: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Endpoint:
    return Endpoint(Trial.of_row(about), tensors, tuple(about["buffers"]))
