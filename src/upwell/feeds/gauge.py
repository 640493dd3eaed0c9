"""Gauge: how many of something there are, and the most that there were at once."""

from dataclasses import dataclass


@dataclass(slots=True)
class Gauge:
    """Who enters leaves; used from one thread, and read from any."""

    count: int = 0
    peak: int = 0

    def enter(self) -> None:
        self.count += 1
        self.peak = max(self.peak, self.count)

    def leave(self) -> None:
        self.count -= 1
