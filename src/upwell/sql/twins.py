"""Twins: columns of one SELECT list that would have one name, which the query engine doesn't plan.

Law: a list says the same with its twins under names of their own, and the result shows the names that were
written. Only the text of a query that was refused is rewritten.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upwell.sql.lex import END, Token, tokenize

_REFUSED = re.compile(r"unique expression names|duplicate (?:un)?qualified field|which would be ambiguous")
_OPENING = frozenset({"(", "[", "CASE"})
_CLOSING = frozenset({")", "]", "END"})
_ENDS = frozenset(
    {"FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "OFFSET", "FETCH", "UNION", "EXCEPT", "INTERSECT"}
    | {"WINDOW", "INTO", ";"}
)
_NO_ALIAS = frozenset({"NULL", "TRUE", "FALSE", "UNKNOWN", "PRECISION", "ZONE", "END"})
_BEFORE_OPERAND = frozenset(
    {"IS", "NOT", "AND", "OR", "LIKE", "ILIKE", "IN", "BETWEEN", "ESCAPE", "FROM", "ZONE", "COLLATE", "TO"}
    | {"SIMILAR"}
)


@dataclass(frozen=True, slots=True)
class OwnNames:
    """A query whose twins have names of their own, and what the result shows in place of them.

    That is a name, or the place of the column that the twin looks like.
    """

    text: str
    shown: Mapping[str, str | int]
    names: Sequence[str] = ()
    """What the columns are called before the query is written in other words, if it is."""

    def restored(self, names: Sequence[str]) -> list[str]:
        """Return the names of a result's columns as they were written."""
        names = self.names or names
        found = [self.shown.get(name, name) for name in names]
        return [names[name] if isinstance(name, int) else name for name in found]


@dataclass(frozen=True, slots=True)
class SelectItem:
    """One item of a SELECT list; `name` None: an expression without one. `alias` is where it is given."""

    tokens: Sequence[Token]
    name: str | None
    alias: Token | None

    @property
    def key(self) -> tuple[str, ...]:
        if self.name is not None:
            return (self.name,)
        return ("", *(token.word or token.text for token in self.tokens))

    @property
    def is_all(self) -> bool:
        stars = zip([END, *self.tokens], self.tokens, strict=False)
        return any(token.word == "*" and (before is END or before.word == ".") for before, token in stars)


def is_for_twins(refusal: str) -> bool:
    """Tell whether a query was refused with this message for its twins."""
    return _REFUSED.search(refusal) is not None


def own_names(text: str, refusal: str) -> Iterator[OwnNames]:
    """Yield ways to write a query that was refused with this message, if that was for its twins."""
    if not is_for_twins(refusal):
        return
    tokens = tokenize(text)
    lists = [select_items(tokens, at + 1) for at, token in enumerate(tokens) if token.word == "SELECT"]
    for every in (False, True):
        edits: list[tuple[int, int, str]] = []
        shown: dict[str, str | int] = {}
        for items in lists:
            for item, name in _twins(items, text, every=every):
                own = _unused(text, shown, item.name or "column")
                shown[own] = name
                edits.append(_named(item, own))
        if edits:
            yield OwnNames(_edited(text, edits), shown)


def _twins(items: Sequence[SelectItem], text: str, *, every: bool) -> Iterator[tuple[SelectItem, str | int]]:
    """Yield the items that need a name, with what is shown for it; `every`: that has none but the first."""
    seen: dict[tuple[str, ...], int] = {}
    stars = [at for at, item in enumerate(items) if item.is_all]
    for at, item in enumerate(items):
        if item.is_all:
            continue
        first = seen.setdefault(item.key, at)
        is_twin = first < at or (item.name is not None and bool(stars))
        written = text[item.tokens[0].start : item.tokens[-1].end]
        if item.name is not None:
            if is_twin:
                yield item, item.name
        elif first < at:
            yield item, written if stars and stars[0] < at else first
        elif every and at:
            yield item, written


def select_items(tokens: Sequence[Token], begin: int) -> list[SelectItem]:
    """Return the items of the SELECT list that begins at `begin`."""
    if _word(tokens, begin) in ("DISTINCT", "ALL"):
        begin += 1
        if _word(tokens, begin) == "ON":
            begin = _behind(tokens, begin + 1)
    items: list[SelectItem] = []
    depth, start = 0, begin
    for at in range(begin, len(tokens) + 1):
        word = _word(tokens, at)
        is_over = at == len(tokens) or (depth == 0 and (word in _CLOSING or _ends(tokens, at)))
        if (is_over or (depth == 0 and word == ",")) and at > start:
            items.append(_item(tokens[start:at]))
        if is_over:
            break
        if depth == 0 and word == ",":
            start = at + 1
        depth += (word in _OPENING) - (word in _CLOSING)
    return items


def _ends(tokens: Sequence[Token], at: int) -> bool:
    word, before = _word(tokens, at), _word(tokens, at - 1)
    if word == "EXCEPT" and before == "*":
        return False  # SELECT * EXCEPT (a)
    return word in _ENDS and not (word == "FROM" and before == "DISTINCT")


def _item(tokens: Sequence[Token]) -> SelectItem:
    last, before = tokens[-1], tokens[-2] if len(tokens) > 1 else END
    is_name = last.kind in ("word", "quoted") and last.word not in _NO_ALIAS
    if is_name and before.word == "AS":
        return SelectItem(tokens, _folded(last), last)
    if is_name and all(_is_part(token, at) for at, token in enumerate(tokens)):
        return SelectItem(tokens, _folded(last), None)
    is_operand = before.kind not in ("op", "end") or before.word in (")", "]")
    if is_name and is_operand and before.word not in _BEFORE_OPERAND:
        return SelectItem(tokens, _folded(last), last)
    return SelectItem(tokens, None, None)


def _is_part(token: Token, at: int) -> bool:
    """Tell whether a token is at its place in `[[namespace.]table.]column`."""
    return token.word == "." if at % 2 else token.kind in ("word", "quoted")


def _named(item: SelectItem, own: str) -> tuple[int, int, str]:
    """Return what to write where, so that the item has its own name."""
    name = '"' + own.replace('"', '""') + '"'
    if item.alias is not None:
        return item.alias.start, item.alias.end, name
    return item.tokens[-1].end, item.tokens[-1].end, f" AS {name}"


def _edited(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    return text


def _unused(text: str, shown: Mapping[str, str | int], name: str) -> str:
    number = 2
    while f"{name}_{number}" in shown or f"{name}_{number}" in text.lower():
        number += 1
    return f"{name}_{number}"


def _folded(token: Token) -> str:
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower()


def _word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].word if at < len(tokens) else ""


def _behind(tokens: Sequence[Token], opening: int) -> int:
    """Return where the parenthesis that opens at `opening` has ended."""
    depth = 0
    for at in range(opening, len(tokens)):
        depth += (tokens[at].word == "(") - (tokens[at].word == ")")
        if depth == 0:
            return at + 1
    return len(tokens)
