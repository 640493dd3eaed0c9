"""Labels: constants beside an aggregate of all rows, as in `SELECT 'orders' AS kind, COUNT(*) AS n FROM …`.

The query engine takes a condition that names no column of such a subquery for one on the rows that are
counted: with `WHERE kind = 'users'` it counts none of the orders, and returns their line with 0.

Law: a query means what it says. A subquery that aggregates all rows has a LIMIT that leaves everything, as no
condition is moved beyond one; a HAVING that asks a subquery asks for the rows, too.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from upwell.sql.query import SETS, Edit, Query

_AGGREGATES = frozenset(
    {"COUNT", "SUM", "AVG", "MEAN", "MIN", "MAX", "BOOL_AND", "BOOL_OR", "ARRAY_AGG", "STRING_AGG", "MEDIAN"}
    | {"STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VAR", "VAR_POP", "VAR_SAMP", "BIT_AND", "BIT_OR", "BIT_XOR"}
    | {"CORR", "COVAR", "COVAR_POP", "COVAR_SAMP", "APPROX_DISTINCT", "APPROX_MEDIAN"}
)
_LIMITS = frozenset({"LIMIT", "OFFSET", "FETCH"})
_OF_ALL_MEMBERS = _LIMITS | {"ORDER"}
_BEHIND_HAVING = _OF_ALL_MEMBERS | {"WINDOW", "QUALIFY"}
_IN_FROM = frozenset({"FROM", "JOIN", "ON", "USING"})
_CLAUSES = _IN_FROM | {"SELECT", "WHERE", "GROUP", "HAVING", "ORDER"}
_BEFORE_SOURCE = frozenset({"FROM", "JOIN", "AS", "MATERIALIZED"})
_WHOLE = f" LIMIT {(1 << 63) - 1}"


class _Select(NamedTuple):
    """A SELECT: its tokens that stand in no parentheses, and what it is part of."""

    places: Sequence[int]
    is_source: bool
    """Whether there may be conditions around it."""
    is_member: bool
    """Whether it is one of a UNION, or the like."""


def with_kept_labels(query: Query, *, is_part: bool = False) -> Query:
    """Return the query with its aggregates of all rows beyond the reach of conditions around them.

    `is_part`: it is part of another query, which may have conditions on it.
    """
    edits: list[Edit] = []
    for select in _selects(query, is_part=is_part):
        begin, end = select.places[0], _behind(query, select.places)
        words = {query.word(at) for at in select.places}
        if "GROUP" in words or not _has_aggregate(query, begin, end):
            continue
        edits += _having_of_rows(query, select.places)
        if select.is_source and not words & _LIMITS:
            opening, closing = ("(", ")") if select.is_member else ("", "")
            edits += query.around(begin, end, opening, _WHOLE + closing)
    return query.edited(edits)


def _selects(query: Query, *, is_part: bool) -> Iterator[_Select]:
    is_source, clause = is_part, ""
    outer: list[tuple[bool, str]] = []
    for at, token in enumerate(query.tokens):
        if token.word == "(":
            outer.append((is_source, clause))
            is_source, clause = _is_source(query, at, clause, is_source=is_source), ""
        elif token.word == ")" and outer:
            is_source, clause = outer.pop()
        elif token.word in _CLAUSES:
            clause = token.word
        if token.word == "SELECT":
            places = list(takewhile(lambda at: query.word(at) not in (";", *SETS), query.outside(at)))
            is_member = query.word(_behind(query, places)) in SETS or _is_behind_set(query, at)
            if is_member:
                places = list(takewhile(lambda at: query.word(at) not in _OF_ALL_MEMBERS, places))
            yield _Select(places, is_source, is_member)


def _is_source(query: Query, opening: int, clause: str, *, is_source: bool) -> bool:
    """Tell whether a query in parentheses is one that a FROM reads, or that WITH names."""
    before = query.word(opening - 1)
    if before in _BEFORE_SOURCE or (before == "," and clause in _IN_FROM):
        return True
    return is_source and (before in ("(", "") or _is_behind_set(query, opening))


def _is_behind_set(query: Query, at: int) -> bool:
    before = query.word(at - 1)
    return before in SETS or (before in ("ALL", "DISTINCT") and query.word(at - 2) in SETS)


def _has_aggregate(query: Query, begin: int, end: int) -> bool:
    """Tell whether there is an aggregate that is no window's, and no subquery's."""
    for at in query.own(begin, end):
        if query.word(at) in _AGGREGATES and at + 1 in query.closings:
            behind = query.closings[at + 1] + 1
            if query.word(behind) == "FILTER":
                behind = query.closings.get(behind + 1, behind) + 1
            if query.word(behind) != "OVER":
                return True
    return False


def _having_of_rows(query: Query, places: Sequence[int]) -> Sequence[Edit]:
    """Return what to write around a HAVING with a subquery in it."""
    begin = next((n for n, at in enumerate(places) if query.word(at) == "HAVING"), None)
    if begin is None:
        return []
    inner = list(takewhile(lambda at: query.word(at) not in _BEHIND_HAVING, places[begin + 1 :]))
    if not inner or "SELECT" not in query.words(inner[0], _behind(query, inner)):
        return []
    return query.around(inner[0], _behind(query, inner), "CASE WHEN COUNT(*) >= 0 THEN ", " END")


def _behind(query: Query, places: Sequence[int]) -> int:
    """Return the place behind the last of some, and behind its parentheses."""
    return query.closings.get(places[-1], places[-1]) + 1
