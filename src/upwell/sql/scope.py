"""Scopes: which column a name in a query's text is, and whether that is an integer.

Law: a name is an integer of so many bits only if everything that it may stand for at its place is one: a
column of a table, of a subquery, of a WITH or, behind GROUP BY, an item of the list. What can't be told is
none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from upwell.engine.source import TABLE_FUNCTIONS
from upwell.sql.query import QUERIES, SETS, Item, Query
from upwell.sql.source import Source, joined
from upwell.storage.arrow import SEQ

Columns = Mapping[str, int]
"""Names of columns in order with their bits, 0 for what is no integer."""
Tables = Mapping[tuple[str, str], Columns]
BitsOf = Callable[[int, int], int]
"""Tells the bits of the expression between two places, 0 if it is no integer."""

SEQ_BITS = 64
SERIES, SERIES_BITS = "value", 64
_BY_ITEM = frozenset({"GROUP", "HAVING", "ORDER", "QUALIFY"})


@dataclass(slots=True)
class _Source:
    """What FROM names; `columns` None: nobody knows which those are."""

    name: str
    columns: Columns | None


@dataclass(slots=True)
class _Select:
    """One SELECT between two tokens, with what its names may be."""

    begin: int
    end: int
    outer: "_Select | None"
    by_items: int
    """From where on names may be those of the list."""
    behind_group: int
    united_from: int
    """From where on names are those of a UNION."""
    sources: list[_Source] = field(default_factory=list)
    items: dict[str, int] = field(default_factory=dict)


class Scopes:
    """The scopes of one query."""

    def __init__(self, query: Query, tables: Tables, namespace: str, bits_of: BitsOf) -> None:
        self._query, self._tables, self._namespace = query, tables, namespace
        self._word, self._at, self._closings = query.word, query.at, query.closings
        self._bits_of = bits_of
        self._subqueries: dict[int, Columns] = {}
        # Which SELECT each token belongs to; those within come later, and overwrite.
        self._of: list[_Select | None] = [None] * len(query.tokens)

    def read(self) -> None:
        """Learn what all names of the query may be; `bits_of` may ask `bits` meanwhile."""
        self._read(0, len(self._query.tokens), None, {})

    def bits(self, at: int, parts: Sequence[str]) -> int:
        """Return the bits of the column that a (qualified) name at a token is, 0 if that is no integer."""
        select = self._of[at]
        while select is not None:
            found = self._found(select, at, parts)
            if found is not None:
                return found
            select = select.outer
        return 0

    def subquery_bits(self, at: int) -> int:
        """Return the bits of the subquery whose parenthesis opens at a token, 0 if it is none of integers."""
        columns = self._subqueries.get(at, {})
        return next(iter(columns.values())) if len(columns) == 1 else 0

    def _found(self, select: _Select, at: int, parts: Sequence[str]) -> int | None:
        name = parts[-1]
        sources = select.sources
        if any(not source.name and source.columns is None for source in sources):
            return 0  # tables joined in parentheses, or the like
        if len(parts) > 1:
            sources = [source for source in sources if source.name == parts[-2]]
        may_be = [source.columns.get(name) if source.columns is not None else 0 for source in sources]
        kinds = {bits for bits in may_be if bits is not None}
        is_item = at >= select.by_items and name in select.items
        # In a GROUP BY the columns of tables go first.
        if len(parts) == 1 and is_item and not (kinds and at < select.behind_group):
            kinds.add(select.items[name])
        if at >= select.united_from:
            kinds.add(0)
        if not kinds and name == SEQ and sources:
            return SEQ_BITS
        if not kinds:
            return 0 if len(parts) > 1 and sources else None
        return kinds.pop() if len(kinds) == 1 else 0

    def _read(
        self, at: int, end: int, outer: _Select | None, known: Mapping[str, Columns | None]
    ) -> Columns | None:
        """Read a query between two tokens, and return its columns, None if they can't be told."""
        known = dict(known)
        if self._word(at) == "WITH":
            is_recursive = self._word(at + 1) == "RECURSIVE"
            at += 1 + is_recursive
            while at < end:
                at = self._with(at, outer, known, is_recursive=is_recursive)
                if self._word(at) != ",":
                    break
                at += 1
        edges = [place for place in self._query.outside(at, end) if self._is_set(place)]
        begins = [at, *(place + 1 + (self._word(place + 1) in ("ALL", "DISTINCT")) for place in edges)]
        parts = [
            self._part(begin, stop, outer, known, is_plain=not edges)
            for begin, stop in zip(begins, [*edges, end], strict=True)
        ]
        return _united(parts)

    def _with(
        self, at: int, outer: _Select | None, known: dict[str, Columns | None], *, is_recursive: bool
    ) -> int:
        """Read one named query of a WITH, and return the index behind it."""
        name, names = self._at(at).name, list[str]()
        at += 1
        if self._word(at) == "(":
            names, at = self._query.names(at), self._closings.get(at, at) + 1
        while self._word(at) in ("AS", "NOT", "MATERIALIZED"):
            at += 1
        end = self._closings.get(at)
        if end is None:
            known[name] = None
            return len(self._query.tokens)
        if is_recursive:
            known[name] = None
        columns = self._read(at + 1, end, outer, known)
        known[name] = None if is_recursive else _renamed(columns, names)
        return end + 1

    def _part(
        self,
        begin: int,
        end: int,
        outer: _Select | None,
        known: Mapping[str, Columns | None],
        *,
        is_plain: bool,
    ) -> Columns | None:
        if self._word(begin) == "(" and self._word(begin + 1) in (*QUERIES, "("):
            closing = self._closings.get(begin, end)
            return self._read(begin + 1, closing, outer, known)
        if self._word(begin) == "VALUES":
            return self._values(begin, end)
        if self._word(begin) != "SELECT":
            return None
        outside = list(self._query.outside(begin, end))
        clauses = [at for at in outside if self._word(at) in _BY_ITEM]
        later = [at for at in clauses if self._word(at) != "GROUP"]
        united = end if is_plain else next((at for at in later if self._word(at) == "ORDER"), end)
        select = _Select(begin, end, outer, min(clauses, default=end), min(later, default=end), united)
        self._of[begin:end] = [select] * (end - begin)
        source = self._query.from_of(begin)
        if source is not None:
            self._from(source, select, known)
        self._within(begin, source or end, select, known)
        self._within(source or end, end, select, known)
        return self._items(begin, select)

    def _within(self, begin: int, end: int, select: _Select, known: Mapping[str, Columns | None]) -> None:
        """Read the queries in parentheses that FROM doesn't name."""
        at = begin
        while at < end:
            closing = self._closings.get(at)
            if closing is not None and self._word(at + 1) in QUERIES and self._of[at + 1] is select:
                self._subqueries[at] = self._read(at + 1, closing, select, known) or {}
                at = closing
            at += 1

    def _items(self, begin: int, select: _Select) -> Columns | None:
        """Return the columns of a SELECT."""
        columns: dict[str, int] = {}
        is_known = True
        for number, item in enumerate(self._query.items(begin)):
            if item.is_all:
                found = self._all(item, select)
                is_known = is_known and found is not None and not columns.keys() & found.keys()
                columns |= found or {}
                continue
            name = item.name if item.name is not None else f"\0{number}"
            columns[name] = 0 if name in columns else self._bits_of(item.begin, item.expression_end)
        select.items = columns
        return columns if is_known else None

    def _values(self, begin: int, end: int) -> Columns | None:
        """Return the columns of a VALUES."""
        rows: list[Columns] = []
        for opening in self._query.outside(begin, end):
            closing = self._closings.get(opening)
            if closing is not None:
                places = self._query.outside(opening + 1, closing)
                edges = [opening, *(at for at in places if self._word(at) == ","), closing]
                pairs = pairwise(edges)
                rows.append({f"column{n}": self._bits_of(a + 1, b) for n, (a, b) in enumerate(pairs, 1)})
        return _united(rows)

    def _all(self, item: Item, select: _Select) -> Columns | None:
        """Return the columns of a star."""
        sources = select.sources
        if item.end - item.begin > 1:
            if self._query.words(item.end - 2, item.end) != (".", "*"):
                return None
            sources = [source for source in sources if source.name == self._at(item.end - 3).name]
        found: dict[str, int] = {}
        for source in sources:
            if source.columns is None or found.keys() & source.columns.keys():
                return None
            found |= source.columns
        return found

    def _from(self, before: int, select: _Select, known: Mapping[str, Columns | None]) -> None:
        for source in joined(self._query, before):
            if source.is_join and source.alias is None:
                self._from(source.begin, select, known)
            else:
                select.sources.append(self._source(source, select, known))

    def _source(self, source: Source, select: _Select, known: Mapping[str, Columns | None]) -> _Source:
        columns: Columns | None = None
        name = ""
        if source.path:
            name = source.path[-1].name
            if source.is_call:
                columns = self._series(source)
            elif len(source.path) == 1 and name in known:
                columns = known[name]
            else:
                place = (source.path[-2].name if len(source.path) > 1 else self._namespace, name)
                columns = self._tables.get(place)
        elif source.begin in self._closings and not source.is_join:
            columns = self._read(source.begin + 1, self._closings[source.begin], select, known)
        if source.alias is None:
            return _Source(name, columns)
        return _Source(source.alias.name, _renamed(columns, source.columns))

    def _series(self, source: Source) -> Columns | None:
        """Return the column of a function in FROM that counts, None of another."""
        begin = source.begin + 2 * len(source.path)
        inner = self._query.tokens[begin : self._closings.get(begin - 1, begin)]
        counts = source.path[-1].name in TABLE_FUNCTIONS and all(
            each.kind in ("number", "op") for each in inner
        )
        return {SERIES: SERIES_BITS} if counts else None

    def _is_set(self, at: int) -> bool:
        return self._word(at) in SETS and self._word(at - 1) != "*"


def _united(parts: Sequence[Columns | None]) -> Columns | None:
    """Return the columns of a UNION: the names of its first query, with the bits that all fit into."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len({len(part) for part in known}) != 1:
        return None
    bits = zip(*(part.values() for part in known), strict=True)
    return dict(zip(known[0], [max(each) if all(each) else 0 for each in bits], strict=True))


def _renamed(columns: Columns | None, names: Sequence[str]) -> Columns | None:
    if not names or columns is None:
        return columns if not names else None
    return dict(zip(names, columns.values(), strict=True)) if len(names) == len(columns) else None
