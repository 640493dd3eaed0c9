"""Flush: a partition's hot rows up to a seq become one immutable segment.

    mark → View at S → segment, filter, hidden set, manifest (all synced) → commit of the manifest's
    number → cleanup of the hot copies in small slices

Small partitions go this way in groups: the disk syncs their names together, and one commit switches all.

Law: the commit is the switch. Before it nothing refers to the new files; after it every hot version
≤ `flushed_until` is invisible, whether it was cleaned up yet or not. So a crash anywhere neither loses
nor doubles a row, and a flush that is run again goes on where the last one was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, takewhile

from upwell.effects import Points
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer, KeyRange
from upwell.engine.compact import is_due
from upwell.engine.damage import Damage
from upwell.engine.in_force import ManifestInForce, decode_manifest_record, partition_name
from upwell.engine.partition import Base, PartitionWriter, Switch
from upwell.engine.stop import Stop
from upwell.engine.sweep import Sweep, runs_of
from upwell.engine.view import View
from upwell.storage.hot import Batch, Drop, Kind, Version
from upwell.storage.manifest import Manifest, write_hidden
from upwell.storage.segments import write_segment
from upwell.types import Owner, user_owner

FLUSH_THREADS = 8
GROUP_PARTITIONS = 16
"""So many partitions are switched by one commit, unless they have so many rows:"""
GROUP_ROWS = 10_000
GROUPS_AHEAD = 32
DROPS_MAX = 500


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush of one partition did: rows written (tombstones too), live rows among them."""

    rows: int
    live: int
    flushed_until: int
    left: tuple[int, int] = (0, 0)
    """How many rows stayed hot that were there when it began, and the seq after which they came."""
    is_due: bool = False
    """Whether the partition's segments are to be compacted."""


