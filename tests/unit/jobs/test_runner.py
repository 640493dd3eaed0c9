"""The runner ends every job that is queued, whatever an attempt raises, and goes on with the next one."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.engine.stop import Stop
from upwell.errors import NotFound, ReadOnly
from upwell.jobs import job as job_module
from upwell.jobs.job import RETRIES_MAX, Job, JobType, Status
from upwell.jobs.kinds import Done
from upwell.jobs.queue import JobQueue, load_jobs
from upwell.jobs.runner import JobRunner, Work
from upwell.testing import FailingFiles, PointActions
from upwell.testing.embedded import Embedded


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "BACKOFF_FIRST_S", 0.0)


def flush(db: Embedded, table: str = "app.ours") -> Job:
    job = db.jobs.submit(JobType.FLUSH, {"table_number": db.table(table).id}, f"flush-{table}")
    assert job is not None
    return job


def run_until_idle(db: Embedded, work: Work | None = None, jobs_max: int = 1) -> list[Job]:
    """Run what is queued to its end; return all jobs."""
    return db.work_off(work, jobs_max=jobs_max)


def test_a_flush_job_ends_with_what_it_did(db: Embedded) -> None:
    job = flush(db)
    [done] = run_until_idle(db)
    assert (done.job_id, done.status) == (job.job_id, Status.COMPLETED)
    assert done.message == "2 row(s) of 1 partition(s) are in Parquet now"
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 1}, {"id": 2, "n": 2}]


def test_a_failed_attempt_is_made_again_and_ends_completed(db: Embedded, files: FailingFiles) -> None:
    flush(db)
    files.arm(5)
    [done] = run_until_idle(db)
    assert (done.status, done.retry_count) == (Status.COMPLETED, 1)
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == [(1, 1), (2, 2)]
    assert (db.cold_rows("app.ours"), db.cold_problems()) == ([{"id": 1, "n": 1}, {"id": 2, "n": 2}], [])


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("a library's own"), AssertionError("a bug")]
)
def test_whatever_an_attempt_raises_becomes_the_message(db: Embedded, error: Exception) -> None:
    """And does not keep the next job from running."""
    db.run(
        "CREATE TABLE app.other (id INT PRIMARY KEY) WITH (TYPE = 'SHARED'); INSERT INTO app.other VALUES (1)"
    )
    first, second = flush(db), flush(db, "app.other")
    table = db.table("app.ours").id

    def work(job: Job, stop: Stop) -> Done:
        if job.table_number == table:
            raise error
        return db.kinds.run(job, stop)

    jobs = run_until_idle(db, work)
    found = {job.job_id: job for job in jobs}
    assert found[first.job_id].status is Status.FAILED
    assert found[first.job_id].retry_count == RETRIES_MAX
    assert found[first.job_id].message == f"{type(error).__name__}: {error}"
    assert found[second.job_id].status is Status.COMPLETED
    assert db.rows("SELECT count(*) FROM app.ours") == [(2,)]


def test_what_a_crash_interrupted_ends_completed(db: Embedded) -> None:
    """The next start finds the job running, in an attempt that nobody makes any more."""
    db.jobs.start(flush(db))
    db.jobs = JobQueue(db.committer, db.clock)
    [done] = run_until_idle(db)
    assert (done.status, done.retry_count) == (Status.COMPLETED, 1)
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 1}, {"id": 2, "n": 2}]


def test_two_flushes_at_once_are_one_job_and_an_answer_that_says_so(db: Embedded) -> None:
    async def both() -> list[str]:
        outcomes = await asyncio.gather(*(db.outcomes("STORAGE FLUSH TABLE app.ours") for _ in range(2)))
        return [getattr(outcome.result, "text", "") for [outcome] in outcomes]

    texts = sorted(db.runner.run(both()))
    assert "a flush is already queued or running" in texts[0]
    assert "Storage flush started" in texts[1]
    assert [job.status for job in run_until_idle(db)] == [Status.COMPLETED]
    assert "skipped: no pending writes" in getattr(db.run("STORAGE FLUSH TABLE app.ours").result, "text", "")


def test_what_was_acknowledged_before_the_command_is_cold_when_the_job_is_done(db: Embedded) -> None:
    for number in range(3, 30):
        db.change(f"INSERT INTO app.ours VALUES ({number}, {number})")
        db.run("STORAGE FLUSH TABLE app.ours")
        run_until_idle(db)
        assert db.cold_rows("app.ours") == [{"id": key, "n": key} for key in range(1, number + 1)]


def test_a_flush_of_a_dropped_table_is_cancelled_and_its_cleanup_runs(db: Embedded) -> None:
    flush(db)
    db.run("DROP TABLE app.ours")
    assert [(job.job_type, job.status) for job in run_until_idle(db)] == [
        (JobType.FLUSH, Status.CANCELLED),
        (JobType.CLEANUP, Status.COMPLETED),
    ]


def test_a_drop_whose_cleanup_was_never_queued_is_cleaned_up_by_the_next_start(db: Embedded) -> None:
    """The crash came between the commit of the drop and the job."""
    db.flush("app.ours")
    db.schema.drop_table("app", "ours", if_exists=False)
    db.reopen()
    db.jobs.recover()
    assert [(job.job_type, job.status) for job in run_until_idle(db)] == [(JobType.CLEANUP, Status.COMPLETED)]
    assert [path for path in db.cold_root.rglob("*") if path.is_file()] == []
    db.reopen()
    db.jobs.recover()
    assert len(load_jobs(db.settle().hot)) == 1, "once is enough"


def test_jobs_of_several_tables_run_at_the_same_time_until_they_are_stopped(db: Embedded) -> None:
    """And the end of the server puts back what it stops, without counting the attempt."""
    together = threading.Barrier(3)

    def work(job: Job, stop: Stop) -> Done:
        together.wait(30)
        while True:
            stop.check()

    jobs = [db.jobs.submit(JobType.FLUSH, {"table_number": number}, f"{number}") for number in (1, 2, 3)]

    async def run() -> None:
        with ThreadPoolExecutor(3) as threads:
            task = asyncio.create_task(JobRunner(db.jobs, work, threads, jobs_max=2).run())
            await asyncio.to_thread(together.wait, 30)
            running = [job for job in load_jobs(db.settle().hot) if job.status is Status.RUNNING]
            assert [job.job_id for job in running] == [job.job_id for job in jobs[:2] if job]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    db.runner.run(run())
    found = load_jobs(db.settle().hot)
    assert [(job.status, job.retry_count) for job in found] == [(Status.QUEUED, 0)] * 3
    assert [job.message for job in found] == ["interrupted by the end of the server"] * 2 + [None]


def test_a_read_only_server_runs_no_job_and_says_so(db: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    """The state of a job can't be stored any more; the next start goes on with it."""
    flush(db)
    points = {"flush:before-commit": lambda: db.committer.publication.fail(ReadOnly("the disk is gone"))}
    db.flusher._points = PointActions(points)
    logging.getLogger("upwell").propagate = True

    async def run() -> None:
        with ThreadPoolExecutor(1) as threads:
            await asyncio.wait_for(JobRunner(db.jobs, db.kinds.run, threads).run(), 30)

    db.runner.run(run())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("CRITICAL", "No job runs any more: the server is read-only")
    ]
    for statement in ("STORAGE FLUSH TABLE app.ours", "RETRY JOB 'x'"):
        with pytest.raises((ReadOnly, NotFound)):
            db.run(statement)
