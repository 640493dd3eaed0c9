"""Rendering: query text with values in place of `$n` and of the session's functions.

Law: a value becomes one literal at a token's place and can never become more: what looks like a
parameter inside a string, a quoted name or a comment stays as it is.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from upwell import __version__
from upwell.engine.expression import GENERATORS, Context
from upwell.errors import InvalidSql, ParameterError
from upwell.sql.caption import with_captions
from upwell.sql.cast import with_typed_casts
from upwell.sql.distinct import with_whole_distinct
from upwell.sql.existence import with_counted_existence
from upwell.sql.interval import with_compared_intervals
from upwell.sql.json_path import with_json_calls
from upwell.sql.label import with_kept_labels
from upwell.sql.lex import END, Token
from upwell.sql.lists import with_lists_apart
from upwell.sql.membership import with_memberships
from upwell.sql.query import Edit, Query
from upwell.sql.scalar import BARE_FUNCTIONS, CONTEXT_FUNCTIONS, parameter_index
from upwell.sql.spelling import with_named_series, with_ordered_distinct, with_own_spellings
from upwell.sql.star import with_whole_stars
from upwell.types import Value, WrittenFloat

_CANDIDATE = re.compile(r"\$[0-9]|current_(?:user|role)|snowflake_id|uuid_v7|ulid|version", re.IGNORECASE)
_VERSION = "VERSION"
_PER_ROW = frozenset({"SNOWFLAKE_ID", "UUID_V7", "ULID"})
# The query engine has its own, with one value for the whole query as well.
_ENGINE_OWN = frozenset({"NOW", "CURRENT_TIMESTAMP"})
_CLAUSES = frozenset({"SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "VALUES"})


# What a text in capitals must have to be rewritten, in the order in which it is. Each pattern begins with a
# character that a search can skip to.
_REWRITES: Sequence[tuple[re.Pattern[str], Callable[[Query], Query]]] = (
    (re.compile(r"\.\s*\*"), with_whole_stars),
    (re.compile(r"\(\s*(?:SELECT|WITH)\b"), with_kept_labels),
    (re.compile(r"EXISTS\s*\("), with_counted_existence),
    (re.compile(r"(?:::|AS(?<!\wAS))\s*(?:UUID|JSONB?)\b"), with_typed_casts),
    (re.compile(r"INTERVAL"), with_compared_intervals),
    (re.compile(r"DISTINCT.*ORDER", re.DOTALL), with_ordered_distinct),
    (re.compile(r"(?:GENERATE_SERIES|RANGE)\s*\("), with_named_series),
    (re.compile(r"TIME|ESCAPE"), with_own_spellings),
    (re.compile(r"IN(?<!\wIN)\s*\("), with_memberships),
    (re.compile(r"IN(?<!\wIN)\s*\(|OR(?<!\wOR)\b"), with_lists_apart),
    (re.compile(r"DISTINCT"), with_whole_distinct),
    (re.compile(r"->|\?|JSON_"), with_json_calls),
)
# What the query around a part asks of it isn't seen in its text.
_OF_PARTS: Mapping[Callable[[Query], Query], Callable[[Query], Query]] = {
    with_kept_labels: partial(with_kept_labels, is_part=True),
    with_lists_apart: partial(with_lists_apart, is_part=True),
}


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
    query = Query(text)
    if _CANDIDATE.search(text) is not None:
        query = query.edited(_replacements(query, values, context))
    return with_captions(query, partial(_in_engine_words, is_part=is_part)).text


def _in_engine_words(query: Query, *, is_part: bool) -> Query:
    """Return the query in words that the engine understands as they are meant.

    Each reads what those before it have written, and stays away from what it has nothing to say of.
    """
    for likely, rewrite in _REWRITES:
        of_part = _OF_PARTS.get(rewrite) if is_part else None
        if of_part is not None:
            query = of_part(query)
        elif likely.search(query.capitals) is not None:
            query = rewrite(query)
    return query


def _replacements(query: Query, values: Sequence[Value], context: Context) -> Iterator[Edit]:
    """Yield what stands in place of parameters and of the session's functions."""
    reads_rows = any(token.word == "FROM" for token in query.tokens)
    for at, token in enumerate(query.tokens):
        place = _place(query, at)
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
        written = literal(value)
        if function is not None and _is_output(query, at, end):
            written += f' AS "{query.between(at, end).lower()}"'
        yield token.start, query.at(end - 1).end, written


def parameter_count(text: str) -> int:
    """Return the highest n of the `$n` in `text`."""
    if "$" not in text:
        return 0
    parameters = (token for token in Query(text).tokens if token.kind == "parameter")
    return max((parameter_index(token) + 1 for token in parameters), default=0)


def _place(query: Query, at: int) -> tuple[int, str | None] | None:
    """Return where what is replaced ends, and the function (None: a parameter) to replace it by."""
    token = query.at(at)
    if token.kind == "parameter":
        return at + 1, None
    if token.word not in (*CONTEXT_FUNCTIONS, _VERSION) or token.word in _ENGINE_OWN:
        return None
    if query.word(at - 1) in (".", "AS"):
        return None
    function = _VERSION if token.word == _VERSION else CONTEXT_FUNCTIONS[token.word][0]
    if query.words(at + 1, at + 3) == ("(", ")"):
        return at + 3, function
    is_bare = token.word in BARE_FUNCTIONS and query.word(at + 1) not in ("(", ".")
    return (at + 1, function) if is_bare else None


def _value(values: Sequence[Value], token: Token) -> Value:
    index = parameter_index(token)
    if index >= len(values):
        raise ParameterError(f"Parameter count mismatch: expected {index + 1} parameters, got {len(values)}")
    return values[index]


def _is_output(query: Query, at: int, end: int) -> bool:
    """Tell whether the expression is all of an output column, which would lose its name."""
    outside = list(query.outside(0, at + 1))
    clauses = [query.word(each) for each in outside if query.word(each) in _CLAUSES]
    if outside[-1:] != [at] or clauses[-1:] != ["SELECT"]:
        return False
    is_begin = query.word(at - 1) in ("SELECT", "DISTINCT", ",")
    return is_begin and (query.at(end) is END or query.word(end) in (",", "FROM", "UNION", "LIMIT"))
