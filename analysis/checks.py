"""What is wrong with the files of a sweep: what a commit, a compaction and a plan leave, taken together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import duckdb
import pyarrow as pa

from analysis.commits import SIDES, Digest, Sums, in_threads, read_damaged
from analysis.contents import strange_packs
from analysis.records import HASHED, NAMES, record_problem, strays, table_of, table_problem, unreadable
from trainables.manifest import COPY, MERGED, Manifest, file_name, numbers, read_numbered
from trainables.manifest import FOLDER as MANIFEST
from trainables.same_data import FOLDER as DATASETS
from trainables.schema import FORMAT
from trainables.storage import Storage, StoreError
from trainables.store import CLOSED, FIRST_PLAN, SweepStore, pack_of, sums_name

TRIES = 5  # to read what others are just changing


@dataclass
class Findings:
    """What is wrong, and what follows from it.

    Attributes:
        damage: name of a file -> what is wrong with it.
        along: name of a damaged file -> the files that say nothing without it.
        void: name of a damaged file -> merged packs that are no longer whole without it.
    """

    damage: dict[str, str] = field(default_factory=dict)
    along: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    void: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __contains__(self, name: str) -> bool:
        return name in self.damage

    def add(self, name: str, problem: str | None) -> None:
        """Takes note of a problem, if there is one: of each file the first."""
        if problem:
            self.damage.setdefault(name, problem)

    def seen_before(self, earlier: Findings) -> Findings:
        """Those of an earlier look: what was only being written or deleted then is no damage."""
        damage = {name: problem for name, problem in self.damage.items() if name in earlier}
        return Findings(damage, self.along, self.void)


@dataclass(frozen=True)
class _Seen:
    """A file as it was read.

    Attributes:
        digest: of its content.
        unreadable: why it is no table of its kind, if it should be one and is not.
        format: of the store that it was written for.
    """

    digest: Digest
    unreadable: str | None = None
    format: int = 1

    @classmethod
    def of(cls, storage: Storage, name: str) -> _Seen | None:
        found = read_damaged(storage, name)
        if found is None:
            return None
        digest, data = found
        return cls(digest, *table_problem(table_of(name), data)) if name.endswith(".parquet") else cls(digest)


class _MovedError(Exception):
    """Files have gone while they were read."""


def look(sweep: SweepStore) -> Findings:
    """Everything that is wrong with the files of a sweep at this moment.

    Raises:
        StoreError: a newer version of Isoratio has written here; or the sweep's directory has another name.
    """
    for _ in range(TRIES):
        try:
            return _Look(sweep).findings()
        except _MovedError:
            pass
    raise StoreError(f"{sweep.storage.url}: its files change all the time; verify it once that has ended")


class _Look:
    """One pass over all files.

    Attributes:
        found: what is wrong so far.
        names: of the files that are called as a store's are, by folder.
        seen: those that are read as a whole, as they were.
        sums: pack_id -> what attempts at it say to have written, as far as that can be read.
        accounted: files beside the rows of packs, which their sums or the manifest name.
        accepted: pack_id -> the attempt whose sums fit the pack's own rows.
        going: files that are bad, and those that say nothing without them.
    """

    def __init__(self, sweep: SweepStore) -> None:
        self.sweep, self.storage = sweep, sweep.storage
        self.found = Findings()
        self.names: dict[str, list[str]] = {}
        self.seen: dict[str, _Seen] = {}
        self.sums: defaultdict[str, list[Sums]] = defaultdict(list)
        self.accounted: set[str] = set()
        self.accepted: dict[str, str] = {}
        self.going: set[str] = set()

    def findings(self) -> Findings:
        """What is wrong."""
        self._list()
        self._check_records()
        self._read()
        manifest = self._manifest()
        covered = self._check_merged(manifest)
        self._check_commits(covered)
        self._check_unaccounted()
        self._refuse_newer()
        self.going = {*self.found.damage}.union(*self.found.along.values())
        self._check_contents(manifest)
        return self.found

    # --- files that stand for themselves ----------------------------------------------------------------------------

    def _list(self) -> None:
        stray = strays(self.storage)
        for name in stray:
            self.found.add(name, "is a link or a folder; a store has files of its own there")
        for folder, pattern in NAMES.items():
            listed = [] if folder in stray else self.storage.names(folder)
            paths = {f"{folder}/{name}".removeprefix("/"): pattern.fullmatch(name) for name in listed}
            self.names[folder] = [path for path, fits in paths.items() if fits]
            for path in (path for path, fits in paths.items() if not fits):
                self.found.add(path, "is no file of a store")

    def _check_records(self) -> None:
        folders = ("provenance", "splits", "lease", "log", MANIFEST, DATASETS)
        names = [name for folder in folders for name in self.names[folder]]
        for name in (*names, *(n for n in self.names[""] if n == "format.json")):
            if found := read_damaged(self.storage, name):
                digest, data = found
                self.found.add(name, digest.unreadable or record_problem(name, data))
        if "format.json" not in self.found:
            self.sweep.check_format()

    def _read(self) -> None:
        folders = ("trials", *SIDES, MERGED, "plan", "failures", "checkpoints")
        names = [name for folder in folders for name in self.names[folder]]
        names += [name for name in self.names[""] if name == FIRST_PLAN]
        read = zip(names, in_threads(partial(_Seen.of, self.storage), names), strict=True)
        self.seen = {name: seen for name, seen in read if seen}
        alone = (FIRST_PLAN, *(name for f in (MERGED, "plan", "failures", "checkpoints") for name in self.names[f]))
        for name, seen in ((name, self.seen[name]) for name in alone if name in self.seen):
            self.found.add(
                name, seen.digest.problem_as_named(name) if HASHED.fullmatch(name) else self._unreadable(name)
            )
            self.found.add(name, seen.unreadable)
        if (plans := self.names["plan"]) and plans[-1] in self.found:  # an earlier launch's would count, and know less
            launch = plans[-1].partition("-")[0]
            self.found.along[plans[-1]] |= {name for name in plans if name.partition("-")[0] != launch}
        read_sums = zip(self.names["sums"], in_threads(self._sums, self.names["sums"]), strict=True)
        for name, sums in read_sums:
            if sums:
                self.sums[pack_of(name)].append(sums)

    def _unreadable(self, name: str) -> str | None:
        """Of a Parquet file of which it is not known what it was."""
        found = read_damaged(self.storage, name)
        return (found[0].unreadable or unreadable(found[1])) if found else None

    def _sums(self, name: str) -> Sums | None:
        found = read_damaged(self.storage, name)
        try:
            return Sums.parse(name, found[1]) if found else None
        except ValueError:
            self.found.add(name, "does not hold the sums of a commit")
            return None

    # --- what was merged --------------------------------------------------------------------------------------------

    def _manifest(self) -> Manifest:
        """The one that counts, once damaged ones are gone."""
        counts = Manifest()
        for number in numbers(self.storage):
            name = file_name(number)
            there = [n for n in (name, name + COPY) if n in self.names[MANIFEST]]
            bad = [n for n in there if n in self.found]
            if len(bad) < len(there):
                counts = read_numbered(self.storage, number) or counts
            for each in bad:
                end = "restored from its copy" if len(bad) < len(there) else "there is no sound copy"
                self.found.damage[each] += f"; {end}"
        return counts

    def _check_merged(self, manifest: Manifest) -> set[str]:
        """Packs whose merged rows and kept files are whole."""
        covered: set[str] = set()
        for batch in manifest.batches:
            for name in batch.files.values():
                self.found.add(name, None if name in self.seen else "is missing")
            bad = [name for name in batch.files.values() if name in self.found]
            for name in bad:
                self.found.void[name] |= batch.packs.keys()
            covered |= set() if bad else batch.packs.keys()
            for name, expected in batch.kept.items():
                self.accounted.add(name)
                seen = self.seen.get(name)
                self.found.add(name, seen.digest.problem(expected) if seen else "is missing")
                if name in self.found:
                    self.found.void[name].add(pack_of(name))
                    covered.discard(pack_of(name))
        return covered

    # --- what was committed -----------------------------------------------------------------------------------------

    def _check_commits(self, covered: set[str]) -> None:
        """Packs' own files. Of packs that are merged they are being deleted, so that none is missing."""
        beside: defaultdict[str, set[str]] = defaultdict(set)
        for name in (name for kind in (*SIDES, "sums") for name in self.names[kind]):
            beside[pack_of(name)].add(name)
        for rows in self.names["trials"]:
            pack = pack_of(rows)
            if rows not in self.seen or (pack in covered and not _has_sums(beside[pack])):
                continue
            digest = self.seen[rows].digest
            sums = next((s for s in self.sums[pack] if digest.problem(s.rows) is None), None)
            along = {*sums.files, sums_name(pack, sums.attempt)} if sums else beside[pack]
            if sums:
                self.accepted[pack] = sums.attempt
            for name in self._wrong(sums, pack in covered) if sums else self._blamed(rows, beside[pack]):
                self.found.along[name] |= {rows, *along} - self.accounted
            self.accounted |= along

    def _wrong(self, sums: Sums, merged: bool) -> list[str]:
        """Files of an accepted attempt that are not what it wrote."""
        for name, expected in sums.files.items():
            if seen := self.seen.get(name):
                self.found.add(name, seen.digest.problem(expected) or seen.unreadable)
            elif not merged:
                self.found.add(name, "is missing")
        return [name for name in sums.files if name in self.found]

    def _blamed(self, rows: str, beside: set[str]) -> list[str]:
        """Where no sums fit the rows: those that cannot be read, or else the rows."""
        for name in (name for name in (rows, *beside) if name in self.seen):
            self.found.add(name, self.seen[name].unreadable)
        unreadable = [name for name in sorted(beside) if name.startswith("sums/") and name in self.found]
        if not unreadable:
            problem = "differs from what was committed" if _has_sums(beside) else "has no sums: it was never committed"
            self.found.add(rows, problem)
        return unreadable or [rows]

    def _check_unaccounted(self) -> None:
        """What attempts have left that were not accepted: it only has to be readable, as it is read with the rest."""
        for name in (name for kind in SIDES for name in self.names[kind]):
            if name.endswith(".parquet") and name in self.seen and name not in self.accounted:
                self.found.add(name, self.seen[name].unreadable or self._unreadable(name))

    def _refuse_newer(self) -> None:
        for name, seen in self.seen.items():
            if seen.format > FORMAT and name not in self.found:
                raise StoreError(
                    f"{self.storage.where(name)}: a newer version of Isoratio wrote it, in format {seen.format}; this "
                    f"one reads up to format {FORMAT}: install a newer one"
                )

    # --- what rows say ----------------------------------------------------------------------------------------------

    def _check_contents(self, manifest: Manifest) -> None:
        """Rows as a reader sees them, from files that are what was written."""
        sound = [batch for batch in manifest.batches if all(map(self._is_sound, batch.files.values()))]
        full = [batch for batch in sound if "trials" in batch.files]  # another one holds closed packs only
        merged = {pack: batch.files["trials"] for batch in full for pack in batch.packs}
        own = {pack_of(n): n for n in self.names["trials"] if pack_of(n) not in merged and self._is_sound(n)}
        file_of = merged | own
        files = sorted({*file_of.values()})
        attempts = self.accepted | manifest.packs
        filled = [pack for pack in file_of if not attempts.get(pack, "").startswith(CLOSED)]
        plans = [n for n in (FIRST_PLAN, *self.names["plan"]) if self._is_sound(n)]
        try:
            strange = strange_packs(self.sweep, files, plans[-1] if plans else None, filled)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if all(map(self.storage.exists, (*files, *plans))):
                raise
            raise _MovedError from error
        for pack, problem in strange.items():
            if pack in file_of:
                name = file_of[pack]
                self.found.add(name, f"pack {pack} {problem}")
                self.found.void[name] |= {pack} & merged.keys()
                self.found.along[name] |= set() if pack in merged else self._beside(pack)

    def _beside(self, pack: str) -> set[str]:
        """Files of the attempts at a pack."""
        return {name for sums in self.sums[pack] for name in (*sums.files, sums_name(pack, sums.attempt))}

    def _is_sound(self, name: str) -> bool:
        return name in self.seen and name not in self.going


def _has_sums(beside: set[str]) -> bool:
    return any(name.startswith("sums/") for name in beside)
