"""The state of training as bytes, there and back."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packs import trial

from trainables.encoding import decode, encode
from trainables.findings import Measurements
from trainables.measurement import Memory
from trainables.study import Subspace
from trainables.training import Measured

NUMPY = st.deferred(
    lambda: arrays.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
TENSORS = st.builds(lambda array, dtype: torch.from_numpy(array.copy()).to(dtype), NUMPY, TYPES)
SUBSPACES = st.builds(Subspace, TENSORS, TENSORS, TENSORS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = SCALARS.filter(lambda x: x == x) | st.tuples(st.text(), st.text())  # a dictionary cannot find NaN again


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=3)
    memory = st.builds(Memory, st.none() | SUBSPACES, few, st.booleans())
    measured = st.builds(Measured, st.integers(), st.floats(), few, st.builds(Measurements, st.integers(), inner))
    return few | few.map(tuple) | st.dictionaries(KEYS, inner, max_size=3) | memory | measured


STATES = st.deferred(lambda: st.recursive(SCALARS | TENSORS | NUMPY, nested, max_leaves=10))


def same(a: Any, b: Any) -> bool:
    """Type for type and bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(map(type, a)) == list(map(type, b)) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, torch.Tensor):
        bits = [bytes(t.clone(memory_format=torch.contiguous_format).untyped_storage()) for t in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and bits[0] == bits[1]
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    return bool(a == b) if a == a else b != b


@settings(deadline=None)
@given(STATES)
def test_a_state_comes_back_bit_for_bit(state: Any) -> None:
    assert same(decode(encode(state)), state)


def test_memory_that_is_shared_or_lies_otherwise() -> None:
    """What comes back can be written to, and has memory of its own."""
    base = torch.arange(12.0).view(3, 4)
    state = [
        base,
        base[1:],
        base.t(),
        base[:, 1],
        base[:1].expand(5, 4),
        base.requires_grad_(),
        base.detach().numpy()[::-1, ::2],
    ]
    back = decode(encode(state))
    for before, after in zip(state, back, strict=True):
        np.testing.assert_array_equal(
            after, torch.as_tensor(np.ascontiguousarray(before if isinstance(before, np.ndarray) else before.detach()))
        )
    back[0].fill_(-1)
    assert all((tensor >= 0).all() for tensor in back[1:])


@pytest.mark.parametrize("intruder", [object(), Path("x"), {1}, np.float64(1), trial(), torch.Size([1]), b"x"])
def test_what_is_not_on_the_list_is_not_saved(intruder: object) -> None:
    with pytest.raises(TypeError, match=rf"{type(intruder).__qualname__} cannot be part of a checkpoint"):
        encode({"here": [intruder]})


def test_a_file_cannot_bring_another_class_to_life() -> None:
    data = encode(Memory())
    other = data.replace(b"Memory", b"Popen!")
    assert other != data
    with pytest.raises(ValueError, match="no state of training"):
        decode(other)


@pytest.mark.parametrize("data", [b"", b"{}", pickle.dumps(Memory), encode([torch.ones(9)])[:-1], bytes(1000)])
def test_bytes_of_another_kind(data: bytes) -> None:
    with pytest.raises(ValueError, match="no state of training"):
        decode(data)
