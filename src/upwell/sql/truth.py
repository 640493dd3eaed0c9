"""Truth: where a query only asks whether a condition is true, and where FALSE and unknown are told apart.

Law: only what stands in a WHERE, an ON or a HAVING by itself, joined to the others by AND and OR, is asked
for its truth alone. All else shows the difference: what is under a NOT, in a CASE or a call, beside an
operator or an IS, and what is a column of a result, of which nobody knows what is made of it.
"""

from upwell.sql.lex import END
from upwell.sql.query import BEHIND_WHERE, JOINS, Query

_CLAUSES = frozenset({"WHERE", "HAVING", "ON"})
_OTHER_CLAUSES = (BEHIND_WHERE - _CLAUSES) | JOINS | {"SELECT", "FROM", "VALUES", "RETURNING"}
_BEFORE_GROUP = _CLAUSES | {"AND", "OR", "("}
_BEHIND_CONDITION = _OTHER_CLAUSES | _CLAUSES | {"AND", "OR", ")", "", ";"}
# `a NOT IN …` and `IS NOT NULL` say more of an operator; any other NOT is one.
_WITH_NOT = frozenset({"IN", "LIKE", "ILIKE", "BETWEEN", "SIMILAR", "NULL", "TRUE", "FALSE", "DISTINCT"})


def shows_unknown(query: Query) -> list[bool]:
    """Return of each token whether it makes a difference that a condition there is unknown, not FALSE."""
    found: list[bool] = []
    outer: list[tuple[bool, bool]] = []
    is_shown, is_negated = True, False
    for at, token in enumerate(query.tokens):
        word = token.word
        if word in ("(", "CASE"):
            is_inner = is_shown or is_negated or word == "CASE" or not _is_group(query, at)
            outer.append((is_shown, is_negated))
            is_shown, is_negated = is_inner, False
        elif word in (")", "END") and outer:
            is_shown, is_negated = outer.pop()
        elif word in _OTHER_CLAUSES:
            is_shown, is_negated = True, False
        elif word in _CLAUSES and not (word == "ON" and _word(query, at - 1) == "DISTINCT"):
            is_shown, is_negated = False, False
        elif word in ("AND", "OR"):
            is_negated = False
        elif word == "NOT" and _word(query, at + 1) not in _WITH_NOT:
            is_negated = True
        found.append(is_shown or is_negated)
    return found


def is_followed(query: Query, end: int) -> bool:
    """Tell whether something is done with the condition that ended before `end`, as in `a IN (1) IS NULL`."""
    return _word(query, end) not in _BEHIND_CONDITION


def _is_group(query: Query, at: int) -> bool:
    end = query.closings.get(at)
    return _word(query, at - 1) in _BEFORE_GROUP and end is not None and not is_followed(query, end + 1)


def _word(query: Query, at: int) -> str:
    # A name or a literal is no word, but it isn't the end either.
    token = query.at(at)
    return "" if token is END else token.word or token.kind
