"""A partition's cold part as its writers change it: one at a time, from one manifest to the next.

Law: flush, compaction and collection of one partition exclude each other. A change begins from the
manifest in force and ends with the commit of the next one's number, which only succeeds from there: that
commit is the switch. What no manifest in force names any more stays as long as a View in use names it, and
a grace longer for readers from outside, who read the files of `manifest.json` at their own pace; nothing goes
that it names.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from upwell.clock import Clock
from upwell.effects import Points
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.in_force import ManifestInForce, decode_manifest_record, partition_name, spare_name
from upwell.engine.rows import partition_of, target_of
from upwell.engine.view import View
from upwell.errors import ColdFileMissing, StorageFailed
from upwell.storage.cold import find_orphans, path_of, remove_orphans
from upwell.storage.files import PartitionFiles
from upwell.storage.hot import Batch, Expectation, Kind, RecordIs, RecordWrite
from upwell.storage.key_filter import KeyDigests
from upwell.storage.manifest import (
    Manifest,
    Segment,
    copy_manifest,
    empty_manifest,
    file_columns,
    find_copy,
    load_manifest,
    remove_copy,
    spare_of,
    write_manifest,
)
from upwell.storage.place import MANIFEST_COPY, Place
from upwell.storage.segments import SegmentStats
from upwell.storage.storages import Storages
from upwell.types import SHARED, Owner, TableId, owner_user, user_owner

FILTER_IN_MANIFEST_BYTES_MAX = 160
"""A filter of some hundred keys is said by the manifest: each file costs the disk a sync."""

_COLLECT = "collect/"


@dataclass(frozen=True, slots=True)
class Base:
    """A partition as a writer found it: the record of its manifest in force, and the manifest.

    New files go to `files`, those of the manifest are where it says; `places` are all that have files.
    `names` are the files there, and `storage` is the record of that storage. `is_new` says that nothing of
    the partition is in force there yet.
    """

    table: Table
    owner: Owner
    record: bytes | None
    files: PartitionFiles
    manifest: Manifest
    places: tuple[Place, ...]
    names: frozenset[str]
    storage: bytes | None
    is_new: bool

    @property
    def name(self) -> str:
        """The name of the manifest's record."""
        return partition_name(self.table.id, self.owner)

    @property
    def number_next(self) -> int:
        """The number that the next segment may have: higher than that of any that ever was."""
        return max(self.next_number("batch"), self.manifest.last_sequence_number + 1)

    def next_number(self, kind: str) -> int:
        """Return a number that no `batch`, `hidden` or `manifest` file of `files` had reached."""
        numbers = (self.files.partition.number_of(name, kind) for name in self.names)
        return 1 + max((number for number in numbers if number is not None), default=-1)

    def path(self, segment: Segment) -> Path:
        """Return where a segment of the manifest can be read now."""
        return path_of(self.files, segment)

    def is_elsewhere(self, segment: Segment) -> bool:
        """Whether a segment isn't where new ones go."""
        return segment.place not in (None, self.files.place)


@dataclass(frozen=True, slots=True)
class Switch:
    """A manifest that is to follow on `base`; `is_due` says that the partition is to be compacted.

    `leaves_files`: that files of it are free then whose collection shall not wait for the next change.
    """

    base: Base
    manifest: Manifest
    is_due: bool
    leaves_files: bool = False


class WriteSegment(Protocol):
    """Writes a segment to a temporary path, and tells its keys to `digests`."""

    def __call__(self, path: Path, /, *, digests: KeyDigests) -> SegmentStats: ...


