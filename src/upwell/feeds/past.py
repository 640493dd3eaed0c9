"""The past: an owner's rows as they were when the newest entry was written that its log lost.

Law: what the log then tells, entry by entry, leads from these rows to those of now; so where rows refer to
each other, they do at every step between.

A row that has changed since is what the first change above the floor replaced. It is found by going back
from the newest version, change by change: over all rows each entry above the floor is read once, by its seq.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.storage.hot import Change, Floor, Version
from upwell.types import Key, Owner


class PastRow(msgspec.Struct, frozen=True, gc=False):
    """A row as it was. `is_own`: all that happened to it since was done by the device that asks."""

    version: Version
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """The rows at a floor; `source` is the device that isn't told its own changes ("": all are told)."""

    rows: Rows
    view: View
    owner: Owner
    floor: Floor
    source: str

    def scan(self, table: Table, after: Key | None = None) -> Iterator[PastRow]:
        """Yield what was there, tombstones too, in primary-key order, keys above `after`; may read files."""
        for newest in self.rows.scan_versions(self.view.hot, table, self.owner, after):
            if (row := self.row_of(table, newest)) is not None:
                yield row

    def scan_live(self, table: Table, after: Key | None = None) -> Iterator[PastRow]:
        """Yield the rows that were live, as `scan` does."""
        return (row for row in self.scan(table, after) if row.version.row is not None)

    def row_of(self, table: Table, newest: Version) -> PastRow | None:
        """Return what a row was whose newest version is given; None if it never was before."""
        first: Change | None = None
        seq, is_own = newest.seq, True
        while seq > self.floor.seq:
            [first] = self.view.hot.read_log(table.id, None, seq - 1, seq, 1)
            is_own = is_own and first.source == self.source
            seq = first.previous
        if first is None:
            return PastRow(newest)
        return PastRow(_replaced(table, first), is_own) if seq else None


def _replaced(table: Table, change: Change) -> Version:
    """Return the version that a change replaced, without the text that came with it: its entry is gone."""
    row = None if change.before is None else table.narrowed(change.before, change.schema)
    return Version(change.key, change.previous, change.count - 1, table.version, row)
