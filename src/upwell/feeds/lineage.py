"""Lineage: the order of an owner's rows, as they were, in which parents come before their children.

Law: tables whose parents are all before them are read by primary key. Tables that refer to themselves, or
to each other in a circle, are one group: its rows come by depth below their parents, then table, then key,
and those that refer to each other in a circle together.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.components import components
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.feeds.past import Past, PastRow
from upwell.storage.hot import Version
from upwell.types import Key

RowName = tuple[int, str]
"""A row by the id of its table and its key as text."""


class Place(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Where rows that come together stand in their group: the place of the first of them."""

    depth: int
    table: int
    key: str


class Order(msgspec.Struct, frozen=True, array_like=True):
    """The order of the tables up to an id, as a digest: pages go on in the one that they began with.

    A table that is made meanwhile leaves it as it is; a reference that comes or goes may not.
    """

    newest: int = 0
    digest: int = 0

    @classmethod
    def of(cls, groups: Sequence[Sequence[Table]], newest: int | None = None) -> "Order":
        """Return the order of what `groups_of` gives, of its tables up to `newest` (None: all)."""
        last = max((table.id for group in groups for table in group), default=0) if newest is None else newest
        known = [[table.id for table in group if table.id <= last] for group in groups]
        return cls(last, zlib.crc32(msgspec.msgpack.encode([group for group in known if group])))

    def holds(self, groups: Sequence[Sequence[Table]]) -> bool:
        """Whether the tables still stand in this order; never for one that nobody noted."""
        return self == Order.of(groups, self.newest)


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


def is_circular(group: Sequence[Table]) -> bool:
    """Whether rows of a group may refer to each other."""
    [first, *others] = group
    return bool(others) or any(reference.parent == first.id for reference in first.references)


def in_order(
    past: Past, group: Sequence[Table], after: Place | None
) -> Iterator[tuple[Place, list[tuple[Table, PastRow]]]]:
    """Yield the rows of a group that were live, behind `after` (None: all), those of a circle together."""
    if is_circular(group):
        yield from _by_depth(past, group, after)
        return
    [table] = group
    for row in past.scan_live(table, after.key if after else None):
        yield Place(0, table.id, shown(row.version.key)), [(table, row)]


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
) -> Iterator[tuple[Place, list[tuple[Table, PastRow]]]]:
    found: dict[RowName, tuple[Table, PastRow]] = {
        (table.id, shown(row.version.key)): (table, row) for table in group for row in past.scan_live(table)
    }
    parents: dict[RowName, list[RowName]] = {}
    for name, (table, row) in found.items():
        above = ((parent.id, shown(key)) for parent, key in parents_of(past.view, table, row.version))
        parents[name] = [parent for parent in above if parent in found]
    steps = sorted(
        (Place(depth, *min(circle)), sorted(circle))
        for depth, circle in _with_depths(components(found, parents), parents)
    )
    return (
        (place, [found[name] for name in circle]) for place, circle in steps if after is None or place > after
    )


def _with_depths(
    circles: Sequence[list[RowName]], parents: Mapping[RowName, Sequence[RowName]]
) -> Iterator[tuple[int, list[RowName]]]:
    """Yield each circle, or row of none, with how deep it stands below its parents, which come first."""
    depths: dict[RowName, int] = {}
    for circle in circles:
        above = (depths.get(parent, -1) for row in circle for parent in parents[row])
        depth = 1 + max(above, default=-1)
        depths.update(dict.fromkeys(circle, depth))
        yield depth, circle
