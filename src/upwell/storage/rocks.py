"""`RocksStore`: the hot store in an embedded RocksDB, and the only door to `rocksdict`.

Law: a batch is one unsynced RocksDB write under the store's lock; `sync` returns after a sync of the
write-ahead log that covers it. After a write or a sync that failed, nothing is written any more.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import msgspec
from rocksdict import BlockBasedOptions, Cache, Checkpoint, DBCompressionType, Options, Rdict, WriteBatch

from upwell.clock import Clock
from upwell.effects import Files, NoPoints, OsFiles, Points
from upwell.errors import ReadOnly, StartRefused
from upwell.ids import EPOCH_SHIFT, Seq, Snowflakes
from upwell.storage import rocks_keys
from upwell.storage.hot import Applied, Batch, Drop, DropRange, HotReader, Kind, Trim, has_own_floor
from upwell.storage.order import Allotted, allot, newest_trims, verify, version
from upwell.storage.rocks_read import Moment, RocksReader, decode_head
from upwell.types import Owner, TableId

FORMAT_VERSION = 1
BLOCK_CACHE_BYTES = 64 << 20
WRITE_BUFFER_BYTES = 64 << 20
BLOOM_BITS_PER_KEY = 10
INFO_LOGS_MAX = 4
COUNTERS_CACHED_MAX = 100_000
PARTITIONS_CACHED_MAX = 100_000
CHUNK_ROWS_MIN = 16
CHUNK_ROWS_MAX = 1024
# Rows that went cold leave tombstones; a file with this many of them among neighbours is compacted.
TOMBSTONE_WINDOW, TOMBSTONES_IN_WINDOW, TOMBSTONE_RATIO = 4096, 2048, 0.5

CLOSED = "the store is closed"
_MISSING = ("key not found",)

WalSync = Callable[[Callable[[], None]], None]
"""Called for each sync with the function that syncs the write-ahead log."""

_encode = msgspec.msgpack.Encoder().encode


class RocksStore(RocksReader):
    """`HotStore` in the directory `path`, which it alone uses until `close`.

    Raises `StartRefused` if another server has the directory or a newer Upwell wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        worker: int = 0,
        points: Points | None = None,
        files: Files | None = None,
        wal_sync: WalSync | None = None,
    ) -> None:
        (files or OsFiles()).make_dirs(path)
        self._db: Rdict | None = _open(path)
        self._lock = threading.RLock()
        self._pins: WeakSet[_Pin] = WeakSet()
        self._points = points or NoPoints()
        self._wal_sync = wal_sync or _sync_plainly
        self._failed = False
        self._counters: OrderedDict[Owner, int] = OrderedDict()
        self._fenced: OrderedDict[tuple[TableId, Owner], None] = OrderedDict()
        self._log_sizes: dict[TableId, int] = {}
        try:
            _prepare(self._db)
        except StartRefused:
            self.close()
            raise
        epoch = self._get(rocks_keys.META_EPOCH)
        self._epoch = 0 if epoch is None else rocks_keys.number(epoch)
        high_water = self._get(rocks_keys.META_HIGH_WATER)
        self._last_seq = Seq(0 if high_water is None else rocks_keys.number(high_water))
        self._seqs = Snowflakes(clock, worker=worker, after=self._last_seq)

    @property
    def last_seq(self) -> Seq:
        return self._last_seq

    @property
    def epoch(self) -> int:
        return self._epoch

    def raise_epoch(self) -> None:
        batch = WriteBatch(raw_mode=True)
        batch.put(rocks_keys.META_EPOCH, rocks_keys.number_bytes(self._epoch + 1))
        with self._lock:
            self._refuse_if_failed()
            self._write(batch)
            self._epoch += 1
        self.sync()

    def apply(self, batch: Batch) -> Applied:
        with self._lock:
            self._refuse_if_failed()
            verify(batch, self)
            allotted = allot(batch, self._seqs, self._counter_before_next)
            grown: dict[TableId, int] = {}
            out = self._bytes(batch, allotted, grown)
            sizes = {table: self.log_bytes(table) + by for table, by in grown.items()}
            for table, size in sizes.items():
                out.put(rocks_keys.log_size(table), rocks_keys.number_bytes(size))
            self._write(out)
            self._last_seq = allotted.seq
            self._log_sizes.update(sizes)
            self._remember(batch, allotted)
        return Applied(allotted.seq, allotted.changes)

    def snapshot(self) -> tuple[Seq, HotReader]:
        with self._lock:
            return self._last_seq, RocksReader(self._now())

    def sync(self) -> None:
        self._refuse_if_failed()
        flush_wal = self._open_db().flush_wal
        try:
            self._wal_sync(flush_wal)
        except Exception as error:  # rocksdict raises nothing more precise
            # A later sync may succeed although the pages of this one are lost: never try again.
            self._failed = True
            raise ReadOnly("syncing the log of the store failed; restart the server") from error
        self._points.reach("commit:after-sync")

    def forget_table(self, table: TableId) -> None:
        batch = WriteBatch(raw_mode=True)
        batch.delete_range(rocks_keys.row_table(table), rocks_keys.row_table(table + 1))
        batch.delete_range(rocks_keys.log_table(table), rocks_keys.log_table(table + 1))
        batch.delete(rocks_keys.log_size(table))
        with self._lock:
            self._refuse_if_failed()
            self._write(batch)
            self._log_sizes.pop(table, None)
            for partition in [known for known in self._fenced if known[0] == table]:
                del self._fenced[partition]

    def reclaim(self, table: TableId) -> None:
        db = self._open_db()
        try:
            db.flush()  # neither of the two holds the GIL
            db.compact_range(rocks_keys.row_table(table), rocks_keys.row_table(table + 1))
            db.compact_range(rocks_keys.log_table(table), rocks_keys.log_table(table + 1))
        except Exception as error:  # rocksdict raises nothing more precise
            raise OSError(f"the hot store could not give space back: {error}") from error

    def checkpoint(self, path: Path) -> None:
        # A checkpoint holds the GIL; after a flush, which doesn't, little is left for it to do.
        self._open_db().flush()
        with self._lock:
            Checkpoint(self._open_db()).create_checkpoint(str(path))

    def close(self) -> None:
        with self._lock:
            for pin in list(self._pins):
                pin.release()  # RocksDB keeps its lock on the directory while one of them lives
            self._pins.clear()
            if self._db is not None:
                self._db.close()
                self._db = None

    def log_bytes(self, table: TableId) -> int:
        with self._lock:
            if table not in self._log_sizes:
                self._log_sizes[table] = super().log_bytes(table)
            return self._log_sizes[table]

    def owner_counter(self, owner: Owner) -> int:
        with self._lock:
            counter = self._counters.get(owner)
        return super().owner_counter(owner) if counter is None else counter

    def _counter_before_next(self, owner: Owner) -> int:
        return max(self.owner_counter(owner), self._epoch << EPOCH_SHIFT)

    def _open_db(self) -> Rdict:
        assert self._db is not None, CLOSED
        return self._db

    def _now(self) -> Moment:
        with self._lock:
            pin = _Pin(self._open_db())
            self._pins.add(pin)
        return pin

    def _get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._open_db().get(key)
        return value

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise ReadOnly("an earlier write or sync of the store failed; restart the server")

    def _write(self, batch: WriteBatch) -> None:
        self._points.reach("commit:before-write")
        try:
            self._open_db().write(batch)
        except Exception as error:  # rocksdict raises nothing more precise
            self._failed = True
            raise ReadOnly("writing to the store failed; restart the server") from error
        self._points.reach("commit:after-write")

    def _bytes(self, batch: Batch, allotted: Allotted, grown: dict[TableId, int]) -> WriteBatch:
        """Return what is to be written; `grown` gets by how many bytes the log of each table grows."""
        out = WriteBatch(raw_mode=True)
        if batch.drops:
            self._drop(out, batch.drops)
        for each in batch.ranges:
            _drop_range(out, each)
        if batch.trims:
            self._trim(out, batch.trims, grown)
        for write, change in zip(batch.rows, allotted.changes, strict=True):
            row = rocks_keys.row(write.table, write.owner, write.key)
            if write.vanishes:
                out.delete(row)
            else:
                out.put(row, _encode(version(write, change.seq)))
            entry = _encode(change)
            out.put(rocks_keys.log(change.table, change.seq), entry)
            grown[write.table] = grown.get(write.table, 0) + len(entry)
            if change.counter:  # users have them
                pointer = rocks_keys.pointer_bytes(change.table, change.seq)
                out.put(rocks_keys.owner_log(write.owner, change.counter), pointer)
        for partition in {(write.table, write.owner) for write in batch.rows}:
            self._put_fence(out, partition)
        for record in batch.records:
            name = rocks_keys.record(record.kind, record.name)
            if record.value is None:
                out.delete(name)
            else:
                out.put(name, record.value)
        for owner, counter in allotted.counters.items():
            out.put(rocks_keys.counter(owner), rocks_keys.number_bytes(counter))
        out.put(rocks_keys.META_HIGH_WATER, rocks_keys.number_bytes(allotted.seq))
        return out

    def _drop(self, out: WriteBatch, drops: Sequence[Drop]) -> None:
        """Delete the rows that did not move on; all are looked up by one call."""
        partitions = {(drop.table, drop.owner) for drop in drops}
        prefixes = {partition: rocks_keys.row_partition(*partition) for partition in partitions}
        rows: list[Any] = [
            prefixes[drop.table, drop.owner] + rocks_keys.key_bytes(drop.key) for drop in drops
        ]
        values: Any = self._open_db().get(rows)
        for row, drop, value in zip(rows, drops, values, strict=True):
            if value is not None and decode_head(value).seq == drop.seq:
                out.delete(row)

    def _trim(self, out: WriteBatch, trims: Sequence[Trim], grown: dict[TableId, int]) -> None:
        entries: list[Any] = [rocks_keys.log(trim.table, trim.seq) for trim in trims]
        values: Any = self._open_db().get(entries)
        for trim, entry, value in zip(trims, entries, values, strict=True):
            if value is not None:
                out.delete(entry)
                grown[trim.table] = grown.get(trim.table, 0) - len(value)
            if trim.alone:
                out.delete(rocks_keys.owner_log(trim.owner, trim.counter))
        goes_by_itself = cache(partial(has_own_floor, self))
        for owner, counter in newest_trims(trims).items():
            start, stop = rocks_keys.owner_log_begin(owner), rocks_keys.owner_log(owner, counter + 1)
            for key, pointer in self._now().between(start, stop):
                if not goes_by_itself(rocks_keys.pointer(pointer)[0]):
                    out.delete(key)

    def _put_fence(self, out: WriteBatch, partition: tuple[TableId, Owner]) -> None:
        if partition not in self._fenced:
            fence = rocks_keys.row_fence(*partition)
            if self._get(fence) is None:
                out.put(fence, rocks_keys.FENCE_VALUE)

    def _remember(self, batch: Batch, allotted: Allotted) -> None:
        for owner, counter in allotted.counters.items():
            self._counters[owner] = counter
            self._counters.move_to_end(owner)
        for write in batch.rows:
            self._fenced[write.table, write.owner] = None
            self._fenced.move_to_end((write.table, write.owner))
        while len(self._counters) > COUNTERS_CACHED_MAX:
            self._counters.popitem(last=False)
        while len(self._fenced) > PARTITIONS_CACHED_MAX:
            self._fenced.popitem(last=False)


