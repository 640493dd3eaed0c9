"""Hydration of stock clients: `/sync/download` from 0, where the log no longer reaches back so far.

Law: every live row comes once, after its parents, in full pages, and then what was deleted, children first,
for a file that still has it; then the log goes on from where it stood when the hydration began. What is new
since comes from the log. Only rows that refer to each other in a circle have no such order: they come last.

A stock client repeats the number that it was given, so a page is a number below the log's floor; what it
stands for is a record, so that a hydration goes on after a restart of the server.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, dropwhile

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.names import source_name
from upwell.engine.payload import payload_of
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.feeds.download import Downloads, change_time, synced_tables
from upwell.feeds.hydrate import change_id_max
from upwell.feeds.lineage import CIRCLE, Place, groups_of, in_order, parents_of
from upwell.protocol import sync
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite, Version
from upwell.types import Op, Owner, user_owner

ANCESTORS_MAX = 1_000
DELETED = CIRCLE + 1
"""The depth of tombstones: behind all live rows."""


class _Hydration(msgspec.Struct, frozen=True, array_like=True):
    """One hydration: the log where it began, and the last rows of its two newest pages by their numbers."""

    began: int
    began_seq: int
    places: dict[int, Place | None]


@dataclass(frozen=True, slots=True)
class StockDownloads:
    """Serves the log where it reaches back far enough, and else live rows; blocks its thread."""

    committer: Committer
    rows: Rows
    downloads: Downloads

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
        """Return the page after `after`, a counter of the log or the number of a hydration's page.

        Raises `SeqTrimmed` if it leads nowhere: the device has to start anew.
        """
        if self.downloads.is_trimmed(user, after):
            return self._page(user, source, after, limit, schema, include_self=include_self)
        return self.downloads.download(
            user, source, after=after, until=until, limit=limit, schema=schema, include_self=include_self
        )

    def _page(
        self, user: str, source: str, after: int, limit: int, schema: str | None, *, include_self: bool
    ) -> sync.DownloadResponse:
        view, owner = self.committer.publication.view, user_owner(user)
        name = source_name(user, source)
        newest = view.hot.owner_counter(owner)
        hydration = _Hydration(newest, view.seq, {0: None}) if after == 0 else _find(view.hot, name)
        if hydration is None or after not in hydration.places:
            raise SeqTrimmed("the log was trimmed meanwhile; download from 0, or hydrate")
        # The client looks for its own changes to learn which change ids it has used.
        origin = (source, change_id_max(view, user, source)) if include_self else ("", 0)
        page: list[sync.DownloadChange] = []
        last = hydration.places[after]
        following = chain(
            self._live(view, owner, last, hydration.began_seq, schema),
            self._deleted(view, owner, last, schema),
        )
        for place, versions in following:
            page += [_hydrated(table, version, after + 1, origin) for table, version in versions]
            last = place
            if len(page) >= limit:
                break
        has_more = next(following, None) is not None
        if has_more:
            self._remember(name, hydration, after, last)
        return sync.DownloadResponse(
            changes=page,
            has_more=has_more or newest > hydration.began,
            next_after=after + 1 if has_more else hydration.began,
            window_until=hydration.began,
            stream_id=self.downloads.stream_id,
            max_server_id=newest,
        )

    def _live(
        self, view: View, owner: Owner, after: Place | None, began_seq: int, schema: str | None
    ) -> Iterator[tuple[Place, list[tuple[Table, Version]]]]:
        """Yield the live rows after a place, each behind its parents that are new since the begin."""
        if after is not None and after.depth == DELETED:
            return
        groups = groups_of(view.catalog, synced_tables(view.catalog, schema))
        start = 0
        if after is not None:
            start = next((i for i, g in enumerate(groups) if any(t.id == after.table for t in g)), 0)
        given: set[tuple[int, str]] = set()
        for index, group in enumerate(groups[start:]):
            for place, table, version in in_order(
                self.rows, view, owner, group, after if index == 0 else None
            ):
                if not _is_new(version, began_seq):
                    ancestors = self._new_ancestors(view, owner, table, version, began_seq, given)
                    yield place, [*ancestors, (table, version)]

    def _deleted(
        self, view: View, owner: Owner, after: Place | None, schema: str | None
    ) -> Iterator[tuple[Place, list[tuple[Table, Version]]]]:
        """Yield the tombstones after a place, children's tables first."""
        tables = list(chain.from_iterable(groups_of(view.catalog, synced_tables(view.catalog, schema))))
        tables.reverse()
        begun = after if after is not None and after.depth == DELETED else None
        if begun is not None:
            tables = list(dropwhile(lambda table: table.id != begun.table, tables))
        for table in tables:
            key = begun.key if begun is not None and begun.table == table.id else None
            for version in self.rows.scan_tombstones(view.hot, table, owner, key):
                yield Place(DELETED, table.id, shown(version.key)), [(table, version)]

    def _new_ancestors(
        self,
        view: View,
        owner: Owner,
        table: Table,
        version: Version,
        began_seq: int,
        given: set[tuple[int, str]],
    ) -> list[tuple[Table, Version]]:
        """Return the parents of a row that are newer than the hydration, their own such parents first."""
        found: list[tuple[Table, Version]] = []
        todo = [(table, version)]
        while todo and len(found) < ANCESTORS_MAX:
            child, row = todo.pop()
            for parent, key in parents_of(view, child, row):
                live = self.rows.find(view.hot, parent, owner, key, may_block=True).live
                if live is not None and _is_new(live, began_seq) and (parent.id, shown(key)) not in given:
                    given.add((parent.id, shown(key)))
                    found.insert(0, (parent, live))
                    todo.append((parent, live))
        return found

    def _remember(self, name: str, hydration: _Hydration, after: int, last: Place | None) -> None:
        if after + 1 >= hydration.began:
            raise SeqTrimmed("more rows came back meanwhile than the log had; download from 0")
        places = {after: hydration.places[after], after + 1: last}
        record = msgspec.msgpack.encode(_Hydration(hydration.began, hydration.began_seq, places))
        seq = self.committer.apply(Batch(records=[RecordWrite(Kind.HYDRATION, name, record)]))
        self.committer.publication.wait(seq)


def _find(reader: HotReader, name: str) -> _Hydration | None:
    record = reader.find_record(Kind.HYDRATION, name)
    return msgspec.msgpack.decode(record, type=_Hydration) if record else None


def _is_new(version: Version, began_seq: int) -> bool:
    """Whether the row came into being after the hydration began; the log brings it."""
    return version.count == 1 and version.seq > began_seq


def _hydrated(table: Table, version: Version, number: int, origin: tuple[str, int]) -> sync.DownloadChange:
    row = version.row
    return sync.DownloadChange(
        server_id=number,
        schema=table.namespace,
        table=table.name,
        op=(Op.DELETE if row is None else Op.INSERT).value,
        pk=shown(version.key),
        payload=sync.NULL if row is None else msgspec.Raw(payload_of(table, row, version.uploaded)),
        server_version=version.count,
        deleted=row is None,
        source_id=origin[0],
        source_change_id=origin[1],
        ts=change_time(version.seq),
    )
