"""Precedence: the order of one commit's writes in the log.

Law: a row comes after those that it refers to, and goes after those that referred to it; else the order is
that of the statements. So what each entry leaves is whole: a device may stop between any two, and its file
checks references then. Rows that refer to each other in a circle have no such order.
"""

from collections.abc import Iterator, Mapping

from upwell.engine.catalog import Catalog
from upwell.engine.violation import Place
from upwell.storage.hot import RowWrite
from upwell.types import Row


def ordered(writes: Mapping[Place, RowWrite], catalog: Catalog) -> list[RowWrite]:
    """Return the writes in the order of the log; only devices ask for one."""
    needs: dict[Place, list[Place]] = {}
    if len(writes) > 1 and _has_references(writes, catalog):
        for place, needed in _needs(writes, catalog):
            needs.setdefault(place, []).append(needed)
    if not needs:
        return list(writes.values())
    found: dict[Place, RowWrite] = {}
    for begin in writes:
        todo = [begin]
        while todo:
            place = todo[-1]
            # Asked once, so that a circle ends.
            missing = [needed for needed in needs.pop(place, ()) if needed not in found]
            if missing:
                todo += reversed(missing)
            else:
                found.setdefault(place, writes[place])
                todo.pop()
    return list(found.values())


def _has_references(writes: Mapping[Place, RowWrite], catalog: Catalog) -> bool:
    tables = [catalog.by_id[table] for table in {table for table, _, _ in writes}]
    return any(table.synced and table.references for table in tables)


def _needs(writes: Mapping[Place, RowWrite], catalog: Catalog) -> Iterator[tuple[Place, Place]]:
    """Yield pairs of a write and one that has to be before it."""
    for place, write in writes.items():
        for parent in _parents(place, write.after, catalog):
            if parent in writes and parent != place and writes[parent].after is not None:
                yield place, parent
        for parent in _parents(place, write.before, catalog):
            if parent in writes and parent != place and writes[parent].after is None:
                yield parent, place


def _parents(place: Place, row: Row | None, catalog: Catalog) -> Iterator[Place]:
    """Yield the rows of the same owner that a row refers to; those of a SHARED table are none."""
    table, owner, _ = place
    if row is not None:
        for reference in catalog.by_id[table].references:
            if (key := reference.key_in(row)) is not None:
                yield reference.parent, owner, key
