"""Compaction: small segments become few, and rows that nothing can show any more go.

    plan → read each group → segments, filters, hidden set, manifest (all synced) → commit of the number

Law: a compaction changes no answer. The commit is the switch, as in a flush: before it nothing refers to
the new files; after it a View from before still reads the old ones. What was merged is written in the
columns of today, so that a segment's schema version holds for all of its rows; a row whose `_seq` lies
between those of an older segment was written under that segment's schema or an older one.

Dropped are superseded rows, and tombstones that hide nothing in the segments that stay. Those of synced
tables stay: a device may still ask for the version of a row that is gone.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import pyarrow as pa

from upwell.effects import Points
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.in_force import decode_manifest_record, partition_name
from upwell.engine.partition import Base, PartitionWriter, Switch
from upwell.engine.payload import payload_of
from upwell.engine.view import View
from upwell.storage.cold import load_filter, load_superseded
from upwell.storage.hot import Kind
from upwell.storage.manifest import Manifest, Segment, file_columns, write_hidden
from upwell.storage.merge import (
    load_segment,
    merged,
    size_in_memory,
    with_payloads,
    without_tombstones,
    write_rows,
)
from upwell.types import Key, Owner

CLASS_SEGMENTS_MAX = 8
"""As many segments of about one size are merged into one."""

CLASS_FACTOR = 8
CLASS_ROWS_MIN = 8_000
"""Segments below are of one size; each size above has as many times the rows as `CLASS_FACTOR`."""

FULL_ROWS = 500_000
FULL_BYTES = 64 * 1024 * 1024
"""A segment with as many is only rewritten to drop rows."""

GROUP_ROWS_MAX = 1_000_000
GROUP_BYTES_MAX = 512 * 1024 * 1024
"""What is merged at once, in memory."""

_ROUNDS_MAX = 8


@dataclass(frozen=True, slots=True)
class Compacted:
    """What the compaction of one partition did: segments before and after, and rows dropped."""

    before: int
    after: int
    dropped: int


def is_due(manifest: Manifest, *, synced: bool) -> bool:
    """Whether many segments have one size, or half of the rows can't be seen any more."""
    rows = sum(segment.row_count for segment in manifest.segments)
    dead = sum(hidden.count for hidden in manifest.hidden)
    dead += 0 if synced else rows - sum(segment.live_count for segment in manifest.segments)
    return (rows > 0 and dead * 2 >= rows) or bool(_crowded(manifest.segments))


class Compact:
    """Compacts partitions, one at a time each."""

    def __init__(self, committer: Committer, partitions: PartitionWriter, *, points: Points) -> None:
        self._committer = committer
        self._partitions = partitions
        self._points = points

    def owners(self, view: View, table: Table, *, due_only: bool) -> list[Owner]:
        """Return the owners that have something cold, or only those whose segments are due."""
        prefix = f"{table.id:010d}/"
        found = view.hot.scan_records(Kind.MANIFEST, prefix)
        return [
            Owner(name[len(prefix) :])
            for name, record in found
            if not due_only or decode_manifest_record(record).is_due
        ]

    def compact_partition(self, table: Table, owner: Owner, *, whole: bool) -> Compacted:
        """Merge what is due, or (`whole`) all that can be; raises `OSError` if a file can't be written."""
        before = after = dropped = 0
        with self._partitions.held(table.full_name, owner):
            for round_ in range(_ROUNDS_MAX):
                done = self._compact(table, owner, whole=whole and not round_)
                before = before if round_ else done.before
                after = done.after
                dropped += done.dropped
                if done.before == done.after and not done.dropped:
                    break
        return Compacted(before, after, dropped)

    def _compact(self, table: Table, owner: Owner, *, whole: bool) -> Compacted:
        self._points.reach("compact:begin")
        view = self._committer.publication.view
        now = view.catalog.by_id.get(table.id)
        record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
        if now is None or not decode_manifest_record(record).number:
            return Compacted(0, 0, 0)
        base = self._partitions.open(view, now, owner)
        superseded = load_superseded(base.files, base.manifest, now.columns)
        plan = _Plan(base, superseded)
        groups = plan.groups(whole=whole or plan.is_half_dead)
        count = len(base.manifest.segments)
        if not groups:
            self._settle(base)
            return Compacted(count, count, 0)
        manifest = self._write_files(base, superseded, groups)
        switch = Switch(base, manifest, is_due(manifest, synced=now.synced), leaves_files=True)
        self._partitions.sync([switch])
        self._points.reach("compact:before-commit")
        self._partitions.switch(switch)
        self._points.reach("compact:after-commit")
        self._partitions.copy(switch)
        self._points.reach("compact:after-copy")
        return Compacted(count, len(manifest.segments), _rows(base.manifest) - _rows(manifest))

    def _settle(self, base: Base) -> None:
        """Nothing is to be done: make up for a copy that a crash prevented, and for a flag that is wrong.

        The copy tells what the columns are called now; the manifest itself never changes.
        """
        if decode_manifest_record(base.record).is_due:
            self._partitions.switch(Switch(base, base.manifest, is_due=False))
        columns = file_columns(base.table.columns)
        copied = msgspec.structs.replace(base.manifest, columns=columns)
        self._partitions.copy(Switch(base, copied, is_due=False))

    def _write_files(
        self, base: Base, superseded: Sequence[int], groups: Sequence[Sequence[Segment]]
    ) -> Manifest:
        gone = {segment.id for group in groups for segment in group}
        stay = [segment for segment in base.manifest.segments if segment.id not in gone]
        is_needed = _Shadows(base, stay).may_hide
        new: list[Segment] = []
        number = base.number_next
        for group in groups:
            rows = self._merge(base, group, superseded)
            if not base.table.synced:
                rows = without_tombstones(rows, base.table.columns, is_needed)
            if rows.num_rows:
                write = partial(write_rows, rows=rows, columns=base.table.columns)
                new.append(self._partitions.write_segment(base, number, write, "compact"))
                number += 1
        rest = [seq for seq in superseded if any(each.min_seq <= seq <= each.max_seq for each in stay)]
        hidden = (write_hidden(base.files, base.next_number("hidden"), rest),) if rest else ()
        return self._partitions.write_manifest(
            base,
            "compact",
            segments=tuple(sorted([*stay, *new], key=lambda segment: segment.min_seq)),
            hidden=hidden,
            last_sequence_number=max(number - 1, base.manifest.last_sequence_number),
        )

    @staticmethod
    def _merge(base: Base, group: Iterable[Segment], superseded: Sequence[int]) -> pa.Table:
        table, parts = base.table, []
        for segment in group:
            path = base.path(segment)
            loaded = load_segment(path, table.columns, synced=table.synced, row_count=segment.row_count)
            if table.synced:
                payload = partial(_payload, table)
                parts.append(with_payloads(loaded, table.columns, payload))
            else:
                parts.append(loaded.rows)
        return merged(parts, table.columns, superseded)


