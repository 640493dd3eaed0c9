"""Exact literals: what a query compares with a DECIMAL, UUID or BYTES column, in the column's own form.

Law: `x = 33.30` is true of a DECIMAL of that value, `x - 0.005` is a DECIMAL, `u = 'A0…'` is true of a UUID
that is written `a0…`, `b = '\\x00ff'` of these two bytes, and `t < '9999-12-31'` of every moment before. The
query engine takes the first ones for a DOUBLE, compares the next as text and counts the last in nanoseconds,
which end in 2262; so they are rewritten before it reads them. Only names that mean nothing else in the
query's tables are looked at.
"""

import re
from collections.abc import Iterable, Sequence
from uuid import UUID

from upwell.sql.lex import END, Token
from upwell.sql.query import Edit, Query
from upwell.types import Column, SqlType

DIGITS_MAX = 38
_HEX = "\\x"
_WRITTEN = frozenset({SqlType.DECIMAL, SqlType.UUID, SqlType.BYTES})
_MICROS = {SqlType.TIMESTAMP: "Timestamp(µs)", SqlType.DATETIME: 'Timestamp(µs, "UTC")'}
_YEAR = re.compile(r"^(?:TIMESTAMP )?'([0-9]{4})-[0-9]{2}-[0-9]{2}[^']*'$")
_YEARLIKE = re.compile(r"'[0-9]{4}-")
_YEARS_OF_NANOSECONDS = (1677, 2262)
_COMPARISONS = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})
_ARITHMETIC = frozenset({"+", "-", "*"})
_AGGREGATES = frozenset({"SUM", "MIN", "MAX"})
"""Functions of a DECIMAL that give one; of an expression in their parentheses that isn't sure."""
_LITERALS = frozenset({"number", "string", "bytes"})
_BEFORE_ITEM = frozenset({"SELECT", "DISTINCT", "ALL", ","})
_SIGNS = frozenset({"-", "+"})
_AROUND_LITERALS = frozenset({"-", "+", ",", "(", ")"})


def with_exact_literals(query: Query, tables: Iterable[Sequence[Column]]) -> Query:
    """Return a query with its number literals as DECIMAL, and its UUIDs and bytes as they are stored.

    `tables` are the columns of what it reads.
    """
    types: dict[str, set[SqlType]] = {}
    for columns in tables:
        for column in columns:
            types.setdefault(column.name, set()).add(column.type)
    searched = _WRITTEN | (_MICROS.keys() if _YEARLIKE.search(query.text) else set())
    if not any(len(kinds) == 1 and kinds <= searched for kinds in types.values()):
        return query
    tokens = _joined(query.tokens)
    _name_again(types, tokens)
    has_far = any(_is_far(token) for token in tokens)
    edits: list[Edit] = []
    for at, token in enumerate(tokens):
        forms = _forms(token, has_far)
        if forms:
            kinds = set().union(*(types.get(name, set()) for name in _compared_with(tokens, at)))
            if not kinds and SqlType.DECIMAL in forms:
                kinds = {SqlType.DECIMAL} & set().union(
                    *(types[name] for name in _calculated_with(tokens, at) if len(types.get(name, ())) == 1)
                )
            written = forms.get(next(iter(kinds))) if len(kinds) == 1 else None
            if written is not None:
                edits.append((token.start, token.end, written))
    return query.edited(edits)


def _name_again(types: dict[str, set[SqlType]], tokens: Sequence[Token]) -> None:
    """Add the names that no column has, but an item of a list that is a column: `SELECT u AS key`."""
    named = [
        (tokens[at - 1].name, _at(tokens, at + 1).name)
        for at, token in enumerate(tokens)
        if token.word == "AS" and at > 1 and _begins_item(tokens, at - 1)
    ]
    pairs = [(column, name) for column, name in named if name and name not in types]
    for _ in pairs:  # one may be named of another
        before = sum(map(len, types.values()))
        for column, name in pairs:
            if column in types:
                types.setdefault(name, set()).update(types[column])
        if sum(map(len, types.values())) == before:
            return


def _begins_item(tokens: Sequence[Token], at: int) -> bool:
    """Whether the name at `at`, with what it may be qualified by, is the first of an item of a list."""
    while _at(tokens, at - 1).word == ".":
        at -= 2
    return _at(tokens, at - 1).word in _BEFORE_ITEM


def _forms(token: Token, has_far: bool) -> dict[SqlType, str]:
    """Return how a literal is written for columns of each type; moments only if one of them `has_far`."""
    forms = {SqlType.DECIMAL: _decimal(token), SqlType.UUID: _uuid(token), SqlType.BYTES: _bytes(token)}
    if has_far and token.kind == "string" and _YEAR.search(token.text):
        # All of them: a list or a range has one type.
        moment = token.text[token.text.index("'") :]
        forms |= {kind: f"arrow_cast({moment}, '{name}')" for kind, name in _MICROS.items()}
    return {kind: written for kind, written in forms.items() if written is not None}


