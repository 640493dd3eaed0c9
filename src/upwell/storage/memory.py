"""`MemoryStore`: the hot store as Python values; for tests and notebooks.

Law: what a snapshot holds is never changed: rows and records are copied at the first write after it,
lists of changes only grow and are read up to the snapshot's seq.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter, itemgetter
from pathlib import Path

import msgspec

from upwell.clock import Clock
from upwell.decodable import decodable
from upwell.effects import Files, OsFiles
from upwell.ids import EPOCH_SHIFT, Seq, Snowflakes
from upwell.storage.hot import (
    NO_SEQ,
    Applied,
    Batch,
    Change,
    DropRange,
    HotReader,
    Kind,
    RecordWrite,
    Trim,
    Version,
    has_own_floor,
)
from upwell.storage.order import Allotted, allot, newest_trims, verify, version
from upwell.types import Key, Owner, TableId, owner_user

CHECKPOINT_FILE = "memory.msgpack"

_by_seq = attrgetter("seq")
_by_counter = attrgetter("counter")
_Partitions = dict[tuple[TableId, Owner], dict[Key, Version]]


@dataclass(slots=True)
class _State:
    """All that is stored. The lists are shared with snapshots, the dicts are not once written to."""

    seq: int = 0
    rows: _Partitions = field(default_factory=dict)
    records: dict[Kind, dict[str, bytes]] = field(default_factory=dict)
    logs: dict[TableId, list[Change]] = field(default_factory=dict)
    owner_logs: dict[Owner, list[Change]] = field(default_factory=dict)
    counters: dict[Owner, int] = field(default_factory=dict)
    forgotten: frozenset[TableId] = frozenset()
    epoch: int = 0
    floors: dict[Owner, int] = field(default_factory=dict)
    log_sizes: dict[TableId, int] = field(default_factory=dict)

    def copied(self) -> "_State":
        """Return a state of its own that shares the partitions, the kinds and the lists."""
        return _State(
            self.seq,
            dict(self.rows),
            dict(self.records),
            dict(self.logs),
            dict(self.owner_logs),
            dict(self.counters),
            self.forgotten,
            self.epoch,
            dict(self.floors),
            dict(self.log_sizes),
        )


class MemoryReader:
    """`HotReader` over a state."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def find_row(self, table: TableId, owner: Owner, key: Key) -> Version | None:
        return self._state.rows.get((table, owner), {}).get(key)

    def find_seq(self, table: TableId, owner: Owner, key: Key) -> int:
        found = self.find_row(table, owner, key)
        return NO_SEQ if found is None else found.seq

    def scan_rows(self, table: TableId, owner: Owner, after: Key | None = None) -> Iterator[Version]:
        found = sorted(self._state.rows.get((table, owner), {}).items(), key=itemgetter(0))
        start = 0 if after is None else bisect_right(found, after, key=itemgetter(0))
        return iter([row for _, row in found[start:]])

    def owners(self, table: TableId) -> Iterator[Owner]:
        partitions = list(self._state.rows.items())
        return iter(sorted(owner for (of, owner), rows in partitions if of == table and rows))

    def read_log(
        self, table: TableId, owner: Owner | None, after: int, until: int | None, limit: int
    ) -> list[Change]:
        state = self._state
        if owner is None or owner_user(owner) is None:
            changes = state.logs.get(table, [])
        else:
            changes = state.owner_logs.get(owner, [])
        return self._taken(
            changes, bisect_right(changes, after, key=_by_seq), until, limit, table=table, owner=owner
        )

    def read_owner_log(self, owner: Owner, after: int, until: int | None, limit: int) -> list[Change]:
        changes = self._state.owner_logs.get(owner, [])
        start = bisect_right(changes, after, key=_by_counter)
        last = len(changes) if until is None else bisect_right(changes, until, key=_by_counter)
        return self._taken(changes[:last], start, None, limit, table=None, owner=None)

    def log_bytes(self, table: TableId) -> int:
        return self._state.log_sizes.get(table, 0)

    def owner_counter(self, owner: Owner) -> int:
        return self._state.counters.get(owner, 0)

    def find_record(self, kind: Kind, name: str) -> bytes | None:
        return self._state.records.get(kind, {}).get(name)

    def scan_records(self, kind: Kind, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        records = sorted(self._state.records.get(kind, {}).items())
        return iter([(name, value) for name, value in records if name.startswith(prefix)])

    def _taken(
        self,
        changes: list[Change],
        start: int,
        until: int | None,
        limit: int,
        *,
        table: TableId | None,
        owner: Owner | None,
    ) -> list[Change]:
        state = self._state
        seq_last = state.seq if until is None else min(until, state.seq)
        found: list[Change] = []
        for index in range(start, len(changes)):
            change = changes[index]
            if change.seq > seq_last or len(found) >= limit:
                break
            if change.table in state.forgotten or table not in (None, change.table):
                continue
            if owner in (None, change.owner):
                found.append(change)
        return found


class MemoryStore(MemoryReader):
    """`HotStore` in this process's memory. `saved` is the directory of a checkpoint to begin with."""

    def __init__(
        self, *, clock: Clock, worker: int = 0, saved: Path | None = None, files: Files | None = None
    ) -> None:
        self._files = files or OsFiles()
        super().__init__(_State() if saved is None else _load(self._files.read(saved / CHECKPOINT_FILE)))
        self._seqs = Snowflakes(clock, worker=worker, after=self._state.seq)
        self._lock = threading.RLock()
        self._is_shared = False
        self._private: set[tuple[TableId, Owner] | Kind] = set()

    @property
    def last_seq(self) -> Seq:
        return Seq(self._state.seq)

    @property
    def epoch(self) -> int:
        return self._state.epoch

    def raise_epoch(self) -> None:
        with self._lock:
            self._unshare()
            self._state.epoch += 1

    def apply(self, batch: Batch) -> Applied:
        with self._lock:
            verify(batch, self)
            allotted = allot(batch, self._seqs, self._counter_before_next)
            drops = [
                each for each in batch.drops if self.find_seq(each.table, each.owner, each.key) == each.seq
            ]
            self._unshare()
            self._trim(batch.trims)
            for drop in drops:
                self._rows_of(drop.table, drop.owner).pop(drop.key, None)  # seq 0: there is none
            for each in batch.ranges:
                self._drop_range(each)
            self._keep(batch, allotted)
            for record in batch.records:
                self._keep_record(record)
            self._state.seq = allotted.seq
        return Applied(allotted.seq, allotted.changes)

    def snapshot(self) -> tuple[Seq, HotReader]:
        with self._lock:
            self._is_shared = True
            return self.last_seq, MemoryReader(self._state)

    def sync(self) -> None:
        """Return at once: memory survives no power cut, and claims nothing else."""

    def forget_table(self, table: TableId) -> None:
        with self._lock:
            self._unshare()
            state = self._state
            for partition in [partition for partition in state.rows if partition[0] == table]:
                del state.rows[partition]
                self._private.discard(partition)
            state.logs.pop(table, None)
            state.log_sizes.pop(table, None)
            state.forgotten |= {table}

    def reclaim(self, table: TableId) -> None:
        """Return at once: what was removed is nowhere."""

    def checkpoint(self, path: Path) -> None:
        with self._lock:
            saved = _save(self._state)
        self._files.make_dirs(path)
        self._files.write_new(path / CHECKPOINT_FILE, saved)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _counter_before_next(self, owner: Owner) -> int:
        return max(self.owner_counter(owner), self._state.epoch << EPOCH_SHIFT)

    def _trim(self, trims: Sequence[Trim]) -> None:
        """Put shorter lists in the place of those that snapshots share."""
        state, gone = self._state, {trim.seq for trim in trims}
        for table in {trim.table for trim in trims}:
            log = state.logs.get(table, [])
            state.logs[table] = [change for change in log if change.seq not in gone]
            size = sum(_size(change) for change in log if change.seq in gone)
            state.log_sizes[table] = state.log_sizes.get(table, 0) - size
        for owner in {trim.owner for trim in trims if trim.alone}:
            state.owner_logs[owner] = [c for c in state.owner_logs.get(owner, []) if c.seq not in gone]
        for owner, counter in newest_trims(trims).items():
            state.floors[owner] = max(counter, state.floors.get(owner, 0))
            _cut(state, owner)

    def _unshare(self) -> None:
        if self._is_shared:
            self._state = self._state.copied()
            self._private.clear()
            self._is_shared = False

    def _drop_range(self, drop: DropRange) -> None:
        rows, kept = self._rows_of(drop.table, drop.owner), set(drop.kept)
        for key in [key for key in rows if drop.covers(key) and key not in kept]:
            del rows[key]

    def _keep(self, batch: Batch, allotted: Allotted) -> None:
        state = self._state
        for write, change in zip(batch.rows, allotted.changes, strict=True):
            rows = self._rows_of(write.table, write.owner)
            if write.vanishes:
                rows.pop(write.key, None)
            else:
                rows[write.key] = version(write, change.seq)
            _append(state, change)
        state.counters.update(allotted.counters)

    def _keep_record(self, record: RecordWrite) -> None:
        records = self._records_of(record.kind)
        if record.value is None:
            records.pop(record.name, None)
        else:
            records[record.name] = record.value

    def _rows_of(self, table: TableId, owner: Owner) -> dict[Key, Version]:
        partition = (table, owner)
        if partition not in self._private:
            self._state.rows[partition] = dict(self._state.rows.get(partition, {}))
            self._private.add(partition)
        return self._state.rows[partition]

    def _records_of(self, kind: Kind) -> dict[str, bytes]:
        if kind not in self._private:
            self._state.records[kind] = dict(self._state.records.get(kind, {}))
            self._private.add(kind)
        return self._state.records[kind]


@decodable
class _Saved(msgspec.Struct, array_like=True):
    """A state as a checkpoint keeps it."""

    seq: int
    rows: list[tuple[TableId, Owner, list[Version]]]
    records: dict[Kind, dict[str, bytes]]
    changes: list[Change]
    counters: dict[Owner, int]
    epoch: int = 0
    floors: dict[Owner, int] = {}


def _save(state: _State) -> bytes:
    rows = [(table, owner, list(rows.values())) for (table, owner), rows in state.rows.items()]
    changes = sorted((change for log in state.logs.values() for change in log), key=_by_seq)
    saved = _Saved(state.seq, rows, state.records, changes, state.counters, state.epoch, state.floors)
    return msgspec.msgpack.encode(saved)


def _load(data: bytes) -> _State:
    saved = msgspec.msgpack.decode(data, type=_Saved)
    state = _State(saved.seq, records=saved.records, counters=saved.counters)
    state.epoch, state.floors = saved.epoch, saved.floors
    for table, owner, versions in saved.rows:
        state.rows[table, owner] = {row.key: row for row in versions}
    for change in saved.changes:
        _append(state, change)
    for owner in state.floors:
        _cut(state, owner)
    return state


def _cut(state: _State, owner: Owner) -> None:
    floor, goes_by_itself = state.floors[owner], cache(partial(has_own_floor, MemoryReader(state)))
    state.owner_logs[owner] = [
        c for c in state.owner_logs.get(owner, []) if c.counter > floor or goes_by_itself(c.table)
    ]


def _append(state: _State, change: Change) -> None:
    owner, table = Owner(change.owner), TableId(change.table)
    state.logs.setdefault(table, []).append(change)
    state.log_sizes[table] = state.log_sizes.get(table, 0) + _size(change)
    if owner_user(owner) is not None:
        state.owner_logs.setdefault(owner, []).append(change)


def _size(change: Change) -> int:
    return len(msgspec.msgpack.encode(change))
