"""Lists: IN lists of one operand, kept apart because the query engine merges them wrongly.

It takes `a IN (b, c) AND a IN (d, e)` for no rows, as if columns could not be equal, a list of CASEs for
what they are without a row, and `a IN (1, 2) AND a IN (3, 4)` for FALSE where `a` is NULL; `a = 1 OR a = 2`
is such a list to it, and so is a column of a subquery or of a view that stands for one.

Law: a query means what it says, three-valued logic included. What is no constant in a list is compared by =.
What must not be merged stands in a NULLIF that changes nothing and that the engine doesn't look into: each
list of which more is asked than whether it is true. A list that only has to be true stays as it is, whatever
it is merged with, so that files are still chosen by it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from upwell.errors import InvalidSql
from upwell.sql.distinct import operand_begin
from upwell.sql.lex import END, Token
from upwell.sql.query import CLOSING, OPENING, QUERIES, Edit, Query
from upwell.sql.truth import is_followed, shows_unknown

GROWTH_CHARS_MAX = 1 << 20
_CONSTANTS = frozenset({"NULL", "TRUE", "FALSE"})
_NULLIF_END = ", CAST(NULL AS BOOLEAN))"
_EQUALITIES = frozenset({"=", "<>", "!=", "LIKE"})
# Two equalities make a list, and it takes two lists.
_EQUALITIES_MIN = 2
_COMPARISONS = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})
_SIGNS = frozenset({"-", "+"})
_WITHIN_OPERAND = _SIGNS | {"*", "/", "%", "||", "::", ".", "->", "->>", "ESCAPE"}
# What may stand before an operand in a condition, and can't take a part of it.
_BEFORE_OPERAND = frozenset(
    {"AND", "OR", "NOT", "WHERE", "ON", "HAVING", "WHEN", "THEN", "ELSE", "SELECT", "DISTINCT", "CASE", "BY"}
    | {"(", ",", "ALL"}
)


class _Part(NamedTuple):
    """Tokens from `begin` until `end`: an IN list with its operand, or an equality."""

    begin: int
    end: int
    is_shown: bool


def with_lists_apart(query: Query, *, is_part: bool = False) -> Query:
    """Return the query with what the engine would merge in a NULLIF each.

    `is_part`: it is part of another query, which may combine its columns with lists of its own.
    """
    query = _with_columns_apart(query)
    is_shown = shows_unknown(query)
    lists, equalities = _lists(query, is_shown), _equalities(query, is_shown)
    may_make_list = bool(lists) and len(equalities) >= _EQUALITIES_MIN
    may_merge = is_part or len(lists) > 1 or may_make_list
    apart = [part for part in lists if part.is_shown and may_merge]
    if is_part or may_make_list or len(equalities) >= 2 * _EQUALITIES_MIN:
        apart += equalities
    edits: list[Edit] = []
    for part in apart:
        edits += query.around(part.begin, part.end, "NULLIF(", _NULLIF_END)
    return query.edited(edits)


def _with_columns_apart(query: Query) -> Query:
    """Return the query with `a IN (1, 2, b)` as `a IN (1, 2) OR a = b`."""
    if not any(_has_columns(query.tokens[at + 1 : end]) for at, end in _opened(query)):
        return query
    return Query(_Equalities(query).written(0, len(query.tokens)) + query.text[query.tokens[-1].end :])


class _Equalities:
    """Writes a query without lists that have columns."""

    def __init__(self, query: Query) -> None:
        self._query, self._text, self._tokens = query, query.text, query.tokens
        self._opened = dict(_opened(query))

    def written(self, begin: int, end: int) -> str:
        """Return the text from one token until before another."""
        parts: list[tuple[int, str]] = []
        at = begin
        while at < end:
            closing = self._opened.get(at + 1)
            if closing is not None and _has_columns(self._tokens[at + 2 : closing]):
                is_negated = self._tokens[at - 1].word == "NOT"
                behind = at - is_negated
                first = max(_compared_begin(self._query, behind), begin)
                operand = "".join(part for place, part in parts if first <= place < behind)
                space = operand[: len(operand) - len(operand.lstrip())]
                parts = [part for part in parts if part[0] < first]
                operand = self._grouped(operand.strip(), first, behind)
                found = self._list(operand, at + 1, closing)
                parts.append((first, f"{space}({'NOT ' if is_negated else ''}({found}))"))
                at = closing + 1
            else:
                before = self._tokens[at - 1].end if at else 0
                parts.append((at, self._text[before : self._tokens[at].end]))
                at += 1
        return "".join(part for _, part in parts)

    def _list(self, operand: str, opening: int, closing: int) -> str:
        places = self._query.outside(opening + 1, closing)
        edges = [opening, *(at for at in places if self._query.word(at) == ","), closing]
        constants: list[str] = []
        written: list[str] = []
        for begin, end in pairwise(edges):
            part = self.written(begin + 1, end).strip()
            if _has_columns(self._tokens[begin + 1 : end]):
                written.append(f"{operand} = {self._grouped(part, begin + 1, end)}")
            else:
                constants.append(part)
        if constants:
            written.insert(0, f"{operand} IN ({', '.join(constants)})")
        if sum(map(len, written)) > len(self._text) + GROWTH_CHARS_MAX:
            raise InvalidSql("an IN list with columns has too long an operand; compare by = and OR instead")
        return " OR ".join(written)

    def _grouped(self, written: str, begin: int, end: int) -> str:
        is_name = all(token.is_name or token.word == "." for token in self._tokens[begin:end])
        return written if end == begin + 1 or is_name else f"({written})"


def _compared_begin(query: Query, end: int) -> int:
    """Return where the operand of the IN begins that stands before `end`: it binds more than a comparison."""
    begin, depth = operand_begin(query, end), 0
    for at in range(end - 1, begin - 1, -1):
        word = query.word(at)
        depth += (word in CLOSING) - (word in OPENING)
        if depth == 0 and word in _COMPARISONS:
            return at + 1
    return begin


def _opened(query: Query) -> Iterator[tuple[int, int]]:
    """Yield where the parentheses of lists open and close."""
    for at, end in query.closings.items():
        if at >= 2 and query.word(at - 1) == "IN" and query.word(at + 1) not in (*QUERIES, ")"):
            yield at, end


def _lists(query: Query, is_shown: Sequence[bool]) -> list[_Part]:
    found: list[_Part] = []
    for at, end in _opened(query):
        is_negated = query.word(at - 2) == "NOT"
        begin = operand_begin(query, at - 1 - is_negated)
        # With an OR between them two of NOT IN are as wrong as two of IN that are negated.
        told = is_negated or is_shown[at - 1] or is_followed(query, end + 1) or _is_operand(query, begin)
        found.append(_Part(begin, end + 1, told))
    return sorted(found)


def _equalities(query: Query, is_shown: Sequence[bool]) -> list[_Part]:
    """Return the equalities of which more is asked than their truth."""
    found: list[_Part] = []
    for at, token in enumerate(query.tokens):
        if token.word in _EQUALITIES:
            begin = operand_begin(query, at - (query.word(at - 1) == "NOT"))
            end = _operand_end(query, at + 1)
            told = is_shown[at] or is_followed(query, end) or _is_operand(query, begin)
            if told and begin < at and end > at + 1 and "SELECT" not in query.words(begin, end):
                found.append(_Part(begin, end, is_shown=True))
    return found


def _operand_end(query: Query, at: int) -> int:
    """Return where the operand ends that begins at a place; that place itself if it can't be told."""
    while at < len(query.tokens):
        begin = at
        at += query.word(at) in _SIGNS
        if at >= len(query.tokens):
            return begin
        token, following = query.at(at), query.at(at + 1)
        if token.word == "CASE":
            at = _behind_case(query, at)
        elif token.kind == "op" or (token.kind == "word" and following.word == "("):
            opening = at if token.kind == "op" else at + 1
            if opening not in query.closings:
                return begin
            at = query.closings[opening] + 1
        else:
            at += 1 + (token.kind == "word" and following.kind == "string")
        if query.word(at) not in _WITHIN_OPERAND:
            return at
        at += 1
    return at


def _behind_case(query: Query, begin: int) -> int:
    depth = 0
    for at in range(begin, len(query.tokens)):
        depth += (query.word(at) == "CASE") - (query.word(at) == "END")
        if depth == 0:
            return at + 1
    return len(query.tokens)


def _is_operand(query: Query, begin: int) -> bool:
    return begin > 0 and query.word(begin - 1) not in _BEFORE_OPERAND


def _has_columns(inner: Sequence[Token]) -> bool:
    for at, token in enumerate(inner):
        following = inner[at + 1] if at + 1 < len(inner) else END
        is_type = at > 0 and inner[at - 1].word == "AS"
        is_typed = following.kind == "string" or following.word == "("
        is_name = token.kind == "word" and token.word not in _CONSTANTS and token.word != "AS"
        if token.kind == "quoted" or (is_name and not is_typed and not is_type):
            return True
    return False
