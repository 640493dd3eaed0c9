"""What each type of job does: a closed set, each a few lines that call the engine."""

from dataclasses import dataclass

from upwell.effects import Points
from upwell.engine.cleanup import Cleanup
from upwell.engine.commit import Committer
from upwell.engine.flush import Flush
from upwell.engine.trim import LogTrim
from upwell.jobs.queue import Job, JobType
from upwell.types import TableId


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended: its message, and whether there was anything to do."""

    message: str
    skipped: bool = False


class Kinds:
    """Runs a job in the calling thread; raises what stopped it."""

    def __init__(
        self, committer: Committer, flush: Flush, cleanup: Cleanup, trim: LogTrim, points: Points
    ) -> None:
        self._committer = committer
        self._flush = flush
        self._cleanup = cleanup
        self._trim = trim
        self._points = points

    def run(self, job: Job) -> Done:
        match job.job_type:
            case JobType.FLUSH:
                return self._run_flush(TableId(int(job.parameters["table_number"])))
            case JobType.CLEANUP:
                return self._run_cleanup(job)
            case JobType.TRIM:
                count = self._trim.run()
                return Done(f"{count} entries of the log are gone", skipped=not count)

    def _run_flush(self, table_id: TableId) -> Done:
        view = self._committer.publication.view
        table = view.catalog.by_id.get(table_id)
        if table is None:
            return Done("the table was dropped meanwhile", skipped=True)
        parts = [self._flush.flush_partition(table, owner) for owner in self._flush.pending(view, table)]
        rows = sum(part.rows for part in parts)
        self._points.reach("flush:job-completed")
        return Done(f"{rows} row(s) of {len(parts)} partition(s) are in Parquet now")

    def _run_cleanup(self, job: Job) -> Done:
        partitions = self._cleanup.remove_table(
            TableId(int(job.parameters["table_number"])),
            namespace=str(job.parameters["namespace"]),
            name=str(job.parameters["table_name"]),
        )
        return Done(f"rows, log and {partitions} cold partition(s) removed")
