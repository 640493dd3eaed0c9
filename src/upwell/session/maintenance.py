"""Maintenance: the statements that ask for background work, and those that steer it."""

from dataclasses import dataclass
from functools import partial

from upwell.engine.flush import Flush
from upwell.errors import InvalidOperation
from upwell.feeds.cursor import Growth
from upwell.jobs.job import JobType, Parameter, Status
from upwell.jobs.queue import JobQueue
from upwell.session.call import Call
from upwell.session.dml import evaluate
from upwell.session.outcome import Changed, Message
from upwell.session.policy import require_admin, require_flush
from upwell.session.threads import SlowThreads
from upwell.sql.statements import FlushTable, KillJob, RetryJob, SetJobStatus


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Runs STORAGE and JOB statements."""

    flush: Flush
    jobs: JobQueue
    growth: Growth
    slow: SlowThreads

    async def steer(self, call: Call, statement: KillJob | RetryJob | SetJobStatus) -> Message | Changed:
        """Cancel a job, or queue it again."""
        require_admin(call.principal, "job management")
        match statement:
            case KillJob(name):
                await self.slow.run(partial(self.jobs.kill, name))
                return Message(f"Job {name} killed: cancelled")
            case RetryJob(name):
                await self.slow.run(partial(self.jobs.retry, name))
                return Message(f"Job {name} queued again")
            case SetJobStatus(job_id, status):
                if evaluate(status.node, [], call.values, call.context()) != Status.QUEUED.value:
                    raise InvalidOperation("the status of a job can be set to 'queued'; KILL JOB cancels it")
                chosen = evaluate(job_id.node, [], call.values, call.context())
                await self.slow.run(partial(self.jobs.retry, str(chosen)))
                return Changed("Updated", 1)

    async def flush_table(self, call: Call, statement: FlushTable) -> Message:
        require_flush(call.principal)
        table, name = statement.table, statement.table.full_name
        # A barrier: what was acknowledged before this statement is in the View that the job flushes.
        if not self.flush.is_pending(self.growth.view, table):
            return Message(f"Storage flush skipped: no pending writes for table '{name}'")
        parameters: dict[str, Parameter] = {
            "table_id": name,
            "table_number": table.id,
            "table_type": table.kind.value,
        }
        # Of the table, not of its name: another one may have that later. People see the contract's key.
        key, slot = f"flush-{table.namespace}-{table.name}", f"flush/{table.id}"
        job = await self.slow.run(partial(self.jobs.submit, JobType.FLUSH, parameters, key, slot=slot))
        if job is None:
            return Message(f"Storage flush skipped: a flush is already queued or running for table '{name}'")
        return Message(f"Storage flush started for table '{name}'. Job ID: {job.job_id}")
