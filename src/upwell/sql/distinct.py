"""IS DISTINCT FROM in parentheses, because the query engine's parser takes too much for its right operand.

Law: `a IS DISTINCT FROM b AND c` means `(a IS DISTINCT FROM b) AND c`, as everywhere; the engine reads
`a IS DISTINCT FROM (b AND c)`. All other text stays as it is written.
"""

from collections.abc import Sequence

from upwell.sql.lex import Token, tokenize

_OPENING = frozenset({"(", "[", "CASE"})
_CLOSING = frozenset({")", "]", "END"})
_EDGES = frozenset({"AND", "OR", "NOT", "THEN", "WHEN", "ELSE", ",", ";", "WHERE", "ON", "HAVING", "BY"})
_BEGINS = _EDGES | {"SELECT", "DISTINCT", "ALL", "RETURNING", "VALUES"}
_ENDS = (
    _EDGES
    | {
        "IS",
        "IN",
        "LIKE",
        "ILIKE",
        "SIMILAR",
        "BETWEEN",
        "AS",
        "ASC",
        "DESC",
        "NULLS",
        "FROM",
        "GROUP",
        "ORDER",
    }
    | {"LIMIT", "OFFSET", "FETCH", "UNION", "EXCEPT", "INTERSECT", "WINDOW", "JOIN", "LEFT", "RIGHT", "FULL"}
    | {"INNER", "CROSS", "RETURNING"}
)


def with_whole_distinct(text: str) -> str:
    """Return the query with each `a IS [NOT] DISTINCT FROM b` in parentheses."""
    if "distinct" not in text.lower():
        return text
    tokens = tokenize(text)
    edges: list[tuple[int, str]] = []
    for at in range(1, len(tokens) - 2):
        before = [token.word for token in tokens[max(at - 2, 0) : at]]
        if tokens[at].word == "DISTINCT" and tokens[at + 1].word == "FROM" and "IS" in before[-2:]:
            begin, end = operand_begin(tokens, at - 1 - (before[-1] == "NOT")), _end(tokens, at + 2)
            edges += [(tokens[begin].start, "("), (tokens[end - 1].end, ")")]
    for position, edge in sorted(edges, reverse=True):
        text = text[:position] + edge + text[position:]
    return text


def operand_begin(tokens: Sequence[Token], end: int) -> int:
    """Return the index where the operand begins that ends before `end`."""
    depth = 0
    for at in range(end - 1, -1, -1):
        word = tokens[at].word
        is_chained = word in ("NOT", "DISTINCT") and at > 0 and tokens[at - 1].word in ("IS", "NOT")
        if depth == 0 and (word in _BEGINS or word in _OPENING) and not is_chained:
            return at + 1
        depth += (word in _CLOSING) - (word in _OPENING)
    return 0


def _end(tokens: Sequence[Token], begin: int) -> int:
    """Return the index behind the operand that begins at `begin`."""
    depth = 0
    for at in range(begin, len(tokens)):
        word = tokens[at].word
        if depth == 0 and (word in _ENDS or word in _CLOSING):
            return at
        depth += (word in _OPENING) - (word in _CLOSING)
    return len(tokens)
