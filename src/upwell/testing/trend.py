"""Trends: by how much what a program holds grows per minute, and whether there is enough to say so.

Law: of too few samples, or too short a time, nothing is said; neither that it is flat nor that it grows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression

COUNT_MIN = 3

Sample = Mapping[str, float]
"""What was measured at one moment, by name; `minutes` is when."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The gain per minute (least squares) of each name that has a limit; None: too short to judge."""

    slopes: Mapping[str, float] | None
    limits: Mapping[str, float]

    @property
    def steep(self) -> list[str]:
        """The names that grow by more than their limit."""
        return [name for name, slope in (self.slopes or {}).items() if slope > self.limits[name]]

    @property
    def verdict(self) -> str:
        if self.slopes is None:
            return "too short to judge"
        return f"grows: {', '.join(self.steep)}" if self.steep else "flat"


def trend(samples: Sequence[Sample], limits: Mapping[str, float], *, minutes_min: float) -> Trend:
    """Return the trend of samples that come in the order of time, if they span so many minutes."""
    minutes = [sample["minutes"] for sample in samples]
    if len(samples) < COUNT_MIN or minutes[-1] - minutes[0] < minutes_min:
        return Trend(None, limits)
    slopes = {
        name: round(linear_regression(minutes, [sample[name] for sample in samples]).slope, 3)
        for name in limits
    }
    return Trend(slopes, limits)
