"""Retention of job records: what ended long ago, or before too many others, is forgotten.

Law: only jobs that have ended go; how many are kept is bounded, however often something is scheduled.
"""

from dataclasses import dataclass

from upwell.clock import Clock
from upwell.jobs.queue import JobQueue

SLACK = 10
"""One of so many jobs that may be kept goes besides the surplus, so that not each new one costs a removal."""


@dataclass(frozen=True, slots=True)
class JobRetention:
    """Forgets jobs that ended more than `age_s` ago, and the oldest beyond `jobs_max`."""

    queue: JobQueue
    clock: Clock
    age_s: float
    jobs_max: int

    def is_due(self) -> bool:
        return self.queue.has_old(before_us=self._before_us(), keep_max=self.jobs_max)

    def run(self) -> int:
        """Remove the records; return how many went."""
        keep_max = self.jobs_max - self.jobs_max // SLACK
        return self.queue.remove_old(before_us=self._before_us(), keep_max=keep_max)

    def _before_us(self) -> int:
        return self.clock.now_us() - round(self.age_s * 1_000_000)
