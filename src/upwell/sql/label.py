"""Labels: constants beside an aggregate of all rows, as in `SELECT 'orders' AS kind, COUNT(*) AS n FROM …`.

The query engine takes a condition that names no column of such a subquery for one on the rows that are
counted: with `WHERE kind = 'users'` it counts none of the orders, and returns their line with 0.

Law: a query means what it says. A subquery that aggregates all rows has a LIMIT that leaves everything, as no
condition is moved beyond one; a HAVING that asks a subquery asks for the rows, too. All other text stays as
it is written.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from upwell.sql.lex import END, Token, tokenize
from upwell.sql.truth import closing_of

_LIKELY = re.compile(r"\(\s*(?:SELECT|WITH)\b", re.IGNORECASE)
_AGGREGATES = frozenset(
    {"COUNT", "SUM", "AVG", "MEAN", "MIN", "MAX", "BOOL_AND", "BOOL_OR", "ARRAY_AGG", "STRING_AGG", "MEDIAN"}
    | {"STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VAR", "VAR_POP", "VAR_SAMP", "BIT_AND", "BIT_OR", "BIT_XOR"}
    | {"CORR", "COVAR", "COVAR_POP", "COVAR_SAMP", "APPROX_DISTINCT", "APPROX_MEDIAN"}
)
_SUBQUERY = frozenset({"SELECT", "WITH"})
_SET = frozenset({"UNION", "EXCEPT", "INTERSECT"})
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


def with_kept_labels(text: str, *, is_part: bool = False) -> str:
    """Return the query with its aggregates of all rows beyond the reach of conditions around them.

    `is_part`: it is part of another query, which may have conditions on it.
    """
    if not is_part and _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    closings = closing_of(tokens)
    edits: list[tuple[int, str]] = []
    for select in _selects(tokens, closings, is_part=is_part):
        words = {tokens[at].word for at in select.places}
        if "GROUP" in words or not _has_aggregate(tokens, select.places, closings):
            continue
        edits += _having_of_rows(tokens, select.places, closings)
        if select.is_source and not words & _LIMITS:
            end = tokens[closings.get(select.places[-1], select.places[-1])].end
            edits.append((end, _WHOLE + ")" * select.is_member))
            edits += [(tokens[select.places[0]].start, "(")] * select.is_member
    for position, written in sorted(edits, reverse=True):
        text = text[:position] + written + text[position:]
    return text


def _selects(tokens: Sequence[Token], closings: Mapping[int, int], *, is_part: bool) -> Iterator[_Select]:
    is_source, clause = is_part, ""
    outer: list[tuple[bool, str]] = []
    for at, token in enumerate(tokens):
        if token.word == "(":
            outer.append((is_source, clause))
            is_source, clause = _is_source(tokens, at, clause, is_source=is_source), ""
        elif token.word == ")" and outer:
            is_source, clause = outer.pop()
        elif token.word in _CLAUSES:
            clause = token.word
        if token.word == "SELECT":
            places = list(_outside(tokens, at, closings))
            behind = closings.get(places[-1], places[-1]) + 1
            is_member = _word(tokens, behind) in _SET or _is_behind_set(tokens, at)
            if is_member:
                of_all = (n for n, place in enumerate(places) if tokens[place].word in _OF_ALL_MEMBERS)
                places = places[: next(of_all, len(places))]
            yield _Select(places, is_source, is_member)


def _is_source(tokens: Sequence[Token], opening: int, clause: str, *, is_source: bool) -> bool:
    """Tell whether a query in parentheses is one that a FROM reads, or that WITH names."""
    before = _word(tokens, opening - 1)
    if before in _BEFORE_SOURCE or (before == "," and clause in _IN_FROM):
        return True
    return is_source and (before in ("(", "") or _is_behind_set(tokens, opening))


def _outside(tokens: Sequence[Token], select: int, closings: Mapping[int, int]) -> Iterator[int]:
    at = select
    while at < len(tokens) and tokens[at].word not in (")", ";", *_SET):
        yield at
        at = closings.get(at, at) + 1


def _is_behind_set(tokens: Sequence[Token], at: int) -> bool:
    before = _word(tokens, at - 1)
    return before in _SET or (before in ("ALL", "DISTINCT") and _word(tokens, at - 2) in _SET)


def _has_aggregate(tokens: Sequence[Token], places: Sequence[int], closings: Mapping[int, int]) -> bool:
    """Tell whether there is an aggregate that is no window's, and no subquery's."""
    at, end = places[0], closings.get(places[-1], places[-1]) + 1
    while at < end:
        if at in closings and tokens[at + 1].word in _SUBQUERY:
            at = closings[at]
        elif tokens[at].word in _AGGREGATES and at + 1 in closings:
            behind = closings[at + 1] + 1
            if _word(tokens, behind) == "FILTER" and behind + 1 in closings:
                behind = closings[behind + 1] + 1
            if _word(tokens, behind) != "OVER":
                return True
        at += 1
    return False


def _having_of_rows(
    tokens: Sequence[Token], places: Sequence[int], closings: Mapping[int, int]
) -> Sequence[tuple[int, str]]:
    """Return what to write around a HAVING with a subquery in it."""
    begin = next((n for n, at in enumerate(places) if tokens[at].word == "HAVING"), None)
    if begin is None:
        return []
    inner = [*places[begin + 1 :]]
    inner = inner[: next((n for n, at in enumerate(inner) if tokens[at].word in _BEHIND_HAVING), len(inner))]
    last = closings.get(inner[-1], inner[-1]) if inner else 0
    if not any(token.word == "SELECT" for token in tokens[places[begin] : last]):
        return []
    return [(tokens[inner[0]].start, "CASE WHEN COUNT(*) >= 0 THEN "), (tokens[last].end, " END")]


def _word(tokens: Sequence[Token], at: int) -> str:
    return (tokens[at] if 0 <= at < len(tokens) else END).word
