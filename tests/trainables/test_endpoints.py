"""What a trial had learned, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packs import outcome, trial
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from trainables.datasets import load_dataset
from trainables.endpoints import Endpoint, as_file, read
from trainables.engines import build
from trainables.schema import FORMAT
from trainables.settings import Measure
from trainables.storage import DamagedStoreError, LocalStorage

KEEP = Measure(at=[], hessian=False, gradient_noise=False, endpoints=True)
DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.bool_])
TENSORS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: "\x00" not in name),
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    min_size=1,
    max_size=4,
)


@given(st.dictionaries(st.text("0123456789abcdef", min_size=1), TENSORS, min_size=1, max_size=3), st.randoms())
def test_tensors_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, tensors, random) -> None:  # type: ignore[no-untyped-def]
    stored = {i: Endpoint(trial(seed=n), found, ("b",)) for n, (i, found) in enumerate(tensors.items())}
    storage = LocalStorage(tmp_path_factory.mktemp("endpoints"))
    storage.create("p.safetensors", as_file(stored))
    wanted = random.sample(sorted(stored), random.randint(1, len(stored)))
    found = read(storage, "p.safetensors", wanted)
    assert found.keys() == set(wanted)
    for i, endpoint in found.items():
        assert (endpoint.trial, endpoint.buffers) == (stored[i].trial, ("b",))
        assert endpoint.tensors.keys() == stored[i].tensors.keys()
        for name, array in endpoint.tensors.items():
            then = stored[i].tensors[name]
            assert (array.dtype, array.shape, array.tobytes()) == (then.dtype, then.shape, then.tobytes())


def test_how_an_array_lies_in_memory_does_not_matter_and_equal_endpoints_are_equal_files() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    views = [array[:, ::2].T, np.asfortranarray(array[:, ::2].T), array[:, ::2].T.copy()]
    assert len({as_file({"a": Endpoint(trial(), {"w": v}), "b": Endpoint(trial(), {"w": v})}) for v in views}) == 1


@pytest.mark.parametrize(
    ("engine", "arch"),
    [
        ("fused", '{"depth":1,"name":"mlp","width":5}'),
        ("vmap", "plugins:with_batchnorm"),
        ("loop", "plugins:with_batchnorm"),
        ("vmap", "plugins:partly_frozen"),
        ("loop", "plugins:convnet"),
    ],
)
def test_any_program_can_go_on_from_the_file(tmp_path: Path, engine: str, arch: str) -> None:
    """A plain module with the stored tensors has the stored test loss."""
    found = outcome([trial(arch=arch, seed=s, lr=lr) for s in range(2) for lr in (0.05, 0.2)], engine, KEEP)
    (tmp_path / "p.safetensors").write_bytes(as_file({f"t{slot}": e for slot, e in found.endpoints.items()}))
    tensors = load_file(tmp_path / "p.safetensors")
    data = load_dataset(trial().dataset)
    for slot in range(4):
        module = build(trial(arch=arch), data.input_shape, data.num_classes).double().eval()
        own = {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"t{slot}/")}
        module.load_state_dict(own, strict=True)
        loss = cross_entropy(module(data.test_inputs), data.test_targets).item()
        assert loss == pytest.approx(found.trials[slot]["test_loss"], rel=1e-9)


def test_the_file_says_what_it_holds() -> None:
    found = outcome([trial(arch="plugins:with_batchnorm", lr=0.1)], "vmap", KEEP)
    data = as_file({"t0": found.endpoints[0]})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["isoratio"])
    assert about["format"] == FORMAT
    told = about["trials"]["t0"]
    assert told.pop("buffers") == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    assert told == trial(arch="plugins:with_batchnorm", lr=0.1).model_dump()
    assert header["t0/1.num_batches_tracked"]["shape"] == []


def test_diverged_trials_have_no_endpoint() -> None:
    trials = [trial(arch="linear", loss="mse", lr=lr) for lr in (0.01, 1e60, 0.02)]
    assert outcome(trials, "fused", KEEP).endpoints.keys() == {0, 2}
    assert not outcome(trials, "fused", KEEP.model_copy(update={"endpoints": False})).endpoints


def test_an_endpoint_is_taken_after_the_last_step() -> None:
    """Momentum and decay included: the same as plain PyTorch on the same examples, of which there is one batch."""
    one = trial(arch="linear", batch_size=50, epochs=3, momentum=0.5, weight_decay=0.01)
    data = load_dataset(one.dataset)
    module = build(one, data.input_shape, data.num_classes).double()
    optimizer = torch.optim.SGD(module.parameters(), one.lr, one.momentum, weight_decay=one.weight_decay)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(module(data.train_inputs), data.train_targets).backward()
        optimizer.step()
    for name, array in outcome([one], "fused", KEEP).endpoints[0].tensors.items():
        np.testing.assert_allclose(array, module.state_dict()[name].numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"isoratio"', b'"isorati0"')),
        lambda path: path.write_bytes(as_file({"other": Endpoint(trial(), {"w": np.zeros(1)})})),
        lambda path: path.write_bytes(b"not tensors"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "p.safetensors"
    path.write_bytes(as_file({"t": Endpoint(trial(), {"w": np.zeros(3)})}))
    damage(path)
    with pytest.raises(DamagedStoreError, match=r"p\.safetensors: cannot be read: .*`isoratio verify`"):
        read(LocalStorage(tmp_path), "p.safetensors", ["t"])
