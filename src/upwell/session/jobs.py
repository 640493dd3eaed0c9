"""`system.jobs` and `system.job_nodes`: background work as rows (contract, section 4).

Law: what they show is what is stored. One server does all jobs: its node leads, and is the only one.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

import msgspec

from upwell.engine.view import View
from upwell.jobs.job import Job, Status, decode_job
from upwell.jobs.queue import load_jobs
from upwell.session.fleet import Layout, Rows
from upwell.session.policy import Principal
from upwell.storage.hot import Kind
from upwell.types import SqlType, Value

NODE_ID = 1
_TEXT, _BIG, _INT, _SMALL, _TIME, _JSON = (
    SqlType.TEXT, SqlType.BIGINT, SqlType.INT, SqlType.SMALLINT, SqlType.TIMESTAMP, SqlType.JSON,
)  # fmt: skip
JOBS: Layout = [
    ("job_id", _TEXT), ("job_type", _TEXT), ("status", _TEXT), ("leader_status", _TEXT),
    ("parameters", _JSON), ("message", _TEXT), ("exception_trace", _TEXT), ("idempotency_key", _TEXT),
    ("queue", _TEXT), ("priority", _INT), ("retry_count", _SMALL), ("max_retries", _SMALL),
    ("memory_used", _BIG), ("cpu_used", _BIG), ("created_at", _TIME), ("updated_at", _TIME),
    ("started_at", _TIME), ("finished_at", _TIME), ("node_id", _BIG), ("leader_node_id", _BIG),
]  # fmt: skip
JOB_NODES: Layout = [
    ("job_id", _TEXT), ("node_id", _BIG), ("status", _TEXT), ("error_message", _TEXT),
    ("created_at", _TIME), ("started_at", _TIME), ("finished_at", _TIME), ("updated_at", _TIME),
]  # fmt: skip
_ROWS_CACHED_MAX = 4_096
_CREATED_AT = 14
_IN_TROUBLE = frozenset({Status.FAILED, Status.RETRYING})


def jobs(view: View, principal: Principal) -> tuple[Layout, Rows]:
    rows = [_row(record) for _, record in view.hot.scan_records(Kind.JOB)]
    return JOBS, sorted(rows, key=itemgetter(_CREATED_AT, 0))


def job_nodes(view: View, principal: Principal) -> tuple[Layout, Rows]:
    return JOB_NODES, [_node(job) for job in load_jobs(view.hot)]


@lru_cache(maxsize=_ROWS_CACHED_MAX)
def _row(record: bytes) -> Sequence[Value]:
    """Return the row of a record: who waits for a job asks again and again, and most jobs are over."""
    job = decode_job(record)
    return (
        job.job_id, job.job_type.value, job.status.value, job.status.value,
        msgspec.json.encode(job.parameters).decode(), job.message, None, job.idempotency_key,
        None, None, job.retry_count, job.max_retries,
        None, None, job.created_at, job.updated_at,
        job.started_at, job.finished_at, NODE_ID, NODE_ID,
    )  # fmt: skip


def _node(job: Job) -> Sequence[Value]:
    error = job.message if job.status in _IN_TROUBLE else None
    return (
        job.job_id, NODE_ID, job.status.value, error,
        job.created_at, job.started_at, job.finished_at, job.updated_at,
    )  # fmt: skip
