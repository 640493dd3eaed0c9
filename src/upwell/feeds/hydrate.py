"""Hydration: the live rows that start a fresh device.

Law: a hydration gives every live row, parents first, and names the counter from which the log then goes
on: replaying it after the rows gives exactly the server's state.

Our own extension of the device sync protocol.
"""

import base64
import binascii
from itertools import islice
from urllib.parse import quote

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.payload import payload_of
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.feeds.download import change_time, synced_table
from upwell.feeds.wave import SourceState
from upwell.protocol import sync
from upwell.storage.hot import Kind, Version
from upwell.types import Key, Op, Owner, user_owner


class HydrationCursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a hydration stands: the history, the counter at its begin, the last row's table and key."""

    stream: str
    began: int
    table: int = 0
    key: str | None = None


class Hydrations:
    """Serves the live rows of one owner's synced tables; blocks its thread."""

    def __init__(self, committer: Committer, rows: Rows, *, stream_id: str) -> None:
        self._committer = committer
        self._rows = rows
        self._stream_id = stream_id

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

    def _live_rows(
        self, view: View, owner: Owner, at: HydrationCursor, limit: int, schema: str | None
    ) -> tuple[list[sync.DownloadChange], HydrationCursor, bool]:
        tables = view.catalog.parents_first(
            table for table in view.catalog.tables.values() if synced_table(view.catalog, table.id, schema)
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
        ts=change_time(version.seq),
    )


def _change_id_max(view: View, user: str, source: str) -> int:
    record = view.hot.find_record(Kind.SOURCE, f"{quote(user, safe='')}/{quote(source, safe='')}")
    return msgspec.msgpack.decode(record, type=SourceState).change_id_max if record else 0


def _encode_cursor(cursor: HydrationCursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()
