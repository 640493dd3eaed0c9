"""The overlay: a partition's live hot rows as one Arrow batch, kept while the partition doesn't change.

Law: the batch of a View holds exactly the rows that are hot and live in it, above `flushed_until`, in
primary-key order; and the `_seq`s that hot versions have superseded in cold segments.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.changelog import has_changed
from upwell.engine.commit import decode_manifest_record, partition_name
from upwell.engine.rows import shaped
from upwell.engine.view import View
from upwell.storage.arrow import record_batch
from upwell.storage.hot import HotReader, Kind
from upwell.types import Owner

BYTES_KEPT_MAX = 256 * 1024 * 1024
PARTITION_BYTES = 4_096
"""About what a partition costs besides its rows: empty ones must not pile up either."""


@dataclass(frozen=True, slots=True)
class HotRows:
    """Live hot rows × (columns, `_seq`, `_deleted`), and superseded cold `_seq`s, as of `seq`."""

    seq: int
    flushed_until: int
    schema: int
    batch: pa.RecordBatch
    superseded: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        arrow_bytes: int = self.batch.nbytes
        return PARTITION_BYTES + arrow_bytes + 8 * len(self.superseded)


class Overlay:
    """Keeps the hot rows of the partitions that were read last, bounded by their bytes. Thread-safe."""

    def __init__(self, *, bytes_kept_max: int = BYTES_KEPT_MAX) -> None:
        self._kept: OrderedDict[tuple[int, Owner], HotRows] = OrderedDict()
        self._bytes_kept = 0
        self._bytes_kept_max = bytes_kept_max
        self._lock = threading.Lock()

    def hot_rows(self, view: View, table: Table, owner: Owner) -> HotRows:
        """Return the partition's hot rows as `view` sees them."""
        place = (table.id, owner)
        record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
        flushed_until = decode_manifest_record(record).flushed_until
        kept = self._find(place)
        if kept is not None and self._is_current(kept, view, table, owner, flushed_until):
            return kept
        rows = _scan(view.hot, table, owner, view.seq, flushed_until)
        self._keep(place, rows)
        return rows

    def _find(self, place: tuple[int, Owner]) -> HotRows | None:
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None:
                self._kept.move_to_end(place)
            return kept

    @staticmethod
    def _is_current(kept: HotRows, view: View, table: Table, owner: Owner, flushed_until: int) -> bool:
        return (
            kept.seq <= view.seq
            and kept.flushed_until == flushed_until
            and kept.schema == table.version
            and not has_changed(view, table.id, owner, kept.seq)
        )

    def _keep(self, place: tuple[int, Owner], rows: HotRows) -> None:
        with self._lock:
            old = self._kept.get(place)
            if old is not None and old.seq > rows.seq:
                return  # a reader of an older View was slow
            self._kept[place] = rows
            self._kept.move_to_end(place)
            self._bytes_kept += rows.size_bytes - (old.size_bytes if old else 0)
            while self._bytes_kept > self._bytes_kept_max and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes_kept -= dropped.size_bytes


def _scan(reader: HotReader, table: Table, owner: Owner, seq: int, flushed_until: int) -> HotRows:
    live = []
    superseded: list[int] = []
    for version in reader.scan_rows(table.id, owner):
        if version.seq > flushed_until:
            superseded.extend(version.supersedes)
            if version.row is not None:
                live.append(shaped(version, table))
    return HotRows(seq, flushed_until, table.version, record_batch(live, table.columns), tuple(superseded))
