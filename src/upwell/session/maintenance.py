"""Maintenance: the statements that ask for background work, and those that steer it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from upwell.engine.archive import judged, load_archive, refuse_taken
from upwell.engine.catalog import Table, TableKind
from upwell.engine.flush import Flush
from upwell.errors import InvalidOperation, NotFound
from upwell.feeds.cursor import Growth
from upwell.jobs.compaction import submit_compaction
from upwell.jobs.job import Job, JobType, Parameter, Status
from upwell.jobs.queue import JobQueue
from upwell.session.call import Call
from upwell.session.dml import evaluate
from upwell.session.outcome import Changed, Message
from upwell.session.policy import require_admin, require_compact, require_flush
from upwell.session.threads import SlowThreads
from upwell.sql.maintenance import (
    BackupDatabase,
    CompactAll,
    CompactTable,
    FlushAll,
    FlushTable,
    KillJob,
    RestoreDatabase,
    RetryJob,
)
from upwell.sql.statements import SetJobStatus


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Runs STORAGE and JOB statements."""

    flusher: Flush
    jobs: JobQueue
    growth: Growth
    slow: SlowThreads
    data_dir: Path

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

    async def flush(self, call: Call, statement: FlushTable | FlushAll) -> Message:
        """Queue flushes of what is hot now; what was acknowledged before is cold when they are completed."""
        require_flush(call.principal)
        match statement:
            case FlushTable(table, users):
                return Message(await self._flush_table(table, users))
            case FlushAll(namespace):
                return Message(await self._flush_all(namespace or call.namespace))

    async def archive(self, call: Call, statement: BackupDatabase | RestoreDatabase) -> Message:
        """Queue a backup or a restore, if its path can be one."""
        require_admin(call.principal, "backup and restore")
        path = await self.slow.run(partial(self._judge, statement))
        kind = JobType.BACKUP if isinstance(statement, BackupDatabase) else JobType.RESTORE
        submit = partial(self.jobs.submit, kind, {"backup_path": str(path)}, f"{kind.value}-database")
        job = await self.slow.run(submit)
        if job is None:
            return Message(f"Database {kind.value} skipped: one is already queued or running")
        if kind is JobType.BACKUP:
            return Message(f"Database backup started to '{statement.path}'. Job ID: {job.job_id}")
        return Message(
            f"Database restore started from '{statement.path}'. Job ID: {job.job_id}. "
            "Server restart required after completion."
        )

    def _judge(self, statement: BackupDatabase | RestoreDatabase) -> Path:
        path = judged(statement.path, self.data_dir)
        match statement:
            case BackupDatabase():
                refuse_taken(path)
            case RestoreDatabase():
                load_archive(path)
        return path

    async def compact(self, call: Call, statement: CompactTable | CompactAll) -> Message:
        """Queue compactions of all that is cold, due or not."""
        require_compact(call.principal)
        match statement:
            case CompactTable(table):
                return Message(await self._compact_table(table))
            case CompactAll(namespace):
                return Message(await self._compact_all(namespace or call.namespace))

    async def _flush_table(self, table: Table, users: tuple[str, ...] | None) -> str:
        name = table.full_name
        if not self.flusher.is_pending(self.growth.view, table, users):
            return f"Storage flush skipped: no pending writes for table '{name}'"
        job = await self._submit(table, users)
        if job is None:
            return f"Storage flush skipped: a flush is already queued or running for table '{name}'"
        return f"Storage flush started for table '{name}'. Job ID: {job.job_id}"

    async def _flush_all(self, namespace: str) -> str:
        view = self.growth.view
        pending = [table for table in self._tables(namespace) if self.flusher.is_pending(view, table)]
        if not pending:
            return f"Storage flush skipped: no pending writes in namespace '{namespace}'"
        submitted = [await self._submit(table, None) for table in pending]
        jobs = [job.job_id for job in submitted if job is not None]
        if not jobs:
            return (
                "Storage flush skipped: flushes are already queued or running for all tables with pending "
                f"writes in namespace '{namespace}'"
            )
        return (
            f"Storage flush started for {len(jobs)} table(s) in namespace '{namespace}'. "
            f"Job IDs: [{', '.join(jobs)}]"
        )

    async def _compact_table(self, table: Table) -> str:
        name = table.full_name
        job = await self.slow.run(partial(submit_compaction, self.jobs, table, whole=True))
        if job is None:
            return f"Storage compaction skipped: a compaction is already queued or running for table '{name}'"
        return f"Storage compaction started for table '{name}'. Job ID: {job.job_id}"

    async def _compact_all(self, namespace: str) -> str:
        tables = self._tables(namespace)
        submitted = [
            await self.slow.run(partial(submit_compaction, self.jobs, table, whole=True)) for table in tables
        ]
        jobs = [job.job_id for job in submitted if job is not None]
        if not jobs:
            reason = "compactions are already queued or running" if tables else "there are no tables"
            return f"Storage compaction skipped: {reason} in namespace '{namespace}'"
        return (
            f"Storage compaction started for {len(jobs)} table(s) in namespace '{namespace}'. "
            f"Job IDs: [{', '.join(jobs)}]"
        )

    def _tables(self, namespace: str) -> list[Table]:
        """Return the tables of a namespace whose rows may be cold."""
        catalog = self.growth.view.catalog
        if namespace not in catalog.namespaces:
            raise NotFound(f"Namespace '{namespace}' does not exist; SHOW NAMESPACES lists what there is")
        lasting = [table for table in catalog.in_namespace(namespace) if table.kind is not TableKind.STREAM]
        return sorted(lasting, key=lambda table: table.name)

    async def _submit(self, table: Table, users: tuple[str, ...] | None) -> Job | None:
        parameters: dict[str, Parameter] = {
            "table_id": table.full_name, "table_number": table.id, "table_type": table.kind.value,
        }  # fmt: skip
        # Of the table, not of its name: another one may have that later. People see the contract's key.
        key, slot = f"flush-{table.namespace}-{table.name}", f"flush/{table.id}"
        if users is not None:
            parameters["users"] = sorted(set(users))
            slot += f"/{parameters['users']}"
        submit = partial(self.jobs.submit, JobType.FLUSH, parameters, key, slot=slot)
        return await self.slow.run(submit)
