"""Membership: `x [NOT] IN (SELECT …)` where unknown isn't FALSE; the query engine is right at one place.

By itself in a WHERE, with AND around it, `x NOT IN (SELECT …)` is unknown if `x` or what is selected is NULL.
Anywhere else the engine takes it for TRUE then, and returns rows that nobody asked for.

Law: a query means what it says, three-valued logic included. What would be taken wrongly is written in other
words: what a subquery of its own makes unknown is added to it; one that reads the row around it becomes a
`= ANY` or `<> ALL`, for which the engine does what is right, row by row; in a SELECT list, where it takes
neither, what equals the operand is counted. All other text stays as it is.
"""

import re
from collections.abc import Sequence

from upwell.sql.distinct import operand_begin
from upwell.sql.existence import in_lists
from upwell.sql.lex import Token, tokenize
from upwell.sql.truth import closing_of, is_followed, shows_unknown

_LIKELY = re.compile(r"\bIN\s*\(", re.IGNORECASE)
_SUBQUERY = frozenset({"SELECT", "WITH"})
_BEFORE_SOURCE = frozenset({"FROM", "JOIN", ",", "LATERAL"})
_COUNTED = "(SELECT COUNT(*) FROM ({subquery}\n) AS _members(_member) WHERE _member = {operand}) > 0"
_UNKNOWN = (
    "CASE (SELECT CASE WHEN COUNT(*) = 0 THEN 0 WHEN COUNT(_member) < COUNT(*) THEN 2 ELSE 1 END "
    "FROM ({subquery}\n) AS _members(_member)) "
    "WHEN 2 THEN CAST(NULL AS BOOLEAN) WHEN 1 THEN NULLIF({operand} IS NULL, TRUE) ELSE FALSE END"
)


def with_memberships(text: str) -> str:
    """Return the query with each IN of a subquery as it has to be understood."""
    if _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    if not any(_is_membership(tokens, at) for at in range(len(tokens))):
        return text
    # From the last one on: what is inside a subquery comes behind its IN.
    at = len(tokens)
    while at > 0:
        at -= 1
        if _is_membership(tokens, at):
            changed = _rewritten(text, tokens, at)
            if changed is not None:
                text = changed
                tokens = tokenize(text)
    return text


def _is_membership(tokens: Sequence[Token], at: int) -> bool:
    return (
        tokens[at].word == "IN"
        and 0 < at < len(tokens) - 2
        and tokens[at + 1].word == "("
        and tokens[at + 2].word in _SUBQUERY
    )


def _rewritten(text: str, tokens: Sequence[Token], at: int) -> str | None:
    closing = closing_of(tokens).get(at + 1)
    if closing is None:
        return None
    is_negated = tokens[at - 1].word == "NOT"
    end_of_operand = at - is_negated
    begin = operand_begin(tokens, end_of_operand)
    if begin >= end_of_operand:
        return None
    inner = tokens[at + 2 : closing]
    is_correlated = _reads_around(inner)
    is_shown = shows_unknown(tokens)[at] or is_followed(tokens, closing + 1) or _is_operand(tokens, begin)
    has_or = any(token.word == "OR" for token in (*tokens[:at], *tokens[closing:]))
    if not is_shown and not (is_negated and (is_correlated or has_or)):
        return None
    operand = text[tokens[begin].start : tokens[end_of_operand - 1].end]
    subquery = text[inner[0].start : inner[-1].end]
    if is_correlated:
        written = f"({operand} {'<> ALL' if is_negated else '= ANY'} ({subquery}\n))"
    else:
        parts = {"subquery": subquery, "operand": f"({operand})"}
        is_column = at in in_lists(tokens)
        found = _COUNTED.format(**parts) if is_column else f"{operand} IN ({subquery}\n)"
        written = f"{'(NOT ' if is_negated else ''}({found} OR {_UNKNOWN.format(**parts)})"
        written += ")" if is_negated else ""
    return text[: tokens[begin].start] + written + text[tokens[closing].end :]


def _reads_around(inner: Sequence[Token]) -> bool:
    """Tell whether a subquery names a table that isn't its own."""
    own: set[str] = set()
    named: set[str] = set()
    for at, token in enumerate(inner):
        before = inner[at - 1] if at else token
        if token.kind not in ("word", "quoted"):
            continue
        if at + 1 < len(inner) and inner[at + 1].word == "." and before.word != ".":
            named.add(_name(token))
        if before.word in _BEFORE_SOURCE or before.word == "AS" or before.kind in ("word", "quoted"):
            own.add(_name(token))
        if before.word in (".", ")"):
            own.add(_name(token))
    return not named <= own


def _is_operand(tokens: Sequence[Token], begin: int) -> bool:
    return begin > 0 and tokens[begin - 1].kind == "op" and tokens[begin - 1].word not in ("(", ",")


def _name(token: Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text.lower()
