"""Growth: the one place where an event loop waits for the log.

Law: waiting is on a number, never on an event: a wake-up that is lost between reading and waiting
cannot strand anybody. One wake-up of the loop serves all who wait.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heappop, heappush

from upwell.engine.commit import Committer
from upwell.engine.view import Publication, View


class Growth:
    """The publication as one event loop sees it. Use it from that loop only."""

    def __init__(self, publication: Publication, loop: asyncio.AbstractEventLoop) -> None:
        self._publication = publication
        self._loop = loop
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = 0
        self._scheduled = False
        publication.listen(self._from_publisher)

    @property
    def view(self) -> View:
        return self._publication.view

    async def reached(self, seq: int) -> View:
        """Return a View at `seq` or later once there is one; raise `ReadOnly` if there never will be."""
        while self._publication.view.seq < seq:
            if self._publication.failure is not None:
                raise self._publication.failure
            self._order += 1
            future = self._loop.create_future()
            heappush(self._waiting, (seq, self._order, future))
            # Looked at again after queueing: the publisher may have been faster.
            if self._publication.view.seq >= seq:
                break
            await future
        return self._publication.view

    async def wait(self, *, after: int) -> View:
        """Return a View later than `after`."""
        return await self.reached(after + 1)

    def _from_publisher(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._scheduled = False

    def _wake(self) -> None:
        self._scheduled = False
        failed = self._publication.failure is not None
        seq = self._publication.view.seq
        while self._waiting and (failed or self._waiting[0][0] <= seq):
            future = heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)


class Follower:
    """Follows the log for those who want to be told of it, and sleeps while there are none.

    Law: once somebody has begun, no growth after the seq that they have read up to passes unnoticed.
    """

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self._is_wanted = asyncio.Event()
        self.seq: int = 0
        """Up to here they have been told; who follows moves it on."""

    def begin(self, seq: int) -> None:
        """Somebody wants to be told, and has read up to `seq`."""
        if not self._is_wanted.is_set():
            self.seq = seq
            self._is_wanted.set()

    def rest(self) -> None:
        """Nobody wants to be told any more."""
        self._is_wanted.clear()

    async def grown(self) -> None:
        """Return when there is more than they were told; raise `ReadOnly` if there never will be."""
        await self._is_wanted.wait()
        await self._growth.wait(after=self.seq)


@contextmanager
def synced_by_turns(committer: Committer, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let what this thread's loop commits in one turn share a sync, asked for when the turn has ended.

    The thread that syncs then doesn't fight for the write lock with those who still apply.
    """
    ask_now, own_thread = committer.ask_sync, threading.get_ident()
    is_asked = False

    def ask() -> None:
        nonlocal is_asked
        if threading.get_ident() != own_thread:
            ask_now()
        elif not is_asked:
            is_asked = True
            loop.call_soon(ask_at_end)

    def ask_at_end() -> None:
        nonlocal is_asked
        is_asked = False
        ask_now()

    committer.ask_sync = ask
    try:
        yield
    finally:
        committer.ask_sync = ask_now
        ask_now()