class PartitionWriter:
    """What flush and compaction share. Thread-safe; partitions are held one by one."""

    def __init__(
        self,
        committer: Committer,
        storages: Storages,
        *,
        clock: Clock,
        points: Points,
        grace_s: float = 0.0,
    ) -> None:
        self._committer = committer
        self._storages = storages
        self._clock = clock
        self._points = points
        self._grace_ms = round(grace_s * 1000)
        self._lock = threading.Lock()
        self._held: dict[tuple[str, Owner], threading.Lock] = {}
        self._wanted: Counter[tuple[str, Owner]] = Counter()
        self._claimed: dict[str, tuple[str, Owner]] = {}
        """The directories that partitions which are held have begun to use."""
        self._keepers = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Remove no file meanwhile, whoever may need it."""
        with self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with self._lock:
                self._keepers -= 1

    @property
    def now_ms(self) -> int:
        return self._clock.now_us() // 1000

    @contextmanager
    def held(self, table: str, owner: Owner) -> Iterator[None]:
        """Wait until nobody else writes the partition's files, and keep everybody else waiting.

        `table` is the full name: a table that is made again under its name has the directory of the one
        before, which may still be cleaned up.
        """
        place = (table, owner)
        with self._lock:
            self._wanted[place] += 1
            lock = self._held.setdefault(place, threading.Lock())
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._wanted[place] -= 1
                if not self._wanted[place]:
                    del self._wanted[place], self._held[place]
                for claimed in [each for each, by in self._claimed.items() if by == place]:
                    del self._claimed[claimed]

    def open(self, view: View, table: Table, owner: Owner) -> Base:
        """Begin a change of a partition that is held: make its directory, collect what nobody needs."""
        record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
        in_force = decode_manifest_record(record)
        files = self._storages.open(partition_of(table, owner), target_of(view.catalog, table, owner))
        is_new = files.place not in (in_force.places or ([files.partition.home] if in_force.number else []))
        if is_new:
            self._storages.refuse_claimed(files.place)
            self._refuse_shared(files)
        files.make(sync_name=False)
        manifest = self.in_force(files, in_force)
        found = self._collect(files, in_force, manifest)
        storage = view.hot.find_record(Kind.STORAGE, files.place.storage)
        names = found.names.get(files.place, frozenset())
        return Base(table, owner, record, files, manifest, found.places, names, storage, is_new)

    def _refuse_shared(self, files: PartitionFiles) -> None:
        """Raise if the directory has the `manifest.json` of another partition, in force or on its way."""
        own = (files.partition.table_id, files.partition.owner)
        name = (files.partition.full_name, files.partition.owner)
        with self._lock:
            by = self._claimed.setdefault(files.shown(MANIFEST_COPY), name)
        if by != name:
            raise _shared(files, by[0])
        copy = find_copy(files)
        view = self._committer.publication.view
        if copy is None or copy.table_number not in view.catalog.by_id:
            return
        other = view.catalog.by_id[TableId(copy.table_number)]
        owner = SHARED if copy.user_id is None else user_owner(copy.user_id)
        record = view.hot.find_record(Kind.MANIFEST, partition_name(other.id, owner))
        theirs = self._storages.open(partition_of(other, owner), decode_manifest_record(record).place)
        is_other = (other.id, owner) != own
        if is_other and record is not None and theirs.shown(MANIFEST_COPY) == files.shown(MANIFEST_COPY):
            raise _shared(files, other.full_name)

    def in_force(self, files: PartitionFiles, in_force: ManifestInForce) -> Manifest:
        """Return the manifest that a record names, with the place of each file; an empty one for none."""
        if not in_force.number:
            return empty_manifest(files.partition, time_ms=self.now_ms).placed(files.place)
        there = files.at(in_force.place or files.partition.home)
        return load_manifest(there, in_force.number).placed(there.place)

    def copy_again(self, table: Table, owner: Owner, in_force: ManifestInForce) -> None:
        """Make up for a copy of the manifest in force that a crash may have prevented."""
        files = self._storages.open(partition_of(table, owner), in_force.place)
        copy_manifest(files, load_manifest(files, in_force.number))

    def copy(self, *done: Switch) -> None:
        """Copy manifests in force for other readers; there is one copy, beside the manifest."""
        copied = [each.base.files.at(each.manifest.place) for each in done]
        for files, each in zip(copied, done, strict=True):
            copy_manifest(files, each.manifest, sync_name=False)
        for files, each in zip(copied, done, strict=True):
            files.sync_names()
            for place in each.base.places:
                if place != files.place:
                    with suppress(StorageFailed):  # the copy is stale, and goes when the place can be reached
                        remove_copy(files.at(place))

    def write_segment(
        self,
        base: Base,
        number: int,
        write: "WriteSegment",
        points: str,
    ) -> Segment:
        """Write one segment and its key filter, unless that is short; `sync` makes their names durable."""
        files, partition = base.files, base.files.partition
        name = partition.segment_name(number)
        temp, digests = files.temp(name), KeyDigests()
        stats = write(temp, digests=digests)
        sha256 = files.digest(temp)
        self._points.reach(f"{points}:segment-written")
        files.publish(temp, name, sync_name=False)
        segment = stats.entry(
            partition, number, schema=base.table.version, time_ms=self.now_ms, sha256=sha256
        )
        content = digests.filter().encode(segment.seal(base.owner))
        if len(content) <= FILTER_IN_MANIFEST_BYTES_MAX:
            segment = msgspec.structs.replace(segment, filter="", filter_bytes=content)
        else:
            files.write_new(segment.filter, content, sync_name=False)
        self._points.reach(f"{points}:segment-published")
        return segment

    def write_manifest(self, base: Base, points: str, **changes: object) -> Manifest:
        """Write the manifest that follows on `base`; it isn't in force yet, nor durable before `sync`."""
        number = max(base.manifest.version + 1, base.next_number("manifest"))
        manifest = msgspec.structs.replace(
            base.manifest,
            version=number,
            updated_at=self.now_ms,
            columns=file_columns(base.table.columns),
            **changes,
        )
        manifest = manifest.placed(base.files.place)
        write_manifest(base.files, manifest)
        self._points.reach(f"{points}:manifest-written")
        return manifest

    @staticmethod
    def sync(changes: Iterable[Switch]) -> None:
        """Make the names of all files that were written durable.

        One directory after the other: the journal of most file systems takes the first with all others.
        """
        bases = [each.base for each in changes]
        for base in {each.files.directory.parent: each for each in bases if each.is_new}.values():
            base.files.sync_beside()
        for base in bases:
            base.files.sync_names()

    def switch(self, *changes: Switch) -> None:
        """Put manifests that are synced in force, all or none; returns when that is durable and visible.

        Durable in `async` durability too: what follows tells other readers, or removes what this replaced.
        """
        batch = Batch()
        for each in changes:
            base, manifest = each.base, each.manifest
            home = manifest.place or base.files.place
            places = tuple(dict.fromkeys((home, *base.places)))
            in_force = ManifestInForce(manifest.version, manifest.flushed_until, each.is_due, places)
            batch.records += [
                RecordWrite(Kind.MANIFEST, base.name, msgspec.msgpack.encode(in_force)),
                RecordWrite(Kind.META, spare_name(base.name), spare_of(manifest)),
            ]
            if each.leaves_files:
                due_ms = str(self.now_ms + self._grace_ms).encode()
                batch.records.append(RecordWrite(Kind.META, _COLLECT + base.name, due_ms))
            batch.expectations += [
                RecordIs(Kind.MANIFEST, base.name, base.record),
                # A storage can't be dropped while somebody writes there.
                RecordIs(Kind.STORAGE, base.files.place.storage, base.storage),
            ]
        self._committer.publication.wait(self._committer.apply(batch))
        self._committer.settle_on_disk()

    def collect_due(self) -> bool:
        """Remove the files of partitions that left some, as far as nobody needs them; whether all went.

        A partition of which somebody still needs an older manifest is looked at again the next time.
        """
        now_ms = self.now_ms
        due = [
            name
            for name, due_ms in self._committer.newest.scan_records(Kind.META, _COLLECT)
            if int(due_ms) <= now_ms
        ]
        left = [name for name in due if not self._collect_noted(name)]
        return not left

    def _collect_noted(self, name: str) -> bool:
        number, _, owner = name.removeprefix(_COLLECT).partition("/")
        records, expected = [RecordWrite(Kind.META, name, None)], list[Expectation]()
        is_done = True
        table = self._committer.publication.view.catalog.by_id.get(int(number))
        with self.held(table.full_name, Owner(owner)) if table is not None else nullcontext():
            view = self._committer.publication.view
            table = view.catalog.by_id.get(int(number))
            manifest = partition_name(TableId(int(number)), Owner(owner))
            record = view.hot.find_record(Kind.MANIFEST, manifest)
            in_force = decode_manifest_record(record)
            if table is not None and in_force.number:  # else the clean-up of the dropped table does it
                files = self._storages.open(partition_of(table, Owner(owner)), in_force.place)
                base = self.in_force(files, in_force)
                found = self._collect(files, in_force, base)
                is_done = found.is_done
                self._points.reach("collect:removed")
                if found.places != in_force.places:
                    value = msgspec.msgpack.encode(msgspec.structs.replace(in_force, places=found.places))
                    records.append(RecordWrite(Kind.MANIFEST, manifest, value))
                    expected.append(RecordIs(Kind.MANIFEST, manifest, record))
            if is_done:
                self._committer.apply(Batch(records=records, expectations=expected))
        return is_done

    def _collect(self, files: PartitionFiles, in_force: ManifestInForce, base: Manifest) -> "_Collected":
        """Remove what neither `base` nor an older manifest names that somebody needs."""
        needed_here = (files.place, base.place)
        found: dict[Place, frozenset[str]] = {}
        away: list[Place] = []
        for place in dict.fromkeys((*in_force.places, base.place or files.place, files.place)):
            try:
                found[place] = frozenset(files.at(place).names())
            except StorageFailed:
                if place in needed_here:
                    raise
                away.append(place)  # a storage that the table has left: another time
        if self._keepers:
            return _Collected(False, (*found, *away), found)
        self._committer.settle_on_disk()
        older = self._older_needed(files, found, base)
        numbers = {base.version, *(manifest.version for manifest in older)}
        for place, names in found.items():
            there = files.at(place)
            orphans = find_orphans(there, [base, *older], names)
            if orphans:
                _renew_copy(there, base)
            found[place] = names.difference(remove_orphans(there, orphans))
            there.drop_links(keep=numbers)
            if not found[place] and place not in needed_here:
                there.remove_empty()
        places = [place for place, names in found.items() if names or place == base.place]
        return _Collected(not older, (*places, *away), found)

    def _older_needed(
        self, files: PartitionFiles, found: Mapping[Place, Iterable[str]], base: Manifest
    ) -> list[Manifest]:
        name = partition_name(files.partition.table_id, files.partition.owner)
        views = self._committer.publication.views()
        read = [decode_manifest_record(view.hot.find_record(Kind.MANIFEST, name)) for view in views]
        needed = {
            each.number: self.in_force(files, each) for each in read if each.number not in (0, base.version)
        }
        next_ = base
        for number, place in _manifests(files, found):
            # A manifest was in force until the next one came: from then its grace counts.
            if number < base.version and next_.updated_at + self._grace_ms > self.now_ms:
                with suppress(ColdFileMissing):  # one that isn't whole never was in force
                    if number not in needed:
                        needed[number] = load_manifest(files.at(place), number).placed(place)
                    next_ = needed[number]
        return list(needed.values())


