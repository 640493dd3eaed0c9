"""Query threads: planned queries and long writes, a few at a time, each with a time limit.

Law: one statement that never ends doesn't keep the others waiting. When its time is over the request is
answered and its slot is free, although its thread may go on for a while; spare threads make up for that.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from upwell.engine.stop import Stop
from upwell.errors import SqlFailure

T = TypeVar("T")


class StatementTimeout(SqlFailure):
    """A statement ran longer than `statement_timeout_s`; nothing of it was applied."""


class QueryThreads:
    """Runs at most `slots` pieces of work at a time in `threads`, which should have some to spare."""

    def __init__(self, threads: Executor, *, slots: int, timeout_s: float) -> None:
        self._threads = threads
        self._slots = asyncio.Semaphore(slots)
        self._timeout_s = timeout_s

    async def run(self, work: Callable[[Stop], T]) -> T:
        """Run `work`; raise `StatementTimeout` if it takes too long and had no effect yet."""
        async with self._slots:
            stop = Stop()
            future = asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
            done, _ = await asyncio.wait([future], timeout=self._timeout_s)
            if not done and stop.request():
                # Its end is nobody's news any more, not even a failure.
                future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                raise StatementTimeout(
                    f"Handler execution timeout: exceeded {self._timeout_s:g}s; narrow the statement, or "
                    "raise statement_timeout_s"
                )
            return await future


class SlowThreads:
    """Runs what is slow on purpose or waits: password hashes, submissions of jobs."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
