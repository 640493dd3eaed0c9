"""Compaction as jobs: one is queued at a time for a table, asked for or because a flush made it due."""

import gc
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
GARBAGE_WAITS = 4
"""After so many looks that found a reader, and each time that they have doubled, garbage is collected."""


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
    waits = 0

    def look() -> None:
        nonlocal waits
        try:
            waits = 0 if partitions.collect_due() else waits + 1
            if waits >= GARBAGE_WAITS and waits.bit_count() == 1:
                # An error and the frames that it came through hold each other, and the View of a statement
                # that failed; on an idle server nothing else would find out that nobody needs them.
                gc.collect()
        except ReadOnly:
            raise
        except (OSError, UpwellError) as error:  # tried again the next time
            log.warning("Replaced files could not be removed", extra=fields(cause=str(error)))

    return Watch(COLLECT_INTERVAL_S, look)
