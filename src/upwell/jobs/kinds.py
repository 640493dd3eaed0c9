"""What each type of job does: a closed set, each a few lines that call the engine."""

from dataclasses import dataclass
from pathlib import Path

from upwell.clock import Clock
from upwell.effects import Points
from upwell.engine.backup import Backup
from upwell.engine.cleanup import Cleanup
from upwell.engine.commit import Committer
from upwell.engine.compact import Compact, Compacted
from upwell.engine.damage import Damage
from upwell.engine.expiry import Expiry
from upwell.engine.flush import Flush, Flushed
from upwell.engine.restore import Restore
from upwell.engine.stop import Stop
from upwell.engine.trim import LogTrim
from upwell.jobs.compaction import submit_compaction
from upwell.jobs.job import Job, JobType, Status, encode_job
from upwell.jobs.queue import JobQueue
from upwell.jobs.retention import JobRetention
from upwell.storage.hot import Kind, RecordWrite
from upwell.types import TableId


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended: its message, and whether there was anything to do."""

    message: str
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Kinds:
    """Runs a job in the calling thread; raises what stopped it."""

    committer: Committer
    flush: Flush
    compact: Compact
    cleanup: Cleanup
    trim: LogTrim
    retention: JobRetention
    expiry: Expiry
    backup: Backup
    restore: Restore
    queue: JobQueue
    clock: Clock
    points: Points

    def run(self, job: Job, stop: Stop) -> Done:
        """Do the work of a job; it looks at `stop` between two pieces."""
        match job.job_type:
            case JobType.FLUSH:
                return self._run_flush(job, stop)
            case JobType.COMPACT:
                return self._run_compact(job, stop)
            case JobType.CLEANUP:
                return self._run_cleanup(job)
            case JobType.TRIM:
                count = self.trim.run()
                return Done(f"{count} entries of the log are gone", skipped=not count)
            case JobType.JOB_CLEANUP:
                count = self.retention.run()
                return Done(f"{count} job(s) are forgotten", skipped=not count)
            case JobType.BACKUP:
                archive = self.backup.run(Path(job.text("backup_path")), job.job_id, stop)
                size_bytes = sum(entry.size_bytes for entry in archive.files)
                return Done(f"{len(archive.files)} file(s) of {size_bytes} bytes, at seq {archive.seq}")
            case JobType.RESTORE:
                return self._run_restore(job, stop)
            case JobType.EVICTION:
                count = self.expiry.evict(TableId(job.number("table_number")))
                return Done(f"expired rows have left the disk; {count} entries of their ends are gone too")

    def _run_restore(self, job: Job, stop: Stop) -> Done:
        source = Path(job.text("backup_path"))
        # What is restored was backed up before this job began: it is told how that ended.
        message = f"restored from '{source}'; what was here before is in replaced-{job.job_id}"
        ended = job.moved(Status.COMPLETED, message, self.clock.now_us())
        archive = self.restore.run(
            source,
            job.job_id,
            epoch=self.committer.newest.epoch,
            stop=stop,
            records=[RecordWrite(Kind.JOB, job.job_id, encode_job(ended))],
        )
        return Done(f"{len(archive.files)} file(s) verified; restart the server to serve them")

    def _run_flush(self, job: Job, stop: Stop) -> Done:
        view = self.committer.publication.view
        table = view.catalog.by_id.get(TableId(job.number("table_number")))
        if table is None:
            return Done("the table was dropped meanwhile", skipped=True)
        is_scheduled = "policy" in job.parameters
        if is_scheduled:
            owners = self.committer.pending.due_owners(table.id, self.clock.now_us())
            if job.retry_count:  # what a crash interrupted isn't due any more, and isn't over either
                owners = list(dict.fromkeys((*owners, *self.flush.interrupted(view, table))))
        else:
            owners = self.flush.pending(view, table, job.texts("users"))
        until = None if is_scheduled else job.asked_seq
        done: list[Flushed] = []
        try:
            for flushed in self.flush.flush_partitions(table, owners, until=until, stop=stop):
                done.append(flushed)
        finally:
            if any(each.is_due for each in done):
                submit_compaction(self.queue, table, whole=False)
        rows, partitions = sum(each.rows for each in done), sum(each.rows > 0 for each in done)
        self.points.reach("flush:job-completed")
        if not rows and job.retry_count:
            return Done("an earlier attempt has moved all rows to Parquet")
        if not rows:
            return Done("no pending writes: nothing to move to Parquet", skipped=True)
        return Done(f"{rows} row(s) of {partitions} partition(s) are in Parquet now")

    def _run_compact(self, job: Job, stop: Stop) -> Done:
        view = self.committer.publication.view
        table = view.catalog.by_id.get(TableId(job.number("table_number")))
        if table is None:
            return Done("the table was dropped meanwhile", skipped=True)
        whole = bool(job.number("whole"))
        done: list[Compacted] = []
        damage, owners = Damage(table), self.compact.owners(view, table, due_only=not whole)
        for owner in owners:
            stop.check()
            with damage.noted(owner):
                done.append(self.compact.compact_partition(table, owner, whole=whole))
        damage.refuse(len(owners))
        before, after = sum(each.before for each in done), sum(each.after for each in done)
        dropped = sum(each.dropped for each in done)
        self.points.reach("compact:job-completed")
        return Done(
            f"{before} segment(s) of {len(done)} partition(s) are {after} now, {dropped} row(s) dropped"
        )

    def _run_cleanup(self, job: Job) -> Done:
        partitions = self.cleanup.remove_table(
            TableId(job.number("table_number")), namespace=job.text("namespace"), name=job.text("table_name")
        )
        return Done(f"rows, log and {partitions} cold partition(s) removed")
