"""The schedule: jobs that nobody asks for, submitted when they are due.

Law: while nothing is due, no job is submitted.
"""

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import dataclass

from upwell.engine.trim import LogTrim
from upwell.engine.view import Publication
from upwell.errors import ReadOnly
from upwell.jobs.queue import JobQueue, JobType
from upwell.logs import fields

log = logging.getLogger("upwell.jobs")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Looks at every interval whether the log is to be trimmed."""

    queue: JobQueue
    trim: LogTrim
    publication: Publication
    threads: Executor
    interval_s: float

    async def run(self) -> None:
        """Submit what is due, until cancelled or the server is read-only."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await loop.run_in_executor(self.threads, self._submit)
                await asyncio.sleep(self.interval_s)
        except ReadOnly as failure:
            log.warning("nothing is scheduled any more", extra=fields(cause=str(failure)))

    def _submit(self) -> None:
        if self.trim.is_due(self.publication.view):
            self.queue.submit(JobType.TRIM, {}, JobType.TRIM.value)
