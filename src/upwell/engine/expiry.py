"""Expiry: rows of STREAM tables go when their time is over, and their entries of the log with them.

Law: readers find no row whose time is over, whether it has been removed by then or not. Its end is one
entry of the log, so that who follows the table learns of it in its place; the row and the entry that made
it are gone with that commit. The entry of the end goes after `grace_s`, and then the files give it all back.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from upwell.clock import Clock
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.rows import shaped
from upwell.storage.hot import Batch, Change, Floor, RowWrite, Trim, Version, floor_record, load_floor
from upwell.types import Op, Owner, TableId

SLICE_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class _Ended:
    """Ends of rows were noted in after < seq ≤ until, at `at_us`."""

    at_us: int
    after: int
    until: int


class Expiry:
    """Removes what has expired. `run` and `evict` block their thread; one at a time each."""

    def __init__(self, committer: Committer, clock: Clock, grace_s: float) -> None:
        self._committer = committer
        self._clock = clock
        self._grace_us = round(grace_s * 1_000_000)
        self._ended: dict[TableId, deque[_Ended]] = {}
        self._swept: dict[TableId, int] = {}
        for table in self._tables():
            # What an earlier process removed may still be in the files.
            self._note(table, 0, 0)

    def run(self) -> int:
        """End all rows whose time is over; return how many entries of the log went."""
        count = 0
        for table in self._tables():
            while (gone := self._end_slice(table.id)) is not None:
                count += gone
        return count

    def due(self) -> list[Table]:
        """Return the tables that `evict` has something to do for."""
        tables = self._committer.newest_catalog.by_id
        for gone in [each for each in self._ended if each not in tables]:
            del self._ended[gone]
            self._swept.pop(gone, None)
        return [tables[each] for each, ended in self._ended.items() if ended and self._is_over(ended[0])]

    def evict(self, table: TableId) -> int:
        """Remove the entries of ends that are older than the grace; return how many."""
        ended = self._ended.get(table, deque())
        count = 0
        while ended and self._is_over(ended[0]):
            span = ended[0]
            entries = self._committer.newest.read_log(table, None, span.after, span.until, SLICE_ENTRIES)
            self._trim(table, entries)
            ended.popleft()
            count += len(entries)
        self._committer.newest.reclaim(table)
        return count

    def _tables(self) -> list[Table]:
        return [table for table in self._committer.newest_catalog.by_id.values() if table.is_ephemeral]

    def _end_slice(self, table_id: TableId) -> int | None:
        """Return how many entries went, None if there is nothing left to look at."""
        committer = self._committer
        with committer.lock:
            table = committer.newest_catalog.by_id.get(table_id)
            if table is None:
                return None
            last = table.alive_from(self._clock.now_us()) - 1
            swept = self._swept.get(table.id, 0)
            entries = committer.newest.read_log(table.id, None, swept, last, SLICE_ENTRIES)
            if not entries:
                return None
            self._swept[table.id] = entries[-1].seq
            # What tells of an end stays for the grace, however short rows live.
            gone = [entry for entry in entries if entry.after is not None]
            if len(gone) < len(entries):
                self._note(table, swept, entries[-1].seq)
            if not gone:
                return 0
            before = committer.last_seq
            rows = [row for entry in gone for row in self._ends(table, entry)]
            seq = committer.apply(_removal(table.id, gone, self._floor(table.id, gone), rows))
            self._note(table, before, seq)
        committer.publication.wait(seq)
        return len(gone)

    def _ends(self, table: Table, entry: Change) -> list[RowWrite]:
        """Return the end of the row that the entry made, if no later one has taken its place."""
        owner = Owner(entry.owner)
        version = self._committer.newest.find_row(table.id, owner, entry.key)
        if version is None or version.seq != entry.seq:
            return []
        return [_end(table, owner, shaped(version, table))]

    def _trim(self, table: TableId, entries: Sequence[Change]) -> None:
        if entries:
            committer = self._committer
            with committer.lock:
                seq = committer.apply(_removal(table, entries, self._floor(table, entries), []))
            committer.publication.wait(seq)

    def _floor(self, table: TableId, entries: Sequence[Change]) -> Floor:
        known = load_floor(self._committer.newest, table)
        ends = (entry.seq for entry in entries if entry.after is None)
        newest, end = max(known.seq, entries[-1].seq), max(known.end, *ends, 0)
        return Floor(0, newest, is_own=True, end=end)

    def _note(self, table: Table, after: int, until: int) -> None:
        now_us = self._clock.now_us() if until else 0
        self._ended.setdefault(table.id, deque()).append(_Ended(now_us, after, until))

    def _is_over(self, ended: _Ended) -> bool:
        return ended.at_us + self._grace_us <= self._clock.now_us()


def _end(table: Table, owner: Owner, version: Version) -> RowWrite:
    return RowWrite(
        table=table.id,
        owner=owner,
        key=version.key,
        op=Op.EXPIRE,
        schema=table.version,
        before=version.row,
        after=None,
        count=version.count + 1,
        expect=version.seq,
        previous=version.seq,
        vanishes=True,
    )


def _removal(table: TableId, entries: Sequence[Change], floor: Floor, rows: list[RowWrite]) -> Batch:
    trims = [Trim(table, each.seq, Owner(each.owner), each.counter, alone=True) for each in entries]
    return Batch(rows=rows, records=[floor_record(table, floor)], trims=trims)
