"""Depth: how deep the plan of a query would nest, told from its text.

Law: what the query engine gets never nests deeper than its stack is. It walks plans by recursion, and
a stack overflow would end the process: a chain of some 5,000 operators does (measured), or of 1,000
queries in a UNION. Its parser bounds parentheses by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from upwell.errors import InvalidSql
from upwell.sql.lex import Token
from upwell.sql.query import Query

OPERATORS_DEEP_MAX = 1_000
RELATIONS_MAX = 250
# Shorter texts can't reach either limit.
SHALLOW_CHARS_MAX = 1_000
_OPENING = frozenset({"(", "[", "CASE"})
_CLOSING = frozenset({")", "]", "END"})
_SEPARATORS = frozenset(
    {",", ";", "SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "ON", "WHEN", "THEN", "ELSE"}
)
_RELATIONS = frozenset({"SELECT", "JOIN", "VALUES"})
_RANKS = {
    "OR": 0,
    "AND": 1,
    **dict.fromkeys(
        ("=", "<", ">", "<=", ">=", "<>", "!=", "IS", "IN", "LIKE", "ILIKE", "SIMILAR", "BETWEEN", "NOT"), 2
    ),
    **dict.fromkeys(("AT", "COLLATE", "["), 3),
}
_ARITHMETIC = 3
_NO_OPERATORS = frozenset({".", "(", ")", "]"})


@dataclass(slots=True)
class _Frame:
    """One pair of parentheses: the longest chain of each rank of operators, and what nests in it."""

    counts: list[int] = field(default_factory=lambda: [0] * 4)
    longest: list[int] = field(default_factory=lambda: [0] * 4)
    inner: int = 0
    done: int = 0

    def count(self, rank: int) -> None:
        self.counts[rank] += 1
        self.longest[rank] = max(self.longest[rank], self.counts[rank])
        # What binds tighter starts anew on the other side of this operator.
        for tighter in range(rank + 1, 4):
            self.counts[tighter] = 0

    def separate(self) -> None:
        self.done = self.depth
        self.counts, self.longest, self.inner = [0] * 4, [0] * 4, 0

    @property
    def depth(self) -> int:
        return max(self.done, sum(self.longest) + self.inner)


def refuse_deep(text: str) -> None:
    """Raise `InvalidSql` if the query engine could run out of stack on `text`."""
    if len(text) <= SHALLOW_CHARS_MAX:
        return
    tokens = Query(text).tokens
    relations = sum(token.word in _RELATIONS for token in tokens)
    if relations > RELATIONS_MAX:
        raise InvalidSql(f"the query joins or unites {relations} parts; at most {RELATIONS_MAX} are allowed")
    depth = operators_deep(tokens)
    if depth > OPERATORS_DEEP_MAX:
        raise InvalidSql(
            f"an expression nests {depth} operators deep; at most {OPERATORS_DEEP_MAX} are allowed "
            "(a long chain of OR is shorter as IN (…))"
        )


def operators_deep(tokens: Sequence[Token]) -> int:
    """Return an upper bound of how deep operators nest."""
    frames = [_Frame()]
    for token in tokens:
        word = token.word
        if word in _SEPARATORS:
            frames[-1].separate()
        elif word in _CLOSING:
            if len(frames) > 1:
                depth = frames.pop().depth
                frames[-1].inner = max(frames[-1].inner, depth)
        else:
            if word in _RANKS or (token.kind == "op" and word not in _NO_OPERATORS):
                frames[-1].count(_RANKS.get(word, _ARITHMETIC))
            if word in _OPENING:
                frames.append(_Frame())
    return _total(frames)


def _total(frames: list[_Frame]) -> int:
    depth = 0
    for frame in reversed(frames):
        frame.inner = max(frame.inner, depth)
        depth = frame.depth
    return depth
