"""Hydration of stock clients: `/sync/download` from 0, where the log no longer reaches back so far.

Law: every row comes as it was at the floor, once, after its parents, in full pages, and then what was deleted
by then, children first, for a file that still has it; then the log goes on from the floor. So each page, of
rows or of the log, leaves a state that the server once was in or was growing to. Rows that refer to each
other in a circle come on one page, and so does all that was deleted of tables whose rows may refer to each
other: nobody knows any more how. A floor between entries that are joined counts as behind the last of them.

To a device that doesn't want its own changes a row comes only before one that refers to it, and as it is now,
if nobody else has changed it since the floor: the log won't tell of it, and the device may have it already.

A stock client repeats the number that it was given, so a page has a number below the floor. What it stands
for is a record, so that a hydration goes on after a restart of the server. A number is given to one page of a
source, and to none if the source may hold it as a number of the log: whatever requests come again, or late,
no cursor is taken for a page. Where no number is left, the page goes on to the end, and there are no more
rows than entries that were trimmed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile
from typing import TypeAlias

import msgspec
from msgspec import structs

from upwell.decodable import decodable
from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.names import source_name
from upwell.engine.payload import payload_of
from upwell.engine.receipt import change_id_max
from upwell.engine.rows import Rows
from upwell.engine.write import shown
from upwell.errors import SeqTrimmed
from upwell.feeds.download import (
    PAGE_BYTES_MAX,
    Downloads,
    change_time,
    next_stop,
    synced_tables,
    table_numbers,
)
from upwell.feeds.lineage import Order, Place, RowName, groups_of, in_order, is_circular, parents_of
from upwell.feeds.past import Past
from upwell.feeds.registry import Registry
from upwell.protocol import sync
from upwell.storage.hot import Batch, Floor, HotReader, Kind, RecordWrite, Version, load_floor
from upwell.types import Key, Op, user_owner

DELETED = 1 << 31
"""The depth of tombstones: behind all live rows."""

_Step: TypeAlias = tuple[Place, list[tuple[Table, Version]]]
"""Rows that come together, and their place."""

_Groups: TypeAlias = Sequence[Sequence[Table]]

PLACES_MAX = 8
"""Pages that are known: a device repeats its newest one, and late copies of requests make others."""


@decodable
class _Hydration(msgspec.Struct, frozen=True, array_like=True):
    """One hydration: the floor that it fills, and the last rows of its newest pages by their numbers.

    `last` was given already, or is below all that may be; `until` is what numbers have to stay below.
    """

    floor: Floor
    places: dict[int, Place | None]
    last: int = 0
    until: int = 0
    order: Order = Order()

    def goes_on(self, floor: Floor, groups: _Groups) -> bool:
        """Whether its places are of the rows of this floor, in the order that their tables have now."""
        return self.floor == floor and self.order.holds(groups)

    def number_of(self, place: Place | None, after: int) -> int | None:
        """Return the number of the page behind `after` that ends here, a free one if it has none yet."""
        known = (number for number, end in self.places.items() if end == place and number > after)
        return next(known, self.last + 1 if self.last + 1 < self.until else None)

    def having(self, number: int, place: Place | None, after: int) -> "_Hydration":
        """Return the hydration with a page's number, as the newest behind `after`."""
        places = self.places | {number: place}
        kept = {after, *sorted(places)[-PLACES_MAX:]} & places.keys()
        newest = {number: places[number] for number in kept}
        return structs.replace(self, places=newest, last=max(self.last, number))


