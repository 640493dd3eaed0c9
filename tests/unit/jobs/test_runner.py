"""The runner ends every job that is queued, whatever an attempt raises, and goes on with the next one."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.jobs import runner as runner_module
from upwell.jobs.kinds import Done, Kinds
from upwell.jobs.queue import OPEN, RETRIES_MAX, Job, JobQueue, JobType, Status, load_jobs
from upwell.jobs.runner import JobRunner
from upwell.testing import FailingFiles
from upwell.testing.embedded import Embedded


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "BACKOFF_FIRST_S", 0.0)


def flush(db: Embedded, table: str = "app.ours") -> Job:
    job = db.jobs.submit(JobType.FLUSH, {"table_number": db.table(table).id}, f"flush-{table}")
    assert job is not None
    return job


def run_until_idle(db: Embedded, kinds: Kinds | None = None) -> list[Job]:
    """Run what is queued to its end; return all jobs."""

    async def run() -> list[Job]:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def look() -> None:
            if not any(job.status in OPEN for job in load_jobs(db.view.hot)):
                loop.call_soon_threadsafe(ended.set)

        db.committer.publication.listen(look)
        with ThreadPoolExecutor(1) as threads:
            task = asyncio.create_task(JobRunner(db.jobs, kinds or db.kinds, threads).run())
            look()
            await asyncio.wait_for(ended.wait(), 30)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return load_jobs(db.view.hot)

    return db.runner.run(run())


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


class Failing(Kinds):
    """Kinds whose flushes of one table raise `error`, whatever that is."""

    def __init__(self, db: Embedded, table: int, error: Exception) -> None:
        super().__init__(db.committer, db.flusher, db.cleanup, db.trim, db.points)
        self._table = table
        self._error = error

    def run(self, job: Job) -> Done:
        if job.parameters["table_number"] == self._table:
            raise self._error
        return super().run(job)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("a library's own"), AssertionError("a bug")]
)
def test_whatever_an_attempt_raises_becomes_the_message(db: Embedded, error: Exception) -> None:
    """And does not keep the next job from running."""
    db.run(
        "CREATE TABLE app.other (id INT PRIMARY KEY) WITH (TYPE = 'SHARED'); INSERT INTO app.other VALUES (1)"
    )
    first, second = flush(db), flush(db, "app.other")
    jobs = run_until_idle(db, Failing(db, db.table("app.ours").id, error))
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


def test_a_flush_of_a_dropped_table_is_skipped_and_its_cleanup_runs(db: Embedded) -> None:
    flush(db)
    db.run("DROP TABLE app.ours")
    assert [(job.job_type, job.status) for job in run_until_idle(db)] == [
        (JobType.FLUSH, Status.SKIPPED),
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