def _drop_range(out: WriteBatch, drop: DropRange) -> None:
    """Delete what is between the kept rows; what the batch writes itself comes after, and stays."""
    start = rocks_keys.row(drop.table, drop.owner, drop.first)
    for key in drop.kept:
        row = rocks_keys.row(drop.table, drop.owner, key)
        if start < row:
            out.delete_range(start, row)
        start = row + b"\0"
    stop = rocks_keys.row(drop.table, drop.owner, drop.last) + b"\0"
    if start < stop:
        out.delete_range(start, stop)


class _Pin:
    """The database at the moment of construction.

    A `rocksdict.Snapshot` keeps its moment for gets only: its iterators show the newest state (0.3.29).
    A RocksDB iterator keeps the moment in which it was opened, so one of these, moved from read to read,
    serves the scans. They take it for a chunk of rows at a time.
    """

    def __init__(self, db: Rdict) -> None:
        self._snapshot = db.snapshot()
        self._iterator = db.iter()
        self._lock = threading.Lock()
        self._released = False

    def release(self) -> None:
        with self._lock:
            self._released = True
            del self._snapshot, self._iterator

    def get(self, key: bytes) -> bytes | None:
        assert not self._released, CLOSED
        try:
            value: bytes = self._snapshot[key]
        except Exception as error:  # rocksdict has no other way to say that a key is missing
            if error.args == _MISSING:
                return None
            raise
        return value

    def first(self, start: bytes) -> bytes | None:
        with self._lock:
            assert not self._released, CLOSED
            self._iterator.seek(start)
            return self._key()

    def between(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        next_start: bytes | None = start
        chunk_rows = CHUNK_ROWS_MIN
        while next_start is not None:
            entries, next_start = self._entries(next_start, stop, chunk_rows)
            yield from entries
            chunk_rows = min(chunk_rows * 4, CHUNK_ROWS_MAX)

    def until_fence(self, start: bytes) -> Iterator[list[bytes]]:
        next_start: bytes | None = start
        chunk_rows = CHUNK_ROWS_MIN
        while next_start is not None:
            values, next_start = self._values(next_start, chunk_rows)
            yield values
            chunk_rows = min(chunk_rows * 4, CHUNK_ROWS_MAX)

    def _entries(
        self, start: bytes, stop: bytes, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        entries: list[tuple[bytes, bytes]] = []
        with self._lock:
            assert not self._released, CLOSED
            iterator = self._iterator
            iterator.seek(start)
            for _ in range(limit):
                key = self._key()
                if key is None or key >= stop:
                    return entries, None
                entries.append((key, iterator.value()))
                iterator.next()
            return entries, self._key()

    def _values(self, start: bytes, limit: int) -> tuple[list[bytes], bytes | None]:
        values: list[bytes] = []
        with self._lock:
            assert not self._released, CLOSED
            self._iterator.seek(start)
            read, step = self._iterator.value, self._iterator.next
            for _ in range(limit):
                value = read()
                if not value:
                    assert self._key() is not None, "each partition ends with a fence"
                    return values, None
                values.append(value)
                step()
            return values, self._key()

    def _key(self) -> bytes | None:
        key: bytes | None = self._iterator.key()
        if key is None:
            self._iterator.status()  # raises if it was an error that ended the iterator
        return key


def _open(path: Path) -> Rdict:
    try:
        return Rdict(str(path), _options())
    except Exception as error:  # rocksdict raises nothing more precise
        reason = str(error)
        if "lock hold by" in reason or "While lock file" in reason:
            raise StartRefused("another server uses this directory; stop it, or choose another") from error
        raise StartRefused(f"the hot store can't be opened ({reason.partition(':')[0]})") from error


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_keep_log_file_num(INFO_LOGS_MAX)
    options.add_compact_on_deletion_collector_factory(TOMBSTONE_WINDOW, TOMBSTONES_IN_WINDOW, TOMBSTONE_RATIO)
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    blocks.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    options.set_block_based_table_factory(blocks)
    return options


def _prepare(db: Rdict) -> None:
    """Refuse a directory of a newer format; give a new one its format and the fences of its records."""
    found = db.get(rocks_keys.META_FORMAT)
    if found is None and next(iter(db.keys()), None) is not None:
        raise StartRefused("this directory holds a RocksDB database that isn't Upwell's")
    if found is not None and rocks_keys.number(found) > FORMAT_VERSION:
        raise StartRefused(
            f"a newer Upwell wrote this directory (format {rocks_keys.number(found)}, this version reads"
            f" up to {FORMAT_VERSION}); start that version, or restore a backup"
        )
    batch = WriteBatch(raw_mode=True)
    batch.put(rocks_keys.META_FORMAT, rocks_keys.number_bytes(FORMAT_VERSION))
    for kind in Kind:
        batch.put(rocks_keys.record_kind(kind) + rocks_keys.FENCE, rocks_keys.FENCE_VALUE)
    db.write(batch)
    db.flush_wal(True)


def _sync_plainly(sync: Callable[[], None]) -> None:
    sync()
