"""Hydration: the live rows that start a fresh device.

Law: a hydration gives every live row, parents first, and names the counter from which the log then goes
on: replaying it after the rows gives exactly the server's state. A page is bounded in rows and bytes.

Our own extension of the device sync protocol: rows come by table as lists of values, so that neither side
pays for an object per row.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice

import msgspec
from msgspec import structs

from upwell.decodable import decodable
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.payload import device_columns, device_rows
from upwell.engine.receipt import change_id_max
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.feeds.download import synced_tables, table_numbers
from upwell.feeds.lineage import Order, groups_of
from upwell.feeds.registry import Registry
from upwell.protocol import sync
from upwell.storage.hot import Version
from upwell.types import Key, Owner, user_owner

ROWS_DEFAULT = 5_000
ROWS_MAX = 10_000
PAGE_BYTES_MAX = 4_000_000
CHUNK_ROWS = 250

_encode_stored = msgspec.msgpack.Encoder().encode


@decodable
class HydrationCursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a hydration stands: the history, the counter at its begin, the last row, the order of tables."""

    stream: str
    began: int
    table: int = 0
    key: str | None = None
    order: Order = Order()


class Hydrations:
    """Serves the live rows of one owner's synced tables; blocks its thread."""

    def __init__(self, committer: Committer, rows: Rows, registry: Registry, *, stream_id: str) -> None:
        self._committer = committer
        self._rows = rows
        self._registry = registry
        self._stream_id = stream_id

    def hydrate(
        self, user: str, source: str, *, cursor: str | None, limit: int, schema: str | None
    ) -> sync.HydrateResponse:
        """Return the next page of live rows; the first page fixes where the log goes on.

        Raises `SeqTrimmed` for a cursor that leads nowhere: the hydration has to start again.
        """
        view = self._committer.publication.view
        owner = user_owner(user)
        newest = view.hot.owner_counter(owner)
        groups = groups_of(view.catalog, synced_tables(view.catalog, schema))
        if cursor:
            at = self._decoded(cursor, groups)
        else:
            at = HydrationCursor(self._stream_id, newest, order=Order.of(groups))
        pages, at, has_more = self._live_rows(view, owner, at, limit, list(chain.from_iterable(groups)))
        self._registry.give(user, source, at.began, asked=None)
        return sync.HydrateResponse(
            tables=pages,
            table_numbers=table_numbers(view.catalog, schema),
            has_more=has_more,
            cursor=_encode_cursor(at),
            next_after=at.began,
            next_change_id=min(change_id_max(view.hot, user, source) + 1, sync.INT64_MAX),
            stream_id=self._stream_id,
            max_server_id=newest,
        )

    def _decoded(self, text: str, groups: Sequence[Sequence[Table]]) -> HydrationCursor:
        try:
            cursor = msgspec.msgpack.decode(base64.urlsafe_b64decode(text), type=HydrationCursor)
        except (binascii.Error, ValueError) as error:
            raise SeqTrimmed(
                "this is no hydration cursor of this server; start the hydration again"
            ) from error
        if cursor.stream != self._stream_id:
            raise SeqTrimmed("the hydration cursor is of another history; start the hydration again")
        if not cursor.order.holds(groups):
            raise SeqTrimmed("the tables stand in another order meanwhile; start the hydration again")
        return cursor

    def _live_rows(
        self, view: View, owner: Owner, at: HydrationCursor, limit: int, tables: Sequence[Table]
    ) -> tuple[list[sync.TablePage], HydrationCursor, bool]:
        pages: list[sync.TablePage] = []
        room = _Room(limit)
        start = next((i for i, table in enumerate(tables) if table.id == at.table), 0)
        for table in tables[start:]:
            after: Key | None = at.key if table.id == at.table else None
            versions, is_cut = room.take(self._rows.scan(view.hot, table, owner, after))
            if versions:
                pages.append(_table_page(table, versions))
                at = structs.replace(at, table=table.id, key=str(versions[-1].key))
            if is_cut:
                return pages, at, True
        return pages, at, False


@dataclass(slots=True)
class _Room:
    """What is left of a page; the bytes are those of the stored rows, and one row always fits."""

    rows: int
    bytes: int = PAGE_BYTES_MAX

    def take(self, versions: Iterator[Version]) -> tuple[list[Version], bool]:
        """Return the next versions that fit, and whether there are more."""
        taken: list[Version] = []
        while chunk := list(islice(versions, min(self.rows + 1, CHUNK_ROWS))):
            count = self._count_that_fit(chunk)
            taken += chunk[:count]
            if count < len(chunk):
                return taken, True
        return taken, False

    def _count_that_fit(self, chunk: list[Version]) -> int:
        count, size = len(chunk), len(_encode_stored(chunk))
        if count > self.rows or size > self.bytes:
            sizes = [len(_encode_stored(version)) for version in chunk]
            count = min(self.rows, sum(total <= self.bytes for total in accumulate(sizes)))
            if self.rows and self.bytes == PAGE_BYTES_MAX:
                count = max(1, count)
            size = sum(sizes[:count])
        self.rows -= count
        self.bytes -= size
        return count


def _table_page(table: Table, versions: list[Version]) -> sync.TablePage:
    rows = [version.row for version in versions if version.row is not None]
    page = sync.TablePage(
        schema=table.namespace,
        table=table.name,
        columns=device_columns(table),
        rows=device_rows(table, rows),
        versions=[version.count for version in versions],
        exact={
            index: msgspec.Raw(version.uploaded.encode())
            for index, version in enumerate(versions)
            if version.uploaded is not None
        },
    )
    for index in page.exact:
        page.rows[index] = [shown(versions[index].key)]
    return page


def _encode_cursor(cursor: HydrationCursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()
