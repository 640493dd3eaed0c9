"""Stars: `t.*` of a table that FROM names with its namespace, which the query engine knows by that name only,
and the stars of a query whose rows are stored.

Law: `t.*` are the columns of the table that `t.x` would be one of. What is stored by a star are the columns
that were declared, without `_seq` and `_deleted`. All other text stays as it is written.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from upwell.errors import InvalidSql
from upwell.sql.lex import END, Token, tokenize
from upwell.sql.truth import closing_of
from upwell.sql.twins import SelectItem, select_items

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

_MERGING = frozenset({"USING", "NATURAL"})
_QUERIES = frozenset({"SELECT", "WITH", "VALUES"})

ColumnsOf = Callable[[str | None, str], Sequence[str] | None]
"""(namespace or None, name) → the columns that a star of it means; None: all that it has."""


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


def with_declared_stars(text: str, columns_of: ColumnsOf) -> str:
    """Return a query with each star of a table, but in EXISTS, as the columns that `columns_of` says."""
    return _with_columns(text, columns_of, stars_kept=0)


def with_stars_once(text: str, columns_of: ColumnsOf) -> str:
    """Return a query with all stars of a list but the first as the columns that `columns_of` says."""
    return _with_columns(text, columns_of, stars_kept=1)


def _with_columns(text: str, columns_of: ColumnsOf, *, stars_kept: int) -> str:
    if "*" not in text:
        return text
    tokens = tokenize(text)
    queries = _with_names(tokens)
    for select in reversed([at for at, token in enumerate(tokens) if token.word == "SELECT"]):
        if select > 1 and tokens[select - 2].word == "EXISTS":
            continue
        stars = [item for item in select_items(tokens, select + 1) if item.is_all and _ends_with_star(item)]
        for item in reversed(stars[stars_kept:]):
            sources = list(_sources(tokens, _from_of(tokens, select + 1), queries, columns_of))
            written = _columns_of_star(item, sources)
            start, end = item.tokens[0].start, item.tokens[-1].end
            text = text[:start] + (written or text[start:end]) + text[end:]
    return text


def _ends_with_star(item: SelectItem) -> bool:
    return item.tokens[-1].word == "*"


@dataclass(frozen=True, slots=True)
class _FromItem:
    """What a FROM reads: how its columns are qualified, and those that a star means, if not all."""

    qualifier: str
    columns: Sequence[str] | None
    is_merged: bool = False
    """Whether it isn't one source: a join in parentheses, or the word that makes one column of two."""

    @property
    def star(self) -> str:
        if self.columns is None:
            return f"{self.qualifier}.*"
        return ", ".join(f"{self.qualifier}.{_quoted(name)}" for name in self.columns)


def _columns_of_star(item: SelectItem, sources: Sequence[_FromItem]) -> str | None:
    """Return what a star stands for; None: it stays."""
    if len(item.tokens) > 1:
        wanted = [_folded(token) for token in item.tokens[:-2:2]]
        found = (each for each in sources if _names(each.qualifier)[-len(wanted) :] == wanted)
        return next((each.star for each in found if each.columns is not None), None)
    is_told = all(each.columns is None for each in sources)
    if any(each.is_merged or not (each.qualifier or is_told) for each in sources):
        raise InvalidSql(
            "which columns * gives here, and in which order, can't be told from this FROM; "
            "name them in its place"
        )
    return None if is_told else ", ".join(each.star for each in sources)


def _sources(
    tokens: Sequence[Token], begin: int, queries: frozenset[str], columns_of: ColumnsOf
) -> Iterator[_FromItem]:
    """Yield what the FROM at `begin` reads."""
    closings = closing_of(tokens)
    at, depth = begin, 0
    while at < len(tokens) and not (depth == 0 and tokens[at].word in _ENDS):
        word = tokens[at].word
        if word in _MERGING:
            yield _FromItem("", None, is_merged=True)
        if word not in _BEFORE_SOURCE or depth:
            depth += (word == "(") - (word == ")")
            at += 1
            continue
        at, first = at + 1, _at(tokens, at + 1)
        if first.word == "(":
            is_query = _at(tokens, at + 1).word in _QUERIES
            at = closings.get(at, len(tokens)) + 1
            yield _FromItem(_alias(tokens, at) or "", None, is_merged=not is_query)
        elif _is_name(first):
            last = at + 2 if _at(tokens, at + 1).word == "." else at
            namespace = _folded(first) if last > at else None
            name = _folded(tokens[last])
            written = "".join(token.text for token in tokens[at : last + 1])
            at = last + 1
            is_call = _at(tokens, at).word == "("
            at = closings.get(at, len(tokens)) + 1 if is_call else at
            alias = _alias(tokens, at)
            is_other = is_call or (namespace is None and name in queries) or _names_columns(tokens, at)
            columns = None if is_other else columns_of(namespace, name)
            yield _FromItem(alias or ("" if is_call else written), columns)


def _alias(tokens: Sequence[Token], at: int) -> str | None:
    """Return the other name that is given to what has ended before `at`."""
    at += _at(tokens, at).word == "AS"
    token = _at(tokens, at)
    return token.text if _is_name(token) and (token.word or token.kind) not in _BEHIND_SOURCE else None


def _names_columns(tokens: Sequence[Token], at: int) -> bool:
    """Tell whether the name given before `at` is followed by names of the columns: `AS q (a, b)`."""
    at += _at(tokens, at).word == "AS"
    return _alias(tokens, at) is not None and _at(tokens, at + 1).word == "("


def _with_names(tokens: Sequence[Token]) -> frozenset[str]:
    """Return the names of the queries that WITH names."""
    opening_of = {closing: opening for opening, closing in closing_of(tokens).items()}
    found: set[str] = set()
    for at, token in enumerate(tokens):
        if token.word == "AS" and at and _at(tokens, at + 1).word == "(":
            named = opening_of.get(at - 1, at) - 1
            found.add(_folded(_at(tokens, named)))
    return frozenset(found)


def _at(tokens: Sequence[Token], at: int) -> Token:
    return tokens[at] if at < len(tokens) else END


def _names(qualifier: str) -> list[str]:
    return [_folded(token) for token in tokenize(qualifier) if token.word != "."]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
