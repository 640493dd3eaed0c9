"""Jobs are durable before anything acts on them, and none stays running after a crash."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.errors import ReadOnly
from upwell.jobs.queue import OPEN, RETRIES_MAX, Job, JobQueue, JobType, Status, load_jobs
from upwell.testing.embedded import Embedded


def submit(db: Embedded, key: str = "flush-t") -> Job:
    job = db.jobs.submit(JobType.FLUSH, {"table_number": 1}, key)
    assert job is not None
    return job


def stored(db: Embedded, job: Job) -> Job:
    [found] = [each for each in load_jobs(db.view.hot) if each.job_id == job.job_id]
    return found


def reopened(db: Embedded) -> JobQueue:
    """Return the queue as the next start finds it, after what this start has begun."""
    return JobQueue(db.committer, db.clock)


def test_a_job_is_visible_in_each_state_as_soon_as_it_has_it(db: Embedded) -> None:
    job = submit(db)
    assert (job.status, job.job_id[:3], stored(db, job)) == (Status.QUEUED, "FL-", job)
    running = db.jobs.start(job)
    assert running.started_at is not None
    assert stored(db, job) == running
    done = db.jobs.complete(running, "2 rows")
    assert (done.status, done.message, stored(db, job)) == (Status.COMPLETED, "2 rows", done)
    assert done.finished_at is not None
    assert done.created_at == job.created_at
    assert db.rows("SELECT status, message FROM system.jobs") == [("completed", "2 rows")]


def test_one_job_of_a_key_is_open_at_a_time(db: Embedded) -> None:
    job = submit(db)
    assert db.jobs.submit(JobType.FLUSH, {}, "flush-t") is None
    assert submit(db, "flush-u").job_id != job.job_id
    db.jobs.skip(db.jobs.start(job), "nothing to do")
    assert submit(db).job_id != job.job_id


def test_of_racing_submissions_one_is_taken(db: Embedded) -> None:
    taken: list[Job | None] = []
    threads = [
        threading.Thread(target=lambda: taken.append(db.jobs.submit(JobType.FLUSH, {}, "flush-t")))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 16
    assert sum(job is not None for job in taken) == 1


def test_the_longest_waiting_job_is_next(db: Embedded) -> None:
    first, second = submit(db, "a"), submit(db, "b")
    assert db.jobs.find_queued() == first
    db.jobs.start(first)
    assert db.jobs.find_queued() == second
    db.jobs.start(second)
    assert db.jobs.find_queued() is None


def test_attempts_are_bounded_and_the_last_cause_stays(db: Embedded) -> None:
    job = submit(db)
    for attempt in range(1, RETRIES_MAX + 1):
        job = db.jobs.fail(db.jobs.start(job), f"cause {attempt}")
        assert (job.status, job.retry_count, job.message) == (Status.RETRYING, attempt, f"cause {attempt}")
        job = db.jobs.requeue(job)
    job = db.jobs.fail(db.jobs.start(job), "the last straw")
    assert (job.status, job.message, stored(db, job)) == (Status.FAILED, "the last straw", job)
    assert submit(db).job_id != job.job_id, "the key is free again"


def test_moves_that_make_no_sense_are_impossible(db: Embedded) -> None:
    job = submit(db)
    for move in (db.jobs.complete, db.jobs.fail):
        with pytest.raises(AssertionError):
            move(job, "x")
    done = db.jobs.complete(db.jobs.start(job), "x")
    with pytest.raises(AssertionError):
        db.jobs.start(done)


def test_after_a_crash_no_job_stays_running(db: Embedded) -> None:
    """What was running or waiting for its next attempt is queued again; what was queued still is."""
    running = db.jobs.start(submit(db, "running"))
    retrying = db.jobs.fail(db.jobs.start(submit(db, "retrying")), "no space")
    queued = submit(db, "queued")
    done = db.jobs.complete(db.jobs.start(submit(db, "done")), "ok")
    queue = reopened(db)
    queue.recover()
    found = {job.job_id: job for job in load_jobs(db.view.hot)}
    assert {job.status for job in found.values() if job.status in OPEN} == {Status.QUEUED}
    assert (found[running.job_id].retry_count, found[running.job_id].message) == (
        1,
        "interrupted by a restart",
    )
    assert (found[retrying.job_id].retry_count, found[retrying.job_id].message) == (1, "no space")
    assert (found[queued.job_id], found[done.job_id]) == (queued, done)


def test_a_job_that_kills_the_server_each_time_fails_in_the_end(db: Embedded) -> None:
    job = submit(db)
    for _ in range(RETRIES_MAX + 1):
        queue = reopened(db)
        queue.recover()
        found = queue.find_queued()
        assert found is not None
        queue.start(found)
    queue = reopened(db)
    queue.recover()
    assert queue.find_queued() is None
    assert (stored(db, job).status, stored(db, job).message) == (Status.FAILED, "interrupted by a restart")


def test_recovery_leaves_what_is_recovered(db: Embedded) -> None:
    queued = submit(db)
    queue = reopened(db)
    seq = db.committer.last_seq
    queue.recover()
    assert db.committer.last_seq == seq
    assert queue.find_queued() == queued


def test_submitting_never_keeps_the_loop_from_asking_for_the_next_job(tmp_path: Path) -> None:
    """The submission waits for its sync without the lock that `find_queued` takes."""
    held, go = threading.Event(), threading.Event()
    go.set()

    def wal_sync(sync: Callable[[], None]) -> None:
        if not go.is_set():
            held.set()
        assert go.wait(30)
        sync()

    with Embedded(tmp_path, wal_sync=wal_sync) as db:
        db.settle()
        go.clear()
        submitting = threading.Thread(target=submit, args=(db,))
        submitting.start()
        assert held.wait(30)
        found: list[Job | None] = []
        asking = threading.Thread(target=lambda: found.append(db.jobs.find_queued()), daemon=True)
        asking.start()
        asking.join(10)
        go.set()
        submitting.join(30)
        assert len(found) == 1, "the question was answered while the sync was held"
        assert db.jobs.find_queued() is not None


def test_a_job_that_could_not_be_stored_is_not_there(db: Embedded) -> None:
    db.committer.publication.fail(ReadOnly("the disk is gone"))
    with pytest.raises(ReadOnly):
        submit(db)
    assert db.jobs.find_queued() is None
