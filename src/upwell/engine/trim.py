"""Trimming the log: entries that are older than the retention go.

Law: what a live device has not read yet stays; what went is below a floor that is stored in the same
commit, so that no reader takes a hole for silence. Rows are not concerned: they are in their tables.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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

SlowestDevice = Callable[[str, int], int | None]
"""The lowest cursor of a user's devices that were seen since a time in µs; None if there is none."""


@dataclass(frozen=True, slots=True)
class LogTrim:
    """Trims by age; one at a time."""

    committer: Committer
    clock: Clock
    retention_s: float
    slowest_device: SlowestDevice
    points: Points

    def is_due(self, view: View) -> bool:
        """Whether there are entries old enough to go that no living device holds, wherever they are."""
        since_us, until = self._since_us(), self._until()
        keep_after: dict[Owner, int | None] = {}
        return any(gone for table in _tables(view) for gone in self._due(table, since_us, until, keep_after))

    def run(self) -> int:
        """Trim all tables; return how many entries went."""
        since_us = self._since_us()
        until = self._until()
        keep_after: dict[Owner, int | None] = {}
        tables = _tables(self.committer.publication.view)
        self._raise_floors(tables, since_us, until, keep_after)
        count = 0
        for table in tables:
            for gone in self._due(table, since_us, until, keep_after):
                count += len(gone)
                self._commit(table, gone)
        return count

    def _due(
        self, table: TableId, since_us: int, until: int, keep_after: dict[Owner, int | None]
    ) -> Iterator[list[Change]]:
        """Yield the entries of a table that go, slice by slice."""
        after = 0
        while changes := self.committer.newest.read_log(table, None, after, until, SLICE_CHANGES):
            after = changes[-1].seq
            gone = [change for change in changes if self._may_go(change, since_us, keep_after)]
            if gone:
                yield gone

    def _raise_floors(
        self, tables: Sequence[TableId], since_us: int, until: int, keep_after: dict[Owner, int | None]
    ) -> None:
        """Set all floors before anything goes: an owner's log loses entries of several tables at once."""
        records = []
        for table in tables:
            newest = max((gone[-1].seq for gone in self._due(table, since_us, until, keep_after)), default=0)
            if newest:
                known = load_floor(self.committer.newest, table)
                records.append(floor_record(table, Floor(0, max(known.seq, newest))))
        if records:
            self.committer.publication.wait(self.committer.apply(Batch(records=records)))

    def _since_us(self) -> int:
        return self.clock.now_us() - round(self.retention_s * 1_000_000)

    def _until(self) -> int:
        return snowflake_floor(self._since_us() // 1000) - 1

    def _may_go(self, change: Change, since_us: int, keep_after: dict[Owner, int | None]) -> bool:
        owner = Owner(change.owner)
        user = owner_user(owner)
        if user is None:
            return True
        if owner not in keep_after:
            keep_after[owner] = self.slowest_device(user, since_us)
        cursor = keep_after[owner]
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
