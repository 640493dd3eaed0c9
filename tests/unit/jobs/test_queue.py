"""Jobs are durable before anything acts on them, and none stays running after a crash."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.engine.stop import Stopped
from upwell.errors import InvalidOperation, NotFound, ReadOnly
from upwell.jobs.job import OPEN, RETRIES_MAX, Job, JobType, Status
from upwell.jobs.queue import JobQueue, Moved, load_jobs
from upwell.jobs.retention import JobRetention
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import JOBS_KEPT_MAX, RETENTION_S, Embedded


def submit(db: Embedded, key: str = "flush-t", table: int = 1) -> Job:
    job = db.jobs.submit(JobType.FLUSH, {"table_number": table}, key)
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
    assert db.jobs.find_due() == first
    db.jobs.start(first)
    assert db.jobs.find_due() == second
    db.jobs.start(second)
    assert db.jobs.find_due() is None


def test_two_jobs_of_one_table_never_run_at_the_same_time(db: Embedded) -> None:
    first, second, other = submit(db, "a", table=1), submit(db, "b", table=1), submit(db, "c", table=2)
    db.jobs.begin_work(first)
    running = db.jobs.start(first)
    assert db.jobs.find_due() == other
    db.jobs.kill(running.job_id)
    assert db.jobs.find_due() == other, "its thread still works on the table"
    db.jobs.end_work(first)
    assert db.jobs.find_due() == second


def test_attempts_are_bounded_and_the_last_cause_stays(db: Embedded) -> None:
    job = submit(db)
    for attempt in range(1, RETRIES_MAX + 1):
        job = db.jobs.fail(db.jobs.start(job), f"cause {attempt}")
        assert (job.status, job.retry_count, job.message) == (Status.RETRYING, attempt, f"cause {attempt}")
    job = db.jobs.fail(db.jobs.start(job), "the last straw")
    assert (job.status, job.message, stored(db, job)) == (Status.FAILED, "the last straw", job)
    assert submit(db).job_id != job.job_id, "the key is free again"


def test_moves_that_make_no_sense_are_impossible(db: Embedded) -> None:
    job = submit(db)
    for move in (db.jobs.complete, db.jobs.fail):
        with pytest.raises(AssertionError):
            move(job, "x")
    running = db.jobs.start(job)
    done = db.jobs.complete(running, "x")
    with pytest.raises(AssertionError):
        db.jobs.start(done)
    with pytest.raises(Moved):
        db.jobs.fail(running, "too late")
    assert stored(db, job) == done


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
        found = queue.find_due()
        assert found is not None
        queue.start(found)
    queue = reopened(db)
    queue.recover()
    assert queue.find_due() is None
    assert (stored(db, job).status, stored(db, job).message) == (Status.FAILED, "interrupted by a restart")


def test_recovery_leaves_what_is_recovered(db: Embedded) -> None:
    queued = submit(db)
    queue = reopened(db)
    seq = db.committer.last_seq
    queue.recover()
    assert db.committer.last_seq == seq
    assert queue.find_due() == queued


def test_submitting_never_keeps_the_loop_from_asking_for_the_next_job(tmp_path: Path) -> None:
    """The submission waits for its sync without the lock that `find_due` takes."""
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
        asking = threading.Thread(target=lambda: found.append(db.jobs.find_due()), daemon=True)
        asking.start()
        asking.join(10)
        go.set()
        submitting.join(30)
        assert len(found) == 1, "the question was answered while the sync was held"
        assert db.jobs.find_due() is not None


def test_a_job_that_could_not_be_stored_is_not_there(db: Embedded) -> None:
    db.committer.publication.fail(ReadOnly("the disk is gone"))
    with pytest.raises(ReadOnly):
        submit(db)
    assert db.jobs.find_due() is None


def test_who_kills_a_job_has_the_last_word(db: Embedded) -> None:
    job = submit(db)
    stop = db.jobs.begin_work(job)
    running = db.jobs.start(job)
    killed = db.jobs.kill(job.job_id)
    assert (killed.status, killed.message) == (Status.CANCELLED, "cancelled by KILL JOB")
    assert killed.finished_at is not None
    with pytest.raises(Stopped):
        stop.check()
    for end in (db.jobs.complete, db.jobs.fail, db.jobs.skip, db.jobs.put_back):
        with pytest.raises(Moved):
            end(running, "done")
    assert stored(db, job) == killed
    with pytest.raises(InvalidOperation, match="is cancelled; it is over already"):
        db.jobs.kill(job.job_id)
    with pytest.raises(NotFound, match="job 'FL-nowhere'"):
        db.jobs.kill("FL-nowhere")


def test_a_failed_job_comes_back_by_retry_with_new_attempts(db: Embedded) -> None:
    job = submit(db)
    for _ in range(RETRIES_MAX + 1):
        job = db.jobs.fail(db.jobs.start(job), "no space")
    assert job.status is Status.FAILED
    db.change("INSERT INTO app.ours VALUES (9, 9)")
    again = db.jobs.retry(job.job_id)
    assert (again.status, again.message, again.finished_at) == (Status.QUEUED, "no space", None)
    assert (again.retry_count, again.max_retries) == (RETRIES_MAX + 1, 2 * RETRIES_MAX + 1)
    assert (again.job_id, again.created_at) == (job.job_id, job.created_at)
    assert again.asked_seq > job.asked_seq, "what was written before the retry is asked for as well"
    assert db.jobs.retry(job.job_id) == again, "queued is queued"
    assert stored(db, job) == again
    done = db.jobs.complete(db.jobs.start(again), "2 rows")
    for wrong in (done, submit_started(db)):
        with pytest.raises(InvalidOperation, match="RETRY JOB takes a failed, cancelled or retrying one"):
            db.jobs.retry(wrong.job_id)


def submit_started(db: Embedded) -> Job:
    return db.jobs.start(submit(db, "running"))


def test_a_job_is_not_retried_beside_one_that_does_the_same(db: Embedded) -> None:
    killed = db.jobs.kill(submit(db).job_id)
    other = submit(db)
    with pytest.raises(InvalidOperation, match=f"job '{other.job_id}' does the same work already"):
        db.jobs.retry(killed.job_id)
    db.jobs.kill(other.job_id)
    assert db.jobs.retry(killed.job_id).status is Status.QUEUED


def test_the_slot_and_not_the_key_decides_who_is_open(db: Embedded) -> None:
    """A table made anew under an old name has the old key, and is another table."""
    one = db.jobs.submit(JobType.FLUSH, {}, "flush-app-t", slot="flush/1")
    other = db.jobs.submit(JobType.FLUSH, {}, "flush-app-t", slot="flush/2")
    assert one is not None
    assert other is not None
    assert db.jobs.submit(JobType.FLUSH, {}, "flush-app-t", slot="flush/2") is None


def test_between_attempts_there_is_a_pause_that_doubles(tmp_path: Path) -> None:
    clock = ManualClock()
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as db:
        assert db.jobs.pause_s() is None
        job = submit(db)
        for pause_s in (0.1, 0.2, 0.4):
            job = db.jobs.fail(db.jobs.start(job), "no space")
            assert (db.jobs.find_due(), db.jobs.pause_s()) == (None, pause_s)
            clock.advance(pause_s - 0.01)
            assert db.jobs.find_due() is None
            clock.advance(0.01)
            assert db.jobs.find_due() == job
        job = db.jobs.fail(db.jobs.start(job), "no space")
        assert (job.status, db.jobs.find_due(), db.jobs.pause_s()) == (Status.FAILED, None, None)


def test_a_clock_that_is_set_back_does_not_put_an_attempt_off(tmp_path: Path) -> None:
    clock = ManualClock()
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as db:
        job = db.jobs.fail(db.jobs.start(submit(db)), "no space")
        clock.advance(-3_600)
        assert db.jobs.find_due() == job


def test_jobs_that_ended_long_ago_are_forgotten(tmp_path: Path) -> None:
    clock = ManualClock()
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as db:
        old = db.jobs.complete(db.jobs.start(submit(db, "a")), "ok")
        clock.advance(RETENTION_S / 2)
        young, open_ = db.jobs.kill(submit(db, "b").job_id), submit(db, "c")
        assert not db.retention.is_due()
        clock.advance(RETENTION_S / 2 + 1)
        for queue in (db.jobs, reopened(db)):
            assert JobRetention(queue, clock, RETENTION_S, JOBS_KEPT_MAX).is_due()
        assert db.retention.run() == 1
        db.settle()
        assert {job.job_id for job in load_jobs(db.view.hot)} == {young.job_id, open_.job_id}
        assert not db.retention.is_due()
        with pytest.raises(NotFound):
            db.jobs.retry(old.job_id)


def test_however_many_jobs_end_a_bounded_number_is_kept(db: Embedded) -> None:
    jobs = [db.jobs.complete(db.jobs.start(submit(db)), "ok") for _ in range(JOBS_KEPT_MAX + 1)]
    assert db.retention.is_due()
    assert db.retention.run() == 1 + JOBS_KEPT_MAX // 10
    db.settle()
    assert [job.job_id for job in load_jobs(db.view.hot)] == [job.job_id for job in jobs[11:]]
    assert not db.retention.is_due()
