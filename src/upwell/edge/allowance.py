"""Allowances: how much somebody may ask for per second.

Law: who was silent for a second has the whole allowance again; nobody's use costs anybody else's.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

ASKERS_MAX = 10_000


@dataclass(slots=True)
class Allowance:
    """So many messages per second, and as many at once after a second of silence."""

    per_s: int
    at: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.per_s

    def take(self, now: float) -> bool:
        """Count a message at `now`; whether it was allowed."""
        self.left = min(self.per_s, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class RateLimit:
    """An allowance for each of those who ask: users, addresses. `now_s` never steps back."""

    def __init__(self, per_s: int, now_s: Callable[[], float]) -> None:
        self._per_s = per_s
        self._now_s = now_s
        self._allowances: dict[Hashable, Allowance] = {}

    def take(self, asker: Hashable) -> bool:
        """Count a request; whether it was allowed."""
        now = self._now_s()
        found = self._allowances.get(asker)
        if found is None:
            if len(self._allowances) >= ASKERS_MAX:
                self._forget_rested(now)
            found = self._allowances[asker] = Allowance(self._per_s, now)
        return found.take(now)

    def _forget_rested(self, now: float) -> None:
        """Forget those who have their whole allowance again; all, if nobody has: memory is bounded."""
        rested = [asker for asker, each in self._allowances.items() if now - each.at >= 1]
        for asker in rested or list(self._allowances):
            del self._allowances[asker]
