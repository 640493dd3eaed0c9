"""Maintenance: the statements that ask for background work on a table's storage."""

from dataclasses import dataclass
from functools import partial

from upwell.engine.flush import Flush
from upwell.feeds.cursor import Growth
from upwell.jobs.queue import JobQueue, JobType
from upwell.session.call import Call
from upwell.session.outcome import Message
from upwell.session.policy import require_flush
from upwell.session.threads import SlowThreads
from upwell.sql.statements import FlushTable


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Runs STORAGE statements."""

    flush: Flush
    jobs: JobQueue
    growth: Growth
    slow: SlowThreads

    async def flush_table(self, call: Call, statement: FlushTable) -> Message:
        require_flush(call.principal)
        table, name = statement.table, statement.table.full_name
        # A barrier: what was acknowledged before this statement is in the View that the job flushes.
        if not self.flush.is_pending(self.growth.view, table):
            return Message(f"Storage flush skipped: no pending writes for table '{name}'")
        parameters: dict[str, str | int] = {
            "table_id": name,
            "table_number": table.id,
            "table_type": table.kind.value,
        }
        key = f"flush-{table.namespace}-{table.name}"
        job = await self.slow.run(partial(self.jobs.submit, JobType.FLUSH, parameters, key))
        if job is None:
            return Message(f"Storage flush skipped: a flush is already queued or running for table '{name}'")
        return Message(f"Storage flush started for table '{name}'. Job ID: {job.job_id}")
