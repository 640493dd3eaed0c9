"""The clock: the only caller of the time of day.

Law: whoever needs the time is given a `Clock`; nobody else asks the system.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """The time of day, in whole microseconds since 1970-01-01T00:00:00Z. It may step backwards."""

    def now_us(self) -> int: ...


class SystemClock:
    """The clock of the machine."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """A clock that stands still until it is moved; for tests and replays."""

    def __init__(self, start_us: int = 1_767_225_600_000_000) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`; negative values step it back."""
        self._now_us += round(seconds * 1_000_000)