class Flush:
    """Flushes partitions. Two flushes of one partition exclude each other."""

    def __init__(self, committer: Committer, partitions: PartitionWriter, *, points: Points) -> None:
        self._committer = committer
        self._partitions = partitions
        self._points = points

    def pending(self, view: View, table: Table, users: Sequence[str] | None = None) -> list[Owner]:
        """Return the owners (of these users only) that have hot versions, live or waiting for cleanup."""
        return list(_owners(view, table, users))

    def is_pending(self, view: View, table: Table, users: Sequence[str] | None = None) -> bool:
        """Whether anything of the table, or of these users in it, is hot; looks for one owner only."""
        return next(_owners(view, table, users), None) is not None

    def interrupted(self, view: View, table: Table) -> list[Owner]:
        """Return the owners of which an earlier flush ended between its commit and the end of its cleanup."""
        return [owner for owner in _owners(view, table, None) if _is_left(view, table, owner)]

    def flush_partition(self, table: Table, owner: Owner, *, until: int | None = None) -> Flushed:
        """Move what is hot (up to seq `until`) into a segment; `OSError` if a file can't be written."""
        damage = Damage(table)
        flushed = self._flush_group(table, [owner], until, Stop(), damage)
        damage.refuse(1)
        return flushed[0]

    def flush_partitions(
        self, table: Table, owners: Sequence[Owner], *, until: int | None, stop: Stop
    ) -> Iterator[Flushed]:
        """Flush partitions in any order, several at a time: a small one waits for the disk most of its time.

        The first that fails stops the others that haven't begun, and is raised; but if a file of one is lost,
        that is raised when the others are done.
        """
        # Groups wait for each other's partitions in one order only.
        owners = sorted(owners)
        size = min(GROUP_PARTITIONS, -(-len(owners) // FLUSH_THREADS)) or 1
        groups = [owners[start : start + size] for start in range(0, len(owners), size)]
        damage = Damage(table)
        flush = partial(self._flush_group, table, until=until, stop=stop, damage=damage)
        if len(groups) == 1:
            yield from flush(groups[0])
        elif groups:
            yield from self._flush_groups(flush, groups)
        damage.refuse(len(owners))

    @staticmethod
    def _flush_groups(
        flush: Callable[[Sequence[Owner]], list[Flushed]], groups: Sequence[Sequence[Owner]]
    ) -> Iterator[Flushed]:
        with ThreadPoolExecutor(FLUSH_THREADS, "upwell-flush") as threads:
            try:
                for start in range(0, len(groups), GROUPS_AHEAD):
                    yield from chain.from_iterable(threads.map(flush, groups[start : start + GROUPS_AHEAD]))
            finally:
                threads.shutdown(cancel_futures=True)

    def _flush_group(
        self, table: Table, owners: Sequence[Owner], until: int | None, stop: Stop, damage: Damage
    ) -> list[Flushed]:
        """Flush partitions, which come sorted, in few commits; those before one that fails are flushed.

        One of which a file is lost is noted as `damage` and left out.
        """
        done: dict[Owner, Flushed] = {}
        with ExitStack() as stack:
            for owner in owners:
                stack.enter_context(self._partitions.held(table.full_name, owner))
            stack.callback(self._end, table, owners, done)
            view = self._committer.begin_flush(table.id, *owners)
            # Never with fewer columns than the rows of the View have.
            table = view.catalog.by_id.get(table.id, table)
            moves: list[_Move] = []
            try:
                for owner in owners:
                    stop.check()
                    with damage.noted(owner):
                        moves.append(self._write(view, table, owner, view.seq if until is None else until))
                    if sum(move.sweep.written for move in moves) >= GROUP_ROWS:
                        written, moves = moves, []
                        self._finish(table, written, done, damage)
            finally:
                self._finish(table, moves, done, damage)
        return list(done.values())

    def _end(self, table: Table, owners: Iterable[Owner], done: Mapping[Owner, Flushed]) -> None:
        for owner in owners:
            self._committer.end_flush(table.id, owner, done[owner].left if owner in done else None)

    def _write(self, view: View, table: Table, owner: Owner, asked: int) -> "_Move":
        """Write a partition's files."""
        self._points.reach("flush:begin")
        in_force = decode_manifest_record(
            view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
        )
        cold = in_force.flushed_until
        # What is cold already is to be forgotten, whatever is asked for.
        sweep = Sweep(table, cold, max(asked, cold), until=cold)
        rows = sweep.rows(view.hot.scan_rows(table.id, owner))
        first = next(rows, None)
        if not sweep.fresh:
            return _Move(owner, sweep, in_force, None)
        base = self._partitions.open(view, table, owner)
        manifest = self._write_files(base, sweep, () if first is None else chain((first,), rows))
        due = is_due(manifest, synced=table.synced)
        return _Move(owner, sweep, in_force, Switch(base, manifest, due))

    def _finish(
        self, table: Table, moves: Sequence["_Move"], done: dict[Owner, Flushed], damage: Damage
    ) -> None:
        """Switch to the files that were written, then forget the rows that are in them."""
        switches = [move.switch for move in moves if move.switch is not None]
        if switches:
            self._partitions.sync(switches)
            self._reach("flush:before-commit", switches)
            self._partitions.switch(*switches)
            self._reach("flush:after-commit", switches)
            self._partitions.copy(*switches)
        readable: list[_Move] = []
        for move in moves:
            with damage.noted(move.owner):
                if move.switch is None and move.in_force.number:
                    # An earlier flush may have ended between its commit and the copy for other readers.
                    self._partitions.copy_again(table, move.owner, move.in_force)
                readable.append(move)
        self._clean_up(table, readable)
        self._reach("flush:after-cleanup", readable)
        done.update((move.owner, move.flushed) for move in readable)

    def _write_files(self, base: Base, sweep: Sweep, rows: Iterable[Version]) -> Manifest:
        segments, hidden = base.manifest.segments, base.manifest.hidden
        last_number = base.manifest.last_sequence_number
        if sweep.written:
            last_number = base.number_next
            write = partial(
                write_segment,
                versions=rows,
                columns=base.table.columns,
                owner=base.owner,
                synced=base.table.synced,
            )
            segments = (*segments, self._partitions.write_segment(base, last_number, write, "flush"))
        if sweep.superseded:
            number = base.next_number("hidden")
            hidden = (*hidden, write_hidden(base.files, number, sweep.superseded))
        return self._partitions.write_manifest(
            base,
            "flush",
            segments=segments,
            hidden=hidden,
            flushed_until=sweep.until,
            last_sequence_number=last_number,
        )

    def _clean_up(self, table: Table, moves: Sequence["_Move"]) -> None:
        self._forget(Drop(table.id, move.owner, *row) for move in moves for row in move.sweep.runs.few)
        for move in moves:
            ranges: Sequence[KeyRange] = move.sweep.runs.ranges
            while ranges:
                ranges = self._forget_ranges(table, move, ranges)

    def _forget(self, drops: Iterable[Drop]) -> None:
        rest = iter(drops)
        while some := list(islice(rest, DROPS_MAX)):
            self._committer.apply(Batch(drops=some))
            self._points.reach("flush:mid-cleanup")

    def _forget_ranges(self, table: Table, move: "_Move", ranges: Sequence[KeyRange]) -> Sequence[KeyRange]:
        """Forget the rows of ranges; return what is left, where many rows were written meanwhile."""
        dense: list[KeyRange] = []
        for left in self._committer.forget_flushed(table.id, move.owner, ranges, until=move.sweep.until):
            if left is None:
                self._points.reach("flush:mid-cleanup")
            else:
                dense.append(left)
        view, left_ranges = self._committer.publication.view, list[KeyRange]()
        for each in dense:
            scan = _between(view, table, move.owner, each)
            runs = runs_of(scan, move.sweep.until)
            self._forget(Drop(table.id, move.owner, *row) for row in runs.few)
            left_ranges += runs.ranges
        return left_ranges

    def _reach(self, point: str, partitions: Sized) -> None:
        for _ in range(len(partitions)):
            self._points.reach(point)


@dataclass(frozen=True, slots=True)
class _Move:
    """A partition on its way: what was swept of its rows, and the switch to the files; None: nothing was."""

    owner: Owner
    sweep: Sweep
    in_force: ManifestInForce
    switch: Switch | None

    @property
    def flushed(self) -> Flushed:
        sweep = self.sweep
        due = self.in_force.is_due if self.switch is None else self.switch.is_due
        return Flushed(sweep.written, sweep.live, sweep.until, (sweep.newer, sweep.asked), due)


def _between(view: View, table: Table, owner: Owner, keys: KeyRange) -> Iterator[Version]:
    first = view.hot.find_row(table.id, owner, keys.first)
    rows = chain(() if first is None else (first,), view.hot.scan_rows(table.id, owner, keys.first))
    return takewhile(lambda version: version.key <= keys.last, rows)


def _owners(view: View, table: Table, users: Sequence[str] | None) -> Iterator[Owner]:
    if table.is_ephemeral:
        return iter(())
    if users is None:
        return iter(view.hot.owners(table.id))
    named = map(user_owner, dict.fromkeys(users))
    return (owner for owner in named if next(view.hot.scan_rows(table.id, owner), None) is not None)


def _is_left(view: View, table: Table, owner: Owner) -> bool:
    record = view.hot.find_record(Kind.MANIFEST, partition_name(table.id, owner))
    until = decode_manifest_record(record).flushed_until
    return any(version.seq <= until for version in view.hot.scan_rows(table.id, owner))
