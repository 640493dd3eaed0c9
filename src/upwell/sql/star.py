"""Stars: `t.*` of a table that FROM names with its namespace, which the query engine knows by that name only.

Law: `t.*` are the columns of the table that `t.x` would be one of. All other text stays as it is written.
"""

import re
from collections.abc import Sequence

from upwell.sql.lex import Token, tokenize

_LIKELY = re.compile(r"\.\s*\*")
_ENDS = frozenset(
    {
        "WHERE",
        "GROUP",
        "HAVING",
        "ORDER",
        "LIMIT",
        "OFFSET",
        "FETCH",
        "UNION",
        "EXCEPT",
        "INTERSECT",
        "WINDOW",
    }
    | {";", ")"}
)
_BEFORE_SOURCE = frozenset({"FROM", "JOIN", ","})
_BEHIND_SOURCE = _ENDS | {
    ",",
    "ON",
    "USING",
    "JOIN",
    "LEFT",
    "RIGHT",
    "INNER",
    "FULL",
    "CROSS",
    "NATURAL",
    "TABLESAMPLE",
    "",
}


def with_whole_stars(text: str) -> str:
    """Return the query with each `t.*` of a table in a namespace as `namespace.t.*`."""
    if _LIKELY.search(text) is None:
        return text
    tokens = tokenize(text)
    for at in range(len(tokens) - 1, 1, -1):
        if tokens[at].word != "*" or tokens[at - 1].word != "." or not _is_name(tokens[at - 2]):
            continue
        if at >= 3 and tokens[at - 3].word == ".":
            continue
        namespace = _namespace(tokens, at, _folded(tokens[at - 2]))
        if namespace is not None:
            begin = tokens[at - 2].start
            text = f"{text[:begin]}{namespace.text}.{text[begin:]}"
    return text


def _namespace(tokens: Sequence[Token], star: int, name: str) -> Token | None:
    """Return the namespace with which the query around a star names a table, unless it has an alias."""
    begin = _from_of(tokens, star)
    depth = 0
    for at in range(begin, len(tokens)):
        word = tokens[at].word
        if depth == 0 and word in _ENDS:
            return None
        depth += (word == "(") - (word == ")")
        is_source = (
            depth == 0 and word in _BEFORE_SOURCE and at + 3 < len(tokens) and tokens[at + 2].word == "."
        )
        if is_source and _folded(tokens[at + 3]) == name:
            behind = tokens[at + 4].word or tokens[at + 4].kind if at + 4 < len(tokens) else ""
            return tokens[at + 1] if behind in _BEHIND_SOURCE else None
    return None


def _from_of(tokens: Sequence[Token], at: int) -> int:
    """Return where the FROM is of the query in whose select list `at` is."""
    depth = 0
    while at < len(tokens) and not (depth <= 0 and tokens[at].word == "FROM"):
        depth += (tokens[at].word == "(") - (tokens[at].word == ")")
        at += 1
    return at


def _is_name(token: Token) -> bool:
    return token.kind in ("word", "quoted")


def _folded(token: Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text.lower()
