"""Operations on two values: comparison, arithmetic, LIKE, as the query engine does them.

Law: they never see NULL, never return a value that BIGINT or DOUBLE can't hold, and raise `QueryFailure`
where SQL has no answer. Integer division truncates towards zero, a remainder has the dividend's sign.
No pattern and no text makes LIKE go back on what it has matched, and no result outgrows a row.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, cast

from upwell.errors import QueryFailure
from upwell.types import Value

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
VALUE_BYTES_MAX = 16 * 1024 * 1024
LIKE_CHARS_MAX = 4_096

CompareOp = Literal["=", "!=", "<", "<=", ">", ">="]
ArithmeticOp = Literal["+", "-", "*", "/", "%"]
Number = int | float


def like(text: str, pattern: str, *, fold: bool = False) -> bool:
    """Tell whether `text` is LIKE (or ILIKE, with `fold`) `pattern`."""
    if len(pattern) > LIKE_CHARS_MAX:
        raise QueryFailure(f"a LIKE pattern has at most {LIKE_CHARS_MAX} characters")
    return _like_form(pattern, fold).fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _like_form(pattern: str, fold: bool) -> re.Pattern[str]:
    first, *others = _between_percents(pattern)
    form = "".join(first)
    if others:
        *middle, last = others
        # Each part is of fixed width, so the leftmost place is never wrong (atomic: no other is tried),
        # and the last one can only be at the very end, behind what the others took.
        form += "".join(f"(?>.*?{''.join(part)})" for part in middle if part)
        form += f"(?=.{{{len(last)}}}).*+(?<={''.join(last)})" if last else ".*+"
    return re.compile(form, re.DOTALL | (re.IGNORECASE if fold else 0))


def _between_percents(pattern: str) -> list[list[str]]:
    """Return the parts of `pattern`, each a list of expressions for one character."""
    parts: list[list[str]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            parts.append([])
        elif character == "_":
            parts[-1].append(".")
        else:
            parts[-1].append(re.escape(next(characters, "\\") if character == "\\" else character))
    return parts


def concat(a: Value, b: Value) -> str:
    """Return the texts of `a` and `b` as one; raise `QueryFailure` if no row could hold it."""
    left, right = str(a), str(b)
    if size_bytes([left, right]) > VALUE_BYTES_MAX:
        raise QueryFailure(f"the result of || is larger than {VALUE_BYTES_MAX} bytes")
    return left + right


def size_bytes(values: Iterable[Value]) -> int:
    """Return how many bytes the texts (as UTF-8) and bytes of `values` have together."""
    size = 0
    for value in values:
        kind = type(value)
        if kind is str:
            size += len(value if value.isascii() else value.encode("utf-8", "surrogatepass"))  # type: ignore[union-attr, arg-type]
        elif kind is bytes:
            size += len(value)  # type: ignore[arg-type]
    return size


def number(value: Value) -> Number:
    """Return `value` if it can be calculated with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise QueryFailure(f"cannot calculate with {type(value).__name__}")
    return value


def in_range(value: Number) -> Number:
    """Return `value` if it fits 64 bits."""
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        raise QueryFailure("arithmetic overflow: the result doesn't fit into 64 bits")
    return value


def _comparison(apply: Callable[..., object]) -> Callable[[Value, Value], bool]:
    def run(a: Value, b: Value) -> bool:
        try:
            return cast(bool, apply(a, b))
        except TypeError as error:
            raise QueryFailure(f"cannot compare {type(a).__name__} with {type(b).__name__}") from error

    return run


def _arithmetic(apply: Callable[[Number, Number], Number]) -> Callable[[Value, Value], Value]:
    return lambda a, b: in_range(apply(number(a), number(b)))


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise QueryFailure("division by zero")
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return a / b


def _remainder(a: Number, b: Number) -> Number:
    if b == 0:
        raise QueryFailure("division by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a - b * cast(int, _divide(a, b))
    return math.fmod(a, b)


COMPARE: dict[CompareOp, Callable[[Value, Value], bool]] = {
    "=": _comparison(operator.eq),
    "!=": _comparison(operator.ne),
    "<": _comparison(operator.lt),
    "<=": _comparison(operator.le),
    ">": _comparison(operator.gt),
    ">=": _comparison(operator.ge),
}
ARITHMETIC: dict[ArithmeticOp, Callable[[Value, Value], Value]] = {
    "+": _arithmetic(operator.add),
    "-": _arithmetic(operator.sub),
    "*": _arithmetic(operator.mul),
    "/": _arithmetic(_divide),
    "%": _arithmetic(_remainder),
}
