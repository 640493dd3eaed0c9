"""The sweep: what a flush meets on its one way through the hot rows of a partition.

Law: rows come in primary-key order, each is taken once and none is kept; what is remembered grows with what
is superseded and with the pieces to forget, not with the rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from upwell.engine.catalog import Table
from upwell.engine.rows import shaped
from upwell.storage.hot import Version
from upwell.types import Key

SCAN_ROWS = 2_000
RANGE_ROWS_MIN = 200
"""Fewer rows beside each other are forgotten one by one: a deleted range costs the readers a little."""
RANGE_ROWS_MAX = 50_000


@dataclass(slots=True)
class Run:
    """Rows beside each other that are to be forgotten; `rows` are all of them as long as they are few."""

    first: Key
    last: Key
    rows: list[tuple[Key, int]]
    count: int = 0


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
    runs: list[Run] = field(default_factory=list)
    _ends: bool = True

    def rows(self, scan: Iterable[Version]) -> Iterator[Version]:
        """Yield what belongs in the segment."""
        versions = iter(scan)
        pieces = iter(lambda: list(islice(versions, SCAN_ROWS)), [])
        return chain.from_iterable(map(self._take, pieces))

    def few(self) -> Iterator[tuple[Key, int]]:
        """Yield key and `_seq` of the rows that are forgotten one by one."""
        return (row for run in self.runs for row in run.rows)

    def ranges(self) -> Iterator[tuple[Key, Key]]:
        """Yield the first and the last key of the runs of which all rows are forgotten at once."""
        return ((run.first, run.last) for run in self.runs if not run.rows)

    def _take(self, piece: list[Version]) -> list[Version]:
        seqs = [version.seq for version in piece]
        if max(seqs) > self.asked:
            self._note_mixed(piece)
        else:
            self._note_old(piece)
        if max(seqs) > self.asked or min(seqs) <= self.flushed_until:
            piece = [version for version in piece if self.flushed_until < version.seq <= self.asked]
            seqs = [version.seq for version in piece]
        if not piece:
            return piece
        self.fresh += len(piece)
        self.until = max(self.until, *seqs)
        for version in piece:
            if version.supersedes:
                self.superseded.update(version.supersedes)
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
                self._ends = True
            else:
                self._note_old([version])

    def _note_old(self, piece: list[Version]) -> None:
        """Lengthen the last run by rows that follow it, or begin another."""
        if self._ends or self.runs[-1].count >= RANGE_ROWS_MAX:
            self.runs.append(Run(piece[0].key, piece[0].key, []))
            self._ends = False
        run = self.runs[-1]
        is_short = run.count == len(run.rows)
        run.last = piece[-1].key
        run.count += len(piece)
        if run.count >= RANGE_ROWS_MIN:
            run.rows = []
        elif is_short:
            run.rows += [(version.key, version.seq) for version in piece]


def _belongs_in_parquet(version: Version, table: Table) -> bool:
    """Rows do; tombstones only while they hide a cold version, or a device may still ask for their count."""
    return version.row is not None or bool(version.supersedes) or table.synced
