"""Captions: what an expression without a name is called in a result, if the engine reads it in other words.

Law: such an expression is shown as it was written. What the engine reads as it stands has the name that the
engine gives it, and means the same with its caption as without.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from upwell.sql.lex import Token, tokenize
from upwell.sql.truth import closing_of
from upwell.sql.twins import select_items

_MARK = "\ue000"
_MARKED = re.compile(rf' AS "{_MARK}(\d+)"')
# What is before the parenthesis of a query whose columns may be seen. All others are values.
_BEFORE_SHOWN = frozenset({"FROM", "JOIN", "LATERAL", "AS", ",", "(", ""})


def with_captions(text: str, reworded: Callable[[str], str]) -> str:
    """Return `reworded(text)`, in which expressions that are read in other words have the names to show."""
    found = reworded(text)
    if found == text or _MARK in text:
        return found
    expressions = list(_nameless(text))
    marked = text
    for number, (_, end) in reversed(list(enumerate(expressions))):
        marked = f'{marked[:end]} AS "{_MARK}{number}"{marked[end:]}'
    return _captioned(reworded(marked), [text[start:end] for start, end in expressions])


def _nameless(text: str) -> Iterator[tuple[int, int]]:
    """Yield where expressions without a name begin and end, from first to last."""
    tokens = tokenize(text)
    behind = 0  # what is within an item is a value
    for at, token in enumerate(tokens):
        if token.word == "SELECT" and token.start >= behind and _is_shown(tokens, at):
            for item in select_items(tokens, at + 1):
                behind = item.tokens[-1].end
                if item.name is None and not item.is_all:
                    yield item.tokens[0].start, item.tokens[-1].end


def _is_shown(tokens: Sequence[Token], select: int) -> bool:
    opening = select - 1
    if opening < 0 or tokens[opening].word != "(":
        return True
    return opening == 0 or tokens[opening - 1].word in _BEFORE_SHOWN


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
    while expression.startswith("(") and _closes_at_end(expression):
        expression = expression[1:-1].strip()
    return '"' + expression.replace('"', '""') + '"'


def _closes_at_end(expression: str) -> bool:
    tokens = tokenize(expression)
    return closing_of(tokens).get(0) == len(tokens) - 1
