"""Trimming the log: entries that are older than the retention go, and the oldest of a log that is too large.

Law: what a live device has not read yet stays; what went is below a floor that is stored in the same
commit, so that no reader takes a hole for silence. Rows are not concerned: they are in their tables.

What stays for a device doesn't shorten the log of others: the newest `bytes_max` bytes stay anyway.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain
from operator import attrgetter
from typing import Protocol

import msgspec

from upwell.clock import Clock
from upwell.effects import Points
from upwell.engine.commit import Committer
from upwell.engine.receipt import find_receipt, receipt_record
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.ids import snowflake_floor
from upwell.storage.hot import Batch, Change, Floor, HotReader, RecordWrite, Trim, floor_record, load_floor
from upwell.types import Owner, TableId, owner_user

SLICE_CHANGES = 1_000
MERGED_CHANGES_MIN = 16
UNREAD = 0
"""The cursor of a device that hasn't read the log yet."""

_encode = msgspec.msgpack.Encoder().encode


class SlowestDevice(Protocol):
    """Tells the lowest cursor of a user's devices that were seen since a time in µs; None if there is none.

    `unread` stands for the cursor of those that haven't read the log yet; None: they don't count.
    """

    def __call__(self, user: str, since_us: int, unread: int | None = None) -> int | None: ...


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What stays of the log: entries that are younger, and no more than so many bytes of them."""

    retention_s: float
    bytes_max: int

    @property
    def bytes_kept(self) -> int:
        """To what a log that is too large is cut: with a part of it free, not every commit makes it due."""
        return self.bytes_max - self.bytes_max // 10


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far a trim goes: entries up to `aged` go by age, those up to `until` by size.

    `holds` has what the devices of an owner have read, separately for the two.
    """

    since_us: int
    aged: int
    until: int
    holds: dict[tuple[Owner, bool], int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogTrim:
    """Trims by age and by size; one at a time."""

    committer: Committer
    clock: Clock
    limits: LogLimits
    slowest_device: SlowestDevice
    points: Points

    def log_bytes(self) -> int:
        """Return what the log takes that is trimmed here, at a cost per table."""
        newest = self.committer.newest
        return sum(newest.log_bytes(table) for table in _tables(self.committer.publication.view))

    def is_due(self, view: View) -> bool:
        """Whether there are entries that have to go and that no living device holds, wherever they are."""
        reach = self._reach(view, self.limits.bytes_max)
        return any(gone for table in _tables(view) for gone in self._due(view.hot, table, reach))

    def run(self) -> int:
        """Trim all tables; return how many entries went."""
        view = self.committer.publication.view
        reach = self._reach(view, self.limits.bytes_kept)
        tables = _tables(view)
        self._keep_ephemeral()
        self._raise_floors(tables, reach)
        count = 0
        for table in tables:
            for gone in self._due(self.committer.newest, table, reach):
                count += len(gone)
                self._commit(table, gone)
        return count

    def _due(self, reader: HotReader, table: TableId, reach: _Reach) -> Iterator[list[Change]]:
        """Yield the entries of a table that go, slice by slice."""
        for changes in _slices(reader, table, reach.until, SLICE_CHANGES):
            gone = [change for change in changes if self._may_go(change, reach)]
            if gone:
                yield gone

    def _keep_ephemeral(self) -> None:
        """Let the entries of ephemeral tables stay in their owners' logs: they go with their rows."""
        committer = self.committer
        with committer.lock:
            tables = committer.newest_catalog.by_id.values()
            floors = [
                (each.id, load_floor(committer.newest, each.id)) for each in tables if each.is_ephemeral
            ]
            records = [
                floor_record(table, msgspec.structs.replace(floor, is_own=True))
                for table, floor in floors
                if not floor.is_own
            ]
            if records:
                committer.apply(Batch(records=records))

    def _raise_floors(self, tables: Sequence[TableId], reach: _Reach) -> None:
        """Set all floors before anything goes: an owner's log loses entries of several tables at once."""
        records = []
        for table in tables:
            newest = max((gone[-1].seq for gone in self._due(self.committer.newest, table, reach)), default=0)
            if newest:
                known = load_floor(self.committer.newest, table)
                records.append(floor_record(table, Floor(0, max(known.seq, newest))))
        if records:
            self.committer.publication.wait(self.committer.apply(Batch(records=records)))

    def _reach(self, view: View, bytes_kept: int) -> _Reach:
        since_us = self.clock.now_us() - round(self.limits.retention_s * 1_000_000)
        aged = snowflake_floor(since_us // 1000) - 1
        return _Reach(since_us, aged, max(aged, self._oversized(view, bytes_kept)))

    def _oversized(self, view: View, bytes_kept: int) -> int:
        """Return the newest seq beyond the newest `bytes_kept` bytes of a log that is too large, else 0."""
        tables = _tables(view)
        size = sum(map(view.hot.log_bytes, tables))
        if size <= self.limits.bytes_max:
            return 0
        seq, excess = 0, size - bytes_kept
        for change in _oldest_first(view, tables):
            if excess <= 0:
                break
            seq, excess = change.seq, excess - len(_encode(change))
        return seq

    def _may_go(self, change: Change, reach: _Reach) -> bool:
        owner, is_aged = Owner(change.owner), change.seq <= reach.aged
        user = owner_user(owner)
        if user is None:
            return True
        if (owner, is_aged) not in reach.holds:
            # A device that is about to read for the first time needs what came since it was hydrated.
            unread = None if is_aged else UNREAD
            reach.holds[owner, is_aged] = self.slowest_device(user, reach.since_us, unread)
        cursor = reach.holds[owner, is_aged]
        return cursor is None or change.counter <= cursor

    def _commit(self, table: TableId, gone: list[Change]) -> None:
        newest = self.committer.newest
        floors: dict[Owner | TableId, Floor] = {}
        for change in gone:
            owner = Owner(change.owner)
            places: list[Owner | TableId] = [table] if owner_user(owner) is None else [table, owner]
            for place in places:
                known = floors.get(place) or load_floor(newest, place)
                counter = change.counter if isinstance(place, str) else 0
                floors[place] = Floor(max(known.counter, counter), max(known.seq, change.seq))
        records = [floor_record(place, floor) for place, floor in floors.items()]
        trims = [Trim(table, change.seq, Owner(change.owner), change.counter) for change in gone]
        seq = self.committer.apply(Batch(records=[*records, *_receipts(newest, gone)], trims=trims))
        self.committer.publication.wait(seq)
        self.points.reach("trim:after-slice")


def _tables(view: View) -> list[TableId]:
    """Those of ephemeral tables go with their rows (`engine/expiry.py`)."""
    tables = view.catalog.by_id
    return [TableId(table) for table in sorted(tables) if not tables[table].is_ephemeral]


def _slices(reader: HotReader, table: TableId, until: int, limit: int) -> Iterator[list[Change]]:
    after = 0
    while changes := reader.read_log(table, None, after, until, limit):
        after = changes[-1].seq
        yield changes


def _oldest_first(view: View, tables: Sequence[TableId]) -> Iterator[Change]:
    limit = max(MERGED_CHANGES_MIN, SLICE_CHANGES // max(1, len(tables)))
    slices = (_slices(view.hot, table, view.seq, limit) for table in tables)
    return merge(*(chain.from_iterable(each) for each in slices), key=attrgetter("seq"))


def _receipts(reader: HotReader, gone: Iterable[Change]) -> list[RecordWrite]:
    """Take the receipts of the entries away: what is sent again after so long meets the version check.

    A receipt of another row or version is of a later use of the id, by an app that was installed again.
    """
    found: list[RecordWrite] = []
    for change in gone:
        user = owner_user(Owner(change.owner))
        if user is None or change.source is None or change.change_id is None:
            continue
        receipt = find_receipt(reader, user, change.source, change.change_id)
        made = (change.table, shown(change.key), change.count)
        if receipt is not None and (receipt.table, receipt.key, receipt.version) == made:
            found.append(receipt_record(user, change.source, change.change_id, None))
    return found
