"""Resumes that may be cut off: from where a client that comes back has to be told deletes again.

Law: a client's cursor is the newest `_seq` that it has seen, but missed deletes come after rows that are
newer than they. So before such a resume sends anything, its window is recorded, and stays until the reader
has shown that it took all; who resumes from within it is told the deletes of the whole window.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import msgspec

from upwell.engine.commit import Committer
from upwell.engine.names import resume_name
from upwell.errors import ReadOnly
from upwell.feeds.cursor import Growth
from upwell.feeds.match import Watch
from upwell.feeds.snapshot import Page, Snapshot, Window
from upwell.feeds.subscription import Subscription
from upwell.logs import fields
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite, partition_floor

log = logging.getLogger("upwell.live")

T = TypeVar("T")

WINDOWS_MAX = 8
"""How many resumes of one user and table are told apart; older ones count as one."""


class Resumes:
    """The windows of all users and tables, as records; any thread."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def start(self, reader: HotReader, user: str, watch: Watch, after: int) -> int:
        """Return from where deletes have to be told to one who resumes `after`: there, or earlier."""
        windows = _load(reader, _name(user, watch))
        return min([after, *(window.after for window in windows if window.after < after <= window.until)])

    def advance(self) -> int:
        """Return a seq that is later than whatever anybody has been told; 0 if the server is read-only."""
        try:
            return self._committer.apply(Batch())
        except ReadOnly:
            return 0

    def begin(self, user: str, watch: Watch, window: Window) -> int:
        """Record a window; return the seq that has to be published before anything is sent.

        A server that is read-only keeps none: 0.
        """
        name = _name(user, watch)
        try:
            with self._committer.lock:
                newest = self._committer.newest
                floor = partition_floor(newest, watch.table.id, watch.owner).seq
                # Nobody can resume from below the floor, whatever is remembered.
                known = [each for each in _load(newest, name) if each.until >= floor]
                return self._put(name, _bounded([*known, window]))
        except ReadOnly as failure:
            log.warning("a resume can't be recorded", extra=fields(cause=str(failure)))
            return 0

    def end(self, user: str, watch: Watch, window: Window) -> None:
        """Forget a window: its reader has everything."""
        name = _name(user, watch)
        try:
            with self._committer.lock:
                known = _load(self._committer.newest, name)
                if window in known:
                    known.remove(window)
                    self._put(name, known)
        except ReadOnly as failure:
            log.warning("a resume can't be forgotten", extra=fields(cause=str(failure)))

    def _put(self, name: str, windows: list[Window]) -> int:
        value = msgspec.msgpack.encode(windows) if windows else None
        return self._committer.apply(Batch(records=[RecordWrite(Kind.META, name, value)]))


class Resuming:
    """Resumes of one event loop, around what `feeds.live` sends."""

    def __init__(self, resumes: Resumes, growth: Growth, threads: Executor) -> None:
        self._resumes = resumes
        self._growth = growth
        self._threads = threads

    async def start(self, subscription: Subscription, snapshot: Snapshot) -> None:
        """Find from where deletes have to be told, if it is a resume at all."""
        after, user = snapshot.resumed_after, subscription.origin.user
        if not after:
            return
        snapshot.told_after = self._resumes.start(self._growth.view.hot, user, subscription.watch, after)
        if snapshot.told_after < after:
            # What is told again needs a seq that the client can't have seen.
            seq = await self._in_thread(self._resumes.advance)
            snapshot.until = subscription.after = (await self._growth.reached(seq)).seq

    async def keep(self, subscription: Subscription, snapshot: Snapshot, page: Page) -> None:
        """Record, before the first page is sent, that the client may be cut off from deletes, if it may."""
        if snapshot.batch_num == 0 and snapshot.resumed_after and not snapshot.is_safe(page):
            snapshot.window = Window(snapshot.told_after, snapshot.until)
            user, watch = subscription.origin.user, subscription.watch
            seq = await self._in_thread(partial(self._resumes.begin, user, watch, snapshot.window))
            await self._growth.reached(seq)

    def taken(self, subscription: Subscription, snapshot: Snapshot) -> None:
        """Note that the client has all deletes."""
        if snapshot.window is not None:
            user, watch = subscription.origin.user, subscription.watch
            self._in_thread(partial(self._resumes.end, user, watch, snapshot.window))

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


def _name(user: str, watch: Watch) -> str:
    return resume_name(watch.table.id, user)


def _load(reader: HotReader, name: str) -> list[Window]:
    record = reader.find_record(Kind.META, name)
    return [] if record is None else msgspec.msgpack.decode(record, type=list[Window])


def _bounded(windows: list[Window]) -> list[Window]:
    """Return the windows, the oldest as one that spans them if there are too many."""
    old, new = windows[: -WINDOWS_MAX + 1], windows[-WINDOWS_MAX + 1 :]
    if len(old) <= 1:
        return windows
    return [Window(min(each.after for each in old), max(each.until for each in old)), *new]
