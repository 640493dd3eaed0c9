"""Conditions of live queries: their parts, and what of a WHERE no single row can decide.

Law: a condition that is split by its ANDs is true exactly where all parts are. What isn't split is one part.
"""

from itertools import pairwise

from upwell.engine.catalog import Table
from upwell.errors import InvalidSql
from upwell.sql.lex import END, Fragment, Token, place, tokenize
from upwell.types import format_timestamp

_OPENING = frozenset({"(", "[", "CASE"})
_CLOSING = frozenset({")", "]", "END"})
_REASONS = {
    **dict.fromkeys(
        ("RANDOM", "RAND", "UUID", "SNOWFLAKE_ID", "UUID_V7", "ULID"), "its value is another one each time"
    ),
    **dict.fromkeys(("INPUT_FILE_NAME", "FILE_ROW_INDEX"), "where a row lies is no part of it"),
    "OVER": "a window looks at other rows, and a live query follows each row by itself",
}

_MOMENTS = {
    **dict.fromkeys(("NOW", "CURRENT_TIMESTAMP"), "TIMESTAMP '{0}'"),
    **dict.fromkeys(("TODAY", "CURRENT_DATE"), "CAST(TIMESTAMP '{0}' AS DATE)"),
    "CURRENT_TIME": "CAST(TIMESTAMP '{0}' AS TIME)",
}
_BARE = frozenset({"CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME"})


def conjuncts(where: Fragment) -> list[Fragment]:
    """Return the parts of `a AND b AND …`; all of it as one if it isn't of that form."""
    cuts: list[int] = []
    depth = betweens = 0
    for at, token in enumerate(where.tokens):
        if token.word in _OPENING:
            depth += 1
        elif token.word in _CLOSING:
            depth -= 1
        elif depth == 0 and token.word == "OR":
            return [where]
        elif depth == 0 and token.word == "BETWEEN":
            betweens += 1
        elif depth == 0 and token.word == "AND":
            if betweens:
                betweens -= 1
            else:
                cuts.append(at)
    edges = [-1, *cuts, len(where.tokens)]
    parts = [where.tokens[begin + 1 : end] for begin, end in pairwise(edges)]
    return [_slice(where, part) for part in parts] if all(parts) else [where]


def _slice(where: Fragment, tokens: tuple[Token, ...]) -> Fragment:
    offset = where.tokens[0].start
    return Fragment(tokens, where.text[tokens[0].start - offset : tokens[-1].end - offset])


def named_columns(where: Fragment, table: Table) -> frozenset[str]:
    """Return the names of the columns that are mentioned; what else has a column's name counts as well."""
    found = (
        token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower()
        for token, following in pairwise([*where.tokens, END])
        if token.kind in ("word", "quoted") and following.word not in ("(", ".")
    )
    return frozenset(name for name in found if name in table.index_of)


def with_moment(where: str, now_us: int) -> str:
    """Return a predicate's text with the time of asking in place of NOW() and its like."""
    tokens = [*tokenize(where), END, END]
    moment = format_timestamp(now_us).removesuffix("Z")
    for at in range(len(tokens) - 3, -1, -1):
        token = tokens[at]
        literal = _MOMENTS.get(token.word)
        is_called = [each.word for each in tokens[at + 1 : at + 3]] == ["(", ")"]
        if literal is None or not (is_called or token.word in _BARE) or tokens[at - 1].word == ".":
            continue
        end = tokens[at + 2].end if is_called else token.end
        where = where[: token.start] + literal.format(moment) + where[end:]
    return where


def refuse_undecidable(where: Fragment, sql: str) -> None:
    """Raise `InvalidSql` for what depends on more than a row, or on nothing that is written anywhere.

    `sql` is the statement that `where` is a part of.
    """
    for token, following in pairwise([*where.tokens, END]):
        if token.word in ("SELECT", "EXISTS"):
            at = place(sql, token.start)
            raise InvalidSql(
                f"Subscription query WHERE has a subquery at {at}, and a live query follows the rows of one "
                "table; follow the other table as well, or store what you compare with in this one"
            )
        if token.kind == "parameter":
            at = place(sql, token.start)
            raise InvalidSql(
                f"Subscription query has no parameters; write the value in place of {token.text} at {at}"
            )
        reason = _REASONS.get(token.word) if following.word == "(" else None
        if reason is not None:
            at = place(sql, token.start)
            raise InvalidSql(f"Subscription query WHERE can't have {token.word}() at {at}: {reason}")
