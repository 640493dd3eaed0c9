"""What nobody asks for is submitted when it is due, and not over and over."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.jobs.job import Job, Status
from upwell.jobs.queue import load_jobs
from upwell.jobs.schedule import watch_flush
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as db:
        db.run("CREATE NAMESPACE app")
        yield db


def fail(db: Embedded, job: Job) -> None:
    """Use up all attempts."""
    while job.status is not Status.FAILED:
        job = db.jobs.fail(db.jobs.start(job), "the disk is away")


def kill(db: Embedded, job: Job) -> None:
    db.jobs.kill(job.job_id)


@pytest.mark.parametrize("end", [fail, kill])
def test_a_flush_by_policy_that_failed_or_was_killed_waits_half_a_minute(
    db: Embedded, clock: ManualClock, end: Callable[[Embedded, Job], None]
) -> None:
    """Else a disk that is away makes a job for each second; another table isn't kept waiting."""
    watch = watch_flush(db.jobs, db.committer, clock, 1.0)
    for table in ("one", "other"):
        db.run(f"CREATE TABLE app.{table} (id INT PRIMARY KEY) WITH (TYPE='SHARED', FLUSH_POLICY='rows:1')")
    db.run("INSERT INTO app.one VALUES (1)")
    watch.look()
    [first] = db.jobs.open_jobs()
    end(db, first)
    clock.advance(29)
    watch.look()
    assert db.jobs.open_jobs() == []
    db.run("INSERT INTO app.other VALUES (1)")
    watch.look()
    assert [job.parameters["table_id"] for job in db.jobs.open_jobs()] == ["app.other"]
    clock.advance(2)
    watch.look()
    watch.look()
    assert sorted(str(job.parameters["table_id"]) for job in db.jobs.open_jobs()) == ["app.one", "app.other"]
    assert len(load_jobs(db.view.hot)) == 3
