"""Casts to UUID and JSON, `x::uuid` and `CAST(x AS jsonb)`, as calls that the query engine has.

Law: what is rewritten is whole; a literal becomes the one that a column would store.
"""

from collections.abc import Iterator, Sequence
from uuid import UUID

from upwell.errors import InvalidSql
from upwell.sql.json_path import operand_before
from upwell.sql.lex import Token, string_value
from upwell.sql.query import Edit, Query

_CALLS = {"UUID": "typed_uuid(", "JSON": "typed_json(", "JSONB": "typed_json("}


def with_typed_casts(query: Query) -> Query:
    """Return the query with its casts to types that the engine doesn't know as calls."""
    # Of what begins at one place the innermost comes first, and is written last.
    return query.edited(reversed(list(_edits(query))))


def _edits(query: Query) -> Iterator[Edit]:
    tokens = query.tokens
    for at, token in enumerate(tokens):
        following, end = query.word(at + 1), query.closings.get(at + 1, 0)
        if token.word == "::" and following in _CALLS:
            begin = operand_before(query, at)
            if begin is not None:
                head = (tokens[begin].start, tokens[begin].start)
                yield from _called(following, tokens[begin:at], head, (token.start, tokens[at + 1].end))
        elif token.word == "CAST" and query.word(end - 2) == "AS" and query.word(end - 1) in _CALLS:
            head = (token.start, tokens[at + 2].start)
            tail = (tokens[end - 3].end, tokens[end].end)
            yield from _called(tokens[end - 1].word, tokens[at + 2 : end - 2], head, tail)


def _called(
    sql_type: str, operand: Sequence[Token], head: tuple[int, int], tail: tuple[int, int]
) -> Iterator[Edit]:
    """Yield what to write in place of what stands before an operand, and behind it."""
    if sql_type == "UUID" and len(operand) == 1 and operand[0].kind == "string":
        yield head[0], tail[1], f"'{_uuid(string_value(operand[0]))}'"
    else:
        yield *head, _CALLS[sql_type]
        yield *tail, ")"


def _uuid(text: str) -> str:
    try:
        return str(UUID(text.strip()))
    except ValueError as error:
        raise InvalidSql(f"cannot cast '{text[:60]}' to UUID") from error
