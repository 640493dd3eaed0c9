"""A query's text, read once for all that write parts of it in other words.

Law: what no edit names stays to the letter. Places are indexes of tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile

from upwell.sql.lex import END, Token, tokenize

Edit = tuple[int, int, str]
"""From where to where text is replaced, in characters, and what is written there."""

OPENING = frozenset({"(", "[", "CASE"})
CLOSING = frozenset({")", "]", "END"})
SETS = frozenset({"UNION", "EXCEPT", "INTERSECT"})
QUERIES = frozenset({"SELECT", "WITH", "VALUES"})
BEHIND_WHERE = SETS | {"GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "OFFSET", "FETCH"}
BEHIND_FROM = BEHIND_WHERE | {"WHERE", ";"}
JOINS = frozenset({"JOIN", "LEFT", "RIGHT", "FULL", "INNER", "CROSS", "NATURAL"})
_BEHIND_LIST = BEHIND_FROM | {"FROM", "INTO"}
# Words that begin or end something, unless an operand or a name has to stand there.
_STRUCTURE = (BEHIND_FROM - {";"}) | JOINS | {"ON", "WHEN", "THEN", "ELSE", "END"}
_NO_OPERATORS = frozenset({"(", ")", "[", "]", ",", ".", ";", ":", "::"})
_OPERATORS = frozenset({"AND", "OR", "LIKE", "ILIKE", "BETWEEN"})
_BEFORE_NAME = frozenset({"SELECT", "DISTINCT", ",", "(", "BY", "WHERE", "HAVING", "ON", "WHEN", "THEN"}) | {
    "ELSE", "NOT", "AS",
}  # fmt: skip
_BEFORE_STAR = frozenset({"SELECT", "DISTINCT", "ALL", ",", ".", "("})
# The last word of an expression, or one before a name that is part of it.
_NO_ALIAS = frozenset({"NULL", "TRUE", "FALSE", "UNKNOWN", "PRECISION", "ZONE", "END"})
_BEFORE_OPERAND = frozenset(
    {"IS", "NOT", "AND", "OR", "LIKE", "ILIKE", "IN", "BETWEEN", "ESCAPE", "FROM", "ZONE", "COLLATE", "TO"}
    | {"SIMILAR"}
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a SELECT list, between two places; `name` None: an expression without one."""

    begin: int
    end: int
    expression_end: int
    """Where the name begins that is given to it, if one is."""
    name: str | None
    is_all: bool

    @property
    def has_alias(self) -> bool:
        return self.expression_end < self.end


