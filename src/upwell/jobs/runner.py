"""The job runner: takes due jobs and runs each in a worker thread, a few at the same time.

Law: a job is durable "running" before it starts, and whatever it raises becomes its message. An attempt that
the end of the server stops is put back; a read-only server can't store how an attempt ended, so it runs none.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from upwell.engine.stop import Stop, Stopped
from upwell.errors import ReadOnly, UpwellError
from upwell.jobs.job import Job
from upwell.jobs.kinds import Done
from upwell.jobs.queue import JobQueue, Moved
from upwell.logs import fields

log = logging.getLogger("upwell.jobs")


Work = Callable[[Job, Stop], Done]
"""Does a job in the calling thread; `Kinds.run`."""


class JobRunner:
    """Runs jobs until it is cancelled; `work` is done in `threads`, `jobs_max` at a time."""

    def __init__(self, queue: JobQueue, work: Work, threads: Executor, *, jobs_max: int = 1) -> None:
        self._queue = queue
        self._work = work
        self._threads = threads
        self._jobs_max = jobs_max
        self._running = 0
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Run what is due, until cancelled or the server is read-only."""
        loop = asyncio.get_running_loop()
        wake = partial(loop.call_soon_threadsafe, self._wake.set)
        self._queue.listen(wake)
        try:
            await loop.run_in_executor(self._threads, self._queue.recover)
            async with asyncio.TaskGroup() as group:
                await self._take_turns(group)
        except* ReadOnly as failures:
            cause = str(failures.exceptions[0])
            log.critical("No job runs any more: the server is read-only", extra=fields(cause=cause))
        finally:
            self._queue.unlisten(wake)
            self._queue.stop_work()

    async def _take_turns(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            job = self._queue.find_due() if self._running < self._jobs_max else None
            if job is None:
                await self._pause()
                continue
            self._running += 1
            group.create_task(self._run(job, self._queue.begin_work(job)))

    async def _pause(self) -> None:
        """Wait for a job, or until the next attempt of one that failed is due."""
        try:
            await asyncio.wait_for(self._wake.wait(), self._queue.pause_s())
        except TimeoutError:
            return

    async def _run(self, job: Job, stop: Stop) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._attempt, job, stop)
        finally:
            self._running -= 1
            self._wake.set()

    def _attempt(self, job: Job, stop: Stop) -> None:
        try:
            self._finish(self._queue.start(job), stop)
        except Moved:
            log.info("Job was cancelled", extra=fields(job_id=job.job_id))
        finally:
            self._queue.end_work(job)

    def _finish(self, job: Job, stop: Stop) -> None:
        points = self._queue.points
        points.reach("job:started")
        try:
            done = self._work(job, stop)
            points.reach("job:worked")
        except ReadOnly:
            raise
        except Stopped:
            self._queue.put_back(job, "interrupted by the end of the server")
        except (OSError, UpwellError) as error:
            log.warning("Job attempt failed", extra=fields(job_id=job.job_id, cause=cause_of(error)))
            self._queue.fail(job, cause_of(error))
        except Exception as error:
            # A bug, or a library's own error: this job has failed, the next one shall run.
            log.exception("Job attempt failed", extra=fields(job_id=job.job_id))
            self._queue.fail(job, cause_of(error))
        else:
            log.info("Job finished", extra=fields(job_id=job.job_id, message=done.message))
            (self._queue.skip if done.skipped else self._queue.complete)(job, done.message)
            points.reach("job:ended")


def cause_of(error: Exception) -> str:
    """Return what stopped an attempt, for the job's message."""
    return str(error) if isinstance(error, UpwellError) else f"{type(error).__name__}: {error}"
