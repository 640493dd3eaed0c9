"""The job queue: durable job records and the only legal moves between their states.

    new → queued → running → completed | failed | cancelled | skipped,  retrying between attempts

Law: a state is stored before anything acts on it; after a crash no job stays "running": it is queued
again as long as it has attempts left.
"""

import threading
from collections.abc import Callable, Mapping
from enum import Enum

import msgspec

from upwell.clock import Clock
from upwell.engine.catalog import Table, load_dropped
from upwell.engine.commit import Committer
from upwell.ids import job_id
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite

RETRIES_MAX = 3


class Status(Enum):
    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


OPEN = frozenset({Status.NEW, Status.QUEUED, Status.RUNNING, Status.RETRYING})
_MOVES = {
    Status.NEW: {Status.QUEUED, Status.CANCELLED},
    Status.QUEUED: {Status.RUNNING, Status.CANCELLED},
    Status.RUNNING: {Status.COMPLETED, Status.FAILED, Status.RETRYING, Status.SKIPPED},
    Status.RETRYING: {Status.RUNNING, Status.QUEUED, Status.CANCELLED},
}


class JobType(Enum):
    """A kind of job; the prefix opens its id."""

    FLUSH = "flush"
    CLEANUP = "cleanup"
    TRIM = "log_trim"

    @property
    def prefix(self) -> str:
        return {JobType.FLUSH: "FL", JobType.CLEANUP: "CL", JobType.TRIM: "LT"}[self]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job; times in microseconds since the epoch, None before they happen."""

    job_id: str
    job_type: JobType
    status: Status
    parameters: dict[str, str | int]
    idempotency_key: str
    message: str | None = None
    retry_count: int = 0
    max_retries: int = RETRIES_MAX
    created_at: int
    updated_at: int
    started_at: int | None = None
    finished_at: int | None = None


class JobQueue:
    """Creates jobs and moves them; what is open is also kept in memory. Thread-safe."""

    def __init__(self, committer: Committer, clock: Clock, make_id: Callable[[str], str] = job_id) -> None:
        self._committer = committer
        self._clock = clock
        self._make_id = make_id
        self._lock = threading.RLock()
        self._open: dict[str, Job] = {}
        self._listeners: list[Callable[[], object]] = []
        for job in load_jobs(committer.newest):
            if job.status in OPEN:
                self._open[job.job_id] = job

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` whenever a job has been queued."""
        self._listeners.append(listener)

    def recover(self) -> None:
        """Queue again what a crash interrupted; an interrupted attempt counts as a failed one.

        Dropped tables that nobody cleans up, because the crash came first, are queued as well.
        """
        for job in list(self._open.values()):
            if job.status is Status.RUNNING:
                job = self.fail(job, "interrupted by a restart")
            if job.status in (Status.NEW, Status.RETRYING):
                self._put(job, Status.QUEUED, job.message)
        for table in load_dropped(self._committer.newest):
            self.submit_cleanup(table)

    def submit(
        self, job_type: JobType, parameters: Mapping[str, str | int], idempotency_key: str
    ) -> Job | None:
        """Queue a job and return it when it is durable; None if one with this key is open already."""
        with self._lock:
            if any(job.idempotency_key == idempotency_key for job in self._open.values()):
                return None
            now = self._clock.now_us()
            job = Job(
                job_id=self._make_id(job_type.prefix),
                job_type=job_type,
                status=Status.NEW,
                parameters=dict(parameters),
                idempotency_key=idempotency_key,
                created_at=now,
                updated_at=now,
            )
            job, seq = self._apply(job, Status.QUEUED, None)
        # Not under the lock: the event loop asks for the next job, and must not wait for a sync.
        self._committer.publication.wait(seq)
        for listener in self._listeners:
            listener()
        return job

    def submit_cleanup(self, table: Table) -> Job | None:
        """Queue the removal of what is left of a dropped table; None if it is queued already."""
        parameters: dict[str, str | int] = {
            "table_id": table.full_name, "table_number": table.id, "namespace": table.namespace,
            "table_name": table.name, "table_type": table.kind.value,
        }  # fmt: skip
        return self.submit(JobType.CLEANUP, parameters, f"cleanup-{table.id}")

    def find_queued(self) -> Job | None:
        """Return the job that has waited longest."""
        with self._lock:
            queued = [job for job in self._open.values() if job.status is Status.QUEUED]
        return min(queued, key=lambda job: (job.created_at, job.job_id), default=None)

    def start(self, job: Job) -> Job:
        return self._put(job, Status.RUNNING, job.message, started_at=self._clock.now_us())

    def complete(self, job: Job, message: str) -> Job:
        return self._put(job, Status.COMPLETED, message, finished_at=self._clock.now_us())

    def skip(self, job: Job, message: str) -> Job:
        return self._put(job, Status.SKIPPED, message, finished_at=self._clock.now_us())

    def fail(self, job: Job, cause: str) -> Job:
        """Note a failed attempt: retrying while attempts are left, else failed."""
        if job.retry_count < job.max_retries:
            return self._put(job, Status.RETRYING, cause, retry_count=job.retry_count + 1)
        return self._put(job, Status.FAILED, cause, finished_at=self._clock.now_us())

    def requeue(self, job: Job) -> Job:
        return self._put(job, Status.QUEUED, job.message)

    def _put(self, job: Job, status: Status, message: str | None, **changes: int) -> Job:
        job, seq = self._apply(job, status, message, **changes)
        self._committer.publication.wait(seq)
        return job

    def _apply(self, job: Job, status: Status, message: str | None, **changes: int) -> tuple[Job, int]:
        assert status in _MOVES.get(job.status, ()), (
            f"job {job.job_id} can't go from {job.status} to {status}"
        )
        job = msgspec.structs.replace(
            job, status=status, message=message, updated_at=self._clock.now_us(), **changes
        )
        with self._lock:
            record = RecordWrite(Kind.JOB, job.job_id, msgspec.json.encode(job))
            seq = self._committer.apply(Batch(records=[record]))
            if status in OPEN:
                self._open[job.job_id] = job
            else:
                self._open.pop(job.job_id, None)
        return job, seq


def load_jobs(reader: HotReader) -> list[Job]:
    """Read all job records, oldest first."""
    jobs = [msgspec.json.decode(value, type=Job) for _, value in reader.scan_records(Kind.JOB)]
    return sorted(jobs, key=lambda job: (job.created_at, job.job_id))
