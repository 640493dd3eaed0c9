"""Twins: columns of one SELECT list that would have one name, which the query engine doesn't plan.

Law: a list says the same with its twins under names of their own, and the result shows the names that were
written. Only the text of a query that was refused is rewritten.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upwell.engine.named_query import quoted
from upwell.sql.query import Edit, Item, Query

_REFUSED = re.compile(r"unique expression names|duplicate (?:un)?qualified field|which would be ambiguous")


@dataclass(frozen=True, slots=True)
class OwnNames:
    """A query whose twins have names of their own, and what the result shows in place of them.

    That is a name, or the place of the column that the twin looks like.
    """

    text: str
    shown: Mapping[str, str | int]
    names: Sequence[str] = ()
    """What the columns are called before the query is written in other words, if it is."""

    def restored(self, names: Sequence[str]) -> list[str]:
        """Return the names of a result's columns as they were written."""
        names = self.names or names
        found = [self.shown.get(name, name) for name in names]
        return [names[name] if isinstance(name, int) else name for name in found]


def is_for_twins(refusal: str) -> bool:
    """Tell whether a query was refused with this message for its twins."""
    return _REFUSED.search(refusal) is not None


def own_names(text: str, refusal: str) -> Iterator[OwnNames]:
    """Yield ways to write a query that was refused with this message, if that was for its twins."""
    if not is_for_twins(refusal):
        return
    query = Query(text)
    lists = [query.items(select) for select in query.selects]
    for named_from in (None, 1, 0):
        edits: list[Edit] = []
        shown: dict[str, str | int] = {}
        for items in lists:
            for item, name in _twins(query, items, named_from):
                own = _unused(text, shown, item.name or "column")
                shown[own] = name
                edits.append(_named(query, item, own))
        if edits:
            yield OwnNames(query.edited(edits).text, shown)


def _twins(query: Query, items: Sequence[Item], named_from: int | None) -> Iterator[tuple[Item, str | int]]:
    """Yield the items that need a name, with what is shown for it: from an item on all that have none."""
    seen: dict[tuple[str, ...], int] = {}
    stars = [at for at, item in enumerate(items) if item.is_all]
    for at, item in enumerate(items):
        if item.is_all:
            continue
        first = seen.setdefault(_key(query, item), at)
        is_twin = first < at or (item.name is not None and bool(stars))
        written = query.between(item.begin, item.end)
        if item.name is not None:
            if is_twin:
                yield item, item.name
        elif first < at:
            yield item, written if stars and stars[0] < at else first
        elif named_from is not None and at >= named_from:
            yield item, written


def _key(query: Query, item: Item) -> tuple[str, ...]:
    return (item.name,) if item.name is not None else ("", *query.words(item.begin, item.end))


def _named(query: Query, item: Item, own: str) -> Edit:
    """Return what to write where, so that the item has its own name."""
    last = query.at(item.end - 1)
    if item.has_alias:
        return last.start, last.end, quoted(own)
    return last.end, last.end, f" AS {quoted(own)}"


def _unused(text: str, shown: Mapping[str, str | int], name: str) -> str:
    number = 2
    while f"{name}_{number}" in shown or f"{name}_{number}" in text.lower():
        number += 1
    return f"{name}_{number}"
