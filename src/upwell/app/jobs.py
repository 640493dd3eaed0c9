"""The background work of a server: what runs the jobs, and what submits those that nobody asks for."""

from concurrent.futures import Executor
from functools import partial

from upwell.app.opening import Parts
from upwell.engine.backup import Backup
from upwell.engine.cleanup import Cleanup
from upwell.engine.compact import Compact
from upwell.engine.expiry import Expiry
from upwell.engine.ownership import claim_storages
from upwell.engine.restore import Restore
from upwell.engine.trim import LogLimits, LogTrim
from upwell.feeds.registry import Registry
from upwell.jobs.compaction import watch_replaced
from upwell.jobs.kinds import Kinds
from upwell.jobs.retention import JobRetention
from upwell.jobs.runner import JobRunner
from upwell.jobs.schedule import (
    Schedule,
    watch_dropped,
    watch_expired,
    watch_flush,
    watch_jobs,
    watch_log,
    watch_log_size,
    watch_rows,
)
from upwell.storage.rocks import RocksStore

# How often the schedule looks for jobs to forget, and for dropped tables whose clean-up has failed.
JOBS_INTERVAL_S = 60.0
DROPPED_INTERVAL_S = 60.0


def job_loops(
    parts: Parts, registry: Registry, threads: Executor, looks: Executor
) -> tuple[JobRunner, Schedule]:
    """Return what runs the jobs in `threads`, and what submits those that nobody asks for."""
    config, committer, engine = parts.config, parts.committer, parts.engine
    queue, clock = engine.jobs, engine.clock
    limits = LogLimits(config.log_retention_s, config.log_bytes_max)
    trim = LogTrim(committer, clock, limits, registry.slowest_cursor, parts.points)
    cleanup = Cleanup(committer, parts.storages, parts.partitions, parts.cold, points=parts.points)
    expiry = Expiry(committer, clock, config.stream_grace_s)
    retention = JobRetention(queue, clock, config.job_retention_s, config.job_records_max)
    compact = Compact(committer, parts.partitions, points=parts.points)
    open_store = partial(RocksStore, clock=clock)
    backup = Backup(committer, parts.partitions, parts.storages, open_store, clock, parts.points, parts.files)
    claim = partial(claim_storages, committer=committer, storages=parts.storages)
    kinds = Kinds(
        committer,
        engine.flush,
        compact,
        cleanup,
        trim,
        retention,
        expiry,
        backup,
        Restore(config.data_dir, open_store, parts.points, parts.files, claim),
        queue,
        clock,
        parts.points,
    )
    watches = [
        watch_flush(queue, committer, clock, config.flush_check_interval_s),
        watch_log(queue, trim, committer, config.log_trim_interval_s),
        watch_log_size(queue, trim, committer),
        watch_jobs(queue, retention, JOBS_INTERVAL_S),
        watch_dropped(queue, committer, DROPPED_INTERVAL_S),
        watch_rows(expiry, config.stream_expiry_interval_s),
        watch_expired(queue, expiry, config.stream_eviction_interval_s),
        watch_replaced(parts.partitions),
    ]
    return JobRunner(queue, kinds.run, threads, jobs_max=config.jobs_max), Schedule(watches, looks)
