"""Jobs are seen and steered by SQL: KILL JOB, RETRY JOB, UPDATE system.jobs, by administrators only."""

import pytest

from upwell.errors import InvalidOperation, InvalidSql, NotFound, PermissionDenied
from upwell.jobs.job import Job, JobType, Status
from upwell.session.outcome import Changed, Message
from upwell.testing.embedded import Embedded

COLUMNS = [
    "job_id", "job_type", "status", "leader_status", "parameters",
    "message", "exception_trace", "idempotency_key", "queue", "priority",
    "retry_count", "max_retries", "memory_used", "cpu_used", "created_at",
    "updated_at", "started_at", "finished_at", "node_id", "leader_node_id",
]  # fmt: skip


@pytest.fixture
def job(db: Embedded) -> Job:
    made = db.jobs.submit(JobType.FLUSH, {"table_id": "app.ours", "table_number": 1}, "flush-app-ours")
    assert made is not None
    return made


def status(db: Embedded, job: Job) -> object:
    [(found,)] = db.rows(f"SELECT status FROM system.jobs WHERE job_id = '{job.job_id}'")
    return found


def test_a_killed_job_is_cancelled_and_comes_back_by_retry(db: Embedded, job: Job) -> None:
    assert db.run(f"KILL JOB '{job.job_id}'").result == Message(f"Job {job.job_id} killed: cancelled")
    assert status(db, job) == "cancelled"
    assert db.run(f"RETRY JOB '{job.job_id}'").result == Message(f"Job {job.job_id} queued again")
    assert status(db, job) == "queued"


def test_setting_the_status_to_queued_retries(db: Embedded, job: Job) -> None:
    for sql, params in (
        (f"UPDATE system.jobs SET status = 'queued' WHERE job_id = '{job.job_id}'", []),
        ("UPDATE system.jobs SET status = $1 WHERE job_id = $2", ["queued", job.job_id]),
    ):
        db.jobs.kill(job.job_id)
        assert db.run(sql, params).result == Changed("Updated", 1)
        assert status(db, job) == "queued"


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE system.jobs SET status = 'completed' WHERE job_id = '{}'",
        "UPDATE system.jobs SET job_id = 'x' WHERE job_id = '{}'",
        "UPDATE system.jobs SET status = 'queued'",
        "UPDATE system.jobs SET status = 'queued' WHERE status = 'failed'",
        "UPDATE system.jobs SET status = 'queued' WHERE job_id = substr('{}', 1)",
        "UPDATE system.jobs SET message = 'x' WHERE job_id = '{}'",
        "DELETE FROM system.jobs",
        "UPDATE system.job_nodes SET status = 'queued' WHERE job_id = '{}'",
    ],
)
def test_nothing_else_in_the_records_can_be_changed(db: Embedded, job: Job, sql: str) -> None:
    db.jobs.kill(job.job_id)
    with pytest.raises(InvalidOperation):
        db.run(sql.format(job.job_id))
    assert status(db, job) == "cancelled"


def test_a_job_that_is_not_there_is_not_found(db: Embedded) -> None:
    for sql in (
        "KILL JOB 'x'",
        "RETRY JOB 'x'",
        "UPDATE system.jobs SET status = 'queued' WHERE job_id = 'x'",
    ):
        with pytest.raises(NotFound, match="job 'x'; SELECT job_id, status FROM system"):
            db.run(sql)


def test_half_a_statement_says_what_is_missing(db: Embedded) -> None:
    for sql in ("KILL JOB", "KILL JOB x", "RETRY JOB", "RETRY", "RETRY x", "KILL JOB 'a' 'b'"):
        with pytest.raises(InvalidSql):
            db.run(sql)


def test_only_administrators_steer_jobs(db: Embedded, job: Job) -> None:
    for sql in (
        "KILL JOB '{}'",
        "RETRY JOB '{}'",
        "UPDATE system.jobs SET status='queued' WHERE job_id='{}'",
    ):
        with pytest.raises(PermissionDenied, match="Admin privileges"):
            db.run(sql.format(job.job_id), user="ann")
    for table in ("system.jobs", "system.job_nodes"):
        with pytest.raises(PermissionDenied):
            db.rows(f"SELECT * FROM {table}", user="ann")
    assert status(db, job) == "queued"


def test_the_tables_have_the_columns_of_the_contract(db: Embedded, job: Job) -> None:
    db.jobs.fail(db.jobs.start(job), "no space")
    [row] = db.rows("SELECT * FROM system.jobs")
    found = dict(zip(COLUMNS, row, strict=True))
    assert found["parameters"] == '{"table_id":"app.ours","table_number":1}'
    assert (found["job_type"], found["status"], found["leader_status"]) == ("flush", "retrying", "retrying")
    assert (found["retry_count"], found["max_retries"], found["message"]) == (1, 3, "no space")
    assert (found["idempotency_key"], found["finished_at"]) == ("flush-app-ours", None)
    [node] = db.rows("SELECT job_id, node_id, status, error_message FROM system.job_nodes")
    assert node == (job.job_id, 1, "retrying", "no space")
    assert db.jobs.kill(job.job_id).status is Status.CANCELLED
    assert db.rows("SELECT status, error_message FROM system.job_nodes") == [("cancelled", None)]
