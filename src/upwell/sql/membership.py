"""Membership: `x [NOT] IN (SELECT …)` where unknown isn't FALSE; the query engine is right at one place.

By itself in a WHERE, with AND around it, `x NOT IN (SELECT …)` is unknown if `x` or what is selected is NULL.
Anywhere else the engine takes it for TRUE then, and returns rows that nobody asked for.

Law: a query means what it says, three-valued logic included. What would be taken wrongly is written in other
words: what a subquery of its own makes unknown is added to it; one that reads the row around it becomes a
`= ANY` or `<> ALL`, for which the engine does what is right, row by row; in a SELECT list, where it takes
neither, what equals the operand is counted.
"""

from upwell.errors import InvalidSql
from upwell.sql.distinct import operand_begin
from upwell.sql.query import Query
from upwell.sql.source import sources
from upwell.sql.truth import is_followed, shows_unknown

REWRITTEN_MAX = 64
GROWTH_CHARS_MAX = 1 << 18
WORK_MAX = 4_000_000
"""Characters that are read: all of them for each IN, and one within another is written twice."""
_SUBQUERY = frozenset({"SELECT", "WITH"})
_COUNTED = "(SELECT COUNT(*) FROM ({subquery}\n) AS _members(_member) WHERE _member = {operand}) > 0"
_UNKNOWN = (
    "CASE (SELECT CASE WHEN COUNT(*) = 0 THEN 0 WHEN COUNT(_member) < COUNT(*) THEN 2 ELSE 1 END "
    "FROM ({subquery}\n) AS _members(_member)) "
    "WHEN 2 THEN CAST(NULL AS BOOLEAN) WHEN 1 THEN NULLIF({operand} IS NULL, TRUE) ELSE FALSE END"
)


def with_memberships(query: Query) -> Query:
    """Return the query with each IN of a subquery as it has to be understood."""
    count, work, chars_max = 0, 0, len(query.text) + GROWTH_CHARS_MAX
    # From the last one on: what is inside a subquery comes behind its IN.
    for at in range(len(query.tokens) - 1, 0, -1):
        if query.word(at) == "IN" and query.word(at + 1) == "(" and query.word(at + 2) in _SUBQUERY:
            work += len(query.text)
            if count >= REWRITTEN_MAX or work > WORK_MAX or len(query.text) > chars_max:
                raise InvalidSql(
                    f"a statement has at most {REWRITTEN_MAX} IN (SELECT …), a long or nested one fewer; "
                    "join the tables instead"
                )
            found = _rewritten(query, at)
            count += found is not query
            query = found
    return query


def _rewritten(query: Query, at: int) -> Query:
    """Return the query with the IN at a place as it has to be understood."""
    closing = query.closings.get(at + 1)
    is_negated = query.word(at - 1) == "NOT"
    end_of_operand = at - is_negated
    begin = operand_begin(query, end_of_operand)
    if closing is None or begin >= end_of_operand:
        return query
    is_correlated = _reads_around(query, at + 2, closing)
    is_shown = shows_unknown(query)[at] or is_followed(query, closing + 1) or _is_operand(query, begin)
    has_or = any(token.word == "OR" for token in (*query.tokens[:at], *query.tokens[closing:]))
    if not is_shown and not (is_negated and (is_correlated or has_or)):
        return query
    operand = query.between(begin, end_of_operand)
    subquery = query.between(at + 2, closing)
    if is_correlated:
        written = f"({operand} {'<> ALL' if is_negated else '= ANY'} ({subquery}\n))"
    else:
        parts = {"subquery": subquery, "operand": f"({operand})"}
        is_column = at in query.in_lists()
        found = _COUNTED.format(**parts) if is_column else f"{operand} IN ({subquery}\n)"
        written = f"{'(NOT ' if is_negated else ''}({found} OR {_UNKNOWN.format(**parts)})"
        written += ")" if is_negated else ""
    return query.edited([(query.at(begin).start, query.at(closing).end, written)])


def _reads_around(query: Query, begin: int, end: int) -> bool:
    """Tell whether a subquery names a table that isn't its own."""
    own: set[str] = set()
    for select in (select for select in query.selects if begin <= select < end):
        for source in sources(query, select, with_joined=True):
            own |= {part.name for part in (*source.path[:-1], *source.qualifier)}
    return any(
        query.at(at).is_name and query.word(at + 1) == "." and query.word(at - 1) != "."
        for at in range(begin, end)
        if query.at(at).name not in own
    )


def _is_operand(query: Query, begin: int) -> bool:
    return begin > 0 and query.at(begin - 1).kind == "op" and query.word(begin - 1) not in ("(", ",")
