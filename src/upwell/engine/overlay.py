"""The overlay: live hot rows as Arrow batches, kept per partition and brought up to date by its log.

Law: the rows of a View are exactly those that are hot and live in it, above `flushed_until`; and the
`_seq`s are known that hot versions have superseded in cold segments.

Nothing is done per write: the first reader after some writes converts their log entries, all at once.
A row that was superseded is found by its `_seq` and marked; batches merge geometrically.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from upwell.engine.catalog import Table
from upwell.engine.changelog import Changelog
from upwell.engine.hot_rows import HotRows, advanced, scanned
from upwell.engine.in_force import decode_manifest_record, partition_name
from upwell.engine.rows import shaped
from upwell.engine.view import View
from upwell.storage.hot import Change, HotReader, Kind, Version, partition_floor
from upwell.types import Owner

BYTES_KEPT_MAX = 256 * 1024 * 1024
CATCH_UP_CHANGES_MAX = 4_096
"""Whose rows are older than that many changes is scanned anew."""
TAIL_FILTERED_MAX = 1_024
"""So many newest changes of all partitions are looked through in memory before the log is read."""


@dataclass(slots=True)
class _Kept:
    """Rows of a partition; since `rows.seq` nothing has changed up to `until`."""

    rows: HotRows
    until: int


class Overlay:
    """Keeps the hot rows of the partitions that were read last, bounded by their bytes. Thread-safe.

    Without a `changelog`, changes are read from the store.
    """

    def __init__(self, changelog: Changelog | None = None, *, bytes_kept_max: int = BYTES_KEPT_MAX) -> None:
        self._changelog = changelog
        self._kept: OrderedDict[tuple[int, Owner], _Kept] = OrderedDict()
        self._bytes_kept = 0
        self._bytes_kept_max = bytes_kept_max
        self._lock = threading.Lock()

    def hot_rows(self, view: View, table: Table, owner: Owner) -> HotRows:
        """Return the partition's hot rows as `view` sees them."""
        rows = self.find_rows(view, table, owner, changes_max=CATCH_UP_CHANGES_MAX)
        if rows is not None:
            return rows
        flushed_until = _flushed_until(view, table, owner)
        rows = _scan(view.hot, table, owner, view.seq, flushed_until)
        self._keep((table.id, owner), rows)
        return rows

    def kept_bytes(self, table: Table, owner: Owner) -> int:
        """Return what the partition's rows cost in memory, 0 if they aren't kept."""
        with self._lock:
            kept = self._kept.get((table.id, owner))
        return 0 if kept is None else kept.rows.size_bytes

    def find_rows(self, view: View, table: Table, owner: Owner, *, changes_max: int) -> HotRows | None:
        """Return the rows if that takes no more than to convert `changes_max` changes, else None."""
        place = (table.id, owner)
        kept = self._find(place)
        if kept is None or kept.rows.seq > view.seq or kept.rows.schema != table.version:
            return None
        if kept.rows.flushed_until != _flushed_until(view, table, owner):
            return None
        if view.seq <= kept.until:
            return kept.rows
        rows, until = kept.rows, kept.until
        changes = self._changes(view, table, owner, until, changes_max)
        if changes is None:
            return None
        if not changes:
            kept.until = max(kept.until, view.seq) if kept.rows is rows else kept.until
            return rows
        rows = advanced(rows, changes, table, view.seq)
        self._keep(place, rows)
        return rows

    def _changes(
        self, view: View, table: Table, owner: Owner, after: int, changes_max: int
    ) -> list[Change] | None:
        """Return the partition's changes up to the View, None if they are too many or may be gone."""
        tail = self._changelog.tail(view, after=after) if self._changelog else None
        if tail is not None and len(tail) <= TAIL_FILTERED_MAX:
            found = [change for change in tail if change.table == table.id and change.owner == owner]
        else:
            if 0 < after < partition_floor(view.hot, table.id, owner).seq:
                return None
            found = view.hot.read_log(table.id, owner, after, view.seq, changes_max + 1)
        return found if len(found) <= changes_max else None

    def _find(self, place: tuple[int, Owner]) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None:
                self._kept.move_to_end(place)
            return kept

    def _keep(self, place: tuple[int, Owner], rows: HotRows) -> None:
        with self._lock:
            old = self._kept.get(place)
            if old is not None and old.until > rows.seq:
                return  # a reader of an older View was slow
            self._kept[place] = _Kept(rows, rows.seq)
            self._kept.move_to_end(place)
            self._bytes_kept += rows.size_bytes - (old.rows.size_bytes if old else 0)
            while self._bytes_kept > self._bytes_kept_max and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes_kept -= dropped.rows.size_bytes


def _flushed_until(view: View, table: Table, owner: Owner) -> int:
    record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
    return decode_manifest_record(record).flushed_until if record else 0


def _scan(reader: HotReader, table: Table, owner: Owner, seq: int, flushed_until: int) -> HotRows:
    superseded: list[int] = []

    def live() -> Iterator[Version]:
        for version in reader.scan_rows(table.id, owner):
            if version.seq > flushed_until:
                superseded.extend(version.supersedes)
                if version.row is not None:
                    yield shaped(version, table)

    chunks = scanned(live(), table)
    return HotRows(seq, flushed_until, table, chunks, tuple(superseded))
