"""Labels: constants beside an aggregate of all rows, as in `SELECT 'orders' AS kind, COUNT(*) AS n FROM …`.

The query engine takes a condition on such a column for one on the rows that are counted: with
`WHERE kind = 'users'` it counts none of the orders, and returns their line with 0.

Law: a query means what it says. In a subquery a label is written so that it can't be told from an aggregate.
All other text stays as it is written.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from upwell.sql.lex import Token, tokenize
from upwell.sql.truth import closing_of
from upwell.sql.twins import SelectItem, select_items

_LIKELY = re.compile(r"\(\s*(?:SELECT|WITH)\b", re.IGNORECASE)
_AGGREGATES = frozenset(
    {"COUNT", "SUM", "AVG", "MEAN", "MIN", "MAX", "BOOL_AND", "BOOL_OR", "ARRAY_AGG", "STRING_AGG", "MEDIAN"}
    | {"STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VAR", "VAR_POP", "VAR_SAMP", "BIT_AND", "BIT_OR", "BIT_XOR"}
    | {"CORR", "COVAR", "COVAR_POP", "COVAR_SAMP", "APPROX_DISTINCT", "APPROX_MEDIAN"}
)
_SUBQUERY = frozenset({"SELECT", "WITH"})
_BEHIND_QUERY = frozenset({"UNION", "EXCEPT", "INTERSECT"})


def with_kept_labels(text: str) -> str:
    """Return the query with the labels in its subqueries beyond the reach of conditions around them."""
    if _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    closings = closing_of(tokens)
    edits: list[tuple[int, str]] = []
    depth = 0
    for at, token in enumerate(tokens):
        depth += (token.word == "(") - (token.word == ")")
        if token.word != "SELECT" or depth == 0 or _is_grouped(tokens, at):
            continue
        items = select_items(tokens, at + 1)
        if not any(_is_aggregate(item.tokens, closings, tokens) for item in items):
            continue
        for item in items:
            words = {each.word for each in item.tokens}
            if not words & (_AGGREGATES | {"SELECT", "*"}):
                first, last = item.tokens[0], _expression(item)[-1]
                edits += [(first.start, "CASE WHEN COUNT(*) >= 0 THEN "), (last.end, " END")]
    for position, edge in sorted(edits, reverse=True):
        text = text[:position] + edge + text[position:]
    return text


def _expression(item: SelectItem) -> Sequence[Token]:
    """Return an item without its name."""
    if item.alias is None or len(item.tokens) < 2:
        return item.tokens
    return item.tokens[: -2 if item.tokens[-2].word == "AS" else -1]


def _is_aggregate(item: Sequence[Token], closings: dict[int, int], tokens: Sequence[Token]) -> bool:
    """Tell whether there is an aggregate in an item that is no window's, and no subquery's."""
    at = bisect_left(tokens, item[0].start, key=attrgetter("start"))
    last = at + len(item)
    while at < last:
        if at in closings and tokens[at + 1].word in _SUBQUERY:
            at = closings[at]
        elif tokens[at].word in _AGGREGATES and at + 1 in closings:
            end = closings[at + 1] + 1
            if end < len(tokens) and tokens[end].word == "FILTER" and end + 1 in closings:
                end = closings[end + 1] + 1
            if end >= len(tokens) or tokens[end].word != "OVER":
                return True
        at += 1
    return False


def _is_grouped(tokens: Sequence[Token], select: int) -> bool:
    depth = 0
    for at in range(select, len(tokens)):
        token = tokens[at]
        depth += (token.word == "(") - (token.word == ")")
        if depth < 0 or (depth == 0 and token.word in _BEHIND_QUERY):
            return False
        if depth == 0 and token.word == "GROUP":
            return True
    return False
