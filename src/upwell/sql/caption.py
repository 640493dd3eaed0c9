"""Captions: what an expression without a name is called in a result, if the engine reads it in other words.

Law: such an expression is shown as it was written. What the engine reads as it stands has the name that the
engine gives it, and means the same with its caption as without.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from upwell.engine.named_query import quoted
from upwell.sql.query import Query

_MARK = "\ue000"
_MARKED = re.compile(rf' AS "{_MARK}(\d+)"')
# What is before the parenthesis of a query whose columns may be seen. All others are values.
_BEFORE_SHOWN = frozenset({"FROM", "JOIN", "LATERAL", "AS", ",", "(", ""})


def with_captions(query: Query, reworded: Callable[[Query], Query]) -> Query:
    """Return `reworded(query)`, in which expressions that are read in other words have the names to show."""
    found = reworded(query)
    if found.text == query.text or _MARK in query.text:
        return found
    expressions = list(_nameless(query))
    marks = [(end, end, f' AS "{_MARK}{number}"') for number, (_, end) in enumerate(expressions)]
    marked = reworded(query.edited(marks))
    return Query(_captioned(marked.text, [query.text[start:end] for start, end in expressions]))


def _nameless(query: Query) -> Iterator[tuple[int, int]]:
    """Yield where in the text expressions without a name begin and end."""
    behind = 0  # what is within an item is a value
    for select in query.selects:
        if select >= behind and (query.word(select - 1) != "(" or query.word(select - 2) in _BEFORE_SHOWN):
            for item in query.items(select):
                behind = item.end
                if item.name is None and not item.is_all:
                    yield query.at(item.begin).start, query.at(item.end - 1).end


def _captioned(text: str, written: Sequence[str]) -> str:
    """Return a text with captions in place of marks, but where an expression is as it was written."""
    parts = _MARKED.split(text)
    found, numbers = [parts[0]], [int(number) for number in parts[1::2]]
    for before, number, behind in zip(parts[::2], numbers, parts[2::2], strict=False):
        is_unchanged = numbers.count(number) == 1 and before.endswith(written[number])
        found += ["" if is_unchanged else f" AS {_caption(written[number])}", behind]
    return "".join(found)


def _caption(expression: str) -> str:
    """Return the name of an expression: its text without parentheses around all of it."""
    query = Query(expression)
    while query.closings.get(0) == len(query.tokens) - 1:
        query = Query(query.between(1, len(query.tokens) - 1))
    return quoted(query.text)
