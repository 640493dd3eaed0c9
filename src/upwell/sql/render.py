"""Rendering: query text with values in place of `$n` and of the session's functions.

Law: a value becomes one literal at a token's place and can never become more: what looks like a
parameter inside a string, a quoted name or a comment stays as it is.
"""

import math
import re
from collections.abc import Sequence

from upwell import __version__
from upwell.engine.expression import GENERATORS, Context
from upwell.errors import InvalidSql, ParameterError
from upwell.sql.caption import with_captions
from upwell.sql.cast import with_typed_casts
from upwell.sql.distinct import with_whole_distinct
from upwell.sql.existence import with_counted_existence
from upwell.sql.json_path import with_json_calls
from upwell.sql.label import with_kept_labels
from upwell.sql.lex import END, Token, tokenize
from upwell.sql.lists import with_lists_apart
from upwell.sql.membership import with_memberships
from upwell.sql.scalar import BARE_FUNCTIONS, CONTEXT_FUNCTIONS, parameter_index
from upwell.sql.spelling import with_own_spellings
from upwell.sql.star import with_whole_stars
from upwell.types import Value, WrittenFloat

_CANDIDATE = re.compile(r"\$[0-9]|current_(?:user|role)|snowflake_id|uuid_v7|ulid|version", re.IGNORECASE)
_VERSION = "VERSION"
_PER_ROW = frozenset({"SNOWFLAKE_ID", "UUID_V7", "ULID"})
# The query engine has its own, with one value for the whole query as well.
_ENGINE_OWN = frozenset({"NOW", "CURRENT_TIMESTAMP"})


def literal(value: Value) -> str:
    """Return `value` as a SQL literal that stands safely beside any token."""
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return str(value) if value >= 0 else f"({value})"
        case WrittenFloat():
            return f"({value.text})" if value.text.startswith("-") else value.text
        case float():
            if not math.isfinite(value):
                return f"CAST('{value!r}' AS DOUBLE)"
            return repr(value) if math.copysign(1.0, value) > 0 else f"({value!r})"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case bytes():
            return f"X'{value.hex()}'"


def render(text: str, values: Sequence[Value], context: Context, *, is_part: bool = False) -> str:
    """Return `text` ready for the query engine; `is_part`: as part of another query.

    Raise `ParameterError` if it asks for more than `values`, `InvalidSql` if it wants a new id for
    each of a query's rows.
    """
    if _CANDIDATE.search(text) is None:
        return _with_captions(text, is_part)
    tokens = tokenize(text)
    reads_rows = any(token.word == "FROM" for token in tokens)
    parts: list[str] = []
    done = 0
    for at, token in enumerate(tokens):
        place = _place(tokens, at)
        if place is None:
            continue
        end, function = place
        if function is None:
            value = _value(values, token)
        elif function in _PER_ROW and reads_rows:
            raise InvalidSql(
                f"{function}() in a query with FROM would repeat one id; leave the column to its DEFAULT"
            )
        else:
            value = f"Upwell {__version__}" if function == _VERSION else GENERATORS[function](context)
        parts += (text[done : token.start], _apart(text, token.start, end, literal(value)))
        if function is not None and _is_output(tokens, at, end):
            parts.append(f' AS "{text[token.start : end].lower()}"')
        done = end
    return _with_captions("".join(parts) + text[done:], is_part)


def _with_captions(text: str, is_part: bool) -> str:
    return with_captions(text, lambda text: _in_engine_words(text, is_part))


def _in_engine_words(text: str, is_part: bool) -> str:
    text = with_counted_existence(with_kept_labels(with_whole_stars(text), is_part=is_part))
    text = with_lists_apart(with_memberships(with_own_spellings(with_typed_casts(text))), is_part=is_part)
    return with_json_calls(with_whole_distinct(text))


def parameter_count(text: str) -> int:
    """Return the highest n of the `$n` in `text`."""
    if "$" not in text:
        return 0
    parameters = (token for token in tokenize(text) if token.kind == "parameter")
    return max((parameter_index(token) + 1 for token in parameters), default=0)


def _place(tokens: list[Token], at: int) -> tuple[int, str | None] | None:
    """Return where the replaced text ends, and the function (None: a parameter) to replace it by."""
    token = tokens[at]
    if token.kind == "parameter":
        return token.end, None
    if token.word not in (*CONTEXT_FUNCTIONS, _VERSION) or token.word in _ENGINE_OWN:
        return None
    if at and tokens[at - 1].word in (".", "AS"):
        return None
    function = _VERSION if token.word == _VERSION else CONTEXT_FUNCTIONS[token.word][0]
    if [following.word for following in tokens[at + 1 : at + 3]] == ["(", ")"]:
        return tokens[at + 2].end, function
    followed = tokens[at + 1].word if at + 1 < len(tokens) else ""
    return (token.end, function) if token.word in BARE_FUNCTIONS and followed not in ("(", ".") else None


def _value(values: Sequence[Value], token: Token) -> Value:
    index = parameter_index(token)
    if index >= len(values):
        raise ParameterError(f"Parameter count mismatch: expected {index + 1} parameters, got {len(values)}")
    return values[index]


def _apart(text: str, start: int, end: int, replacement: str) -> str:
    # A letter or quote right beside a literal would change what it is: `E$1`, `$1'…'`.
    before = " " if start and (text[start - 1].isalnum() or text[start - 1] in "_$'\"&") else ""
    after = " " if end < len(text) and (text[end].isalnum() or text[end] in "_$'\"") else ""
    return before + replacement + after


def _is_output(tokens: list[Token], at: int, end: int) -> bool:
    """Tell whether the expression is all of an output column, which would lose its name."""
    depth, clause = 0, ""
    for token in tokens[:at]:
        depth += (token.word == "(") - (token.word == ")")
        if depth == 0 and token.word in ("SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "VALUES"):
            clause = token.word
    if depth or clause != "SELECT" or tokens[at - 1].word not in ("SELECT", "DISTINCT", ","):
        return False
    following = next((token for token in tokens[at:] if token.start >= end), END)
    return following is END or following.word in (",", "FROM", "UNION", "LIMIT")
