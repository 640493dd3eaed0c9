"""Existence: `EXISTS (SELECT …)` as a column, which the query engine knows as a condition of a WHERE only.

Law: what is counted instead is what is asked for: rows of a FROM and a WHERE. A query with more to it stays,
and the engine says that it can't.
"""

from upwell.sql.query import BEHIND_WHERE, Edit, Query

_NO_LIST = frozenset({"(", ")", "INTO"})


def with_counted_existence(query: Query) -> Query:
    """Return the query with each EXISTS in a SELECT list as a count that is more than 0."""
    edits: list[Edit] = []
    for at in query.in_lists():
        closing = query.closings.get(at + 1)
        if query.word(at) == "EXISTS" and closing is not None:
            end = _before_limit(query, at + 2, closing)
            begin = _counted_from(query, at + 2, end)
            if begin is not None:
                edits.append((query.at(at).start, query.at(begin).start, "((SELECT COUNT(*) "))
                edits.append((query.at(end - 1).end, query.at(closing).end, ") > 0)"))
    return query.edited(edits)


def _before_limit(query: Query, begin: int, end: int) -> int:
    """Return where a query ends without a LIMIT that lets rows through."""
    limit = query.words(max(end - 2, begin), end)
    return end - 2 if limit[:1] == ("LIMIT",) and limit[1].strip("0").isdigit() else end


def _counted_from(query: Query, select: int, end: int) -> int | None:
    """Return where the FROM of a query is that has but a list of values and a WHERE; None of any other."""
    begin = query.from_of(select) if query.word(select) == "SELECT" else None
    if begin is None or not _NO_LIST.isdisjoint(query.words(select, begin)):
        return None
    return begin if all(query.word(at) not in BEHIND_WHERE for at in query.outside(begin, end)) else None
