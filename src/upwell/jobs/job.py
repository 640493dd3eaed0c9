"""A job: what it is about, and the only legal moves between its states.

    new → queued → running → completed | failed | cancelled | skipped
             ▲        │ ▲
             │        ▼ │
             └──── retrying, between attempts; failed and cancelled ones come back by RETRY JOB

Law: a job is a value; `moved` is the only way to another state, and refuses what the picture doesn't have.
"""

from collections.abc import Iterable
from enum import Enum

import msgspec

from upwell.decodable import decodable

RETRIES_MAX = 3
BACKOFF_FIRST_S = 0.1

Parameter = str | int | list[str]


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
RETRYABLE = frozenset({Status.RETRYING, Status.FAILED, Status.CANCELLED})
_MOVES = {
    Status.NEW: {Status.QUEUED, Status.CANCELLED},
    Status.QUEUED: {Status.RUNNING, Status.CANCELLED},
    Status.RUNNING: {
        Status.COMPLETED, Status.FAILED, Status.RETRYING, Status.SKIPPED, Status.CANCELLED, Status.QUEUED,
    },
    Status.RETRYING: {Status.RUNNING, Status.QUEUED, Status.CANCELLED},
    Status.FAILED: {Status.QUEUED},
    Status.CANCELLED: {Status.QUEUED},
}  # fmt: skip


class JobType(Enum):
    """A kind of job; the prefix opens its id."""

    FLUSH = "flush"
    COMPACT = "compact"
    BACKUP = "backup"
    RESTORE = "restore"
    CLEANUP = "cleanup"
    TRIM = "log_trim"
    JOB_CLEANUP = "job_cleanup"
    EVICTION = "stream_eviction"

    @property
    def prefix(self) -> str:
        return _PREFIXES[self]


_PREFIXES = {
    JobType.FLUSH: "FL",
    JobType.COMPACT: "CO",
    JobType.BACKUP: "BK",
    JobType.RESTORE: "RS",
    JobType.CLEANUP: "CL",
    JobType.TRIM: "LT",
    JobType.JOB_CLEANUP: "JC",
    JobType.EVICTION: "SE",
}


@decodable
class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job; times in microseconds since the epoch, None before they happen.

    `slot` is what one open job at a time may hold; `idempotency_key` is what people see of it.
    `asked_seq` is the end of the newest commit when the job was asked for. `due_at` is when the next attempt
    may begin. `lease` names the server run that makes the attempt, while there is one.
    """

    job_id: str
    job_type: JobType
    status: Status
    parameters: dict[str, Parameter]
    idempotency_key: str
    slot: str
    asked_seq: int
    message: str | None = None
    retry_count: int = 0
    max_retries: int = RETRIES_MAX
    created_at: int
    updated_at: int
    started_at: int | None = None
    finished_at: int | None = None
    due_at: int | None = None
    lease: str | None = None

    @property
    def table_number(self) -> int | None:
        """The table that it works on; jobs of one table never run at the same time."""
        number = self.parameters.get("table_number")
        return number if isinstance(number, int) else None

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    def number(self, name: str) -> int:
        """Return a parameter that is a number."""
        value = self.parameters[name]
        assert isinstance(value, int), f"parameter {name} of job {self.job_id} is {value!r}"
        return value

    def text(self, name: str) -> str:
        """Return a parameter that is text."""
        value = self.parameters[name]
        assert isinstance(value, str), f"parameter {name} of job {self.job_id} is {value!r}"
        return value

    def texts(self, name: str) -> list[str] | None:
        """Return a parameter that is a list of texts; None if it wasn't given."""
        value = self.parameters.get(name)
        assert value is None or isinstance(value, list), f"parameter {name} of job {self.job_id} is {value!r}"
        return value

    def moved(self, status: Status, message: str | None, now_us: int) -> "Job":
        """Return the job in another state, without a lease."""
        assert status in _MOVES.get(self.status, ()), (
            f"job {self.job_id} can't go from {self.status} to {status}"
        )
        ended = None if status in OPEN else now_us
        return msgspec.structs.replace(
            self,
            status=status,
            message=message,
            updated_at=now_us,
            finished_at=ended,
            due_at=None,
            lease=None,
        )

    def started(self, now_us: int, *, lease: str) -> "Job":
        job = self.moved(Status.RUNNING, self.message, now_us)
        return msgspec.structs.replace(job, started_at=now_us, lease=lease)

    def failed(self, cause: str, now_us: int) -> "Job":
        """Note a failed attempt: retrying while attempts are left, after ever longer pauses, else failed."""
        if self.retry_count >= self.max_retries:
            return self.moved(Status.FAILED, cause, now_us)
        job = self.moved(Status.RETRYING, cause, now_us)
        due_at = now_us + backoff_us(self.retry_count)
        return msgspec.structs.replace(job, retry_count=self.retry_count + 1, due_at=due_at)

    def renewed(self, now_us: int, *, asked_seq: int) -> "Job":
        """Return the job queued again at somebody's wish, with all its attempts before it."""
        job = self.moved(Status.QUEUED, self.message, now_us)
        is_over = self.status is not Status.RETRYING
        retry_count = self.retry_count + is_over
        return msgspec.structs.replace(
            job, retry_count=retry_count, max_retries=retry_count + RETRIES_MAX, asked_seq=asked_seq
        )

    def is_due(self, now_us: int) -> bool:
        """Whether an attempt may begin. A clock that was set back delays nothing beyond the pause itself."""
        if self.status is Status.QUEUED:
            return True
        return self.status is Status.RETRYING and not self.wait_us(now_us) > 0

    def wait_us(self, now_us: int) -> int:
        """Return how long a retrying job still has to wait."""
        wait = (self.due_at or 0) - now_us
        return wait if wait <= backoff_us(self.retry_count) else 0


def backoff_us(retry_count: int) -> int:
    """Return the pause after the attempt that follows `retry_count` retries."""
    return int(BACKOFF_FIRST_S * 1_000_000) << retry_count


def decode_job(record: bytes) -> Job:
    return msgspec.json.decode(record, type=Job)


def encode_job(job: Job) -> bytes:
    return msgspec.json.encode(job)


def oldest_first(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.created_at, job.job_id))
