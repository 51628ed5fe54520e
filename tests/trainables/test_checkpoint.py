"""What is saved of a running pack, and that an interruption anywhere leaves no trace in its rows."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import ENDPOINT_ONLY, drive, trial
from typing_extensions import override

from trainables import training
from trainables.checkpoint import CHECKPOINT_SECONDS, Interrupted, Keeper, Origin
from trainables.encoding import encode
from trainables.packs import Outcome, Pack, run
from trainables.settings import Measure
from trainables.storage import LocalStorage
from trainables.store import hashed
from trainables.trial import Trial

# --- when one is saved, and which one is used -------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Recording(LocalStorage):
    """Notes what is done to it, and fails or takes its time where told."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self.clock, self.done = clock, list[str]()
        self.error: Exception | None = None
        self.seconds = 0.0

    @override
    def replace(self, name: str, data: bytes) -> None:
        self.clock.now += self.seconds
        if self.error:
            raise self.error
        super().replace(name, data)
        self.done.append(f"wrote {name.split('.')[1]}")

    @override
    def delete(self, name: str) -> None:
        super().delete(name)
        self.done.append(f"deleted {name.split('.')[1]}")


def pack_of(trials: list[Trial], engine: str = "fused", measure: Measure | None = None, **cut: int) -> Pack:
    keys = tuple({"sweep": "s", "trial_id": f"t{i}", "measure_id": "m"} for i in range(len(trials)))
    return Pack("p", engine, measure or Measure(), (0,) * len(trials), keys, tuple(trials), **cut)


PACK = pack_of([trial(), trial(seed=1)])


class Kept:
    """A keeper with all that a test wants to turn."""

    def __init__(self, root: Path, seconds: float = CHECKPOINT_SECONDS) -> None:
        self.clock, self.lines, self.reason = Clock(), list[str](), list[str]()
        self.storage = Recording(root, self.clock)
        self.keeper = Keeper(
            self.storage, "p", seconds, lambda: self.reason[0] if self.reason else None, self.lines.append, self.clock
        )

    def restore(self, pack: Pack = PACK) -> Any:
        return self.keeper.restore(pack, 1, "cpu", "data")

    def at(self, seconds: float, step: int, group: int = 0) -> list[str]:
        """What is done at a report."""
        self.clock.now, self.storage.done = seconds, []
        self.keeper.report((group, step), lambda: {"step": step})
        return self.storage.done


