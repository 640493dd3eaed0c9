"""JSON operators and functions: `->`, `->>`, `?`, `json_get…(doc, 'a', 0, …)` as calls that the engine has.

The query engine knows functions of fixed arguments only. So a path becomes one call for each of its steps,
around it one that reads what is found (`engine/json_value.py`). All other text stays as it is written.

Law: what is rewritten is whole: an operand that can't be told stays, and the engine says what is wrong.
"""

from collections.abc import Sequence
from itertools import pairwise

from upwell.errors import InvalidSql
from upwell.sql.lex import END, Token, tokenize

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
    | {"FROM", "CASE", "WHEN", "THEN", "ELSE", "ANY", "ALL", "SOME", "EXISTS", "USING", "VALUES", "SET"}
    | {"RETURNING", "DISTINCT"}
)
_OPERANDS = frozenset({"word", "quoted", "string", "escaped", "dollar", "number", "parameter"})


def with_json_calls(text: str) -> str:
    """Return the query with its JSON operators and functions as calls of one step each."""
    if "->" not in text and "?" not in text and "json_" not in text.lower():
        return text
    passes = 0
    while (rewritten := _rewritten(text, tokenize(text))) is not None:
        passes += 1
        if passes > OPERATORS_MAX or passes * len(text) > WORK_MAX:
            raise InvalidSql(f"a statement can have at most {OPERATORS_MAX} JSON operators and functions")
        text = rewritten
    return text


def _rewritten(text: str, tokens: Sequence[Token]) -> str | None:
    """Return the text with its first JSON operator or function rewritten, None if there is none."""
    for at, token in enumerate(tokens):
        if token.word in _OPERATORS:
            left, right = operand_before(tokens, at), _right(tokens, at)
            if left is not None and right is not None:
                doc = text[tokens[left].start : tokens[at - 1].end]
                key = text[tokens[at + 1].start : tokens[right].end]
                call = _READERS[token.word].format(_step(doc, key))
                return text[: tokens[left].start] + call + text[tokens[right].end :]
        elif token.word in _READERS or token.word == _FROM_SCALAR:
            closing = _closing(tokens, at + 1)
            if closing is not None and closing > at + 2:
                call = _call(token.word, _arguments(text, tokens, at + 1, closing))
                return text[: token.start] + call + text[tokens[closing].end :]
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


def operand_before(tokens: Sequence[Token], operator: int) -> int | None:
    """Return where the operand in front of an operator begins, None if there is none."""
    at = operator - 1
    if at < 0:
        return None
    if tokens[at].word in (")", "]"):
        opening = _opening(tokens, at)
        if opening is None:
            return None
        before = tokens[opening - 1] if opening else END
        is_name = before.kind in ("word", "quoted") and before.word not in _NO_FUNCTIONS
        at = opening - 1 if is_name else opening
    elif tokens[at].kind not in _OPERANDS or tokens[at].word in _NO_FUNCTIONS:
        return None
    while at >= 2 and tokens[at - 1].word == ".":
        at -= 2
    return operand_before(tokens, at - 1) if at >= 2 and tokens[at - 1].word == "::" else at


def _right(tokens: Sequence[Token], operator: int) -> int | None:
    """Return where the operand behind an operator ends, None if there is none."""
    at = operator + 1
    if at < len(tokens) and tokens[at].word == "-":
        at += 1
    if at >= len(tokens):
        return None
    if tokens[at].word == "(":
        return _closing(tokens, at)
    if tokens[at].kind not in _OPERANDS:
        return None
    while at + 2 < len(tokens) and tokens[at + 1].word == ".":
        at += 2
    is_call = tokens[at].kind == "word" and at + 1 < len(tokens) and tokens[at + 1].word == "("
    return _closing(tokens, at + 1) if is_call else at


def _closing(tokens: Sequence[Token], opening: int) -> int | None:
    """Return the index of the parenthesis that closes the one at `opening`."""
    if opening >= len(tokens) or tokens[opening].word != "(":
        return None
    depth = 0
    for at in range(opening, len(tokens)):
        depth += (tokens[at].word == "(") - (tokens[at].word == ")")
        if depth == 0:
            return at
    return None


def _opening(tokens: Sequence[Token], closing: int) -> int | None:
    depth = 0
    for at in range(closing, -1, -1):
        depth += (tokens[at].word in (")", "]")) - (tokens[at].word in ("(", "["))
        if depth == 0:
            return at
    return None


def _arguments(text: str, tokens: Sequence[Token], opening: int, closing: int) -> list[str]:
    cuts, depth = [opening], 0
    for at in range(opening + 1, closing):
        depth += (tokens[at].word in ("(", "[")) - (tokens[at].word in (")", "]"))
        if depth == 0 and tokens[at].word == ",":
            cuts.append(at)
    cuts.append(closing)
    return [text[tokens[a].end : tokens[b].start].strip() for a, b in pairwise(cuts)]
