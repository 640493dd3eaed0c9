"""Promise: who grows is told so, who is flat too, and who wasn't watched for long enough is told nothing."""

import random

import pytest

from upwell.testing.trend import Sample, trend

LIMITS = {"rss_mb": 3.0, "descriptors": 1.0}


def watched(rss_mb_per_minute: float, *, minutes: float) -> list[Sample]:
    """A server of 300 MB, looked at every 7 seconds, whose memory wavers by 2 MB."""
    chance = random.Random(7)
    times = [round(second / 60, 2) for second in range(0, int(minutes * 60) + 1, 7)]
    return [
        {
            "minutes": time,
            "rss_mb": 300 + rss_mb_per_minute * time + chance.uniform(-2, 2),
            "descriptors": 30 + chance.randint(-1, 1),
        }
        for time in times
    ]


@pytest.mark.parametrize(
    ("rss_mb_per_minute", "verdict"),
    [(0.0, "flat"), (1.5, "flat"), (-5.0, "flat"), (5.0, "grows: rss_mb"), (20.0, "grows: rss_mb")],
)
def test_what_grows_is_told(rss_mb_per_minute: float, verdict: str) -> None:
    assert trend(watched(rss_mb_per_minute, minutes=3.1), LIMITS, minutes_min=3).verdict == verdict


@pytest.mark.parametrize("minutes", [0.0, 0.1, 2.9])
def test_a_short_time_says_nothing(minutes: float) -> None:
    """However steep it looks."""
    found = trend(watched(100.0, minutes=minutes), LIMITS, minutes_min=3)
    assert (found.verdict, found.steep) == ("too short to judge", [])


def test_the_slope_is_that_of_the_line() -> None:
    samples: list[Sample] = [{"minutes": 2.0 * time, "rss_mb": 7.0 + 5.0 * time} for time in range(4)]
    assert trend(samples, {"rss_mb": 2.4}, minutes_min=3).slopes == {"rss_mb": 2.5}
    assert trend(samples, {"rss_mb": 2.4}, minutes_min=3).steep == ["rss_mb"]
    assert trend(samples[:2], {"rss_mb": 2.4}, minutes_min=1).slopes is None
