"""Operations on two values: comparison, arithmetic, LIKE, as the query engine does them.

Law: they never see NULL, never return a value that BIGINT or DOUBLE can't hold, and raise `QueryFailure`
where SQL has no answer. Integer division truncates towards zero, a remainder has the dividend's sign.
"""

import math
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, cast

from upwell.errors import QueryFailure
from upwell.types import Value

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)

CompareOp = Literal["=", "!=", "<", "<=", ">", ">="]
ArithmeticOp = Literal["+", "-", "*", "/", "%"]
Number = int | float


def like(text: str, pattern: str, *, fold: bool = False) -> bool:
    """Tell whether `text` is LIKE (or ILIKE, with `fold`) `pattern`."""
    return _like_form(pattern, fold).fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _like_form(pattern: str, fold: bool) -> re.Pattern[str]:
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        else:
            parts.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    return re.compile("".join(parts), re.DOTALL | (re.IGNORECASE if fold else 0))


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
