"""Truth: where a query only asks whether a condition is true, and where FALSE and unknown are told apart.

Law: only what stands in a WHERE, an ON or a HAVING by itself, joined to the others by AND and OR, is asked
for its truth alone. All else shows the difference: what is under a NOT, in a CASE or a call, beside an
operator or an IS, and what is a column of a result, of which nobody knows what is made of it.
"""

from collections.abc import Sequence

from upwell.sql.lex import Token

_CLAUSES = frozenset({"WHERE", "HAVING", "ON"})
_OTHER_CLAUSES = (
    frozenset({"SELECT", "FROM", "GROUP", "ORDER", "WINDOW", "LIMIT", "OFFSET", "FETCH", "UNION", "EXCEPT"})
    | frozenset({"INTERSECT", "JOIN", "LEFT", "RIGHT", "INNER", "FULL", "CROSS", "NATURAL", "VALUES"})
    | frozenset({"RETURNING"})
)
_BEFORE_GROUP = _CLAUSES | {"AND", "OR", "("}
_BEHIND_CONDITION = _OTHER_CLAUSES | _CLAUSES | {"AND", "OR", ")", "", ";"}
# `a NOT IN …` and `IS NOT NULL` say more of an operator; any other NOT is one.
_WITH_NOT = frozenset({"IN", "LIKE", "ILIKE", "BETWEEN", "SIMILAR", "NULL", "TRUE", "FALSE", "DISTINCT"})


def shows_unknown(tokens: Sequence[Token]) -> list[bool]:
    """Return of each token whether it makes a difference that a condition there is unknown, not FALSE."""
    closings = closing_of(tokens)
    found: list[bool] = []
    outer: list[tuple[bool, bool]] = []
    is_shown, is_negated = True, False
    for at, token in enumerate(tokens):
        word = token.word
        if word in ("(", "CASE"):
            is_inner = is_shown or is_negated or word == "CASE" or not _is_group(tokens, at, closings)
            outer.append((is_shown, is_negated))
            is_shown, is_negated = is_inner, False
        elif word in (")", "END") and outer:
            is_shown, is_negated = outer.pop()
        elif word in _OTHER_CLAUSES:
            is_shown, is_negated = True, False
        elif word in _CLAUSES and not (word == "ON" and _word(tokens, at - 1) == "DISTINCT"):
            is_shown, is_negated = False, False
        elif word in ("AND", "OR"):
            is_negated = False
        elif word == "NOT" and _word(tokens, at + 1) not in _WITH_NOT:
            is_negated = True
        found.append(is_shown or is_negated)
    return found


def is_followed(tokens: Sequence[Token], end: int) -> bool:
    """Tell whether something is done with the condition that ended before `end`, as in `a IN (1) IS NULL`."""
    return _word(tokens, end) not in _BEHIND_CONDITION


def closing_of(tokens: Sequence[Token]) -> dict[int, int]:
    """Return the indexes of opening parentheses with those of the closing ones."""
    found: dict[int, int] = {}
    open_at: list[int] = []
    for at, token in enumerate(tokens):
        if token.word == "(":
            open_at.append(at)
        elif token.word == ")" and open_at:
            found[open_at.pop()] = at
    return found


def _is_group(tokens: Sequence[Token], at: int, closings: dict[int, int]) -> bool:
    end = closings.get(at)
    return _word(tokens, at - 1) in _BEFORE_GROUP and end is not None and not is_followed(tokens, end + 1)


def _word(tokens: Sequence[Token], at: int) -> str:
    if not 0 <= at < len(tokens):
        return ""
    # A name or a literal is no word, but it isn't the end either.
    return tokens[at].word or tokens[at].kind
