"""JSON operators and functions: `->`, `->>`, `?`, `json_get…(doc, 'a', 0, …)` as calls that the engine has.

The query engine knows functions of fixed arguments only. So a path becomes one call for each of its steps,
around it one that reads what is found (`engine/json_value.py`).

Law: what is rewritten is whole: an operand that can't be told stays, and the engine says what is wrong.
"""

from collections.abc import Sequence
from itertools import pairwise

from upwell.errors import InvalidSql
from upwell.sql.query import Edit, Query

OPERATORS_MAX = 200
WORK_MAX = 20_000_000
"""Operators × characters: each is a pass over the text."""
_READERS = {
    "JSON_GET": "{}",
    "JSON_GET_JSON": "{}",
    "JSON_GET_STR": "json_value_str({})",
    "JSON_GET_INT": "json_value_int({})",
    "JSON_GET_FLOAT": "json_value_float({})",
    "JSON_GET_BOOL": "json_value_bool({})",
    "JSON_GET_ARRAY": "json_value_array({})",
    "JSON_AS_TEXT": "json_value_text({})",
    "JSON_LENGTH": "json_value_length({})",
    "JSON_OBJECT_KEYS": "json_value_keys({})",
    "JSON_CONTAINS": "({} IS NOT NULL)",
    "->": "{}",
    "->>": "json_value_text({})",
    "?": "({} IS NOT NULL)",
}
_OPERATORS = frozenset({"->", "->>", "?"})
_FROM_SCALAR = "JSON_FROM_SCALAR"
# A parenthesis after one of these words opens no call.
_NO_FUNCTIONS = frozenset(
    {"SELECT", "WHERE", "AND", "OR", "NOT", "IN", "ON", "BY", "HAVING", "AS", "LIKE", "ILIKE", "BETWEEN"}
    | {
        "FROM",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "ANY",
        "ALL",
        "SOME",
        "EXISTS",
        "USING",
        "VALUES",
        "SET",
    }
    | {"RETURNING", "DISTINCT"}
)
_OPERANDS = frozenset({"word", "quoted", "string", "escaped", "dollar", "number", "parameter"})


def with_json_calls(query: Query) -> Query:
    """Return the query with its JSON operators and functions as calls of one step each."""
    passes = 0
    while (edit := _first(query)) is not None:
        passes += 1
        if passes > OPERATORS_MAX or passes * len(query.text) > WORK_MAX:
            raise InvalidSql(f"a statement can have at most {OPERATORS_MAX} JSON operators and functions")
        query = query.edited([edit])
    return query


def _first(query: Query) -> Edit | None:
    """Return how the first JSON operator or function is written, None if there is none."""
    for at, token in enumerate(query.tokens):
        if token.word in _OPERATORS:
            left, right = operand_before(query, at), _right(query, at)
            if left is not None and right is not None:
                doc, key = query.between(left, at), query.between(at + 1, right + 1)
                call = _READERS[token.word].format(_step(doc, key))
                return query.at(left).start, query.at(right).end, call
        elif token.word in _READERS or token.word == _FROM_SCALAR:
            closing = query.closings.get(at + 1)
            if closing is not None and closing > at + 2:
                call = _call(token.word, _arguments(query, at + 1, closing))
                return token.start, query.at(closing).end, call
    return None


def _call(function: str, arguments: Sequence[str]) -> str:
    found = arguments[0]
    if function == _FROM_SCALAR:
        return (
            f"(CASE WHEN arrow_typeof({found}) IN ('Utf8', 'LargeUtf8', 'Utf8View') "
            f"THEN json_value_of_text(CAST({found} AS TEXT)) ELSE CAST({found} AS TEXT) END)"
        )
    for key in arguments[1:]:
        found = _step(found, key)
    return _READERS[function].format(found)


def _step(doc: str, key: str) -> str:
    is_index = key.strip("()").lstrip("-").isdigit()
    return f"json_step_at({doc}, {key})" if is_index else f"json_step({doc}, {key})"


def operand_before(query: Query, operator: int) -> int | None:
    """Return where the operand in front of an operator begins, None if there is none."""
    while True:
        at = operator - 1
        if query.word(at) in (")", "]"):
            opening = _opening(query, at)
            if opening is None:
                return None
            is_name = query.at(opening - 1).is_name and query.word(opening - 1) not in _NO_FUNCTIONS
            at = opening - 1 if is_name else opening
        elif query.at(at).kind not in _OPERANDS or query.word(at) in _NO_FUNCTIONS:
            return None
        while at >= 2 and query.word(at - 1) == ".":
            at -= 2
        if at < 2 or query.word(at - 1) != "::":
            return at
        operator = at - 1


def _right(query: Query, operator: int) -> int | None:
    """Return where the last token of the operand behind an operator is, None if there is none."""
    at = operator + 1
    at += query.word(at) == "-"
    if query.word(at) == "(":
        return query.closings.get(at)
    if query.at(at).kind not in _OPERANDS:
        return None
    while at + 2 < len(query.tokens) and query.word(at + 1) == ".":
        at += 2
    is_call = query.at(at).kind == "word" and query.word(at + 1) == "("
    return query.closings.get(at + 1) if is_call else at


def _opening(query: Query, closing: int) -> int | None:
    depth = 0
    for at in range(closing, -1, -1):
        depth += (query.word(at) in (")", "]")) - (query.word(at) in ("(", "["))
        if depth == 0:
            return at
    return None


def _arguments(query: Query, opening: int, closing: int) -> list[str]:
    cuts, depth = [opening], 0
    for at in query.outside(opening + 1, closing):
        depth += (query.word(at) == "[") - (query.word(at) == "]")
        if depth == 0 and query.word(at) == ",":
            cuts.append(at)
    cuts.append(closing)
    return [query.text[query.at(a).end : query.at(b).start].strip() for a, b in pairwise(cuts)]
