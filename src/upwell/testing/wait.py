"""Waiting for a condition, never for a time.

Law: returns as soon as the condition holds, and fails with what was waited for when it doesn't.
"""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S_FIRST = 0.001
POLL_S_MAX = 0.05

T = TypeVar("T")


class WaitFailed(AssertionError):
    """The condition did not come true in time; the message says which."""


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float,
    what: str,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `condition` until its result is true, and return that; raise `WaitFailed` after `timeout_s`."""
    deadline, pause = now() + timeout_s, POLL_S_FIRST
    while not (result := condition()):
        left = deadline - now()
        if left <= 0:
            raise WaitFailed(f"waited {timeout_s:g} s for {what}; last seen: {result!r}")
        sleep(min(pause, left))
        pause = min(pause * 2, POLL_S_MAX)
    return result
