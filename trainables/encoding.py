"""The state of training as bytes and back, bit for bit: one safetensors file, in which nothing can be executed.

The numbers of all tensors and arrays of one type lie one after the other in one tensor. The file's metadata has one
entry, ``isoratio``: JSON of how they were nested. Scalars and lists stand for themselves; all else is an object with
one key, which says what it is::

    {"dict": [[key, value], ...]}  {"tuple": [...]}  {"Measured": [value of each field]}
    {"tensor": [type, offset, shape]}  {"on device": ...}  {"array": ...}
"""

from __future__ import annotations

import json
from dataclasses import fields
from math import prod
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from trainables.findings import Measurements
from trainables.measurement import Memory
from trainables.study import Subspace
from trainables.training import Measured

_KEY = "isoratio"
_SCALARS = (type(None), bool, int, float, str)
_RECORDS: dict[str, type] = {c.__name__: c for c in (Measured, Measurements, Memory, Subspace)}
"""The classes that may be saved, and the only ones that a file can bring to life."""


def encode(state: object) -> bytes:
    """Any nesting of dictionaries, lists, tuples and the records above, with scalars, tensors and arrays in it.

    Raises:
        TypeError: something else is in it.
    """
    writer = _Writer()
    structure = json.dumps(writer.described(state))
    tensors = {name: torch.cat(pieces) for name, pieces in writer.pieces.items()}
    return save(tensors, {_KEY: structure})


def decode(data: bytes, device: str | torch.device = "cpu") -> Any:
    """What :func:`encode` was given; tensors that were on a device come to ``device``.

    Raises:
        ValueError: the bytes are something else.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        structure = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
        return _Reader(load(data), torch.device(device)).value(structure)
    except Exception as error:  # the libraries raise a dozen kinds
        raise ValueError(f"no state of training: {type(error).__name__}: {error}") from error


class _Writer:
    """Collects the numbers of tensors, by type.

    Attributes:
        pieces: type -> flat tensors, on the CPU.
        lengths: type -> how many numbers these hold.
    """

    def __init__(self) -> None:
        self.pieces: dict[str, list[Tensor]] = {}
        self.lengths: dict[str, int] = {}

    def described(self, x: Any) -> Any:
        """The JSON of a value."""
        kind = type(x)
        if kind in _SCALARS:
            return x
        if kind is list:
            return [self.described(v) for v in x]
        if kind is tuple:
            return {"tuple": [self.described(v) for v in x]}
        if isinstance(x, dict):  # a module's state is an ordered one
            return {"dict": [[self.described(k), self.described(v)] for k, v in x.items()]}
        if isinstance(x, Tensor):
            return {"tensor" if x.device.type == "cpu" else "on device": self._taken(x.detach().cpu())}
        if kind is np.ndarray:
            return {"array": self._taken(torch.from_numpy(np.array(x, order="C")))}
        if kind in _RECORDS.values():
            return {kind.__name__: [self.described(getattr(x, f.name)) for f in fields(x)]}
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be part of a checkpoint")

    def _taken(self, tensor: Tensor) -> list[Any]:
        name = str(tensor.dtype).removeprefix("torch.")
        offset = self.lengths.get(name, 0)
        self.pieces.setdefault(name, []).append(tensor.reshape(-1))
        self.lengths[name] = offset + tensor.numel()
        return [name, offset, list(tensor.shape)]


class _Reader:
    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device

    def value(self, x: Any) -> Any:
        """What the JSON ``x`` describes."""
        if isinstance(x, list):
            return [self.value(v) for v in x]
        if not isinstance(x, dict):
            return x
        ((kind, content),) = x.items()
        match kind:
            case "tuple":
                return tuple(map(self.value, content))
            case "dict":
                return {self.value(k): self.value(v) for k, v in content}
            case "tensor":
                return self._tensor(*content)
            case "on device":
                return self._tensor(*content).to(self.device)
            case "array":
                return self._tensor(*content).numpy()
        return _RECORDS[kind](*map(self.value, content))

    def _tensor(self, name: str, offset: int, shape: list[int]) -> Tensor:
        """In memory of its own, since kernels may round differently where memory is aligned differently."""
        return self.tensors[name][offset : offset + prod(shape)].reshape(shape).clone()