def test_one_is_due_after_its_time_and_the_newest_two_stay(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.restore() is None
    assert kept.at(59.9, 1) == []
    assert kept.at(60, 2) == ["wrote 0000-0000000002"]
    assert kept.at(119, 3) == []
    assert kept.at(121, 4) == ["wrote 0000-0000000004"]
    assert kept.at(200, 0, group=1) == ["wrote 0001-0000000000", "deleted 0000-0000000002"]
    assert kept.at(300, 5, group=1) == ["wrote 0001-0000000005", "deleted 0000-0000000004"]
    assert [n.split(".")[1] for n in kept.storage.names("checkpoints")] == ["0001-0000000000", "0001-0000000005"]
    again = Kept(tmp_path)
    assert again.restore() == {"step": 5}
    assert "goes on from its checkpoint" in again.lines[0]
    assert "0001-0000000005" in again.lines[0]
    again.keeper.clear()
    assert again.storage.names("checkpoints") == []


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.restore()
    kept.storage.seconds = 10.0
    assert kept.at(60, 1)  # until 70
    assert kept.at(70 + 189, 2) == []
    assert kept.at(70 + 190, 3)
    kept.storage.seconds = 0.1
    assert kept.at(1000, 4)
    assert kept.at(1060.2, 5)


def test_an_interruption_saves_first(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.restore()
    kept.reason.append("asked to stop")
    with pytest.raises(Interrupted, match="asked to stop"):
        kept.at(1, 7)
    assert Kept(tmp_path).restore() == {"step": 7}


def test_a_disk_that_is_full_costs_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.restore()
    kept.storage.error = OSError(28, "No space left on device")
    assert kept.at(60, 1) == []
    assert kept.lines == [
        "checkpoint of pack p: not saved: [Errno 28] No space left on device; the pack goes on without"
    ]
    assert kept.at(61, 2) == []
    kept.storage.error = None
    assert kept.at(120, 3) == ["wrote 0000-0000000003"]
    kept.storage.error = OSError("gone")
    kept.reason.append("SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        kept.at(121, 4)


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    """As the state of a module may hold anything."""
    kept = Kept(tmp_path)
    kept.restore()
    kept.clock.now = 60
    kept.keeper.report((0, 1), object)
    assert kept.lines == [
        "checkpoint of pack p: not saved: builtins.object cannot be part of a checkpoint; the pack goes on without"
    ]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "a bit flipped": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    "foreign": lambda data: pickle.dumps([1, 2, 3]),
}


def two_saved(root: Path) -> list[Path]:
    kept = Kept(root)
    kept.restore()
    assert kept.at(60, 1)
    assert kept.at(120, 2)
    return sorted((root / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_one_before_stands_in_for_a_damaged_one(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    _, newer = two_saved(tmp_path)
    newer.write_bytes(damage(newer.read_bytes()))
    kept = Kept(tmp_path)
    assert kept.restore() == {"step": 1}
    assert f"{newer}: not used: it is damaged: the hash of its content is not that in its name" in kept.lines[0]
    assert newer.exists()
    # the same step once more, whose file has the same name as the damaged one
    assert kept.at(60, 2) == ["wrote 0000-0000000002"]
    assert Kept(tmp_path).restore() == {"step": 2}
    assert kept.at(120, 3) == ["wrote 0000-0000000003", "deleted 0000-0000000001"]
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert Kept(tmp_path).restore() is None


def test_a_sound_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    """Its hash is right, its content is something else."""
    two_saved(tmp_path)
    for content in (b"", pickle.dumps(1), encode(3), encode(({}, 1))):
        name = hashed("checkpoints/p.0009-0000000000", content, ".safetensors")
        (tmp_path / name).write_bytes(content)
    kept = Kept(tmp_path)
    assert kept.restore() == {"step": 2}
    assert len(kept.lines) == 5


def test_a_store_that_cannot_be_read_for_a_while_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_saved(tmp_path)
    kept = Kept(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", lambda self, name: (_ for _ in ()).throw(TimeoutError("no answer")))
        assert kept.restore() is None
    assert kept.at(60, 1) == ["wrote 0000-0000000001"]
    assert Kept(tmp_path).restore() == {"step": 2}


OTHERS: dict[str, Pack] = {
    "pack_id": PACK,  # under a name that was changed by hand
    "trial_ids": replace(PACK, keys=({"trial_id": "t0", "measure_id": "m"}, {"trial_id": "other", "measure_id": "m"})),
    "measure_id": replace(PACK, keys=tuple(key | {"measure_id": "other"} for key in PACK.keys)),
    "engine": replace(PACK, engine="vmap"),
    "physical_batch_size": replace(PACK, physical_batch_size=4),
    "together": replace(PACK, together=1),
    "plugins": replace(PACK, trials=tuple(trial(arch="plugins:with_dropout", seed=seed) for seed in range(2))),
}
SETTINGS: dict[str, Any] = {
    "semantics": ("trainables.checkpoint.SEMANTICS", 99),
    "source_sha256": ("trainables.provenance.package_sha256", lambda: "other"),
    "torch": ("trainables.checkpoint.version", lambda name: "0.0"),
}


@pytest.mark.parametrize("field", [f.name for f in fields(Origin)])
def test_one_of_another_origin_is_not_used_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    two_saved(tmp_path)
    if field == "pack_id":
        for path in (tmp_path / "checkpoints").iterdir():
            path.rename(path.with_name(path.name.replace("p.", "q.", 1)))
    if field in SETTINGS:
        monkeypatch.setattr(*SETTINGS[field])
    kept = Kept(tmp_path)
    pack = OTHERS.get(field, PACK)
    if field == "pack_id":
        kept.keeper, pack = (
            Keeper(kept.storage, "q", log=kept.lines.append, clock=kept.clock),
            replace(PACK, pack_id="q"),
        )
    where = {"threads": 2 if field == "threads" else 1, "device": "H200" if field == "device" else "cpu"}
    assert kept.keeper.restore(pack, **where, dataset_sha256="other" if field == "dataset_sha256" else "data") is None
    assert len(kept.lines) == 2
    assert all(f"not used: it was made with another {field}" in line for line in kept.lines)
    done = kept.at(60, 1)
    assert done[0] == "wrote 0000-0000000001"
    assert done[1:] == ["deleted 0000-0000000001", "deleted 0000-0000000002"]


def test_two_processes_of_one_pack_do_not_take_each_others_files(tmp_path: Path) -> None:
    """As when a worker outlives its driver: what one of them has saved last is always there."""
    two_saved(tmp_path)
    one, two = Kept(tmp_path), Kept(tmp_path)
    one.restore()
    two.restore()
    for step in range(3, 9):
        one.at(60.0 * step, step)
        two.at(60.0 * step, 10 * step)
        names = {name.split(".")[1] for name in one.storage.names("checkpoints")}
        assert {f"0000-{step:010d}", f"0000-{10 * step:010d}"} <= names
    one.keeper.clear()
    assert Kept(tmp_path).restore() is None


# --- interrupted everywhere -------------------------------------------------------------------------------------------


class Impatient(Keeper):
    """Interrupts at each report, from the first on."""

    def __init__(self, root: Path) -> None:
        super().__init__(LocalStorage(root), "p", interrupted=lambda: "enough")


def in_pieces(pack: Pack, root: Path, *, gpu: bool = False) -> tuple[Outcome, int]:
    """Runs a pack that is interrupted at every report of training; returns how often that was."""
    for times in range(10_000):
        try:
            return drive(run(pack, 1, gpu=gpu, keeper=Impatient(root))), times
        except Interrupted:
            assert 1 <= len(list((root / "checkpoints").iterdir())) <= 2
    raise AssertionError("it does not come to an end")


def plain(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome, its tensors as bytes."""
    tensors = {
        (slot, name): (array.dtype.str, array.shape, array.tobytes())
        for slot, endpoint in outcome.endpoints.items()
        for name, array in endpoint.tensors.items()
    }
    return vars(outcome) | {"endpoints": tensors}


SMALL = {"epochs": 1, "label_noise": 0.1}
LOOKS = Measure(at={"every": 0.5}, hessian={"top": 2, "trace_probes": 2, "examples": 12}, endpoints=True)
NORMED = json.dumps({"name": "mlp", "depth": 1, "width": 6, "norm": "batch", "dropout": 0.2})
IMAGES = json.dumps({"name": "teacher", "shape": [3, 4, 4], "classes": 4, "train_size": 48, "test_size": 8})
RESNET = json.dumps({"name": "resnet", "depth": 8, "width": 2, "norm": "batch"})
NUDGED = json.dumps({"name": "nudged_sgd", "top": 2, "every": 2, "factor": 0.1, "examples": 12})
RATES = (0.05, 0.02, 1e60, 0.1)  # the third diverges


def trials_of(count: int, **changes: object) -> list[Trial]:
    return [trial(**SMALL | {"lr": RATES[i], "seed": i} | changes) for i in range(count)]


CASES: dict[str, Pack] = {
    "momentum, in groups": pack_of(trials_of(4, momentum=0.9, weight_decay=0.01), "fused", LOOKS, together=2),
    "nudged": pack_of(trials_of(3, optimizer=NUDGED), "fused", LOOKS),
    "a plug-in that fails": pack_of(
        trials_of(3), "fused", LOOKS.model_copy(update={"metrics": ("plugins:fails_for_seed_one",)}), together=2
    ),
    "noise and small pieces": pack_of(
        trials_of(3, gradient_noise=0.1, input_noise=0.2), "fused", LOOKS, physical_batch_size=3
    ),
    "until": pack_of(trials_of(3, until="train_loss <= 2.26 every 0.5", epochs=2, lr=0.1), "fused", LOOKS, together=2),
    "batch norm, dropout, Adam": pack_of(trials_of(3, arch=NORMED, optimizer="adam", lr=0.01), "vmap", LOOKS),
    "a scheduled batch size": pack_of(
        trials_of(2, arch=NORMED, epochs=2, schedule='{"of":"batch_size","warmup":{"epochs":1.0}}'), "vmap", LOOKS
    ),
    "the loop": pack_of(trials_of(3, arch=NORMED, momentum=0.9), "loop", LOOKS, together=2),
    "the loop with Adam": pack_of(trials_of(2, arch=NORMED, optimizer="adam", lr=0.01), "loop", LOOKS),
    "convolutions": pack_of(
        trials_of(2, dataset=IMAGES, arch=RESNET, momentum=0.9, augment="crop_flip"), "loop", LOOKS
    ),
    "a plug-in's net": pack_of(trials_of(2, arch="plugins:with_batchnorm", loss="mse"), "loop", LOOKS),
}


@pytest.mark.parametrize("pack", CASES.values(), ids=CASES)
def test_interrupted_at_every_report_a_pack_gives_the_same_rows_bit_for_bit(tmp_path: Path, pack: Pack) -> None:
    whole = drive(run(pack, 1))
    pieces, times = in_pieces(pack, tmp_path)
    assert times >= 6
    assert plain(pieces) == plain(whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_too(tmp_path: Path) -> None:
    for name, pack in CASES.items():
        pieces, _ = in_pieces(pack, tmp_path / name, gpu=True)
        assert plain(pieces) == plain(drive(run(pack, 1, gpu=True))), name


def test_these_packs_hold_all_kinds_of_ends() -> None:
    first, until, failing = (drive(run(CASES[n], 1)) for n in ("momentum, in groups", "until", "a plug-in that fails"))
    assert [row["status"] for row in first.trials.values()] == ["finished", "finished", "diverged", "finished"]
    assert first.endpoints.keys() == {0, 1, 3}
    assert {row["reached"] for row in until.trials.values()} == {True, False}
    assert failing.failures.keys() == {1}
    assert first.side["eigenvalues"]


def test_slow_steps_are_reported_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever has to end can do so soon; it changes nothing else."""
    pack = pack_of(trials_of(2, epochs=20), measure=ENDPOINT_ONLY)
    whole, now = drive(run(pack, 1)), iter(range(10**9))
    assert len(list(run(pack, 1))) <= 25
    monkeypatch.setattr(
        training, "monotonic", lambda: 20.0 * next(now)
    )  # seconds that a span takes, whatever its length
    assert len(list(run(pack, 1))) == 125
    assert plain(drive(run(pack, 1))) == plain(whole)


def test_trials_of_the_users_own_are_called_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third fails, and is not tried again by going on."""
    import plugins

    called: list[float] = []
    original = plugins.whole_trial
    monkeypatch.setattr(plugins, "whole_trial", lambda config: called.append(config["seed"]) or original(config))
    pack = pack_of([trial(call="plugins:whole_trial", seed=s, lr=0.25) for s in (0, 1, 3, 4)], "call")
    whole = drive(run(pack, 1))
    assert called == [0, 1, 3, 4]
    assert "no third seed" in whole.failures[2]
    called.clear()
    pieces, times = in_pieces(pack, tmp_path)
    assert (called, times) == ([0, 1, 3, 4], 4)
    assert plain(pieces) == plain(whole)


def test_cut_otherwise_a_pack_begins_anew(tmp_path: Path) -> None:
    """As where it did not fit memory."""
    whole = CASES["momentum, in groups"]
    with pytest.raises(Interrupted):
        drive(run(whole, 1, keeper=Impatient(tmp_path)))
    lines: list[str] = []
    smaller = replace(whole, together=1)
    outcome = drive(run(smaller, 1, keeper=Keeper(LocalStorage(tmp_path), "p", log=lines.append)))
    assert "made with another together" in lines[0]
    assert plain(outcome) == plain(drive(run(smaller, 1)))