@dataclass(frozen=True, slots=True)
class StockDownloads:
    """Serves the log where it reaches back far enough, and else live rows; blocks its thread."""

    committer: Committer
    rows: Rows
    downloads: Downloads
    registry: Registry

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
        answer = self.downloads.download(
            user, source, after=after, until=until, limit=limit, schema=schema, include_self=include_self
        )
        self.registry.give(user, source, answer.next_after, asked=after)
        return answer

    def _page(
        self, user: str, source: str, after: int, limit: int, schema: str | None, *, include_self: bool
    ) -> sync.DownloadResponse:
        view, owner = self.committer.publication.view, user_owner(user)
        floor = load_floor(view.hot, owner)
        groups = groups_of(view.catalog, synced_tables(view.catalog, schema))
        hydration = self._hydration(view.hot, user, source, after, floor, groups)
        last = hydration.places.get(after)
        base = next_stop(view.hot, owner, floor)
        past = Past(self.rows, view, owner, base, "" if include_self else source)
        following = chain(self._live(past, groups, last), self._deleted(past, groups, last))
        # The client looks for its own changes to learn which change ids it has used.
        origin = (source, change_id_max(view.hot, user, source)) if include_self else ("", 0)
        end = partial(self._end, source_name(user, source), hydration, groups, after)
        page, number = _collect(following, limit, after, origin, end)
        if number is None:
            self.registry.give(user, source, base.counter, asked=None)
        newest = view.hot.owner_counter(owner)
        return sync.DownloadResponse(
            changes=page,
            has_more=number is not None or newest > base.counter,
            next_after=base.counter if number is None else number,
            window_until=newest,
            stream_id=self.downloads.stream_id,
            max_server_id=newest,
            table_numbers=table_numbers(view.catalog, schema),
        )

    def _hydration(
        self, reader: HotReader, user: str, source: str, after: int, floor: Floor, groups: _Groups
    ) -> _Hydration:
        """Return the hydration that `after` is a page of; 0 begins it."""
        found = _find(reader, source_name(user, source))
        if found is not None and found.goes_on(floor, groups) and (after == 0 or after in found.places):
            return found
        if after > 0:
            raise SeqTrimmed("the log was trimmed, or tables altered meanwhile; download from 0, or hydrate")
        # It holds 0, a number of an earlier page, or one of the log from `asked` to `given`.
        device, last = self.registry.find(user, source), 0 if found is None else found.last
        above, below = max(device.given, last), min(device.asked, floor.counter)
        if floor.counter - above >= below - last:
            return _Hydration(floor, {}, above, floor.counter, Order.of(groups))
        return _Hydration(floor, {}, last, below, Order.of(groups))

    def _live(self, past: Past, groups: _Groups, after: Place | None) -> Iterator[_Step]:
        """Yield the rows that were live after a place, each behind its parents that don't come otherwise."""
        if after is not None and after.depth == DELETED:
            return
        start = 0
        if after is not None:
            start = next((i for i, g in enumerate(groups) if any(t.id == after.table for t in g)), 0)
        known: set[RowName] = set()
        for index, group in enumerate(groups[start:]):
            for place, rows in in_order(past, group, after if index == 0 else None):
                told = [(table, row.version) for table, row in rows if not row.is_own]
                if told:
                    yield place, self._behind_own_ancestors(past, told, known)

    def _deleted(self, past: Past, groups: _Groups, after: Place | None) -> Iterator[_Step]:
        """Yield the tombstones after a place, children's tables first."""
        groups = groups[::-1]
        begun = after if after is not None and after.depth == DELETED else None
        if begun is not None:
            groups = list(dropwhile(lambda group: all(table.id != begun.table for table in group), groups))
        for group in groups:
            is_begun = begun is not None and begun.table in {table.id for table in group}
            if not is_circular(group):
                yield from _gone(past, group[0], begun.key if begun is not None and is_begun else None)
            elif not is_begun and (steps := [step for table in group for step in _gone(past, table)]):
                yield steps[0][0], [gone for _, rows in steps for gone in rows]

    def _behind_own_ancestors(
        self, past: Past, told: list[tuple[Table, Version]], known: set[RowName]
    ) -> list[tuple[Table, Version]]:
        """Return rows, each behind those parents that only the device has changed, and theirs."""
        found: list[tuple[Table, Version]] = []
        todo = [(table, version, False) for table, version in reversed(told)]
        while todo:
            child, row, is_behind_parents = todo.pop()
            if is_behind_parents:
                found.append((child, row))
                continue
            todo.append((child, row, True))
            for parent, key in parents_of(past.view, child, row):
                name = (parent.id, shown(key))
                if name not in known:
                    known.add(name)
                    if (untold := self._find_untold(past, parent, key)) is not None:
                        todo.append((parent, untold, False))
        return found

    def _find_untold(self, past: Past, table: Table, key: Key) -> Version | None:
        """Return a row that doesn't come by itself, as it is now, or else as it was; None if it does come."""
        newest = self.rows.find(past.view.hot, table, past.owner, key, may_block=True).version
        row = None if newest is None else past.row_of(table, newest)
        if newest is None or (row is not None and row.version.row is not None and not row.is_own):
            return None
        if newest.row is not None:
            return newest
        return None if row is None or row.version.row is None else row.version

    def _end(
        self, name: str, begun: _Hydration, groups: _Groups, after: int, last: Place | None
    ) -> int | None:
        """Return the number of a page that ends here, after recording it; None if no number is left."""
        with self.committer.lock:
            found = _find(self.committer.newest, name)
            hydration = found if found is not None and found.goes_on(begun.floor, groups) else begun
            number = hydration.number_of(last, after)
            if number is None or number in hydration.places:
                return number
            record = msgspec.msgpack.encode(hydration.having(number, last, after))
            seq = self.committer.apply(Batch(records=[RecordWrite(Kind.HYDRATION, name, record)]))
        self.committer.publication.wait(seq)
        return number


def _gone(past: Past, table: Table, after: Key | None = None) -> Iterator[_Step]:
    """Yield the tombstones of a table, keys above `after`."""
    for row in past.scan(table, after):
        if row.version.row is None and not row.is_own:
            yield Place(DELETED, table.id, shown(row.version.key)), [(table, row.version)]


def _collect(
    following: Iterator[_Step],
    limit: int,
    after: int,
    origin: tuple[str, int],
    end: Callable[[Place | None], int | None],
) -> tuple[list[sync.DownloadChange], int | None]:
    """Return a full page and its number, or all that is left, if `end` has no number for it."""
    page: list[sync.DownloadChange] = []
    last, size_bytes, is_whole = None, 0, False
    for place, versions in following:
        if not is_whole and (len(page) >= limit or size_bytes > PAGE_BYTES_MAX):
            if (number := end(last)) is not None:
                return page, number
            is_whole = True
        page += [_hydrated(table, version, after + 1, origin) for table, version in versions]
        last = place
        size_bytes += sum(len(bytes(change.payload)) for change in page[-len(versions) :])
    return page, None


def _find(reader: HotReader, name: str) -> _Hydration | None:
    record = reader.find_record(Kind.HYDRATION, name)
    return msgspec.msgpack.decode(record, type=_Hydration) if record else None


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
