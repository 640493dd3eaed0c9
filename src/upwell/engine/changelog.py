"""The change log: reads through a View, and a bounded tail of the newest changes in memory.

Law: what is read is in seq order, committed, synced, and never beyond the View. Below the floor, up to
which the log was trimmed, nothing is read: `SeqTrimmed` is raised, so that nobody misses changes silently.
Rows have the columns that their table has in the View, whatever it had when they were written.
"""

from bisect import bisect_right
from collections.abc import Sequence
from enum import Enum

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.view import View
from upwell.errors import SeqTrimmed
from upwell.ids import Seq
from upwell.storage.hot import Change, Floor, partition_floor
from upwell.types import Owner, TableId

TAIL_CHANGES_MAX = 8_192
TAIL_BYTES_MAX = 64 * 1024 * 1024
CHANGE_BYTES = 500
"""About what a change costs in memory besides its texts."""


class Needed(Enum):
    """What of an expiring table's log a reader can't do without; of other tables' it is all."""

    ALL = "all"
    ENDS = "ends"
    """What tells of the end of a row: the other entries that went made rows that are gone."""
    NOTHING = "nothing"
    """Neither: what has expired is nothing to it."""


def has_changed(view: View, table: TableId, owner: Owner, after: int) -> bool:
    """Whether the partition has changed after seq `after`, or might have: the log may be gone by now."""
    if 0 < after < partition_floor(view.hot, table, owner).seq:
        return True
    return bool(view.hot.read_log(table, owner, after, view.seq, 1))


class Changelog:
    """Reads of the log. The committer appends to the tail under its lock; any thread reads."""

    def __init__(
        self, *, floor: int, tail_changes_max: int = TAIL_CHANGES_MAX, tail_bytes_max: int = TAIL_BYTES_MAX
    ) -> None:
        self._tail: list[Change] = []
        self._tail_floor = floor
        self._size_bytes = 0
        self._tail_changes_max = tail_changes_max
        self._tail_bytes_max = tail_bytes_max

    def append(self, changes: Sequence[Change]) -> None:
        """Remember the changes of a commit; beyond twice a limit the oldest are forgotten, its own too."""
        self._tail.extend(changes)
        self._size_bytes += sum(map(_size_bytes, changes))
        if len(self._tail) > 2 * self._tail_changes_max or self._size_bytes > 2 * self._tail_bytes_max:
            self._forget_oldest()

    def forget(self) -> None:
        """Keep nothing of what was appended: a table has other columns from now on."""
        if self._tail:
            self._tail_floor = self._tail[-1].seq
            self._tail = []
            self._size_bytes = 0

    def _forget_oldest(self) -> None:
        kept, size_bytes = 0, 0
        for change in reversed(self._tail[-self._tail_changes_max :]):
            size_bytes += _size_bytes(change)
            if size_bytes > self._tail_bytes_max:
                size_bytes -= _size_bytes(change)
                break
            kept += 1
        # A new list, so that a reader of the old one isn't disturbed; the tail's floor is raised first, so
        # that it is never below the oldest change that a reader can find.
        oldest = len(self._tail) - kept
        self._tail_floor = self._tail[oldest - 1].seq
        self._tail = self._tail[oldest:]
        self._size_bytes = size_bytes

    def tail(self, view: View, *, after: int) -> list[Change] | None:
        """Return all changes with after < seq ≤ view.seq; None if memory doesn't reach back so far."""
        tail = self._tail
        if after < self._tail_floor:
            return None
        start = bisect_right(tail, Seq(after), key=_seq)
        end = bisect_right(tail, view.seq, key=_seq)
        return tail[start:end]

    def read(
        self,
        view: View,
        table: TableId,
        owner: Owner | None,
        *,
        after: int,
        limit: int,
        needed: Needed = Needed.ALL,
    ) -> list[Change]:
        """Return at most `limit` changes of a table (of one owner or of all) with after < seq ≤ view.seq.

        Raises `SeqTrimmed` if some of these may be gone that are `needed`; who begins at 0 holds nothing that
        could be stale.
        """
        trimmed_until = _needed_floor(partition_floor(view.hot, table, owner), needed)
        if 0 < after < trimmed_until:
            raise SeqTrimmed(
                f"the log before seq {trimmed_until} was trimmed, the cursor is at {after}: "
                "subscribe again without `from`"
            )
        changes = view.hot.read_log(table, owner, after, view.seq, limit)
        shape = view.catalog.by_id.get(table)
        return changes if shape is None else [_shaped(change, shape) for change in changes]


def _needed_floor(floor: Floor, needed: Needed) -> int:
    if needed is Needed.ALL or not floor.is_own:
        return floor.seq
    return floor.end if needed is Needed.ENDS else 0


def _shaped(change: Change, table: Table) -> Change:
    if change.schema == table.version:
        return change
    before = None if change.before is None else table.shaped(change.before, change.schema)
    after = None if change.after is None else table.shaped(change.after, change.schema)
    return msgspec.structs.replace(change, before=before, after=after)


def _seq(change: Change) -> Seq:
    return Seq(change.seq)


def _size_bytes(change: Change) -> int:
    size = CHANGE_BYTES if change.uploaded is None else CHANGE_BYTES + len(change.uploaded)
    for row in (change.before, change.after):
        for value in row or ():
            if type(value) is str or type(value) is bytes:
                size += len(value)
    return size
