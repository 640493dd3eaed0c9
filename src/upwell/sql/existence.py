"""Existence: `EXISTS (SELECT …)` as a column, which the query engine knows as a condition of a WHERE only.

Law: what is counted instead is what is asked for: rows of a FROM and a WHERE. A query with more to it stays,
and the engine says that it can't. All other text stays as it is written.
"""

import re
from collections.abc import Iterator, Sequence

from upwell.sql.lex import Token, tokenize
from upwell.sql.truth import closing_of

_LIKELY = re.compile(r"\bEXISTS\s*\(", re.IGNORECASE)
_OTHER_CLAUSES = frozenset({"FROM", "WHERE", "GROUP", "HAVING", "ORDER", "WINDOW", "LIMIT", "UNION"})
# What makes other rows of those that are found, or none.
_REST = frozenset({"GROUP", "HAVING", "QUALIFY", "LIMIT", "OFFSET", "FETCH", "ORDER", "WINDOW"})
_REST |= {"UNION", "EXCEPT", "INTERSECT"}
_NO_LIST = frozenset({"(", ")", "INTO"})


def with_counted_existence(text: str) -> str:
    """Return the query with each EXISTS in a SELECT list as a count that is more than 0."""
    if _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    closings = closing_of(tokens)
    edits: list[tuple[int, int, str]] = []
    for at in in_lists(tokens):
        if tokens[at].word != "EXISTS" or at + 1 not in closings:
            continue
        inner = _without_limit(tokens[at + 2 : closings[at + 1]])
        begin = _from_of(inner)
        if begin is not None:
            edits.append((tokens[at].start, inner[begin].start, "((SELECT COUNT(*) "))
            edits.append((inner[-1].end, tokens[closings[at + 1]].end, ") > 0)"))
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    return text


def in_lists(tokens: Sequence[Token]) -> Iterator[int]:
    """Yield where tokens of SELECT lists are."""
    outer: list[bool] = []
    is_list = False
    for at, token in enumerate(tokens):
        if token.word == "(":
            outer.append(is_list)
        elif token.word == ")" and outer:
            is_list = outer.pop()
        elif token.word == "SELECT":
            is_list = True
        elif token.word in _OTHER_CLAUSES and tokens[at - 1].word != "DISTINCT":
            is_list = False
        elif is_list:
            yield at


def _without_limit(inner: Sequence[Token]) -> Sequence[Token]:
    """Return a query without a LIMIT that lets rows through."""
    limit = [token.word or token.text for token in inner[-2:]]
    return inner[:-2] if limit[:1] == ["LIMIT"] and limit[1].strip("0").isdigit() else inner


def _from_of(inner: Sequence[Token]) -> int | None:
    """Return where the FROM of a query is that has but a list of values and a WHERE; None of any other."""
    begin = next((at for at, token in enumerate(inner) if token.word == "FROM"), None)
    if begin is None or inner[0].word != "SELECT" or any(each.word in _NO_LIST for each in inner[:begin]):
        return None
    depth = 0
    for token in inner[begin:]:
        depth += (token.word == "(") - (token.word == ")")
        if depth == 0 and token.word in _REST:
            return None
    return begin
