"""Defaults: what a column gets that a statement or a device didn't name."""

from upwell.clock import Clock
from upwell.ids import Snowflakes, ulid, uuid7
from upwell.types import Column, Row, Value, coerce


class Defaults:
    """Computes DEFAULT values; `ids` gives snowflakes of their own, apart from `_seq`s."""

    def __init__(self, clock: Clock, ids: Snowflakes) -> None:
        self._clock = clock
        self._ids = ids

    def next_id(self) -> int:
        """Return the next SNOWFLAKE_ID()."""
        return self._ids.next()

    def now_us(self) -> int:
        return self._clock.now_us()

    def value(self, column: Column, *, user: str, now_us: int) -> Value:
        """Return a column's default, None without one; `now_us` is the same for a whole statement."""
        default = column.default
        if default is None:
            return None
        match default.function:
            case None:
                return coerce(default.value, column)
            case "NOW" | "CURRENT_TIMESTAMP":
                return now_us
            case "SNOWFLAKE_ID":
                return self._ids.next()
            case "UUID_V7":
                return uuid7(self._clock)
            case "ULID":
                return ulid(self._clock)
            case "CURRENT_USER":
                return user
            case other:
                raise AssertionError(f"no such default function: {other}")

    def row(self, columns: tuple[Column, ...], *, user: str, now_us: int) -> Row:
        """Return a row of nothing but defaults."""
        return [self.value(column, user=user, now_us=now_us) for column in columns]
