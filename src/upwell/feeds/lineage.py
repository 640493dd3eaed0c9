"""Lineage: the order of an owner's rows, as they were, in which parents come before their children.

Law: tables whose parents are all before them are read by primary key. Tables that refer to themselves, or
to each other in a circle, are one group: its rows come by depth below their parents, then table, then key.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, count

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.feeds.past import Past, PastRow
from upwell.storage.hot import Version
from upwell.types import Key

CIRCLE = 1 << 31
"""The depth of rows that refer to each other in a circle, and of what is below them."""

RowName = tuple[int, str]
"""A row by the id of its table and its key as text."""


class Place(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where a row stands in its group."""

    depth: int
    table: int
    key: str


def groups_of(catalog: Catalog, tables: Sequence[Table]) -> list[list[Table]]:
    """Return the tables, parents first, those that refer to each other in a circle together."""
    order = catalog.parents_first(tables)
    index_of = {table.id: index for index, table in enumerate(order)}
    groups: list[list[Table]] = []
    start = 0
    while start < len(order):
        index = end = start
        while index <= end:
            parents = [index_of.get(reference.parent, 0) for reference in order[index].references]
            end = max([end, *parents])
            index += 1
        groups.append(order[start:index])
        start = index
    return groups


def in_order(
    past: Past, group: Sequence[Table], after: Place | None
) -> Iterator[tuple[Place, Table, PastRow]]:
    """Yield the rows of a group that were live, behind `after` (None: all)."""
    [first, *others] = group
    if others or any(reference.parent == first.id for reference in first.references):
        yield from _by_depth(past, group, after)
    else:
        for row in past.scan_live(first, after.key if after else None):
            yield Place(0, first.id, shown(row.version.key)), first, row


def parents_of(view: View, table: Table, version: Version) -> Iterator[tuple[Table, Key]]:
    """Yield the rows that a row refers to."""
    for reference in table.references:
        parent = view.catalog.by_id.get(reference.parent)
        row = version.row
        if parent is not None and row is not None and reference.column < len(row):
            key: Key | None = row[reference.column]
            if key is not None:
                yield parent, key


def _by_depth(
    past: Past, group: Sequence[Table], after: Place | None
) -> Iterator[tuple[Place, Table, PastRow]]:
    found: dict[RowName, tuple[Table, PastRow]] = {
        (table.id, shown(row.version.key)): (table, row) for table in group for row in past.scan_live(table)
    }
    parents: dict[RowName, list[RowName]] = {
        name: [(parent.id, shown(key)) for parent, key in parents_of(past.view, table, row.version)]
        for name, (table, row) in found.items()
    }
    depths = _depths(parents)
    places = sorted(Place(depths.get(row, CIRCLE), *row) for row in found)
    return ((place, *found[place.table, place.key]) for place in places if after is None or place > after)


def _depths(parents: dict[RowName, list[RowName]]) -> dict[RowName, int]:
    """Return how deep each row stands below its parents (Kahn's algorithm); rows of circles are missing."""
    children: dict[RowName, list[RowName]] = {}
    open_parents: dict[RowName, int] = {}
    for row, above in parents.items():
        present = [parent for parent in above if parent in parents]
        open_parents[row] = len(present)
        for parent in present:
            children.setdefault(parent, []).append(row)
    depths: dict[RowName, int] = {}
    ready = [row for row, waits_for in open_parents.items() if not waits_for]
    for depth in count():
        if not ready:
            break
        depths.update(dict.fromkeys(ready, depth))
        below = list(chain.from_iterable(children.get(row, ()) for row in ready))
        ready = []
        for row in below:
            open_parents[row] -= 1
            if not open_parents[row]:
                ready.append(row)
    return depths
