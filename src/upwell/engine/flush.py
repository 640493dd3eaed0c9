"""Flush: a partition's hot rows up to a seq become one immutable segment.

    mark → View at S → segment, filter, hidden set, manifest (all synced) → commit of the manifest's
    number → cleanup of the hot copies in small slices

Law: the commit is the switch. Before it nothing refers to the new files; after it every hot version
≤ `flushed_until` is invisible, whether it was cleaned up yet or not. So a crash anywhere neither loses
nor doubles a row, and a flush that is run again goes on where the last one was.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from upwell.clock import Clock
from upwell.effects import Points
from upwell.engine.catalog import Table
from upwell.engine.commit import (
    Committer,
    ManifestInForce,
    decode_manifest_record,
    partition_name,
)
from upwell.engine.rows import Rows, partition_of, shaped
from upwell.engine.view import View
from upwell.storage.cold import collect_orphans
from upwell.storage.hot import Batch, Drop, Kind, RecordIs, RecordWrite, Version
from upwell.storage.manifest import (
    Manifest,
    copy_manifest,
    empty_manifest,
    load_manifest,
    write_hidden,
    write_manifest,
)
from upwell.storage.objects import ObjectStore, PartitionFiles
from upwell.storage.segments import KeyFilter, SegmentStats, write_segment
from upwell.types import Owner, user_owner

CLEANUP_ROWS = 500


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush of one partition did: rows written (tombstones too), live rows among them."""

    rows: int
    live: int
    flushed_until: int
    left: tuple[int, int] = (0, 0)
    """How many rows stayed hot that were there when it began, and the seq after which they came."""


