"""The background loop without I/O of its own: when a round is due, what its outcome means, who waits for it.

Laws: a round follows each local edit and each growth of the server's log that the round before did not
cover; a failure ends nothing and loses nothing, it only makes the next round later; own uploads, whose growth
a round has read, cause no other round.
"""

import sqlite3
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from upwell.device.failures import NotSynced, Unreachable
from upwell.device.installation import Installation
from upwell.device.pace import Pace, Pause

STILL_OWED_MAX = 3


@dataclass(frozen=True, slots=True)
class Round:
    """Sync once; the driver sends in why it failed, or None. It need not wait longer than `until_s`."""

    until_s: float | None = None


LoopStep: TypeAlias = Round | Pause
Loop: TypeAlias = Generator[LoopStep, Exception | None, None]


class Background:
    """What the loop of one device knows; `now` is a monotonic clock in seconds.

    `ask`, `announce` and `reach` may be called from any thread; the driver wakes the loop after them.
    """

    def __init__(
        self, installation: Installation, pace: Pace, now: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        self.begun = 0
        self.ended = 0
        self.succeeded = 0
        self.failure: Exception | None = None
        self._installation = installation
        self._pace = pace
        self._now = now
        self._chance = chance
        self._asked = 0
        self._failures = 0
        self._covered = 0
        self._seen_version = -1
        # The first round is due at once, for what happened while nobody looked.
        self._next_at = now()

    def cursor(self) -> int:
        """What the watch stream need not tell any more."""
        return self._covered

    def ask(self) -> int:
        """Ask for a round that begins after this call; return its number."""
        number = self.begun + 1
        self._asked = max(self._asked, number)
        return number

    def announce(self, head: int) -> None:
        """The server's log has grown to `head`; a smaller number than before is one of another history."""
        if head < self._installation.announced:
            self._covered = 0
        self._installation.announced = head

    def reach(self) -> None:
        """The server can be reached: a round that failed because it could not be need not wait any longer."""
        if isinstance(self.failure, Unreachable):
            self._next_at = self._now()

    def steps(self) -> Loop:
        """Rounds when they are due, pauses between them, for ever."""
        while True:
            if self._is_due():
                yield from self._round()
            else:
                yield Pause(self._pause_s())

    def _is_due(self) -> bool:
        if self._asked > self.begun or self._now() >= self._next_at:
            return True
        return not self._failures and (self._installation.announced > self._covered or self._is_edited())

    def _pause_s(self) -> float:
        left_s = max(self._next_at - self._now(), 0.0)
        return left_s if self._failures else min(left_s, self._pace.edit_poll_s)

    def _is_edited(self) -> bool:
        try:
            version = self._installation.data_version()
            if version == self._seen_version:
                return False
            self._seen_version = version
            return self._installation.has_fresh_edits()
        except sqlite3.Error:
            # The round will meet it, too, and tell.
            return True

    def _round(self) -> Loop:
        self.begun += 1
        announced = self._installation.announced
        try:
            self._seen_version = self._installation.data_version()
            failure = yield Round()
            if failure is None:
                self._covered = max(announced, self._installation.file.cursor())
        except sqlite3.Error as error:
            failure = error
        self._end(failure)

    def _end(self, failure: Exception | None) -> None:
        self.failure = failure
        if failure is None:
            self._failures = 0
            self.succeeded = self.begun
            self._next_at = self._now() + self._pace.poll_s
        else:
            self._failures += 1
            self._installation.last_error = str(failure)
            self._next_at = self._now() + self._pace.backoff_s(self._failures, self._chance())
        self.ended = self.begun


def until_synced(
    installation: Installation,
    pace: Pace,
    *,
    now: Callable[[], float],
    chance: Callable[[], float],
    timeout_s: float | None,
) -> Loop:
    """Ask for rounds until what is pending now is acknowledged and one round has succeeded.

    Raises `NotSynced` after `timeout_s`, or sends rounds for ever.
    """
    deadline_s = None if timeout_s is None else now() + timeout_s
    owed, failures = installation.owed(), 0
    while True:
        failure = yield Round(deadline_s)
        left = installation.still_owed(owed)
        if failure is None and not left:
            return
        failures += 1
        pause_s = pace.backoff_s(failures, chance())
        if deadline_s is not None and now() + pause_s >= deadline_s:
            yield Pause(max(deadline_s - now(), 0.0))
            raise NotSynced(_why(timeout_s, failure, left)) from failure
        yield Pause(pause_s)


def _why(timeout_s: float | None, failure: Exception | None, left: list[str]) -> str:
    reasons = [] if failure is None else [str(failure)]
    if left:
        more = f" and {len(left) - STILL_OWED_MAX} more" if len(left) > STILL_OWED_MAX else ""
        reasons.append(f"pending: {', '.join(left[:STILL_OWED_MAX])}{more}")
    return f"not synced after {timeout_s:g} s: {'; '.join(reasons)}"
