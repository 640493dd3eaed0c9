"""The job runner: takes queued jobs one by one and runs each in a worker thread.

Law: a job is durable "running" before it starts, and whatever it raises becomes its message.
"""

import asyncio
import logging
from concurrent.futures import Executor

from upwell.errors import UpwellError
from upwell.jobs.kinds import Kinds
from upwell.jobs.queue import Job, JobQueue, Status
from upwell.logs import fields

log = logging.getLogger("upwell.jobs")

BACKOFF_FIRST_S = 0.1


class JobRunner:
    """Runs jobs until it is cancelled; `threads` does the work."""

    def __init__(self, queue: JobQueue, kinds: Kinds, threads: Executor) -> None:
        self._queue = queue
        self._kinds = kinds
        self._threads = threads
        self._wake = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._queue.listen(lambda: loop.call_soon_threadsafe(self._wake.set))
        await loop.run_in_executor(self._threads, self._queue.recover)
        while True:
            self._wake.clear()
            job = self._queue.find_queued()
            if job is None:
                await self._wake.wait()
            else:
                job = await loop.run_in_executor(self._threads, self._attempt, job)
                if job.status is Status.RETRYING:
                    await asyncio.sleep(BACKOFF_FIRST_S * 2 ** (job.retry_count - 1))
                    await loop.run_in_executor(self._threads, self._queue.requeue, job)

    def _attempt(self, job: Job) -> Job:
        job = self._queue.start(job)
        try:
            done = self._kinds.run(job)
        except (OSError, UpwellError) as error:
            log.warning("Job attempt failed", extra=fields(job_id=job.job_id, cause=str(error)))
            return self._queue.fail(job, f"{type(error).__name__}: {error}")
        except Exception as error:
            # A bug, or a library's own error: this job has failed, the next one shall run.
            log.exception("Job attempt failed", extra=fields(job_id=job.job_id))
            return self._queue.fail(job, f"{type(error).__name__}: {error}")
        log.info("Job finished", extra=fields(job_id=job.job_id, message=done.message))
        return (self._queue.skip if done.skipped else self._queue.complete)(job, done.message)