class Flush:
    """Flushes partitions. Two flushes of one partition exclude each other."""

    def __init__(
        self, committer: Committer, objects: ObjectStore, rows: Rows, *, clock: Clock, points: Points
    ) -> None:
        self._committer = committer
        self._objects = objects
        self._rows = rows
        self._clock = clock
        self._points = points
        self._lock = threading.Lock()

    def pending(self, view: View, table: Table, users: Sequence[str] | None = None) -> list[Owner]:
        """Return the owners (of these users only) that have hot versions, live or waiting for cleanup."""
        return list(_owners(view, table, users))

    def is_pending(self, view: View, table: Table, users: Sequence[str] | None = None) -> bool:
        """Whether anything of the table, or of these users in it, is hot; looks for one owner only."""
        return next(_owners(view, table, users), None) is not None

    def flush_partition(self, table: Table, owner: Owner, *, until: int | None = None) -> Flushed:
        """Move what is hot (up to seq `until`) into a segment; `OSError` if a file can't be written."""
        with self._lock:
            left = None
            try:
                view = self._committer.begin_flush(table.id, owner)
                flushed = self._flush(view, table, owner, view.seq if until is None else until)
                left = flushed.left
                return flushed
            finally:
                self._committer.end_flush(table.id, owner, left)

    def _flush(self, view: View, table: Table, owner: Owner, asked: int) -> Flushed:
        self._points.reach("flush:begin")
        # Never with fewer columns than the rows of the View have.
        table = view.catalog.by_id.get(table.id, table)
        name = partition_name(table.id, owner)
        record = view.hot.find_record(Kind.MANIFEST, name)
        in_force = decode_manifest_record(record)
        versions = [shaped(version, table) for version in view.hot.scan_rows(table.id, owner)]
        fresh = [version for version in versions if in_force.flushed_until < version.seq <= asked]
        written = [version for version in fresh if _belongs_in_parquet(version, table)]
        files = self._objects.open(partition_of(table, owner))
        until = in_force.flushed_until
        if fresh:
            until = max(version.seq for version in fresh)
            manifest = self._write_files(files, table, owner, in_force, written, fresh, until)
            self._points.reach("flush:before-commit")
            self._switch(name, record, manifest)
            self._points.reach("flush:after-commit")
            copy_manifest(files, manifest)
        elif in_force.number:
            # An earlier flush may have ended between its commit and the copy for other readers.
            copy_manifest(files, load_manifest(files, in_force.number))
        self._clean_up(table, owner, [version for version in versions if version.seq <= until])
        self._points.reach("flush:after-cleanup")
        left = sum(version.seq > asked for version in versions)
        live = sum(version.row is not None for version in written)
        return Flushed(len(written), live, until, (left, asked))

    def _write_files(
        self,
        files: PartitionFiles,
        table: Table,
        owner: Owner,
        in_force: ManifestInForce,
        written: Sequence[Version],
        fresh: Sequence[Version],
        until: int,
    ) -> Manifest:
        files.make()
        now_ms = self._clock.now_us() // 1000
        if in_force.number:
            base = load_manifest(files, in_force.number)
        else:
            base = empty_manifest(files.partition, time_ms=now_ms)
        self._collect(files, base)
        segments, number = base.segments, base.last_sequence_number
        if written:
            number = max(files.next_number("batch"), number + 1)
            stats = self._write_segment(files, table, owner, written, number)
            entry = stats.entry(files.partition, number, schema=table.version, time_ms=now_ms)
            segments = (*segments, entry)
        hidden = base.hidden
        superseded = {seq for version in fresh for seq in version.supersedes}
        if superseded:
            hidden = (*hidden, write_hidden(files, files.next_number("hidden"), superseded))
        manifest = msgspec.structs.replace(
            base,
            version=max(in_force.number + 1, files.next_number("manifest")),
            updated_at=now_ms,
            segments=segments,
            hidden=hidden,
            flushed_until=until,
            last_sequence_number=number,
        )
        write_manifest(files, manifest)
        self._points.reach("flush:manifest-written")
        return manifest

    def _collect(self, files: PartitionFiles, base: Manifest) -> None:
        """Remove what neither the manifest in force nor that of a View in use names."""
        name = partition_name(files.partition.table_id, files.partition.owner)
        records = (view.hot.find_record(Kind.MANIFEST, name) for view in self._committer.publication.views())
        older = {decode_manifest_record(record).number for record in records} - {0, base.version}
        collect_orphans(files, [base, *(load_manifest(files, number) for number in older)])
        files.drop_links(keep={base.version, *older})

    def _write_segment(
        self, files: PartitionFiles, table: Table, owner: Owner, versions: Sequence[Version], number: int
    ) -> SegmentStats:
        name = files.partition.segment_name(number)
        temp = files.temp(name)
        stats = write_segment(temp, versions, table.columns, owner=owner, synced=table.synced)
        self._points.reach("flush:segment-written")
        files.publish(temp, name)
        filter_name = files.partition.filter_name(number)
        files.write_new(filter_name, KeyFilter.build([version.key for version in versions]).encode())
        self._points.reach("flush:segment-published")
        return stats

    def _switch(self, name: str, record: bytes | None, manifest: Manifest) -> None:
        value = msgspec.msgpack.encode(ManifestInForce(manifest.version, manifest.flushed_until))
        batch = Batch(
            records=[RecordWrite(Kind.MANIFEST, name, value)],
            expectations=[RecordIs(Kind.MANIFEST, name, record)],
        )
        self._committer.publication.wait(self._committer.apply(batch))

    def _clean_up(self, table: Table, owner: Owner, versions: Sequence[Version]) -> None:
        for start in range(0, len(versions), CLEANUP_ROWS):
            drops = [Drop(table.id, owner, v.key, v.seq) for v in versions[start : start + CLEANUP_ROWS]]
            self._committer.apply(Batch(drops=drops))
            self._points.reach("flush:mid-cleanup")


def _owners(view: View, table: Table, users: Sequence[str] | None) -> Iterator[Owner]:
    if table.is_ephemeral:
        return iter(())
    if users is None:
        return iter(view.hot.owners(table.id))
    named = map(user_owner, dict.fromkeys(users))
    return (owner for owner in named if next(view.hot.scan_rows(table.id, owner), None) is not None)


def _belongs_in_parquet(version: Version, table: Table) -> bool:
    """Rows do; tombstones only while they hide a cold version, or a device may still ask for their count."""
    return version.row is not None or bool(version.supersedes) or table.synced
