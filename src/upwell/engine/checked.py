"""Checked arithmetic: functions of 64-bit integers that fail where the query engine's operators wrap around.

Law: a result is exact, or an error that says what to do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute

ADD, SUBTRACT, MULTIPLY = "checked_add", "checked_subtract", "checked_multiply"
NEGATE, ABS, TOTAL = "checked_negate", "checked_abs", "checked_total"
OVERFLOW = "arithmetic overflow: the result doesn't fit into 64 bits; cast to DECIMAL where that can be"

_INTEGER, _DOUBLE = pa.int64(), pa.float64()
# A sum that wrapped is off by 2^64 at least; rounding is off by far less than a quarter of that.
_OFF_MOST = float(1 << 62)

Function = tuple[str, Sequence[pa.DataType], pa.DataType, Callable[..., pa.Array]]
"""Name, types of the arguments and of the result, and what is called with arrays."""


def _total(total: pa.Array, nearly: pa.Array) -> pa.Array:
    """Return sums of integers that may have wrapped around, if they are near those of the same as doubles."""
    if len(total) == 1:
        one, near = total[0].as_py(), nearly[0].as_py()
        if one is not None and abs(one - near) > _OFF_MOST:
            raise OverflowError(OVERFLOW)
        return total
    off = compute.abs(compute.subtract(compute.cast(total, _DOUBLE, safe=False), nearly))
    if compute.any(compute.greater(off, _OFF_MOST)).as_py():
        raise OverflowError(OVERFLOW)
    return total


def _checked(function: Callable[..., Any]) -> Callable[..., pa.Array]:
    def call(*arguments: pa.Array) -> pa.Array:
        try:
            return function(*arguments)
        except pa.ArrowInvalid as error:
            raise OverflowError(OVERFLOW) from error

    return call


FUNCTIONS: Sequence[Function] = (
    (ADD, (_INTEGER, _INTEGER), _INTEGER, _checked(compute.add_checked)),
    (SUBTRACT, (_INTEGER, _INTEGER), _INTEGER, _checked(compute.subtract_checked)),
    (MULTIPLY, (_INTEGER, _INTEGER), _INTEGER, _checked(compute.multiply_checked)),
    (NEGATE, (_INTEGER,), _INTEGER, _checked(compute.negate_checked)),
    (ABS, (_INTEGER,), _INTEGER, _checked(compute.abs_checked)),
    (TOTAL, (_INTEGER, _DOUBLE), _INTEGER, _total),
)
