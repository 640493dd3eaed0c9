"""The one write path: every change of state ends in `Committer.apply`.

Law: `apply` never waits. It verifies and writes under the one lock; one thread then syncs the WAL once
for all commits that came meanwhile, and only after that sync is a View that shows them published.
So an acknowledgement (`Publication.wait`, `Growth.reached`) always follows a sync that covers it.
"""

import logging
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from upwell.effects import Points
from upwell.engine.catalog import Catalog, load_catalog
from upwell.engine.changelog import Changelog
from upwell.engine.flush_policy import FlushPace
from upwell.engine.in_force import decode_manifest_record, partition_name
from upwell.engine.pending import Pending
from upwell.engine.renewal import Renewal
from upwell.engine.view import Publication, View
from upwell.errors import ReadOnly
from upwell.ids import Seq
from upwell.logs import fields
from upwell.storage.hot import (
    Applied,
    Batch,
    Change,
    DropRange,
    ExpectationFailed,
    HotStore,
    Kind,
    RecordWrite,
    RowWrite,
)
from upwell.types import Key, Owner, TableId

log = logging.getLogger("upwell.commit")

KEPT_MAX = 2_000
"""So many rows are left out of the range that one commit deletes: each takes some µs under the write lock."""
GAP_ROWS_MIN = 200
"""With fewer rows between those that are left out, on average, each gap is no range of its own: measured, a
read beside the deletion of 200,000 ranges of one row takes 0.2 s, of the rows one by one 0.3 ms."""

_CATALOG_KINDS = frozenset({Kind.NAMESPACE, Kind.TABLE, Kind.USER, Kind.STORAGE, Kind.QUERY})


class Durability(Enum):
    """When a write is acknowledged: after its WAL sync, or before (a power cut can take it back)."""

    GROUP = "group"
    ASYNC = "async"


