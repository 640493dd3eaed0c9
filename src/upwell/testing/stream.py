"""A STREAM table inside a test's process: its rows, a clock that a test moves, and its live queries.

Law: rows end only when the test says so, also in the middle of what the feed does in a thread.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from upwell.clock import ManualClock
from upwell.testing.embedded import Embedded, memory_store
from upwell.testing.live import Subscriber

TTL_S = 10
SQL = "SELECT * FROM app.typing WHERE doc = 1"

P = ParamSpec("P")
T = TypeVar("T")


class Interposed(Executor):
    """Does something in the thread of the n-th call from when it is told so, before that call."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._calls_left = 0
        self._then: Callable[[], object] = tuple

    def before_call(self, number: int, then: Callable[[], object]) -> None:
        """Do `then` before call `number`, counted from 1."""
        self._calls_left, self._then = number, then

    async def at_last(self) -> None:
        """Do now what hasn't been done, since there were fewer calls."""
        if self._calls_left:
            self._calls_left = 0
            await asyncio.to_thread(self._then)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if not self._calls_left:
            return self._threads.submit(fn, *args, **kwargs)
        self._calls_left -= 1
        if self._calls_left:
            return self._threads.submit(fn, *args, **kwargs)

        def after_that() -> T:
            self._then()
            return fn(*args, **kwargs)

        return self._threads.submit(after_that)


class Stage:
    """An engine with a STREAM table, its feed running, and a clock that a test moves."""

    def __init__(self, db: Embedded, clock: ManualClock, threads: Interposed) -> None:
        self.db = db
        self.clock = clock
        self.threads = threads
        self.feed = db.sessions.feed
        self._pump: asyncio.Task[None] | None = None

    def subscriber(self, user: str = "ann", sql: str = SQL) -> Subscriber:
        return Subscriber(self.db, self.feed, user, sql)

    async def types(self, *ids: str, doc: int = 1, user: str = "ann") -> None:
        for each in ids:
            await self.db.outcomes(f"INSERT INTO app.typing VALUES ('{each}', {doc})", user=user)

    async def types_again(self, *ids: str, doc: int, user: str = "ann") -> None:
        """Write rows over those of these keys, if there are any."""
        again = "ON CONFLICT (id) DO UPDATE SET doc = excluded.doc"
        for each in ids:
            await self.db.outcomes(f"INSERT INTO app.typing VALUES ('{each}', {doc}) {again}", user=user)

    async def after(self, seconds: float) -> None:
        """Let time pass, and what is over by then end."""
        await asyncio.to_thread(self.passes, seconds)

    def passes(self, seconds: float) -> None:
        """What `after` does, for a thread."""
        self.clock.advance(seconds)
        self.db.expiry.run()

    async def evicts(self) -> None:
        for table in self.db.expiry.due():
            await asyncio.to_thread(self.db.expiry.evict, table.id)

    async def forgets(self) -> None:
        """Let the log be read from the store: another table has other columns."""
        await self.db.outcomes("CREATE SHARED TABLE IF NOT EXISTS app.other (id INT PRIMARY KEY)")
        await self.db.outcomes("ALTER TABLE app.other ADD COLUMN more INT")

    def goes_on(self) -> None:
        """Let the feed pump."""
        self._pump = asyncio.create_task(self.feed.run())

    async def pauses(self) -> None:
        """Let the feed pump nothing."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    """Open a stage on a store of its own, in memory."""
    clock = ManualClock()
    db = await asyncio.to_thread(Embedded, directory, clock=clock, store=memory_store(clock))
    pool, threads = db.threads, Interposed(db.threads)
    db.sessions = db.session(asyncio.get_running_loop(), threads)
    stage = Stage(db, clock, threads)
    await db.outcomes("CREATE NAMESPACE app")
    await db.outcomes(f"CREATE STREAM TABLE app.typing (id TEXT PRIMARY KEY, doc INT) TTL {TTL_S}")
    stage.goes_on()
    try:
        yield stage
    finally:
        await stage.pauses()
        await stage.feed.close()
        await asyncio.to_thread(db.close)
        pool.shutdown()
