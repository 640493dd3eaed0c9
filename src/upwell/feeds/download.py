"""Download and hydration: an owner's log for devices, and the live rows that start a fresh one.

Law: a download is the log, unabridged, in order, never beyond the View. A hydration gives every live
row, parents first, and names the counter from which the log then goes on: replaying it after the rows
gives exactly the server's state.

Protocol: generation A of the device sync contract, section 3; hydration is our own extension.
Cursors are the owner's dense counter.
"""

import base64
import binascii
from datetime import UTC, datetime
from itertools import islice
from urllib.parse import quote

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.commit import Committer
from upwell.engine.payload import payload_of
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.feeds.wave import SourceState
from upwell.ids import snowflake_ms
from upwell.protocol import sync
from upwell.storage.hot import Change, Kind, Version
from upwell.types import Key, Op, Owner, user_owner

SCAN_CHANGES = 1_000


class HydrationCursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a hydration stands: the history, the counter at its begin, the last row's table and key."""

    stream: str
    began: int
    table: int = 0
    key: str | None = None


class Downloads:
    """Serves the log and the rows of one owner's synced tables; blocks its thread."""

    def __init__(self, committer: Committer, rows: Rows, *, stream_id: str) -> None:
        self._committer = committer
        self._rows = rows
        self._stream_id = stream_id

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
        """Return at most `limit` changes with after < counter ≤ until (0: freeze now)."""
        view = self._committer.publication.view
        owner = user_owner(user)
        newest = view.hot.owner_counter(owner)
        window = until or newest
        skip = None if include_self else source
        found, cursor = self._collect(view, owner, skip, schema, after, min(window, newest), limit)
        page = found[:limit]
        has_more = len(found) > limit
        return sync.DownloadResponse(
            changes=page,
            has_more=has_more,
            # Beyond the last change when the rest of the window held nothing for this device.
            next_after=page[-1].server_id if has_more else max(after, cursor),
            window_until=window,
            stream_id=self._stream_id,
            max_server_id=newest,
        )

    def hydrate(
        self, user: str, source: str, *, cursor: str | None, limit: int, schema: str | None
    ) -> sync.HydrateResponse:
        """Return the next page of live rows; the first page fixes where the log goes on.

        Raises `SeqTrimmed` for a cursor that leads nowhere: the hydration has to start again.
        """
        view = self._committer.publication.view
        owner = user_owner(user)
        began = view.hot.owner_counter(owner)
        at = self._decoded(cursor) if cursor else HydrationCursor(self._stream_id, began)
        page, at, has_more = self._live_rows(view, owner, at, limit, schema)
        return sync.HydrateResponse(
            changes=page,
            has_more=has_more,
            cursor=_encode_cursor(at),
            next_after=at.began,
            next_change_id=_change_id_max(view, user, source) + 1,
            stream_id=self._stream_id,
        )

    def _decoded(self, text: str) -> HydrationCursor:
        try:
            cursor = msgspec.msgpack.decode(base64.urlsafe_b64decode(text), type=HydrationCursor)
        except (binascii.Error, ValueError) as error:
            raise SeqTrimmed(
                "this is no hydration cursor of this server; start the hydration again"
            ) from error
        if cursor.stream != self._stream_id:
            raise SeqTrimmed("the hydration cursor is of another history; start the hydration again")
        return cursor

    def _collect(
        self,
        view: View,
        owner: Owner,
        skip_source: str | None,
        schema: str | None,
        after: int,
        until: int,
        limit: int,
    ) -> tuple[list[sync.DownloadChange], int]:
        """Return up to `limit` + 1 visible changes, and the counter up to which the log was read."""
        found: list[sync.DownloadChange] = []
        cursor = after
        while len(found) <= limit and cursor < until:
            changes = view.hot.read_owner_log(owner, cursor, until, SCAN_CHANGES)
            for change in changes:
                table = _synced(view.catalog, change.table, schema)
                if table is not None and (skip_source is None or change.source != skip_source):
                    found.append(_downloaded(table, change))
                    if len(found) > limit:
                        return found, change.counter - 1
            if len(changes) < SCAN_CHANGES:
                return found, until
            cursor = changes[-1].counter
        return found, cursor

    def _live_rows(
        self, view: View, owner: Owner, at: HydrationCursor, limit: int, schema: str | None
    ) -> tuple[list[sync.DownloadChange], HydrationCursor, bool]:
        tables = view.catalog.parents_first(
            table for table in view.catalog.tables.values() if _synced(view.catalog, table.id, schema)
        )
        page: list[sync.DownloadChange] = []
        start = next((i for i, table in enumerate(tables) if table.id == at.table), 0)
        for table in tables[start:]:
            after: Key | None = at.key if table.id == at.table else None
            room = limit - len(page)
            versions = list(islice(self._rows.scan(view.hot, table, owner, after), room + 1))
            page += [_hydrated(table, version, at.began) for version in versions[:room]]
            if versions[:room]:
                at = HydrationCursor(at.stream, at.began, table.id, str(versions[:room][-1].key))
            if len(versions) > room:
                return page, at, True
        return page, at, False


def _synced(catalog: Catalog, table_id: int, schema: str | None) -> Table | None:
    table = catalog.by_id.get(table_id)
    if table is None or not table.synced or (schema is not None and table.namespace != schema):
        return None
    return table


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
        else msgspec.Raw(payload_of(table, change.after, change.uploaded)),
        server_version=change.count,
        deleted=deleted,
        source_id=change.source or "",
        source_change_id=change.change_id or 0,
        ts=_time(change.seq),
    )


def _hydrated(table: Table, version: Version, began: int) -> sync.DownloadChange:
    assert version.row is not None
    return sync.DownloadChange(
        server_id=began,
        schema=table.namespace,
        table=table.name,
        op=Op.INSERT.value,
        pk=shown(version.key),
        payload=msgspec.Raw(payload_of(table, version.row, version.uploaded)),
        server_version=version.count,
        deleted=False,
        source_id="",
        source_change_id=0,
        ts=_time(version.seq),
    )


def _time(seq: int) -> str:
    moment = datetime.fromtimestamp(snowflake_ms(seq) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")


def _change_id_max(view: View, user: str, source: str) -> int:
    record = view.hot.find_record(Kind.SOURCE, f"{quote(user, safe='')}/{quote(source, safe='')}")
    return msgspec.msgpack.decode(record, type=SourceState).change_id_max if record else 0


def _encode_cursor(cursor: HydrationCursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()