class KeyRange(NamedTuple):
    """So many rows beside each other, from key `first` until `last`."""

    first: Key
    last: Key
    rows: int

    def among(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Return those of sorted keys that are in the range."""
        return keys[bisect_left(keys, self.first) : bisect_right(keys, self.last)]


Note = Callable[[], Sequence[RecordWrite]]
"""Makes records that go with a commit, such as its entry in the audit log; asked under the write lock."""


def no_note() -> Sequence[RecordWrite]:
    """Tell nothing."""
    return ()


class Committer:
    """Applies batches to the hot store and publishes Views of what has been synced."""

    def __init__(
        self,
        store: HotStore,
        *,
        points: Points,
        durability: Durability = Durability.GROUP,
        pace: FlushPace | None = None,
    ) -> None:
        self.lock = threading.RLock()
        """The one write lock. Who evaluates and applies while holding it meets no conflict."""
        self._store = store
        self._points = points
        self._durability = durability
        self._catalog: Catalog = load_catalog(store)
        self.pending = Pending(pace or FlushPace())
        for table in self._catalog.by_id.values():
            self.pending.define(table)
        self._flushing: dict[tuple[TableId, Owner], dict[Key, int]] = {}
        """The partitions that are marked, and the newest seq of each key written there since."""
        self._flushed_until: dict[tuple[TableId, Owner], int] = {}
        seq, reader = store.snapshot()
        self.changelog = Changelog(floor=seq)
        self._work = threading.Event()
        self.publication = Publication(View(seq, reader, self._catalog), self._work.set)
        self.ask_sync: Callable[[], None] = self._work.set
        """Called after each commit; who applies many in a turn may ask once for all of them."""
        self.commits = self.changes = self.syncs = 0
        """How many there were since the start; `syncs` are those of the log that made commits durable."""
        self._closing = False
        self._syncer = threading.Thread(target=self._run_syncer, name="upwell-wal-sync", daemon=True)
        self._syncer.start()

    @property
    def last_seq(self) -> Seq:
        """The end of the newest commit, published or not."""
        return self._store.last_seq

    @property
    def newest(self) -> HotStore:
        """The newest state, published or not; for evaluating a write while holding `lock`."""
        return self._store

    @property
    def newest_catalog(self) -> Catalog:
        """The newest catalog, published or not."""
        return self._catalog

    def apply(self, batch: Batch) -> Seq:
        """Commit `batch` and return its seq; it is acknowledged when the publication has reached it.

        Raises `ExpectationFailed` with nothing written, `ReadOnly` after a failed sync.
        """
        with self.lock:
            if self.publication.failure:
                raise self.publication.failure
            self._points.reach("commit:before-write")
            self._expect_tables(batch)
            batch.rows = self._superseding(batch.rows)
            try:
                applied = self._apply(batch)
            except ReadOnly:
                self._work.set()  # the syncer meets it too, and tells all who wait
                raise
            self.commits += 1
            self.changes += len(applied.changes)
            self.changelog.append(applied.changes)
            self._note_written(applied.changes)
            self.pending.note(applied.changes)
            self._note_records(batch)
        self._points.reach("commit:after-write")
        if self._durability is Durability.ASYNC:
            self._publish_now()
        self.ask_sync()
        return applied.seq

    def settle_on_disk(self) -> None:
        """Return when every View that is or was published stands on the disk; raise `ReadOnly` if it can't.

        Who removes a file because of what a View says calls this first: a power cut could take the commit
        back that made the file superfluous, but not bring the file back.
        """
        if self._durability is Durability.ASYNC:
            self._store.sync()
            self.syncs += 1

    def begin_flush(self, table: TableId, *owners: Owner) -> View:
        """Mark partitions as being flushed and return a View that has all that came before.

        From the mark on, each new version of a row lists the one before it as superseded, since that
        one may be on its way into a segment.
        """
        with self.lock:
            for owner in owners:
                self._flushing[table, owner] = {}
                self.pending.begin(table, owner)
            seq = self._store.last_seq
        return self.publication.wait(seq)

    def end_flush(self, table: TableId, owner: Owner, left: tuple[int, int] | None = None) -> None:
        """Take the mark away; the flush has switched, or has failed (`left` None, see `Pending.end`)."""
        with self.lock:
            self._flushing.pop((table, owner), None)
            self.pending.end(table, owner, left)

    def forget_flushed(
        self, table: TableId, owner: Owner, ranges: Iterable[KeyRange], *, until: int
    ) -> Iterator[KeyRange | None]:
        """Forget the hot rows of a marked partition whose `_seq` ≤ `until` and whose key is in `ranges`.

        All rows that were there when it was marked must be so old; what came since is known here. A piece
        goes with each step of the iterator (None), or a range is given back untouched: among its rows are
        so many that came since that their gaps would make ranges of few rows each.
        """
        with self.lock:
            written, self._flushing[table, owner] = self._flushing[table, owner], {}
        newer = sorted(key for key, seq in written.items() if seq > until)
        seq = 0
        for each in ranges:
            keys = each.among(newer)
            if len(keys) * GAP_ROWS_MIN > each.rows:
                yield each
                continue
            for drop in _pieces(DropRange(table, owner, each.first, each.last), keys):
                self.publication.wait(seq)  # others get the lock meanwhile
                with self.lock:
                    kept = {*drop.kept, *filter(drop.covers, self._flushing[table, owner])}
                    seq = self.apply(Batch(ranges=[msgspec.structs.replace(drop, kept=tuple(sorted(kept)))]))
                yield None

    def close(self) -> None:
        """Sync and publish what is applied, then stop. The store stays open."""
        self._closing = True
        self._work.set()
        self._syncer.join()

    def _apply(self, batch: Batch) -> Applied:
        try:
            return self._store.apply(batch)
        except ExpectationFailed:
            if not Renewal(batch, self._store).renew():
                raise
        return self._store.apply(batch)

    def _expect_tables(self, batch: Batch) -> None:
        tables = self._catalog.by_id
        for row in batch.rows:
            table = tables.get(row.table)
            if table is None or table.version != row.schema:
                raise ExpectationFailed("the table was changed or dropped meanwhile")

    def _superseding(self, rows: Sequence[RowWrite]) -> list[RowWrite]:
        """Return the rows, with the versions before them as superseded that are cold or about to be."""
        until = {
            partition: self.last_seq if partition in self._flushing else self._cold_until(partition)
            for partition in {(row.table, row.owner) for row in rows if row.previous}
        }
        if not any(until.values()):
            return list(rows)
        return [
            msgspec.structs.replace(row, supersedes=(*row.supersedes, row.previous))
            if row.previous
            and row.previous <= until[row.table, row.owner]
            and row.previous not in row.supersedes
            else row
            for row in rows
        ]

    def _note_written(self, changes: Sequence[Change]) -> None:
        if not self._flushing:
            return
        for change in changes:
            written = self._flushing.get((TableId(change.table), Owner(change.owner)))
            if written is not None:
                written[change.key] = change.seq

    def _cold_until(self, partition: tuple[TableId, Owner]) -> int:
        until = self._flushed_until.get(partition)
        if until is None:
            record = self._store.find_record(Kind.MANIFEST, partition_name(*partition))
            until = decode_manifest_record(record).flushed_until
            if len(self._flushed_until) >= 100_000:
                self._flushed_until.clear()
            self._flushed_until[partition] = until
        return until

    def _note_records(self, batch: Batch) -> None:
        changed = [record for record in batch.records if record.kind in _CATALOG_KINDS]
        if changed:
            if any(self._alters(record) for record in changed):
                self.changelog.forget()
            self._catalog = self._catalog.with_records(changed)
            for record in changed:
                if record.kind is Kind.TABLE:
                    self._note_table(int(record.name))
        if any(record.kind is Kind.MANIFEST for record in batch.records):
            self._flushed_until.clear()

    def _note_table(self, number: int) -> None:
        table = self._catalog.by_id.get(number)
        if table is None:
            self.pending.forget(number)
        else:
            self.pending.define(table)

    def _alters(self, record: RecordWrite) -> bool:
        """Whether the record gives a table that exists another shape."""
        is_kept = record.kind is Kind.TABLE and record.value is not None
        return is_kept and int(record.name) in self._catalog.by_id

    def _publish_now(self) -> None:
        with self.lock:
            seq, reader = self._store.snapshot()
            self.publication.publish(View(seq, reader, self._catalog))

    def _run_syncer(self) -> None:
        failure = ReadOnly("the thread that syncs the log ended; restart the server")
        try:
            self._sync_groups()
        except ReadOnly as error:
            failure = error
        finally:
            # However it ended: nobody may wait for a sync that no longer comes.
            if not self._is_all_published():
                reason = str(failure.__cause__ or failure)
                log.critical("The server is read-only", extra=fields(cause=str(failure), reason=reason))
                self.publication.fail(failure)

    def _is_all_published(self) -> bool:
        return self._closing and self.publication.view.seq >= self._store.last_seq

    def _sync_groups(self) -> None:
        while not self._closing or self._work.is_set():
            self._work.wait()
            self._work.clear()
            with self.lock:
                seq, reader = self._store.snapshot()
                catalog = self._catalog
            self._store.sync()
            self.syncs += 1
            self._points.reach("commit:after-sync")
            if self._durability is Durability.GROUP and seq > self.publication.view.seq:
                self.publication.publish(View(seq, reader, catalog))
            self._points.reach("commit:after-publish")


def _pieces(drop: DropRange, keys: Sequence[Key]) -> Iterator[DropRange]:
    """Yield the range without these keys of it, which are sorted; in pieces, if they are many."""
    while len(keys) > KEPT_MAX:
        border = keys[KEPT_MAX - 1]
        yield msgspec.structs.replace(drop, last=border, kept=tuple(keys[:KEPT_MAX]))
        drop, keys = msgspec.structs.replace(drop, first=border), keys[KEPT_MAX - 1 :]
    yield msgspec.structs.replace(drop, kept=tuple(keys))
