"""Compaction as jobs: one is queued at a time for a table, asked for or because a flush made it due."""

import logging

from upwell.engine.catalog import Table
from upwell.engine.partition import PartitionWriter
from upwell.errors import ReadOnly, UpwellError
from upwell.jobs.job import Job, JobType, Parameter
from upwell.jobs.queue import JobQueue
from upwell.jobs.schedule import Watch
from upwell.logs import fields

log = logging.getLogger("upwell.jobs")

COLLECT_INTERVAL_S = 1.0


def submit_compaction(queue: JobQueue, table: Table, *, whole: bool) -> Job | None:
    """Queue the compaction of a table, all of it (`whole`) or what is due; None if one is open already."""
    parameters: dict[str, Parameter] = {
        "table_id": table.full_name,
        "table_number": table.id,
        "table_type": table.kind.value,
        "whole": int(whole),
    }
    key = f"compact-{table.namespace}-{table.name}"
    # One that was asked for isn't swallowed by one that only does what is due.
    slot = f"compact/{table.id}" + ("/whole" if whole else "")
    return queue.submit(JobType.COMPACT, parameters, key, slot=slot)


def watch_replaced(partitions: PartitionWriter) -> Watch:
    """Remove the files that compactions replaced, as soon as nobody needs them.

    What is to be removed is written down with the commit that replaced it, so a restart forgets nothing.
    """

    def look() -> None:
        try:
            partitions.collect_due()
        except ReadOnly:
            raise
        except (OSError, UpwellError) as error:  # tried again the next time
            log.warning("Replaced files could not be removed", extra=fields(cause=str(error)))

    return Watch(COLLECT_INTERVAL_S, look)
