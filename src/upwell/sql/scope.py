"""Scopes: which column a name in a query's text is, and whether that is an integer.

Law: a name is an integer of so many bits only if everything that it may stand for at its place is one: a
column of a table, of a subquery, of a WITH or, behind GROUP BY, an item of the list. What can't be told is
none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from upwell.engine.source import TABLE_FUNCTIONS
from upwell.sql.lex import END, Token
from upwell.sql.truth import closing_of
from upwell.sql.twins import select_items
from upwell.storage.arrow import SEQ

Columns = Mapping[str, int]
"""Names of columns in order with their bits, 0 for what is no integer."""
Tables = Mapping[tuple[str, str], Columns]
Item = Callable[[int, int], int]
"""Tells the bits of the item of a list between two tokens, 0 if it is no integer."""

SEQ_BITS = 64
SERIES, SERIES_BITS = "value", 64
_QUERY = frozenset({"SELECT", "WITH", "VALUES"})
_SET = frozenset({"UNION", "EXCEPT", "INTERSECT"})
_BEHIND_FROM = _SET | {
    "WHERE",
    "GROUP",
    "HAVING",
    "WINDOW",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "FETCH",
    "QUALIFY",
    ";",
}
_BY_ITEM = frozenset({"GROUP", "HAVING", "ORDER", "QUALIFY"})
_NO_ALIAS = _BEHIND_FROM | {
    "ON",
    "USING",
    "JOIN",
    "LEFT",
    "RIGHT",
    "FULL",
    "INNER",
    "CROSS",
    "NATURAL",
    "OUTER",
}
_NO_ALIAS |= {"SEMI", "ANTI", "TABLESAMPLE", "LATERAL", "AS", "WITH", "PIVOT", "UNPIVOT"}


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

    def __init__(self, tokens: Sequence[Token], tables: Tables, namespace: str, item: Item) -> None:
        self._tokens, self._tables, self._namespace = tokens, tables, namespace
        self._item = item
        self._closing = closing_of(tokens)
        self._subqueries: dict[int, Columns] = {}
        # Which SELECT each token belongs to; those within come later, and overwrite.
        self._of: list[_Select | None] = [None] * len(tokens)

    def read(self) -> None:
        """Learn what all names of the query may be; `item` may ask `bits` meanwhile."""
        self._query(0, len(self._tokens), None, {})

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

    def _query(
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
        edges = [place for place in self._outside(at, end) if self._is_set(place)]
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
        name, names = _folded(self._at(at)), list[str]()
        at += 1
        if self._word(at) == "(":
            names, at = self._names(at), self._closing.get(at, at) + 1
        while self._word(at) in ("AS", "NOT", "MATERIALIZED"):
            at += 1
        end = self._closing.get(at)
        if end is None:
            known[name] = None
            return len(self._tokens)
        if is_recursive:
            known[name] = None
        columns = self._query(at + 1, end, outer, known)
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
        if self._word(begin) == "(" and self._word(begin + 1) in (*_QUERY, "("):
            closing = self._closing.get(begin, end)
            return self._query(begin + 1, closing, outer, known)
        if self._word(begin) == "VALUES":
            return self._values(begin, end)
        if self._word(begin) != "SELECT":
            return None
        outside = list(self._outside(begin, end))
        clauses = [at for at in outside if self._word(at) in _BY_ITEM]
        later = [at for at in clauses if self._word(at) != "GROUP"]
        united = end if is_plain else next((at for at in later if self._word(at) == "ORDER"), end)
        select = _Select(begin, end, outer, min(clauses, default=end), min(later, default=end), united)
        self._of[begin:end] = [select] * (end - begin)
        source = next((at for at in outside if self._is_from(at)), None)
        behind = end
        if source is not None:
            behind = next((at for at in outside if at > source and self._word(at) in _BEHIND_FROM), end)
            self._from(source + 1, behind, select, known)
        self._within(begin, source or end, select, known)
        self._within(source or end, end, select, known)
        return self._items(begin, select)

    def _within(self, begin: int, end: int, select: _Select, known: Mapping[str, Columns | None]) -> None:
        """Read the queries in parentheses that FROM doesn't name."""
        at = begin
        while at < end:
            closing = self._closing.get(at)
            if closing is not None and self._word(at + 1) in _QUERY and self._of[at + 1] is select:
                self._subqueries[at] = self._query(at + 1, closing, select, known) or {}
                at = closing
            at += 1

    def _items(self, begin: int, select: _Select) -> Columns | None:
        """Return the columns of a SELECT."""
        columns: dict[str, int] = {}
        starts = {token.start: at for at, token in enumerate(self._tokens[begin : select.end], begin)}
        is_known = True
        for place, item in enumerate(select_items(self._tokens, begin + 1)):
            if item.is_all:
                found = self._all(item.tokens, select)
                is_known = is_known and found is not None and not columns.keys() & found.keys()
                columns |= found or {}
                continue
            first = starts[item.tokens[0].start]
            length = len(item.tokens)
            if item.alias is not None:
                length -= 2 if item.tokens[-2].word == "AS" else 1
            name = item.name if item.name is not None else f"\0{place}"
            columns[name] = self._item(first, first + length) if name not in columns else 0
        select.items = columns
        return columns if is_known else None

    def _values(self, begin: int, end: int) -> Columns | None:
        """Return the columns of a VALUES."""
        rows: list[Columns] = []
        for opening in self._outside(begin, end):
            closing = self._closing.get(opening)
            if closing is not None:
                places = self._outside(opening + 1, closing)
                edges = [opening, *(at for at in places if self._word(at) == ","), closing]
                pairs = pairwise(edges)
                rows.append({f"column{n}": self._item(a + 1, b) for n, (a, b) in enumerate(pairs, 1)})
        return _united(rows)

    def _all(self, tokens: Sequence[Token], select: _Select) -> Columns | None:
        words = [token.word or token.text for token in tokens]
        sources = select.sources
        if len(words) > 1:
            if words[-1] != "*" or words[-2] != ".":
                return None
            sources = [source for source in sources if source.name == _folded(tokens[-3])]
        found: dict[str, int] = {}
        for source in sources:
            if source.columns is None or found.keys() & source.columns.keys():
                return None
            found |= source.columns
        return found

    def _from(self, begin: int, end: int, select: _Select, known: Mapping[str, Columns | None]) -> None:
        places = [begin]
        places += [at + 1 for at in self._outside(begin, end) if self._word(at) in (",", "JOIN")]
        for at in places:
            closing = self._closing.get(at)
            behind = END if closing is None else self._at(closing + 1)
            is_named = behind.word == "AS" or (
                behind.kind in ("word", "quoted") and behind.word not in _NO_ALIAS
            )
            if closing is not None and self._word(at + 1) not in _QUERY and not is_named:
                self._from(at + 1, closing, select, known)  # tables joined in parentheses
            else:
                select.sources.append(self._source(at, select, known))

    def _source(self, at: int, select: _Select, known: Mapping[str, Columns | None]) -> _Source:
        columns: Columns | None = None
        name = ""
        if self._word(at) == "LATERAL":
            at += 1
        if self._word(at) == "(":
            closing = self._closing.get(at, at)
            if self._word(at + 1) in _QUERY:
                columns = self._query(at + 1, closing, select, known)
            at = closing + 1
        else:
            parts, at = self._path(at)
            name = parts[-1]
            if self._word(at) == "(":
                closing = self._closing.get(at, at)
                columns = self._series(name, at, closing)
                at = closing + 1
            elif len(parts) == 1 and name in known:
                columns = known[name]
            else:
                place = (parts[-2] if len(parts) > 1 else self._namespace, name)
                columns = self._tables.get(place)
        return self._named(at, name, columns)

    def _series(self, name: str, opening: int, closing: int) -> Columns | None:
        """Return the column of a function in FROM that counts, None of another."""
        inner = self._tokens[opening + 1 : closing]
        counts = name in TABLE_FUNCTIONS and all(token.kind in ("number", "op") for token in inner)
        return {SERIES: SERIES_BITS} if counts else None

    def _named(self, at: int, name: str, columns: Columns | None) -> _Source:
        """Return a source with the name, and the names of columns, that stand behind it."""
        at += self._word(at) == "AS"
        token = self._at(at)
        if token.kind in ("word", "quoted") and token.word not in _NO_ALIAS:
            name = _folded(token)
            at += 1
            if self._word(at) == "(":
                columns = _renamed(columns, self._names(at))
        return _Source(name, columns)

    def _path(self, at: int) -> tuple[list[str], int]:
        parts = [_folded(self._at(at))]
        while self._word(at + 1) == ".":
            at += 2
            parts.append(_folded(self._at(at)))
        return parts, at + 1

    def _names(self, opening: int) -> list[str]:
        inner = self._tokens[opening + 1 : self._closing.get(opening, opening)]
        return [_folded(token) for token in inner if token.word != ","]

    def _outside(self, begin: int, end: int) -> Sequence[int]:
        """Return the tokens that stand in no parentheses."""
        found, at = [], begin
        while at < end:
            found.append(at)
            at = self._closing.get(at, at) + 1
        return found

    def _is_set(self, at: int) -> bool:
        return self._word(at) in _SET and self._word(at - 1) != "*"

    def _is_from(self, at: int) -> bool:
        return self._word(at) == "FROM" and self._word(at - 1) != "DISTINCT"

    def _word(self, at: int) -> str:
        return self._at(at).word

    def _at(self, at: int) -> Token:
        return self._tokens[at] if 0 <= at < len(self._tokens) else END


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


def _folded(token: Token) -> str:
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower()
