"""The sweep: what a flush meets on its one way through the hot rows of a partition.

Law: rows come in primary-key order, each is taken once and none is kept; what is remembered grows with what
is superseded and with the pieces to forget, not with the rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from upwell.engine.catalog import Table
from upwell.engine.commit import KeyRange
from upwell.engine.rows import shaped
from upwell.storage.hot import Version
from upwell.types import Key

SCAN_ROWS = 2_000
RANGE_ROWS_MIN = 200
"""Fewer rows beside each other are forgotten one by one: a deleted range costs the readers a little."""
RANGE_ROWS_MAX = 50_000


@dataclass(slots=True)
class Runs:
    """Rows that are to be forgotten: many beside each other as a range, few one by one (key and `_seq`)."""

    few: list[tuple[Key, int]] = field(default_factory=list)
    ranges: list[KeyRange] = field(default_factory=list)
    _now: KeyRange | None = None
    _rows: list[tuple[Key, int]] = field(default_factory=list)
    """The rows of the run at hand, as long as they are few."""

    def add(self, piece: Sequence[Version]) -> None:
        """Lengthen the run at hand by rows that follow it, or begin one."""
        if self._now is not None and self._now.rows >= RANGE_ROWS_MAX:
            self.end()
        first, rows = (piece[0].key, 0) if self._now is None else (self._now.first, self._now.rows)
        self._now = KeyRange(first, piece[-1].key, rows + len(piece))
        if self._now.rows < RANGE_ROWS_MIN:
            self._rows += [(version.key, version.seq) for version in piece]
        else:
            self._rows.clear()

    def end(self) -> None:
        """End the run at hand: a row follows that stays, or none."""
        if self._now is not None and self._now.rows >= RANGE_ROWS_MIN:
            self.ranges.append(self._now)
        self.few += self._rows
        self._rows.clear()
        self._now = None


def runs_of(scan: Iterable[Version], until: int) -> Runs:
    """Return the rows up to seq `until` of those that come, in primary-key order."""
    runs = Runs()
    for version in scan:
        if version.seq <= until:
            runs.add([version])
        else:
            runs.end()
    runs.end()
    return runs


@dataclass(slots=True)
class Sweep:
    """What of a partition's rows is to be written, and what is to be forgotten after it is.

    Rows up to `flushed_until` are in segments already, those after `asked` stay hot.
    """

    table: Table
    flushed_until: int
    asked: int
    fresh: int = 0
    """How many rows are between the two."""
    until: int = 0
    """The newest seq of these."""
    written: int = 0
    live: int = 0
    newer: int = 0
    superseded: set[int] = field(default_factory=set)
    runs: Runs = field(default_factory=Runs)
    """What is to be forgotten, when all rows have come."""

    def rows(self, scan: Iterable[Version]) -> Iterator[Version]:
        """Yield what belongs in the segment."""
        return chain.from_iterable(self._pieces(iter(scan)))

    def _pieces(self, versions: Iterator[Version]) -> Iterator[list[Version]]:
        while piece := list(islice(versions, SCAN_ROWS)):
            yield self._take(piece)
        self.runs.end()

    def _take(self, piece: list[Version]) -> list[Version]:
        seqs = [version.seq for version in piece]
        newest = max(seqs)
        if newest > self.asked:
            self._note_mixed(piece)
        else:
            self.runs.add(piece)
        if newest > self.asked or min(seqs) <= self.flushed_until:
            piece = [version for version in piece if self.flushed_until < version.seq <= self.asked]
            newest = max([version.seq for version in piece], default=0)
        self.fresh += len(piece)
        self.until = max(self.until, newest)
        self.superseded.update(*[version.supersedes for version in piece if version.supersedes])
        return self._written(piece)

    def _written(self, piece: list[Version]) -> list[Version]:
        gone = [version.row for version in piece].count(None)
        if gone:
            piece = [version for version in piece if _belongs_in_parquet(version, self.table)]
            gone = [version.row for version in piece].count(None)
        self.written += len(piece)
        self.live += len(piece) - gone
        now = self.table.version
        return [version if version.schema == now else shaped(version, self.table) for version in piece]

    def _note_mixed(self, piece: list[Version]) -> None:
        for version in piece:
            if version.seq > self.asked:
                self.newer += 1
                self.runs.end()
            else:
                self.runs.add([version])


def _belongs_in_parquet(version: Version, table: Table) -> bool:
    """Rows do; tombstones only while they hide a cold version, or a device may still ask for their count."""
    return version.row is not None or bool(version.supersedes) or table.synced
