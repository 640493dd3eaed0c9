"""Reads of `RocksStore`: the domain's questions, asked of ordered bytes.

Law: one read sees one moment, however long its caller takes to consume it.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import Any, Protocol

import msgspec

from upwell.storage import rocks_keys
from upwell.storage.hot import NO_SEQ, Change, Kind, Version
from upwell.types import Key, Owner, TableId, owner_user

SEQ_MAX = (1 << 63) - 1


class _Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a `Version` begins; what follows is skipped."""

    key: Any
    seq: int


decode_head = msgspec.msgpack.Decoder(_Head).decode
decode_version = msgspec.msgpack.Decoder(Version).decode
decode_change = msgspec.msgpack.Decoder(Change).decode


class Moment(Protocol):
    """The bytes as they were at one moment."""

    def get(self, key: bytes) -> bytes | None: ...

    def first(self, start: bytes) -> bytes | None:
        """Return the first key ≥ `start`."""
        ...

    def between(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start ≤ key < stop."""
        ...

    def until_fence(self, start: bytes) -> Iterator[list[bytes]]:
        """Yield lists of the values from `start` up to the next fence."""
        ...


class RocksReader:
    """`HotReader` over one moment, or over a new moment for each read if a subclass says so."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def _now(self) -> Moment:
        return self._moment

    def _get(self, key: bytes) -> bytes | None:
        return self._moment.get(key)

    def find_row(self, table: TableId, owner: Owner, key: Key) -> Version | None:
        value = self._get(rocks_keys.row(table, owner, key))
        return None if value is None else decode_version(value)

    def find_seq(self, table: TableId, owner: Owner, key: Key) -> int:
        value = self._get(rocks_keys.row(table, owner, key))
        return NO_SEQ if value is None else decode_head(value).seq

    def scan_rows(self, table: TableId, owner: Owner, after: Key | None = None) -> Iterator[Version]:
        moment = self._now()
        if moment.get(rocks_keys.row_fence(table, owner)) is None:
            return iter(())
        if after is None:
            start = rocks_keys.row_partition(table, owner)
        else:
            start = rocks_keys.row(table, owner, after) + b"\0"
        return _versions(moment, start)

    def owners(self, table: TableId) -> Iterator[Owner]:
        return _owners(self._now(), rocks_keys.row_table(table))

    def read_log(
        self, table: TableId, owner: Owner | None, after: int, until: int | None, limit: int
    ) -> list[Change]:
        if limit <= 0:
            return []
        seq_last = SEQ_MAX if until is None else until
        if owner is None or owner_user(owner) is None:
            return _table_changes(self._now(), table, owner, after, seq_last, limit)
        return _partition_changes(self._now(), table, owner, after, seq_last, limit)

    def read_owner_log(self, owner: Owner, after: int, until: int | None, limit: int) -> list[Change]:
        found: list[Change] = []
        if limit <= 0:
            return found
        moment = self._now()
        start = rocks_keys.owner_log(owner, after + 1)
        stop = rocks_keys.owner_log(owner, (SEQ_MAX if until is None else until) + 1)
        for _, pointer in moment.between(start, stop):
            value = moment.get(rocks_keys.log(*rocks_keys.pointer(pointer)))
            if value is not None:  # None: the table was forgotten
                found.append(decode_change(value))
                if len(found) == limit:
                    break
        return found

    def log_bytes(self, table: TableId) -> int:
        value = self._get(rocks_keys.log_size(table))
        if value is not None:
            return rocks_keys.number(value)
        start, stop = rocks_keys.log_table(table), rocks_keys.log_table(table + 1)
        return sum(len(entry) for _, entry in self._now().between(start, stop))

    def owner_counter(self, owner: Owner) -> int:
        value = self._get(rocks_keys.counter(owner))
        return 0 if value is None else rocks_keys.number(value)

    def find_record(self, kind: Kind, name: str) -> bytes | None:
        return self._get(rocks_keys.record(kind, name))

    def scan_records(self, kind: Kind, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        return _records(self._now(), kind, prefix)


def _versions(moment: Moment, start: bytes) -> Iterator[Version]:
    return chain.from_iterable([*map(decode_version, values)] for values in moment.until_fence(start))


def _owners(moment: Moment, table: bytes) -> Iterator[Owner]:
    key = moment.first(table)
    while key is not None and key.startswith(table):
        partition, owner, is_fence = rocks_keys.split_row(key)
        if not is_fence:
            yield owner
        key = moment.first(partition + rocks_keys.FENCE + b"\0")


def _records(moment: Moment, kind: Kind, prefix: str) -> Iterator[tuple[str, bytes]]:
    start = rocks_keys.record(kind, prefix)
    name_index = len(rocks_keys.record_kind(kind))
    for key, value in moment.between(start, start + rocks_keys.FENCE):
        yield key[name_index:].decode(), value


def _table_changes(
    moment: Moment, table: TableId, owner: Owner | None, after: int, seq_last: int, limit: int
) -> list[Change]:
    found: list[Change] = []
    for _, value in moment.between(rocks_keys.log(table, after + 1), rocks_keys.log(table, seq_last + 1)):
        change = decode_change(value)
        if owner is None or change.owner == owner:
            found.append(change)
            if len(found) == limit:
                break
    return found


def _partition_changes(
    moment: Moment, table: TableId, owner: Owner, after: int, seq_last: int, limit: int
) -> list[Change]:
    found: list[Change] = []
    start = rocks_keys.owner_log(owner, _first_counter(moment, owner, after))
    for _, pointer in moment.between(start, rocks_keys.owner_log(owner, SEQ_MAX)):
        pointed_table, seq = rocks_keys.pointer(pointer)
        if seq > seq_last or len(found) == limit:
            break
        if pointed_table == table and (value := moment.get(rocks_keys.log(table, seq))) is not None:
            found.append(decode_change(value))
    return found


def _first_counter(moment: Moment, owner: Owner, after: int) -> int:
    """Return a counter with all of the owner's changes after seq `after` at or above it, and none below.

    Counters are dense but for the gap that a new epoch makes.
    """
    begin = rocks_keys.owner_log_begin(owner)
    oldest_key = moment.first(begin)
    newest_value = moment.get(rocks_keys.counter(owner))
    if oldest_key is None or not oldest_key.startswith(begin) or newest_value is None:
        return 0

    def seq_of(counter: int) -> int:
        """The seq of the first change at or above `counter`."""
        key = moment.first(rocks_keys.owner_log(owner, counter))
        pointer = moment.get(key) if key is not None and key.startswith(begin) else None
        return SEQ_MAX if pointer is None else rocks_keys.pointer(pointer)[1]

    oldest, newest = rocks_keys.counter_of_key(oldest_key), rocks_keys.number(newest_value)
    low, high, back = newest, newest + 1, 1
    while low >= oldest and seq_of(low) > after:  # most readers are close to the newest change
        low, high, back = low - back, low, back * 2
    counters = range(max(low, oldest), high)
    return counters.start + bisect_right(counters, after, key=seq_of)
