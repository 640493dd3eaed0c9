"""Lists: IN lists of one operand, kept apart because the query engine merges them wrongly.

It takes `a IN (b, c) AND a IN (d, e)` for no rows, as if columns could not be equal, and
`a IN (1, 2) AND a IN (3, 4)` for FALSE where `a` is NULL; `a = 1 OR a = 2` is such a list to it.

Law: a query means what it says, three-valued logic included. What could be merged stands in a NULLIF that
changes nothing and that the engine doesn't look into; one list of an operand stays as it is, so that files
are still chosen by it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from upwell.sql.distinct import operand_begin
from upwell.sql.lex import Token, tokenize

_LIKELY = re.compile(r"\bIN\s*\(|\bOR\b", re.IGNORECASE)
_BEFORE_CONDITIONS = frozenset(
    {"AND", "OR", "NOT", "WHERE", "ON", "HAVING", "WHEN", "THEN", "ELSE", "SELECT", "DISTINCT", "BY", "CASE"}
)
_CONSTANTS = frozenset({"NULL", "TRUE", "FALSE"})


class _List(NamedTuple):
    """An IN list, or a group of comparisons with OR between them; `begin` and `end` are token indexes."""

    begin: int
    end: int
    operands: frozenset[str]
    has_columns: bool


def with_lists_apart(text: str) -> str:
    """Return the query with lists that the engine would merge in a NULLIF each."""
    if _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    edits: list[tuple[int, str]] = []
    seen: set[str] = set()
    for found in _lists(tokens):
        if found.has_columns or found.operands & seen:
            edits.append((tokens[found.begin].start, "NULLIF("))
            edits.append((tokens[found.end - 1].end, ", CAST(NULL AS BOOLEAN))"))
        seen |= found.operands
    # Where one ends another may end, too; nothing begins where one ends.
    for position, edge in sorted(edits, key=lambda edit: edit[0], reverse=True):
        text = text[:position] + edge + text[position:]
    return text


def _lists(tokens: Sequence[Token]) -> list[_List]:
    found: list[_List] = []
    for at, token in enumerate(tokens):
        if token.word == "(":
            end = _behind(tokens, at)
            inner = tokens[at + 1 : end - 1]
            is_in = at > 0 and tokens[at - 1].word == "IN"
            if is_in and inner and inner[0].word not in ("SELECT", "WITH", "VALUES"):
                before = at - 1 - (tokens[at - 2].word == "NOT")
                begin = operand_begin(tokens, before)
                operand = _key(tokens[begin:before])
                found.append(_List(begin, end, frozenset({operand}), _has_columns(inner)))
            elif (at == 0 or _opens_condition(tokens[at - 1])) and _has_or(inner):
                found.append(_List(at, end, _compared(inner), has_columns=False))
    return found


def _opens_condition(before: Token) -> bool:
    """Tell whether a parenthesis behind this token is no call's, and no row's."""
    return before.word in _BEFORE_CONDITIONS or (before.kind == "op" and before.word not in (".", ")", "]"))


def _has_or(inner: Sequence[Token]) -> bool:
    depth, found = 0, False
    for token in inner:
        if token.word == "SELECT" or (depth == 0 and token.word == ","):
            return False
        depth += (token.word in ("(", "[", "CASE")) - (token.word in (")", "]", "END"))
        found = found or (depth == 0 and token.word == "OR")
    return found


def _compared(inner: Sequence[Token]) -> frozenset[str]:
    """Return the names on either side of the equalities in a group."""
    sides = [inner[at + step] for at in range(1, len(inner) - 1) if inner[at].word == "=" for step in (-1, 1)]
    return frozenset(_key([side]) for side in sides if side.kind in ("word", "quoted"))


def _has_columns(inner: Sequence[Token]) -> bool:
    for at, token in enumerate(inner):
        following = inner[at + 1] if at + 1 < len(inner) else None
        is_type = at > 0 and inner[at - 1].word == "AS"
        is_typed = following is not None and (following.kind == "string" or following.word == "(")
        is_name = token.kind == "word" and token.word not in _CONSTANTS and token.word != "AS"
        if token.kind == "quoted" or (is_name and not is_typed and not is_type):
            return True
    return False


def _key(tokens: Sequence[Token]) -> str:
    """Return what an operand is recognized by: the last name in it, without its table."""
    names = [token for token in tokens if token.kind in ("word", "quoted")]
    if not names:
        return " ".join(token.text for token in tokens)
    return names[-1].text.strip('"`').lower()


def _behind(tokens: Sequence[Token], opening: int) -> int:
    depth = 0
    for at in range(opening, len(tokens)):
        depth += (tokens[at].word == "(") - (tokens[at].word == ")")
        if depth == 0:
            return at + 1
    return len(tokens)