class Query:
    """The text of a query and what all of its readers ask of it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def capitals(self) -> str:
        """The text in capitals, to look for words in."""
        return self.text.upper()

    @cached_property
    def tokens(self) -> Sequence[Token]:
        """The tokens; a name that is spelled like a word of a clause, as in `t.end`, is no word."""
        return _with_names(tokenize(self.text))

    @cached_property
    def closings(self) -> dict[int, int]:
        """The places of opening parentheses with those of the closing ones."""
        found: dict[int, int] = {}
        open_at: list[int] = []
        for at, token in enumerate(self.tokens):
            if token.word == "(":
                open_at.append(at)
            elif token.word == ")" and open_at:
                found[open_at.pop()] = at
        return found

    @cached_property
    def selects(self) -> Sequence[int]:
        """The places of all SELECTs, those of subqueries behind those around them."""
        return [at for at, token in enumerate(self.tokens) if token.word == "SELECT"]

    def at(self, place: int) -> Token:
        return self.tokens[place] if 0 <= place < len(self.tokens) else END

    def word(self, place: int) -> str:
        return self.at(place).word

    def words(self, begin: int, end: int) -> tuple[str, ...]:
        """Return what is said between two places, however it is spaced."""
        return tuple(token.word or token.text for token in self.tokens[begin:end])

    def between(self, begin: int, end: int) -> str:
        """Return the text between two places."""
        return self.text[self.tokens[begin].start : self.tokens[end - 1].end]

    def names(self, opening: int) -> list[str]:
        """Return the names in parentheses, none if there are no parentheses."""
        inner = self.tokens[opening + 1 : self.closings.get(opening, opening)]
        return [token.name for token in inner if token.word != ","]

    def outside(self, begin: int, end: int | None = None) -> Iterator[int]:
        """Yield the places in no parentheses, the opening ones with them, until those around are closed."""
        at, end = begin, len(self.tokens) if end is None else end
        while at < end and self.tokens[at].word != ")":
            yield at
            at = self.closings.get(at, at) + 1

    def own(self, begin: int, end: int) -> Iterator[int]:
        """Yield the places in no subquery."""
        at = begin
        while at < end:
            yield at
            at = 1 + (self.closings.get(at, at) if self.word(at + 1) in QUERIES else at)

    def in_lists(self) -> Iterator[int]:
        """Yield the places in SELECT lists, but for other clauses of subqueries there."""
        for item in (item for select in self.selects for item in self.items(select)):
            yield from self.own(item.begin, item.end)

    def from_of(self, select: int) -> int | None:
        """Return the place of the FROM of a SELECT."""
        head = takewhile(lambda at: self.word(at) not in BEHIND_FROM, self.outside(select))
        return next((at for at in head if self._is_from(at)), None)

    def items(self, before: int) -> list[Item]:
        """Return the items of the list behind a SELECT, or behind ORDER BY."""
        begin = before + 1
        if self.word(begin) in ("DISTINCT", "ALL"):
            begin += 1
            if self.word(begin) == "ON":
                begin = self.closings.get(begin + 1, begin + 1) + 1
        commas, depth, end = [begin - 1], 0, begin
        for at in self.outside(begin):
            word = self.word(at)
            if depth == 0 and (word in CLOSING or self._ends_list(at)):
                break
            if depth == 0 and word == ",":
                commas.append(at)
            if word != "(":
                depth += (word in OPENING) - (word in CLOSING)
            end = self.closings.get(at, at) + 1
        return [self._item(comma + 1, edge) for comma, edge in pairwise([*commas, end]) if edge > comma + 1]

    def around(self, begin: int, end: int, before: str, behind: str) -> tuple[Edit, Edit]:
        """Return the edits that put something before and behind what stands between two places."""
        start, stop = self.tokens[begin].start, self.tokens[end - 1].end
        return (start, start, before), (stop, stop, behind)

    def edited(self, edits: Iterable[Edit]) -> "Query":
        """Return the query with edits that don't overlap; itself if there are none."""
        parts: list[str] = []
        done = 0
        for start, end, written in sorted(edits, key=lambda edit: edit[:2]):
            parts += (self.text[done:start], written)
            done = end
        if not parts:
            return self
        parts = [part for part in (*parts, self.text[done:]) if part]
        apart = (f" {part}" if _runs_on(before, part) else part for before, part in pairwise(parts))
        return Query("".join([*parts[:1], *apart]))

    def _is_from(self, at: int) -> bool:
        return self.word(at) == "FROM" and self.word(at - 1) != "DISTINCT"

    def _ends_list(self, at: int) -> bool:
        word, before = self.word(at), self.word(at - 1)
        if word == "EXCEPT" and before == "*":
            return False  # SELECT * EXCEPT (a)
        return word in _BEHIND_LIST and not (word == "FROM" and before == "DISTINCT")

    def _item(self, begin: int, end: int) -> Item:
        is_all = any(
            self.word(at) == "*" and (at == begin or self.word(at - 1) == ".") for at in range(begin, end)
        )
        last, before = self.tokens[end - 1], self.tokens[end - 2] if end - begin > 1 else END
        if not last.is_name or last.word in _NO_ALIAS:
            return Item(begin, end, end, None, is_all)
        if before.word == "AS":
            return Item(begin, end, max(end - 2, begin + 1), last.name, is_all)
        if all(
            token.word == "." if at % 2 else token.is_name for at, token in enumerate(self.tokens[begin:end])
        ):
            return Item(begin, end, end, last.name, is_all)  # [[namespace.]table.]column
        is_operand = before.kind not in ("op", "end") or before.word in (")", "]")
        if is_operand and before.word not in _BEFORE_OPERAND:
            return Item(begin, end, end - 1, last.name, is_all)
        return Item(begin, end, end, None, is_all)


def _with_names(tokens: list[Token]) -> list[Token]:
    stars_behind: set[int] = set()
    opened: list[bool] = []
    for at, token in enumerate(tokens):
        if token.word == "(":
            opened.append(at > 1 and (tokens[at - 2].word, tokens[at - 1].word) == ("DISTINCT", "ON"))
        elif token.word == ")" and opened and opened.pop():
            stars_behind.add(at)  # DISTINCT ON (…) *
        elif token.kind == "word" and at > 0:
            star = at - 2 in stars_behind or (at > 1 and tokens[at - 2].word in _BEFORE_STAR)
            following = tokens[at + 1].word if at + 1 < len(tokens) else ""
            if _is_name(token.word, tokens[at - 1], following, is_behind_star=star):
                tokens[at] = token._replace(word="")
    return tokens


def _is_name(word: str, before: Token, following: str, *, is_behind_star: bool) -> bool:
    """Tell whether a word can only be a name where it stands."""
    if before.word == "." or (following == "(" and word in ("LEFT", "RIGHT")):
        return True
    is_operator = before.kind == "op" and before.word not in _NO_OPERATORS
    if before.word in _OPERATORS or (is_operator and not (before.word == "*" and is_behind_star)):
        return word in _STRUCTURE or word in ("SELECT", "FROM")
    if before.word not in _BEFORE_NAME or word not in _STRUCTURE or following == "BY":
        return False
    return (before.word, word) not in (("(", "WHERE"), ("DISTINCT", "ON"))


def _runs_on(text: str, part: str) -> bool:
    """Tell whether the end of a text and what stands behind it would be read as one word or literal."""
    return all(edge.isalnum() or edge in "_$'\"&" for edge in (text[-1], part[0]))
