"""Checkpoints of a pack: what is saved while it runs, and what it goes on from after an interruption.

A checkpoint only saves work: a pack that finds none begins anew and gives the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from trainables.registry import resolve, source_sha256
from trainables.same_data import refuse_changed_data
from trainables.store import hashed
from trainables.trial import REFERENCES, SEMANTICS

if TYPE_CHECKING:
    from trainables.packs import Pack
    from trainables.storage import Storage

FOLDER, SUFFIX = "checkpoints", ".safetensors"
CHECKPOINT_SECONDS = 60.0  # between two checkpoints, at least
KEPT = 2  # the newest, and one more in case that it is damaged
SHARE = 0.05  # of the time that saving may take

Place = tuple[int, int]
"""How far a pack is: the group of its trials that is trained, and the step."""


class Interrupted(Exception):  # noqa: N818  (no error)
    """The pack was asked to end, and has saved where it stands as well as it could."""


@dataclass(frozen=True)
class Origin:
    """What the numbers of a checkpoint rest on: it is used where all of it is the same, since bits would differ.

    Attributes:
        pack_id: of the pack.
        trial_ids: of its trials.
        measure_id: of what is measured.
        engine: of the pack, like the next two.
        physical_batch_size: most examples in one forward pass.
        together: most trials that train at once.
        semantics: of training.
        source_sha256: hash of our sources.
        plugins: "package.module:callable" of the user's own -> hash of its file.
        torch: version.
        threads: CPU threads.
        device: name of the device.
        dataset_sha256: None for trials of the user's own.
    """

    pack_id: str
    trial_ids: tuple[str, ...]
    measure_id: str
    engine: str
    physical_batch_size: int | None
    together: int
    semantics: int
    source_sha256: str
    plugins: dict[str, str | None]
    torch: str
    threads: int
    device: str
    dataset_sha256: str | None

    @classmethod
    def of(cls, pack: Pack, threads: int, device: str, dataset_sha256: str | None) -> Origin:
        """That of a pack which begins to run."""
        from trainables.provenance import package_sha256  # it needs torch

        return cls(
            pack.pack_id,
            tuple(key["trial_id"] for key in pack.keys),
            pack.keys[0]["measure_id"],
            pack.engine,
            pack.physical_batch_size,
            min(pack.together, len(pack.trials)),
            SEMANTICS,
            package_sha256(),
            {target: source_sha256(target) for target in plugins(pack)},
            version("torch"),
            threads,
            device,
            dataset_sha256,
        )


def plugins(pack: Pack) -> list[str]:
    """The targets, "package.module:callable", of all that is the user's own in a pack, sorted."""
    references = [(kind, getattr(pack.trials[0], kind)) for kind in REFERENCES]
    named = [resolve(kind, value).target for kind, value in references if value is not None]  # type: ignore[arg-type]
    return sorted({t for t in (*named, *pack.measure.metrics) if ":" in t and not t.startswith("trainables.")})


class Checkpoints:
    """Those of a running pack, which tells where it stands. Here none are kept: for a pack that is not stored."""

    def restore(self, pack: Pack, threads: int, device: str, dataset_sha256: str | None = None) -> Any:
        """The state that the pack goes on from, None where it begins; to be called first.

        Args:
            pack: which one.
            threads: CPU threads that it uses.
            device: name of the device that it uses; where that is no CPU, tensors come to CUDA's present one.
            dataset_sha256: hash of its data set, if any.

        Raises:
            ChangedDataError: earlier trials of the sweep were trained on other data.
        """
        return None

    def report(self, place: Place, state: Callable[[], Any]) -> None:
        """Takes note of how far the pack is.

        Args:
            place: never goes down.
            state: gives what :meth:`restore` is to return, see :mod:`trainables.encoding`; called only to be saved.

        Raises:
            Interrupted: the pack is to end here.
        """

    def clear(self) -> None:
        """Forgets the pack: to be called once its rows are committed."""


NO_CHECKPOINTS = Checkpoints()


