"""Identifiers that sort by time: snowflake (64 bits), UUID version 7, ULID, job ids.

A snowflake is `(ms since 2024-01-01T00:00:00Z) << 22 | worker (10 bits) << 12 | sequence (12 bits)`.
Law: one `Snowflakes` never gives a number twice and never one that is smaller than an earlier one.
"""

import os
import threading
import uuid
from collections.abc import Callable
from typing import NewType

from upwell.clock import Clock

Seq = NewType("Seq", int)
"""Position of a change in the log; a snowflake, so that it carries its time in ms."""

SNOWFLAKE_EPOCH_MS = 1_704_067_200_000
_WORKER_SHIFT = 12
_TIME_SHIFT = 22
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

EPOCH_SHIFT = 32
COUNTER_MASK = (1 << EPOCH_SHIFT) - 1
"""An owner's counter, the cursor of devices, is epoch · 2³² + n."""

RandomBytes = Callable[[int], bytes]


def entries_between(cursor: int, head: int) -> int:
    """Return how many entries follow a cursor up to the newest counter, as far as the two tell.

    Of a cursor from an older epoch it is what the newest epoch has.
    """
    if cursor >> EPOCH_SHIFT < head >> EPOCH_SHIFT:
        return head & COUNTER_MASK
    return max(head - cursor, 0)


def snowflake_floor(time_ms: int) -> int:
    """Return the smallest snowflake of a Unix time in milliseconds."""
    return max(0, time_ms - SNOWFLAKE_EPOCH_MS) << _TIME_SHIFT


def snowflake_ms(snowflake: int) -> int:
    """Return the Unix time in milliseconds that a snowflake carries."""
    return (snowflake >> _TIME_SHIFT) + SNOWFLAKE_EPOCH_MS


class Snowflakes:
    """A source of snowflakes of one worker (0..1023), above `after`. Thread-safe.

    More than 4,096 in a millisecond, or a clock that steps back, go on from the last number:
    order matters more than the time that the number carries.
    """

    def __init__(self, clock: Clock, *, worker: int = 0, after: int = 0) -> None:
        if not 0 <= worker < 1024:
            raise ValueError(f"worker must be 0..1023, not {worker}")
        self._clock = clock
        self._worker = worker << _WORKER_SHIFT
        self._last = after
        self._lock = threading.Lock()

    @property
    def last(self) -> int:
        """The highest number given so far."""
        return self._last

    def next(self) -> int:
        return self.take(1)

    def take(self, count: int) -> int:
        """Return the first of `count` numbers that follow each other."""
        with self._lock:
            floor = snowflake_floor(self._clock.now_us() // 1000) | self._worker
            first = max(self._last + 1, floor)
            self._last = first + count - 1
            return first


def uuid7(clock: Clock, random_bytes: RandomBytes = os.urandom) -> str:
    """Return a UUID version 7 (RFC 9562) as dashed lower-case text."""
    time_ms = clock.now_us() // 1000
    value = (time_ms & (1 << 48) - 1) << 80 | int.from_bytes(random_bytes(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def ulid(clock: Clock, random_bytes: RandomBytes = os.urandom) -> str:
    """Return a ULID: 26 characters of Crockford base 32, 48 bits of time and 80 of chance."""
    value = (clock.now_us() // 1000 & (1 << 48) - 1) << 80 | int.from_bytes(random_bytes(10), "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -5, -5))


def job_id(prefix: str, random_bytes: RandomBytes = os.urandom) -> str:
    """Return a job id such as `FL-3f9a0c12be77`: a prefix of two letters and 12 hexadecimal digits."""
    return f"{prefix}-{random_bytes(6).hex()}"
