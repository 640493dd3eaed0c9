"""The job queue: durable job records, who holds which slot, and who works on what.

Law: a state is stored before anything acts on it, and each move expects the record of the state before; so of
a KILL JOB and the end of an attempt one wins, and after a crash no job stays "running": it is queued again as
long as it has attempts left. A lease needs no expiry: the store admits one server, so what an earlier run
leased is free.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from upwell.clock import Clock
from upwell.effects import NoPoints, Points
from upwell.engine.catalog import Table, load_dropped
from upwell.engine.commit import Committer
from upwell.engine.stop import Stop
from upwell.errors import InvalidOperation, NotFound, UpwellError
from upwell.ids import job_id, uuid7
from upwell.jobs.job import (
    RETRYABLE,
    Job,
    JobType,
    Parameter,
    Status,
    decode_job,
    encode_job,
    oldest_first,
)
from upwell.storage.hot import Batch, HotReader, Kind, RecordIs, RecordWrite

REMOVED_SLICE = 500


class Moved(UpwellError):
    """The job was killed, or is in another attempt: who still works on it has no say any more."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A job and the record that it is stored as."""

    job: Job
    record: bytes


@dataclass(slots=True)
class _Finished:
    """The jobs that ended, in the order of their ends."""

    ends: dict[str, int] = field(default_factory=dict)

    def due(self, before_us: int, keep_max: int) -> list[str]:
        """Return those that ended before a time, and the oldest of too many."""
        surplus = len(self.ends) - keep_max
        return [name for at, (name, end) in enumerate(self.ends.items()) if end < before_us or at < surplus]


