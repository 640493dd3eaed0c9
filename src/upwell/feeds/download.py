"""Download: an owner's log, for devices.

Law: a download is the log, unabridged, in order, never beyond the View. A cursor below what was trimmed, or
ahead of what a lost history left, is refused: a device never misses a change silently. No page ends before an
entry that is joined to the one before it: a page that is full goes on, a window that ends there ends earlier.

Protocol: generation A of the device sync contract, section 3. Cursors are the owner's dense counter.
"""

from datetime import UTC, datetime

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.commit import Committer
from upwell.engine.payload import payload_of
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.ids import EPOCH_SHIFT, snowflake_ms
from upwell.protocol import sync
from upwell.storage.hot import Change, Floor, HotReader, load_floor
from upwell.types import Op, Owner, user_owner

SCAN_CHANGES_MIN, SCAN_CHANGES_MAX = 16, 512
PAGE_BYTES_MAX = 16 * 1024 * 1024
"""Of the payloads of a page: it ends behind the one that goes beyond."""


class Downloads:
    """Serves the log of one owner's synced tables; blocks its thread."""

    def __init__(self, committer: Committer, *, stream_id: str) -> None:
        self._committer = committer
        self.stream_id = stream_id

    def download(
        self,
        user: str,
        source: str,
        *,
        after: int,
        until: int,
        limit: int,
        schema: str | None,
        include_self: bool,
    ) -> sync.DownloadResponse:
        """Return at most `limit` changes with after < counter ≤ until (0: freeze now).

        Raises `SeqTrimmed` if the device has to start anew.
        """
        view = self._committer.publication.view
        owner = user_owner(user)
        self._refuse_lost(view, owner, after)
        newest = view.hot.owner_counter(owner)
        window = until or newest
        skip = None if include_self else source
        end = newest if window >= newest else last_stop(view.hot, owner, after, window)
        page, cursor, has_more = self._collect(view, owner, skip, schema, after, end, limit)
        return sync.DownloadResponse(
            changes=page,
            has_more=has_more,
            # Beyond the last change when the rest of the window held nothing for this device.
            next_after=page[-1].server_id if has_more else max(after, cursor),
            window_until=window,
            stream_id=self.stream_id,
            max_server_id=newest,
            table_numbers=table_numbers(view.catalog, schema),
        )

    def is_trimmed(self, user: str, after: int) -> bool:
        """Whether the log no longer has all changes after `after`."""
        owner = user_owner(user)
        return after < load_floor(self._committer.publication.view.hot, owner).counter

    def _refuse_lost(self, view: View, owner: Owner, after: int) -> None:
        floor = load_floor(view.hot, owner).counter
        if after < floor:
            raise SeqTrimmed(f"the log before {floor} was trimmed, the cursor is at {after}; hydrate again")
        epoch_begin = self._committer.newest.epoch << EPOCH_SHIFT
        if floor < after < epoch_begin and not view.hot.read_owner_log(owner, after - 1, epoch_begin, 1):
            raise SeqTrimmed(f"the changes up to {after} were lost with a part of the history; hydrate again")

    def _collect(
        self,
        view: View,
        owner: Owner,
        skip_source: str | None,
        schema: str | None,
        after: int,
        until: int,
        limit: int,
    ) -> tuple[list[sync.DownloadChange], int, bool]:
        """Return visible changes, the counter up to which the log was read, and whether there are more."""
        found: list[sync.DownloadChange] = []
        cursor, size, size_bytes, may_end = after, SCAN_CHANGES_MIN, 0, False
        while cursor < until:
            changes = view.hot.read_owner_log(owner, cursor, until, size)
            for change in changes:
                may_end = may_end or not change.joined
                table = synced_table(view.catalog, change.table, schema)
                if table is not None and (skip_source is None or change.source != skip_source):
                    if may_end and (len(found) >= limit or size_bytes > PAGE_BYTES_MAX):
                        return found, cursor, True
                    found.append(_downloaded(table, change))
                    size_bytes += len(bytes(found[-1].payload))
                    may_end = False
                cursor = change.counter
            if len(changes) < size:
                return found, until, False
            # Changes may be as large as a row: the steps grow only while they turn out to be small.
            size = min(2 * size, SCAN_CHANGES_MAX) if size_bytes < PAGE_BYTES_MAX // 8 else SCAN_CHANGES_MIN
        return found, cursor, False


def last_stop(reader: HotReader, owner: Owner, after: int, until: int) -> int:
    """Return the last counter up to `until` behind which a device may stop."""
    while until > after and any(change.joined for change in reader.read_owner_log(owner, until, None, 1)):
        until -= 1
    return until


def next_stop(reader: HotReader, owner: Owner, floor: Floor) -> Floor:
    """Return the first entry from a floor on behind which a device may stop: trims know ages and sizes."""
    while (changes := reader.read_owner_log(owner, floor.counter, None, 1)) and changes[0].joined:
        floor = Floor(changes[0].counter, changes[0].seq)
    return floor


def synced_table(catalog: Catalog, table_id: int, schema: str | None) -> Table | None:
    table = catalog.by_id.get(table_id)
    if table is None or not table.synced or (schema is not None and table.namespace != schema):
        return None
    return table


def synced_tables(catalog: Catalog, schema: str | None) -> list[Table]:
    """Return the tables that devices see, of one schema or (None) of all."""
    return [table for table in catalog.tables.values() if synced_table(catalog, table.id, schema)]


def table_numbers(catalog: Catalog, schema: str | None) -> dict[str, int] | None:
    """Return the ids of a schema's tables, by which a device notices that one was made anew."""
    return None if schema is None else {table.name: table.id for table in synced_tables(catalog, schema)}


def _downloaded(table: Table, change: Change) -> sync.DownloadChange:
    deleted = change.op == Op.DELETE.value
    return sync.DownloadChange(
        server_id=change.counter,
        schema=table.namespace,
        table=table.name,
        op=change.op,
        pk=shown(change.key),
        payload=sync.NULL
        if change.after is None
        else msgspec.Raw(payload_of(table, table.narrowed(change.after, change.schema), change.uploaded)),
        server_version=change.count,
        deleted=deleted,
        source_id=change.source or "",
        source_change_id=change.change_id or 0,
        ts=change_time(change.seq),
    )


def change_time(seq: int) -> str:
    moment = datetime.fromtimestamp(snowflake_ms(seq) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")
