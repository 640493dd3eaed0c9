"""The schedule: jobs that nobody asks for, submitted when they are due.

Law: while nothing is due, no job is submitted.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime

from upwell.clock import Clock
from upwell.engine.catalog import Table, load_dropped
from upwell.engine.commit import Committer
from upwell.engine.expiry import SLICE_ENTRIES, Expiry
from upwell.engine.flush_policy import FlushPolicy
from upwell.engine.recount import recount
from upwell.engine.trim import LogTrim
from upwell.engine.view import View
from upwell.errors import ReadOnly
from upwell.jobs.job import Job, JobType, Parameter, Status
from upwell.jobs.queue import JobQueue
from upwell.jobs.retention import JobRetention
from upwell.logs import fields
from upwell.types import TableId

log = logging.getLogger("upwell.jobs")


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks every `interval_s`, in a worker thread, whether a job is due, and submits it then."""

    interval_s: float
    look: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Keeps watches; `threads` does the looking."""

    watches: Sequence[Watch]
    threads: Executor

    async def run(self) -> None:
        """Submit what is due, until cancelled or the server is read-only."""
        try:
            async with asyncio.TaskGroup() as group:
                for watch in self.watches:
                    group.create_task(self._keep(watch))
        except* ReadOnly as failures:
            cause = str(failures.exceptions[0])
            log.critical("Nothing is scheduled any more: the server is read-only", extra=fields(cause=cause))

    async def _keep(self, watch: Watch) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.run_in_executor(self.threads, watch.look)
            await asyncio.sleep(watch.interval_s)


FAILED_PAUSE_S = 30.0
"""How long a table waits for its next flush when one has failed for good or was killed."""


def watch_flush(queue: JobQueue, committer: Committer, clock: Clock, interval_s: float) -> Watch:
    """Flush what the policies of the tables say is due, each table by one job at a time."""
    first: list[View] = [committer.publication.view]
    asked: dict[TableId, str] = {}

    def is_paused(table: TableId, now_us: int) -> bool:
        job = queue.find(asked.get(table, ""))
        if job is None or job.status not in (Status.FAILED, Status.CANCELLED):
            return False
        return now_us - job.updated_at < FAILED_PAUSE_S * 1_000_000

    def look() -> None:
        if first:
            recount(committer, first.pop())
        now_us = clock.now_us()
        for number in committer.pending.due_tables(now_us):
            table = committer.publication.view.catalog.by_id.get(number)
            if table is not None and not is_paused(number, now_us):
                job = submit_due_flush(queue, table, committer.pending.policy(table), now_us)
                if job is not None:
                    asked[number] = job.job_id

    return Watch(interval_s, look)


def submit_due_flush(queue: JobQueue, table: Table, policy: FlushPolicy, now_us: int) -> Job | None:
    """Queue the flush of the partitions of a table that are due; None if one is open already."""
    parameters: dict[str, Parameter] = {
        "table_id": table.full_name, "table_number": table.id, "table_type": table.kind.value,
        "policy": str(policy),
    }  # fmt: skip
    if policy.rows_max is not None:
        parameters["flush_threshold"] = policy.rows_max
    hour = datetime.fromtimestamp(now_us / 1_000_000, UTC).strftime("%Y-%m-%d-%H")
    key = f"FL:{table.namespace}:{table.name}:{hour}"
    return queue.submit(JobType.FLUSH, parameters, key, slot=f"flush-due/{table.id}")


def watch_log(queue: JobQueue, trim: LogTrim, committer: Committer, interval_s: float) -> Watch:
    """Trim the log when entries are old enough, or beyond what it may take."""

    def look() -> None:
        if trim.is_due(committer.publication.view):
            queue.submit(JobType.TRIM, {}, JobType.TRIM.value)

    return Watch(interval_s, look)


LOG_SIZE_INTERVAL_S = 10.0


def watch_log_size(queue: JobQueue, trim: LogTrim, committer: Committer) -> Watch:
    """Trim the log soon after it has become too large.

    If it stays so, since devices need what is old, it is looked through again when it has grown by a tenth.
    """
    lowest = 0

    def look() -> None:
        nonlocal lowest
        size = trim.log_bytes()
        lowest = min(lowest, size)
        if size > max(trim.limits.bytes_max, lowest + trim.limits.bytes_max // 10):
            lowest = size
            if trim.is_due(committer.publication.view):
                queue.submit(JobType.TRIM, {}, JobType.TRIM.value)

    return Watch(LOG_SIZE_INTERVAL_S, look)


def watch_jobs(queue: JobQueue, retention: JobRetention, interval_s: float) -> Watch:
    """Forget old jobs."""

    def look() -> None:
        if retention.is_due():
            days = max(1, round(retention.age_s / 86_400))
            queue.submit(JobType.JOB_CLEANUP, {"retention_days": days}, JobType.JOB_CLEANUP.value)

    return Watch(interval_s, look)


def watch_dropped(queue: JobQueue, committer: Committer, interval_s: float) -> Watch:
    """Clean up what is left of dropped tables, again if it failed for good."""

    def look() -> None:
        left = load_dropped(committer.publication.view.hot)
        for table in left:
            queue.submit_cleanup(table)
        if left:
            queue.wake()

    return Watch(interval_s, look)


def watch_rows(expiry: Expiry, interval_s: float) -> Watch:
    """End the rows whose time is over: no job, since it happens all the while."""
    return Watch(interval_s, expiry.run)


def watch_expired(queue: JobQueue, expiry: Expiry, interval_s: float) -> Watch:
    """Clear the disk of rows that have expired."""

    def look() -> None:
        for table in expiry.due():
            parameters: dict[str, str | int] = {
                "table_id": table.full_name,
                "table_number": table.id,
                "table_type": table.kind.value,
                "ttl_seconds": table.ttl_ms // 1000,
                "batch_size": SLICE_ENTRIES,
            }
            queue.submit(JobType.EVICTION, parameters, f"SE:{table.namespace}:{table.name}")

    return Watch(interval_s, look)