class JobQueue:
    """Creates jobs and moves them; what is open is also kept in memory. Thread-safe."""

    def __init__(
        self,
        committer: Committer,
        clock: Clock,
        make_id: Callable[[str], str] = job_id,
        points: Points | None = None,
    ) -> None:
        self.points = points or NoPoints()
        self._committer = committer
        self._clock = clock
        self._make_id = make_id
        self._lease = uuid7(clock)
        self._lock = threading.RLock()
        self._open: dict[str, _Held] = {}
        self._finished = _Finished()
        self._working: dict[str, tuple[Stop, int | None]] = {}
        self._listeners: list[Callable[[], object]] = []
        ends: list[tuple[int, str]] = []
        for name, record in committer.newest.scan_records(Kind.JOB):
            job = decode_job(record)
            if job.is_open:
                self._open[name] = _Held(job, record)
            else:
                ends.append((job.finished_at or job.updated_at, name))
        self._finished.ends.update((name, end) for end, name in sorted(ends))

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` whenever a job may have become due."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], object]) -> None:
        self._listeners.remove(listener)

    def wake(self) -> None:
        """Say that jobs may be due: a new one, a free table, a clock that was moved."""
        for listener in list(self._listeners):
            listener()

    def recover(self) -> None:
        """Queue again what a crash interrupted; an interrupted attempt counts as a failed one.

        Dropped tables that nobody cleans up, because the crash came first, are queued as well.
        """
        for job in self.open_jobs():
            if job.status is Status.RUNNING:
                job = self.fail(job, "interrupted by a restart")
            if job.status in (Status.NEW, Status.RETRYING):
                self._move(job, job.moved(Status.QUEUED, job.message, self._clock.now_us()))
        for table in load_dropped(self._committer.newest):
            self.submit_cleanup(table)
        self._committer.publication.wait(self._committer.last_seq)

    def submit(
        self,
        job_type: JobType,
        parameters: Mapping[str, Parameter],
        idempotency_key: str,
        *,
        slot: str | None = None,
    ) -> Job | None:
        """Queue a job and return it when it is durable; None if an open one holds the slot already.

        The slot is the key, unless the key is a name that another thing may have later.
        """
        queued = self._queue(job_type, parameters, idempotency_key, slot or idempotency_key)
        if queued is None:
            return None
        # Not under the lock: the event loop asks for the next job, and must not wait for a sync.
        self._committer.publication.wait(queued[1])
        self.points.reach("job:queued")
        self.wake()
        return queued[0]

    def submit_cleanup(self, table: Table) -> Job | None:
        """Queue the removal of what is left of a dropped table, and cancel what else was to be done with it.

        Returns the job that removes it, which somebody else may have queued; None if that has ended already.
        Doesn't wait: the job is as durable as the drop, which was committed before it. Who calls this wakes
        the runner when whoever dropped the table has their answer: the cleanup has time.
        """
        with self._lock:
            for other in self.open_jobs():
                if other.table_number == table.id and other.job_type is not JobType.CLEANUP:
                    self._cancel(other.job_id, "the table was dropped")
        parameters: dict[str, Parameter] = {
            "table_id": table.full_name, "table_number": table.id, "namespace": table.namespace,
            "table_name": table.name, "table_type": table.kind.value,
        }  # fmt: skip
        slot = f"cleanup-{table.id}"
        with self._lock:
            queued = self._queue(JobType.CLEANUP, parameters, slot, slot)
            return self._holder(slot) if queued is None else queued[0]

    def find(self, name: str) -> Job | None:
        """Return a job, open or over; None if it was never there or is forgotten."""
        with self._lock:
            try:
                return self._get(name).job
            except NotFound:
                return None

    def open_jobs(self) -> list[Job]:
        """Return the jobs that haven't ended, oldest first."""
        with self._lock:
            return oldest_first(held.job for held in self._open.values())

    def find_due(self) -> Job | None:
        """Return the job that has waited longest, if its time has come and nobody works on its table."""
        now = self._clock.now_us()
        with self._lock:
            busy = {table for _, table in self._working.values()} - {None}
            jobs = [held.job for held in self._open.values() if held.job.is_due(now)]
            free = [job for job in jobs if job.table_number not in busy and job.job_id not in self._working]
        return min(free, key=lambda job: (job.created_at, job.job_id), default=None)

    def pause_s(self) -> float | None:
        """Return the seconds until the next attempt of a failed job is due; None if there is none."""
        now = self._clock.now_us()
        with self._lock:
            waits = [
                held.job.wait_us(now) for held in self._open.values() if held.job.status is Status.RETRYING
            ]
        return max(0, min(waits)) / 1_000_000 if waits else None

    def start(self, job: Job) -> Job:
        """Lease the job for an attempt; `release` it when the attempt has ended, however that was."""
        return self._move(job, job.started(self._clock.now_us(), lease=self._lease))

    def begin_work(self, job: Job) -> Stop:
        """Note that a thread works on the job's table from now on; it has to look at the `Stop`."""
        stop = Stop()
        with self._lock:
            self._working[job.job_id] = (stop, job.table_number)
        return stop

    def end_work(self, job: Job) -> None:
        with self._lock:
            self._working.pop(job.job_id, None)
        self.wake()

    def stop_work(self) -> None:
        """Ask all attempts to stop: the server ends."""
        with self._lock:
            stops = [stop for stop, _ in self._working.values()]
        for stop in stops:
            stop.request()

    def complete(self, job: Job, message: str) -> Job:
        return self._move(job, job.moved(Status.COMPLETED, message, self._clock.now_us()))

    def skip(self, job: Job, message: str) -> Job:
        return self._move(job, job.moved(Status.SKIPPED, message, self._clock.now_us()))

    def fail(self, job: Job, cause: str) -> Job:
        """Note a failed attempt: retrying while attempts are left, else failed."""
        return self._move(job, job.failed(cause, self._clock.now_us()))

    def put_back(self, job: Job, message: str) -> Job:
        """Queue a job whose attempt was stopped before it ended, without counting it."""
        return self._move(job, job.moved(Status.QUEUED, message, self._clock.now_us()))

    def kill(self, name: str) -> Job:
        """Cancel an open job and stop the work on it; raise `NotFound` or `InvalidOperation`."""
        job, seq = self._cancel(name, "cancelled by KILL JOB")
        self._committer.publication.wait(seq)
        return job

    def retry(self, name: str) -> Job:
        """Queue a job again that failed, was cancelled or waits for its next attempt.

        Raises `NotFound`, or `InvalidOperation` for a job in another state or whose work is another's by now.
        """
        with self._lock:
            held = self._get(name)
            job = held.job
            if job.status is Status.QUEUED:
                return job
            if job.status not in RETRYABLE:
                raise InvalidOperation(
                    f"job '{name}' is {job.status.value}; RETRY JOB takes a failed, cancelled or retrying one"
                )
            holder = self._holder(job.slot)
            if holder is not None and holder.job_id != name:
                raise InvalidOperation(f"job '{holder.job_id}' does the same work already")
            renewed = job.renewed(self._clock.now_us(), asked_seq=self._committer.last_seq)
            job, seq = self._apply(held, renewed)
        self._committer.publication.wait(seq)
        self.wake()
        return job

    def has_old(self, *, before_us: int, keep_max: int) -> bool:
        """Whether jobs ended before a time, or more than `keep_max` have ended."""
        with self._lock:
            oldest = next(iter(self._finished.ends.values()), before_us)
            return oldest < before_us or len(self._finished.ends) > keep_max

    def remove_old(self, *, before_us: int, keep_max: int) -> int:
        """Remove the records of these jobs; return how many."""
        with self._lock:
            names = self._finished.due(before_us, keep_max)
            for at in range(0, len(names), REMOVED_SLICE):
                gone = names[at : at + REMOVED_SLICE]
                self._committer.apply(Batch(records=[RecordWrite(Kind.JOB, name, None) for name in gone]))
                for name in gone:
                    del self._finished.ends[name]
        return len(names)

    def _queue(
        self, job_type: JobType, parameters: Mapping[str, Parameter], idempotency_key: str, slot: str
    ) -> tuple[Job, int] | None:
        with self._lock:
            if self._holder(slot) is not None:
                return None
            now = self._clock.now_us()
            job = Job(
                job_id=self._make_id(job_type.prefix),
                job_type=job_type,
                status=Status.NEW,
                parameters=dict(parameters),
                idempotency_key=idempotency_key,
                slot=slot,
                asked_seq=self._committer.last_seq,
                created_at=now,
                updated_at=now,
            )
            return self._apply(None, job.moved(Status.QUEUED, None, now))

    def _cancel(self, name: str, message: str) -> tuple[Job, int]:
        with self._lock:
            held = self._get(name)
            if not held.job.is_open:
                raise InvalidOperation(f"job '{name}' is {held.job.status.value}; it is over already")
            cancelled = held.job.moved(Status.CANCELLED, message, self._clock.now_us())
            job, seq = self._apply(held, cancelled)
            if name in self._working:
                self._working[name][0].request()
        return job, seq

    def _holder(self, slot: str) -> Job | None:
        return next((held.job for held in self._open.values() if held.job.slot == slot), None)

    def _get(self, name: str) -> _Held:
        held = self._open.get(name)
        if held is None:
            record = self._committer.newest.find_record(Kind.JOB, name)
            if record is None:
                raise NotFound(f"job '{name[:200]}'; SELECT job_id, status FROM system.jobs lists them")
            held = _Held(decode_job(record), record)
        return held

    def _move(self, before: Job, after: Job) -> Job:
        with self._lock:
            held = self._open.get(before.job_id)
            if held is None or held.job != before:
                raise Moved(f"job {before.job_id} was moved by somebody else meanwhile")
            job, seq = self._apply(held, after)
        self._committer.publication.wait(seq)
        return job

    def _apply(self, held: _Held | None, job: Job) -> tuple[Job, int]:
        name, record = job.job_id, encode_job(job)
        expected = RecordIs(Kind.JOB, name, None if held is None else held.record)
        seq = self._committer.apply(
            Batch(records=[RecordWrite(Kind.JOB, name, record)], expectations=[expected])
        )
        self._finished.ends.pop(name, None)
        if job.is_open:
            self._open[name] = _Held(job, record)
        else:
            self._open.pop(name, None)
            self._finished.ends[name] = job.finished_at or job.updated_at
        return job, seq


def load_jobs(reader: HotReader) -> list[Job]:
    """Read all job records, oldest first."""
    return oldest_first(decode_job(record) for _, record in reader.scan_records(Kind.JOB))
