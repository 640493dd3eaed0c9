"""The shape of a statement: its text with the literals lifted out, found by one scan.

Law: the shape and the literals together say exactly what the text said. Whatever a scan can't be sure
of (comments, quoted names, parameters, casts, escapes, brackets) has no shape and goes to the parser.
"""

import re
from collections.abc import Sequence
from itertools import count
from math import isinf

from upwell.types import Value, WrittenFloat

_STARTS = re.compile(r"(?:INSERT|UPDATE|DELETE|SELECT)\b", re.IGNORECASE)
# Both patterns open with a set of characters, by which a search skips all else, and look back at what
# they took. A sign belongs to its number where no operand can stand before it.
_LITERAL = re.compile(
    r"""(['0-9-](?:"""
    r"""(?<=')(?<!\w')[^']*(?:''[^']*)*'(?!')"""
    r"""|(?<=[0-9])(?<![\w.][0-9])[0-9]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])"""
    r"""|(?:(?<=[(,=<>]-)|(?<=[(,=<>] -))[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])"""
    r"""))"""
)
_UNSURE = re.compile(r"""["'$`\[\]{};:@#\\/-](?:(?<=-)-|(?<=/)\*|(?<![/-]))""")
_INT64_DIGITS_SURE = 18


Lifted = tuple[str, list[Value]]
"""A shape and its literals."""


def lift(sql: str) -> Lifted | None:
    """Return `sql` with `?` for each literal, and the literals; None if it has no certain shape.

    Lifted are integers that surely fit 64 bits, decimals and plain strings; TRUE, FALSE and NULL stay.
    Whether a literal may be a value at its place (LIMIT takes none) is judged once per shape.
    """
    if _STARTS.match(sql) is None:
        return None
    parts = _LITERAL.split(sql)
    texts = parts[1::2]
    shape = "?".join(parts[::2])
    if shape.count("?") != len(texts) or _UNSURE.search(shape) is not None:
        return None
    return _with_values(shape, texts)


def lift_all(sql: str) -> list[tuple[str, Lifted | None]] | None:
    """Return text and shape of each statement of `sql`, found by one scan; None if that isn't certain."""
    parts = _LITERAL.split(sql)
    literals = parts[1::2]
    whole = "?".join(parts[::2])
    if whole.count("?") != len(literals) or _UNSURE.search(whole.replace(";", " ")) is not None:
        return None
    found: list[tuple[str, Lifted | None]] = []
    done = start = 0
    for piece in whole.split(";"):
        own = literals[done : done + piece.count("?")]
        done += len(own)
        end = start + len(piece) - len(own) + sum(map(len, own))
        text, shape = sql[start:end].strip(), piece.strip()
        start = end + 1
        if shape.count("(") != shape.count(")"):
            return None  # a semicolon in parentheses ends nothing
        if shape:
            found.append((text, _lifted(shape, own)))
    return found


def _lifted(shape: str, literals: Sequence[str]) -> Lifted | None:
    return None if _STARTS.match(shape) is None else _with_values(shape, literals)


def _with_values(shape: str, literals: Sequence[str]) -> Lifted | None:
    try:
        return shape, [
            text[1:-1].replace("''", "'") if text[0] == "'" else _number(text) for text in literals
        ]
    except ValueError:
        return None


def numbered(shape: str) -> str:
    """Return a shape with `$1`, `$2`, … for its marks."""
    numbers = count(1)
    head, *rest = shape.split("?")
    return head + "".join(f"${next(numbers)}{part}" for part in rest)


def _number(text: str) -> int | float:
    if text.isdigit() or text[1:].isdigit():
        if len(text) > _INT64_DIGITS_SURE:
            raise ValueError("may not fit 64 bits")
        return int(text)
    number = WrittenFloat(text)
    if isinf(number):
        raise ValueError("beyond a double")
    return number
