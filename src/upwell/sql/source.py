"""Sources: what a FROM reads, as it is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from upwell.sql.lex import Token
from upwell.sql.query import BEHIND_FROM, JOINS, QUERIES, Query

_NO_ALIAS = (
    BEHIND_FROM
    | JOINS
    | {"OUTER", "SEMI", "ANTI", "ON", "USING", "TABLESAMPLE", "LATERAL", "AS", "WITH", "PIVOT", "UNPIVOT"}
)
_MERGING = frozenset({"USING", "NATURAL"})


@dataclass(frozen=True, slots=True)
class Source:
    """A table, a call, or what is in parentheses, with the names that are given to it and its columns."""

    begin: int
    path: Sequence[Token]
    """The names of a table or a function; none of what is in parentheses."""
    is_call: bool
    is_join: bool
    """Whether parentheses hold sources of their own."""
    alias: Token | None
    columns: Sequence[str]

    @property
    def qualifier(self) -> Sequence[Token]:
        """How its columns are qualified."""
        if self.alias is not None:
            return [self.alias]
        return [] if self.is_call else self.path


def sources(query: Query, select: int, *, with_joined: bool = False) -> list[Source]:
    """Return what a SELECT reads by its FROM; `with_joined`: what is in parentheses there as well."""
    begin = query.from_of(select)
    found = [] if begin is None else joined(query, begin)
    for source in found if with_joined else ():  # those that are added meanwhile, too
        found += joined(query, source.begin) if source.is_join else ()
    return found


def joined(query: Query, before: int) -> list[Source]:
    """Return the sources behind a FROM, or in the parentheses around a join."""
    places = [before, *(at for at in _from_list(query, before) if query.word(at) in (",", "JOIN"))]
    return [_source(query, at + 1) for at in places]


def is_merged(query: Query, select: int) -> bool:
    """Tell whether a FROM makes one column of two."""
    begin = query.from_of(select)
    return begin is not None and any(query.word(at) in _MERGING for at in _from_list(query, begin))


def _from_list(query: Query, before: int) -> Iterator[int]:
    return takewhile(lambda at: query.word(at) not in BEHIND_FROM, query.outside(before + 1))


def _source(query: Query, at: int) -> Source:
    begin = at = at + (query.word(at) == "LATERAL")
    path: list[Token] = []
    while query.at(at).is_name:
        path.append(query.at(at))
        at += 1
        if query.word(at) != ".":
            break
        at += 1
    is_call = bool(path) and query.word(at) == "("
    if query.word(at) == "(":
        at = query.closings.get(at, at) + 1
    is_join = query.word(begin) == "(" and query.word(begin + 1) not in QUERIES
    at += query.word(at) == "AS"
    alias = query.at(at)
    if not alias.is_name or alias.word in _NO_ALIAS:
        return Source(begin, path, is_call, is_join, None, ())
    return Source(begin, path, is_call, is_join, alias, query.names(at + 1))