@dataclass(frozen=True, slots=True)
class _Collected:
    """Whether no older manifest is needed, the places that have files, and which."""

    is_done: bool
    places: tuple[Place, ...]
    names: Mapping[Place, frozenset[str]]


def _shared(files: PartitionFiles, other: str) -> StorageFailed:
    return StorageFailed(
        f"{files.shown(MANIFEST_COPY)} is that of table '{other}': the templates of their storages give two "
        "tables one directory; ALTER STORAGE changes a template"
    )


def _renew_copy(files: PartitionFiles, in_force: Manifest) -> None:
    """Let `manifest.json` name nothing that is about to go: the job that was to renew it may have failed."""
    copy = find_copy(files)
    owner = owner_user(files.partition.owner)
    if copy is None or (copy.table_number, copy.user_id) != (files.partition.table_id, owner):
        return
    if files.place != in_force.place:
        remove_copy(files)
    elif copy.version != in_force.version:
        copy_manifest(files, in_force)


def _manifests(files: PartitionFiles, found: Mapping[Place, Iterable[str]]) -> list[tuple[int, Place]]:
    """Return the numbers of all manifests and where they are, newest first."""
    numbers = [
        (files.partition.number_of(name, "manifest"), place) for place in found for name in found[place]
    ]
    known = [(number, place) for number, place in numbers if number is not None]
    return sorted(known, key=lambda each: each[0], reverse=True)
