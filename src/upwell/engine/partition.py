"""A partition's cold part as its writers change it: one at a time, from one manifest to the next.

Law: flush, compaction and collection of one partition exclude each other. A change begins from the
manifest in force and ends with the commit of the next one's number, which only succeeds from there: that
commit is the switch. What no manifest in force names any more stays as long as a View in use names it, and
a grace longer for readers from outside, who read the files of `manifest.json` at their own pace.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from upwell.clock import Clock
from upwell.effects import Points
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer, ManifestInForce, decode_manifest_record, partition_name
from upwell.engine.rows import partition_of
from upwell.engine.view import View
from upwell.errors import ColdFileMissing
from upwell.storage.cold import collect_orphans
from upwell.storage.hot import Batch, Expectation, Kind, RecordIs, RecordWrite
from upwell.storage.manifest import Manifest, Segment, empty_manifest, load_manifest, write_manifest
from upwell.storage.objects import ObjectStore, PartitionFiles
from upwell.storage.segments import KeyFilter, SegmentStats
from upwell.types import Key, Owner, TableId

_COLLECT = "collect/"


@dataclass(frozen=True, slots=True)
class Base:
    """A partition as a writer found it: the record of its manifest in force, and the manifest."""

    table: Table
    owner: Owner
    record: bytes | None
    files: PartitionFiles
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name of the manifest's record."""
        return partition_name(self.table.id, self.owner)

    @property
    def number_next(self) -> int:
        """The number that the next segment may have: higher than that of any that ever was."""
        return max(self.files.next_number("batch"), self.manifest.last_sequence_number + 1)


class PartitionWriter:
    """What flush and compaction share. Thread-safe; partitions are held one by one."""

    def __init__(
        self,
        committer: Committer,
        objects: ObjectStore,
        *,
        clock: Clock,
        points: Points,
        grace_s: float = 0.0,
    ) -> None:
        self._committer = committer
        self._objects = objects
        self._clock = clock
        self._points = points
        self._grace_ms = round(grace_s * 1000)
        self._lock = threading.Lock()
        self._held: dict[tuple[TableId, Owner], threading.Lock] = {}
        self._wanted: Counter[tuple[TableId, Owner]] = Counter()

    @property
    def now_ms(self) -> int:
        return self._clock.now_us() // 1000

    @contextmanager
    def held(self, table: TableId, owner: Owner) -> Iterator[None]:
        """Wait until nobody else writes the partition's files, and keep everybody else waiting."""
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

    def files(self, table: Table, owner: Owner) -> PartitionFiles:
        return self._objects.open(partition_of(table, owner))

    def open(self, view: View, table: Table, owner: Owner) -> Base:
        """Begin a change of a partition that is held: make its directory, collect what nobody needs."""
        record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
        in_force = decode_manifest_record(record)
        files = self.files(table, owner)
        files.make()
        if in_force.number:
            manifest = load_manifest(files, in_force.number)
        else:
            manifest = empty_manifest(files.partition, time_ms=self.now_ms)
        self._collect(files, manifest)
        return Base(table, owner, record, files, manifest)

    def write_segment(
        self,
        base: Base,
        number: int,
        keys: Sequence[Key],
        write: Callable[[Path], SegmentStats],
        points: str,
    ) -> Segment:
        """Write one segment and its key filter, durably; nothing refers to them yet."""
        files, partition = base.files, base.files.partition
        name = partition.segment_name(number)
        temp = files.temp(name)
        stats = write(temp)
        self._points.reach(f"{points}:segment-written")
        files.publish(temp, name)
        files.write_new(partition.filter_name(number), KeyFilter.build(keys).encode())
        self._points.reach(f"{points}:segment-published")
        return stats.entry(partition, number, schema=base.table.version, time_ms=self.now_ms)

    def write_manifest(self, base: Base, points: str, **changes: object) -> Manifest:
        """Write the manifest that follows on `base`, durably; it isn't in force yet."""
        number = max(base.manifest.version + 1, base.files.next_number("manifest"))
        manifest = msgspec.structs.replace(base.manifest, version=number, updated_at=self.now_ms, **changes)
        write_manifest(base.files, manifest)
        self._points.reach(f"{points}:manifest-written")
        return manifest

    def switch(self, base: Base, manifest: Manifest, *, is_due: bool, leaves_files: bool = False) -> None:
        """Put the manifest in force, from `base` on; returns when it is durable and visible.

        `is_due` says that the partition is to be compacted; `leaves_files` that files of it are free now
        whose collection shall not wait for the next change.
        """
        value = msgspec.msgpack.encode(ManifestInForce(manifest.version, manifest.flushed_until, is_due))
        records = [RecordWrite(Kind.MANIFEST, base.name, value)]
        if leaves_files:
            due_ms = str(self.now_ms + self._grace_ms).encode()
            records.append(RecordWrite(Kind.META, _COLLECT + base.name, due_ms))
        expected: list[Expectation] = [RecordIs(Kind.MANIFEST, base.name, base.record)]
        self._committer.publication.wait(self._committer.apply(Batch(records=records, expectations=expected)))

    def collect_due(self) -> int:
        """Remove the files of partitions that left some, as far as nobody needs them; return how many went.

        A partition of which somebody still needs an older manifest is looked at again the next time.
        """
        count, now_ms = 0, self.now_ms
        for name, due in list(self._committer.newest.scan_records(Kind.META, _COLLECT)):
            if int(due) <= now_ms:
                count += self._collect_noted(name)
        return count

    def _collect_noted(self, name: str) -> int:
        number, _, owner = name.removeprefix(_COLLECT).partition("/")
        removed: list[str] = []
        is_done = True
        with self.held(TableId(int(number)), Owner(owner)):
            view = self._committer.publication.view
            table = view.catalog.by_id.get(int(number))
            record = view.hot.find_record(Kind.MANIFEST, partition_name(TableId(int(number)), Owner(owner)))
            in_force = decode_manifest_record(record)
            if table is not None and in_force.number:  # else the clean-up of the dropped table does it
                files = self.files(table, Owner(owner))
                removed, is_done = self._collect(files, load_manifest(files, in_force.number))
                self._points.reach("collect:removed")
        if is_done:
            self._committer.apply(Batch(records=[RecordWrite(Kind.META, name, None)]))
        return len(removed)

    def _collect(self, files: PartitionFiles, base: Manifest) -> tuple[list[str], bool]:
        """Remove what neither `base` nor an older manifest names that somebody needs.

        Returns the names removed, and whether no older manifest is needed.
        """
        older = self._older_needed(files, base)
        removed = collect_orphans(files, [base, *older])
        removed += files.drop_links(keep={base.version, *(manifest.version for manifest in older)})
        return removed, not older

    def _older_needed(self, files: PartitionFiles, base: Manifest) -> list[Manifest]:
        name = partition_name(files.partition.table_id, files.partition.owner)
        records = (view.hot.find_record(Kind.MANIFEST, name) for view in self._committer.publication.views())
        read = {decode_manifest_record(record).number for record in records} - {0, base.version}
        needed = {number: load_manifest(files, number) for number in read}
        next_ = base
        for number in reversed(files.numbers("manifest")):
            # A manifest was in force until the next one came: from then its grace counts.
            if number < base.version and next_.updated_at + self._grace_ms > self.now_ms:
                with suppress(ColdFileMissing):  # one that isn't whole never was in force
                    next_ = needed.setdefault(number, load_manifest(files, number))
        return list(needed.values())