class Keeper(Checkpoints):
    """Keeps checkpoints of one pack in the storage of its sweep.

    A file is called ``checkpoints/<pack>.<group>-<step>.<16 digits of the SHA-256 of its content>.safetensors``, which
    shows damage. The newest two stay. Another process may run the same pack: until that is done no file is deleted but
    those that this one wrote or went on from, and those that cannot be used.

    Args:
        storage: where the sweep lies.
        pack_id: has no dot.
        seconds: between two checkpoints, more where saving would take more than 5% of the time.
        interrupted: says why the pack is to end, None while it is to go on.
        log: takes lines for people.
        clock: tells seconds.
    """

    def __init__(
        self,
        storage: Storage,
        pack_id: str,
        seconds: float = CHECKPOINT_SECONDS,
        interrupted: Callable[[], str | None] = lambda: None,
        log: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.storage, self.pack_id = storage, pack_id
        self.seconds, self.interrupted, self.log, self.clock = seconds, interrupted, log, clock
        self._origin: dict[str, Any] = {}
        self._usable: list[str] = []  # oldest first
        self._useless: list[str] = []
        self._due = clock() + seconds

    @override
    def restore(self, pack: Pack, threads: int, device: str, dataset_sha256: str | None = None) -> Any:
        if dataset_sha256 is not None:
            refuse_changed_data(self.storage, pack.trials[0].dataset, dataset_sha256)
        self._origin = asdict(Origin.of(pack, threads, device, dataset_sha256))
        self._usable, self._useless = self._names(), []
        self._due = self.clock() + self.seconds
        while self._usable:
            name = self._usable[-1]
            try:
                state = self._read(name, "cpu" if device == "cpu" else "cuda")
            except Exception as error:  # whatever it is: the pack can do without
                self.log(f"checkpoint {self.storage.where(name)}: not used: {error}")
                self._usable.pop()
                self._useless += [name] if isinstance(error, ValueError) else []  # the store may be back another time
                continue
            self.log(f"pack {self.pack_id} goes on from its checkpoint {self.storage.where(name)}")
            return state
        return None

    @override
    def report(self, place: Place, state: Callable[[], Any]) -> None:
        reason = self.interrupted()
        if reason is not None or self.clock() >= self._due:
            self._save(place, state)
        if reason is not None:
            raise Interrupted(reason)

    @override
    def clear(self) -> None:
        try:
            for name in self._names():
                self.storage.delete(name)
        except Exception as error:  # whatever it is: the rows are there
            self.log(f"checkpoints of pack {self.pack_id}: not deleted: {error}")

    def _save(self, place: Place, state: Callable[[], Any]) -> None:
        began = self.clock()
        try:
            self._keep(place, state())
        except Exception as error:  # whatever it is: the pack can do without
            self.log(f"checkpoint of pack {self.pack_id}: not saved: {error}; the pack goes on without")
        ended = self.clock()
        self._due = ended + max(self.seconds, (ended - began) * (1 / SHARE - 1))

    def _keep(self, place: Place, state: Any) -> None:
        """Saves a state, and deletes what it makes superfluous."""
        from trainables.encoding import encode  # torch is first needed here

        assert self._origin, "restore() is called first"
        data = encode((self._origin, state))
        name = hashed(f"{FOLDER}/{self.pack_id}.{place[0]:04d}-{place[1]:010d}", data, SUFFIX)
        self.storage.replace(name, data)  # of the same content if it is there, unless that is damaged
        kept = [*(n for n in self._usable if n != name), name]
        superfluous = {*kept[:-KEPT], *self._useless} - {name}
        self._usable, self._useless = kept[-KEPT:], []
        for other in sorted(superfluous):
            self.storage.delete(other)

    def _read(self, name: str, device: str) -> Any:
        """The state in a file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, or of another origin.
        """
        from trainables.encoding import decode

        data = self.storage.read(name)
        if hashed(name.rsplit(".", 2)[0], data, SUFFIX) != name:
            raise ValueError("it is damaged: the hash of its content is not that in its name")
        origin, state = decode(data, device)
        other = [field for field, mine in self._origin.items() if origin.get(field) != mine]
        if other:
            raise ValueError(f"it was made with another {', another '.join(other)}")
        return state

    def _names(self) -> list[str]:
        """The pack's checkpoints, oldest first."""
        return [f"{FOLDER}/{n}" for n in self.storage.names(FOLDER) if n.startswith(f"{self.pack_id}.")]