def _joined(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens with `TIMESTAMP '…'` as one, a string."""
    found: list[Token] = []
    for token in tokens:
        if token.kind == "string" and found and found[-1].word == "TIMESTAMP":
            token = token._replace(text=f"TIMESTAMP {token.text}", start=found.pop().start)
        found.append(token)
    return found


def _is_far(token: Token) -> bool:
    """Whether a string is a moment that nanoseconds since 1970 don't reach."""
    year = _YEAR.search(token.text) if token.kind == "string" else None
    return year is not None and not _YEARS_OF_NANOSECONDS[0] < int(year[1]) < _YEARS_OF_NANOSECONDS[1]


def _decimal(token: Token) -> str | None:
    whole, point, fraction = token.text.partition(".")
    if token.kind != "number" or not point or not (whole + fraction).isdigit():
        return None
    digits = len(whole.lstrip("0")) + len(fraction)
    if digits > DIGITS_MAX:
        return None
    return f"CAST('{token.text}' AS DECIMAL({max(digits, 1)}, {len(fraction)}))"


def _uuid(token: Token) -> str | None:
    if token.kind != "string":
        return None
    try:
        return f"'{UUID(token.text[1:-1])}'"
    except ValueError:
        return None


def _bytes(token: Token) -> str | None:
    if token.kind != "string" or not token.text.startswith("'"):
        return None
    try:
        return f"X'{bytes.fromhex(token.text[1:-1].removeprefix(_HEX)).hex()}'"
    except ValueError:
        return None


def _compared_with(tokens: Sequence[Token], at: int) -> set[str]:
    """Return the names in what the literal at `at` is compared with; none if it isn't compared."""
    before, after = _before_sign(tokens, at), at + 1
    if _at(tokens, before).word == "(" and _at(tokens, after).word == ")":
        before, after = before - 1, after + 1
    word = _at(tokens, before).word
    if word in _COMPARISONS or word in ("BETWEEN", "IN"):
        return _names_before(tokens, before - 1)
    if word == "FROM" and _at(tokens, before - 1).word == "DISTINCT":
        end = before - (4 if _at(tokens, before - 2).word == "NOT" else 3)
        return _names_before(tokens, end)
    if word == "AND":
        between = _before_literal(tokens, before - 1)
        return _names_before(tokens, between - 1) if _at(tokens, between).word == "BETWEEN" else set()
    if word in ("(", ","):
        begin = _before_literal(tokens, before)
        if _at(tokens, begin).word == "IN":
            return _names_before(tokens, begin - 1)
    return _names_after(tokens, after + 1) if _at(tokens, after).word in _COMPARISONS else set()


def _calculated_with(tokens: Sequence[Token], at: int) -> set[str]:
    """Return the names of the operands of a sum, difference or product with the number at `at`."""
    end = _before_sign(tokens, at) if _at(tokens, at - 2).word in _ARITHMETIC else at - 1
    before = _names_before(tokens, end - 1) if _at(tokens, end).word in _ARITHMETIC else set()
    return before | (_names_after(tokens, at + 2) if _at(tokens, at + 1).word in _ARITHMETIC else set())


def _before_literal(tokens: Sequence[Token], end: int) -> int:
    """Return where what stands before a literal, or a list of them, ends."""
    while _at(tokens, end).word in _AROUND_LITERALS or _at(tokens, end).kind in _LITERALS:
        end -= 1
    return end


def _before_sign(tokens: Sequence[Token], at: int) -> int:
    return at - 2 if _at(tokens, at - 1).word in _SIGNS else at - 1


def _names_before(tokens: Sequence[Token], end: int) -> set[str]:
    """Return the names in the operand that ends at `end`: a column, or what is aggregated."""
    if _at(tokens, end).word == "NOT":
        end -= 1
    if _at(tokens, end).word != ")":
        return {_at(tokens, end).name}
    begin = end
    while begin > 0 and tokens[begin].word != "(":
        begin -= 1
    is_aggregate = _at(tokens, begin - 1).word in _AGGREGATES
    return {token.name for token in tokens[begin + 1 : end]} if is_aggregate else set()


def _names_after(tokens: Sequence[Token], begin: int) -> set[str]:
    """Return the names in the operand that begins at `begin`: a column, or what is aggregated."""
    while _at(tokens, begin + 1).word == ".":
        begin += 2
    if _at(tokens, begin + 1).word != "(":
        return {_at(tokens, begin).name}
    end = begin + 2
    while end < len(tokens) and tokens[end].word != ")":
        end += 1
    is_aggregate = _at(tokens, begin).word in _AGGREGATES
    return {token.name for token in tokens[begin + 2 : end]} if is_aggregate else set()


def _at(tokens: Sequence[Token], at: int) -> Token:
    return tokens[at] if 0 <= at < len(tokens) else END
