"""Query threads: planned queries and long writes, a few at a time, each with a time limit.

Law: one statement that never ends doesn't keep the others waiting. When its time is over, or who asked for
it has gone, the request is answered and its slot is free, although its thread may go on for a while; spare
threads make up for that.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Any, TypeVar

from upwell.engine.stop import Stop
from upwell.errors import SqlFailure

T = TypeVar("T")

READ_INLINE_CHARS_MAX = 2 * 1024
"""Longer texts are read in a thread: a thousand characters take up to ten milliseconds."""
READ_CHARS_MAX = 64 * 1024
"""Longer texts wait for a slot as queries do; shorter ones don't wait for those."""
READS_MAX = 2

PATIENCE_S = 0.1
"""After so long somebody looks whether the client is still there; most statements are done by then."""


class StatementTimeout(SqlFailure):
    """A statement ran longer than `statement_timeout_s`; nothing of it was applied."""


class ClientGone(SqlFailure):
    """Nobody waits for the answer any more; nothing of the statement was applied."""


class Client:
    """Who waits for an answer. `wait_gone` returns when they have hung up; it is asked only if need be."""

    def __init__(self, wait_gone: Callable[[], Awaitable[Any]]) -> None:
        self._wait_gone = wait_gone
        self._gone: asyncio.Future[Any] | None = None

    @property
    def gone(self) -> asyncio.Future[Any]:
        """What is done when they have gone."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._wait_gone())
        return self._gone

    def close(self) -> None:
        """Look no longer."""
        gone, self._gone = self._gone, None  # its context holds us: only together they could be let go
        if gone is not None:
            gone.cancel()


client: ContextVar[Client | None] = ContextVar("client", default=None)
"""Who waits for what runs in this context; None: nobody who could hang up."""


class QueryThreads:
    """Runs at most `slots` pieces of work at a time in `threads`, which should have some to spare.

    Beside them texts of statements are read, `READS_MAX` at a time.
    """

    def __init__(self, threads: Executor, *, slots: int, timeout_s: float) -> None:
        self._threads = threads
        self._slots = asyncio.Semaphore(slots)
        self._reads = asyncio.Semaphore(READS_MAX)
        self._timeout_s = timeout_s

    async def run(self, work: Callable[[Stop], T]) -> T:
        """Run `work`; raise `StatementTimeout` or `ClientGone` if it was given up before it had an effect."""
        return await self._run(self._slots, work)

    async def read(self, chars: int, call: Callable[[], T]) -> T:
        """Return what `call` says of a text of so many characters; a long one is read as `run` does it."""
        if chars <= READ_INLINE_CHARS_MAX:
            return call()
        return await self._run(self._reads if chars <= READ_CHARS_MAX else self._slots, lambda stop: call())

    async def _run(self, slots: asyncio.Semaphore, work: Callable[[Stop], T]) -> T:
        who = client.get()
        gone = who.gone if who is not None and slots.locked() else None
        async with slots:
            if gone is not None and gone.done():
                raise ClientGone("the client went away before its turn")
            stop, failure = Stop(), None
            future = asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
            try:
                failure = await self._given_up(future, who)
                if failure is not None and stop.request():
                    # Its end is nobody's news any more, not even a failure.
                    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                    raise failure
                return await future
            finally:
                # A failure holds this frame: it would hold itself, and the View that it was met on.
                del future, failure

    async def _given_up(self, future: asyncio.Future[T], who: Client | None) -> SqlFailure | None:
        """Return why nobody waits for `future` any longer; None: it is done."""
        timeout_s = self._timeout_s
        if who is not None and timeout_s > PATIENCE_S:
            early, _ = await asyncio.wait([future], timeout=PATIENCE_S)
            if early:
                return None
            timeout_s -= PATIENCE_S
        waited: set[asyncio.Future[Any]] = {future} if who is None else {future, who.gone}
        done, _ = await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if future in done:
            return None
        if done:
            return ClientGone("the client went away")
        return StatementTimeout(
            f"Handler execution timeout: exceeded {self._timeout_s:g}s; narrow the statement, or "
            "raise statement_timeout_s"
        )


class SlowThreads:
    """Runs what is slow on purpose or waits: password hashes, submissions of jobs."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
