"""IS DISTINCT FROM in parentheses, because the query engine's parser takes too much for its right operand.

Law: `a IS DISTINCT FROM b AND c` means `(a IS DISTINCT FROM b) AND c`, as everywhere; the engine reads
`a IS DISTINCT FROM (b AND c)`.
"""

from upwell.sql.query import BEHIND_WHERE, CLOSING, JOINS, OPENING, Edit, Query

_EDGES = frozenset({"AND", "OR", "NOT", "THEN", "WHEN", "ELSE", ",", ";", "WHERE", "ON", "HAVING", "BY"})
_BEGINS = _EDGES | {"SELECT", "DISTINCT", "ALL", "RETURNING", "VALUES"}
_ENDS = (
    _EDGES
    | BEHIND_WHERE
    | JOINS
    | {"IS", "IN", "LIKE", "ILIKE", "SIMILAR", "BETWEEN", "AS", "ASC", "DESC", "NULLS", "FROM", "RETURNING"}
)


def with_whole_distinct(query: Query) -> Query:
    """Return the query with each `a IS [NOT] DISTINCT FROM b` in parentheses."""
    edits: list[Edit] = []
    for at, token in enumerate(query.tokens[:-2]):
        operator = at - 1 - (query.word(at - 1) == "NOT")
        if token.word == "DISTINCT" and query.word(at + 1) == "FROM" and query.word(operator) == "IS":
            edits += query.around(operand_begin(query, operator), _operand_end(query, at + 2), "(", ")")
    return query.edited(edits)


def operand_begin(query: Query, end: int) -> int:
    """Return where the operand begins that ends at a place."""
    depth = 0
    for at in range(end - 1, -1, -1):
        word = query.word(at)
        is_chained = word in ("NOT", "DISTINCT") and query.word(at - 1) in ("IS", "NOT")
        if depth == 0 and (word in _BEGINS or word in OPENING) and not is_chained:
            return at + 1
        depth += (word in CLOSING) - (word in OPENING)
    return 0


def _operand_end(query: Query, begin: int) -> int:
    depth = 0
    for at in range(begin, len(query.tokens)):
        word = query.word(at)
        if depth == 0 and (word in _ENDS or word in CLOSING):
            return at
        depth += (word in OPENING) - (word in CLOSING)
    return len(query.tokens)
