"""Precedence: the order of one commit's writes in the log.

Law: a row comes after those that it refers to, and goes after those that referred to it; else the order is
that of the statements. So what each entry leaves is whole: a device may stop between any two, and its file
checks references then. Where no order does that, as for rows that refer to each other in a circle, the
entries stand together, and each but the first is marked `joined`: no device stops before it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import structs

from upwell.engine.catalog import Catalog, Reference
from upwell.engine.components import components
from upwell.engine.violation import Place
from upwell.storage.hot import RowWrite
from upwell.types import Row


def ordered(writes: Mapping[Place, RowWrite], catalog: Catalog) -> list[RowWrite]:
    """Return the writes in the order of the log; only devices ask for one."""
    needs: dict[Place, list[Place]] = {}
    must: dict[Place, list[Place]] = {}
    if len(writes) > 1 and _has_references(writes, catalog):
        for place, needed, is_must in _needs(writes, catalog):
            needs.setdefault(place, []).append(needed)
            if is_must:
                must.setdefault(place, []).append(needed)
    if not needs:
        return list(writes.values())
    order = _after_what_they_need(writes, needs)
    if _is_kept(order, must):
        return [writes[place] for place in order]
    return [
        structs.replace(writes[place], joined=True) if index else writes[place]
        for component in components(order, must)
        for index, place in enumerate(component)
    ]


def _after_what_they_need(places: Iterable[Place], needs: dict[Place, list[Place]]) -> list[Place]:
    found: dict[Place, None] = {}
    for begin in places:
        todo = [begin]
        while todo:
            place = todo[-1]
            # Asked once, so that a circle ends.
            missing = [needed for needed in needs.pop(place, ()) if needed not in found]
            if missing:
                todo += reversed(missing)
            else:
                found.setdefault(place)
                todo.pop()
    return list(found)


def _is_kept(order: Sequence[Place], must: Mapping[Place, Sequence[Place]]) -> bool:
    at = {place: index for index, place in enumerate(order)} if must else {}
    return all(at[needed] < at[place] for place, all_needed in must.items() for needed in all_needed)


def _has_references(writes: Mapping[Place, RowWrite], catalog: Catalog) -> bool:
    tables = [catalog.by_id[table] for table in {table for table, _, _ in writes}]
    return any(table.synced and table.references for table in tables)


def _needs(writes: Mapping[Place, RowWrite], catalog: Catalog) -> Iterator[tuple[Place, Place, bool]]:
    """Yield pairs of a write and one that should be before it, and whether a reference dangles else.

    A parent that was there all along may as well come later; but who replaces a parent's row may lose those
    below it, and gets them back if they come behind.
    """
    for place, write in writes.items():
        for parent, reference, row in _parents(write, write.after, writes, catalog):
            if parent.after is not None:
                yield place, _place(parent), not _has(parent.before, reference, row)
        for parent, reference, row in _parents(write, write.before, writes, catalog):
            if not _has(parent.after, reference, row):
                yield _place(parent), place, True


def _parents(
    write: RowWrite, row: Row | None, writes: Mapping[Place, RowWrite], catalog: Catalog
) -> Iterator[tuple[RowWrite, Reference, Row]]:
    """Yield what is written of the same owner that `row` refers to; rows of a SHARED table are of another."""
    if row is None:
        return
    for reference in catalog.by_id[write.table].references:
        key = reference.key_in(row)
        parent = None if key is None else writes.get((reference.parent, write.owner, key))
        if parent is not None and parent is not write:
            yield parent, reference, row


def _has(parent: Row | None, reference: Reference, row: Row) -> bool:
    """Whether the parent is there, as the child's row has it."""
    return parent is not None and reference.agrees(row, parent)


def _place(write: RowWrite) -> Place:
    return write.table, write.owner, write.key
