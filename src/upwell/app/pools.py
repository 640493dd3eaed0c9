"""The threads of a server, by what may hold one up.

Law: no pool waits for another, so that a slow query delays no upload and no job.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from upwell.config import Config
from upwell.session.threads import READS_MAX, QueryThreads

DEVICE_THREADS = 4
SLOW_THREADS = 2
QUERY_THREAD = "upwell-query"
# For statements whose time is over but whose thread goes on.
SPARE_THREADS = 4


@dataclass(frozen=True, slots=True)
class Pools:
    """`queries` bounds and times statements, which run in `query`; `slow` is for what is slow on purpose."""

    query: Executor
    queries: QueryThreads
    slow: Executor
    devices: Executor
    jobs: Executor
    looks: Executor


@contextmanager
def started(config: Config) -> Iterator[Pools]:
    """Start the pools; at the end wait for all but queries, which may never end."""
    slots = max(1, (os.cpu_count() or 1) - 1)
    with ExitStack() as stack:
        query = ThreadPoolExecutor(slots + READS_MAX + SPARE_THREADS, QUERY_THREAD)
        stack.callback(query.shutdown, wait=False, cancel_futures=True)
        yield Pools(
            query,
            QueryThreads(query, slots=slots, timeout_s=config.statement_timeout_s),
            slow=stack.enter_context(ThreadPoolExecutor(SLOW_THREADS, "upwell-slow")),
            devices=stack.enter_context(ThreadPoolExecutor(DEVICE_THREADS, "upwell-device")),
            jobs=stack.enter_context(ThreadPoolExecutor(config.jobs_max, "upwell-job")),
            looks=stack.enter_context(ThreadPoolExecutor(1, "upwell-schedule")),
        )
