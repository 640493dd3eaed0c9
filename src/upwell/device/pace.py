"""How often the background loop looks, and how long it waits after failures; in seconds.

Law: pauses after failures double up to a bound, and no two devices keep step.
"""

from dataclasses import dataclass

DOUBLINGS_MAX = 30


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so long, or until woken; the driver sends None in."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """`edit_poll_s` between two looks for edits of other connections, `poll_s` between rounds for nothing.

    After n failures in a row the pause is between one and two times `backoff_min_s` · 2ⁿ⁻¹, at most
    `backoff_max_s`. A watch stream that is silent for `watch_silence_s` is broken. A round that is under way
    when the blocking device is stopped may go on for `grace_s` before its connection is broken.
    """

    edit_poll_s: float = 0.25
    poll_s: float = 60.0
    backoff_min_s: float = 1.0
    backoff_max_s: float = 60.0
    watch_silence_s: float = 60.0
    grace_s: float = 2.0

    def backoff_s(self, failures: int, chance: float) -> float:
        """Return the pause after `failures` in a row (from 1); `chance` is in [0, 1)."""
        ceiling = min(self.backoff_max_s, self.backoff_min_s * 2.0 ** min(failures, DOUBLINGS_MAX))
        return ceiling / 2 + chance * ceiling / 2


PACE = Pace()