class _Plan:
    """Which segments of a partition are merged with which."""

    def __init__(self, base: Base, superseded: Sequence[int]) -> None:
        self._base = base
        self._superseded = superseded

    @property
    def is_half_dead(self) -> bool:
        dead = sum(self._dead(segment) for segment in self._base.manifest.segments)
        return dead > 0 and dead * 2 >= _rows(self._base.manifest)

    def groups(self, *, whole: bool) -> list[list[Segment]]:
        """Return groups in the order of their seqs, none that would come out as it went in."""
        segments, elsewhere = self._base.manifest.segments, self._base.is_elsewhere
        if whole:
            chosen = [each for each in segments if not _is_full(each) or self._dead(each) or elsewhere(each)]
        else:
            chosen = _crowded(segments)
        groups = self._bounded(sorted(chosen, key=lambda segment: segment.min_seq))
        return [
            group
            for group in groups
            if len(group) > 1 or self._dead(group[0]) or (whole and elsewhere(group[0]))
        ]

    def _bounded(self, segments: Iterable[Segment]) -> list[list[Segment]]:
        groups: list[list[Segment]] = []
        rows = size_bytes = 0
        for segment in segments:
            more_bytes = size_in_memory(self._base.path(segment))
            if more_bytes > GROUP_BYTES_MAX:
                continue  # it stays as it is
            rows += segment.row_count
            size_bytes += more_bytes
            if not groups or rows > GROUP_ROWS_MAX or size_bytes > GROUP_BYTES_MAX:
                groups.append([])
                rows, size_bytes = segment.row_count, more_bytes
            groups[-1].append(segment)
        return groups

    def _dead(self, segment: Segment) -> int:
        """Return how many rows of a segment may go, at most: superseded `_seq`s in its range, tombstones."""
        first = bisect_left(self._superseded, segment.min_seq)
        dead = bisect_right(self._superseded, segment.max_seq) - first
        return dead if self._base.table.synced else dead + segment.row_count - segment.live_count


class _Shadows:
    """The segments that stay, asked whether a tombstone hides a row of theirs."""

    def __init__(self, base: Base, stay: Sequence[Segment]) -> None:
        columns = base.table.columns
        self._filters = [(segment.min_seq, load_filter(base.files, segment, columns)) for segment in stay]

    def may_hide(self, key: Key, seq: int) -> bool:
        return any(min_seq < seq and keys.may_contain(key) for min_seq, keys in self._filters)


def _crowded(segments: Iterable[Segment]) -> list[Segment]:
    """Return the segments of those sizes that have too many."""
    by_size: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        if not _is_full(segment):
            by_size[_size_class(segment)].append(segment)
    crowded = [found for found in by_size.values() if len(found) >= CLASS_SEGMENTS_MAX]
    return [segment for found in crowded for segment in found]


def _size_class(segment: Segment) -> int:
    number, rows = 0, CLASS_ROWS_MIN
    while segment.row_count >= rows:
        number, rows = number + 1, rows * CLASS_FACTOR
    return number


def _is_full(segment: Segment) -> bool:
    return segment.row_count >= FULL_ROWS or segment.size_bytes >= FULL_BYTES


def _rows(manifest: Manifest) -> int:
    return sum(segment.row_count for segment in manifest.segments)


def _payload(table: Table, row: list[object]) -> str:
    return payload_of(table, row, None).decode()  # type: ignore[arg-type]
