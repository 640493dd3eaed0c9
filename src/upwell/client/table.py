"""The live table: the rows of a query, kept up to date by its live query while the table is open.

Law: the rows shown are always those of one whole snapshot and of the changes after it that have arrived, so
when none is under way they are what SELECT returns. Rows that a new snapshot replaces are shown until it is
complete; a table that can't be kept up any more raises instead of showing what was.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from upwell.client.failures import ClientError, ConnectionLost, LiveError
from upwell.client.fold import Key, LiveTable
from upwell.client.steps import Anew, Deliver, Event, SnapshotDone, Subscribed
from upwell.protocol.messages import FieldSchema

Row = dict[str, Any]
Until = Callable[[list[Row]], bool]
"""What `wait` waits for: a question about the rows."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kept:
    """The rows that a live query's events make, without I/O. May be read from other threads."""

    def __init__(self) -> None:
        self.version = 0
        self._lock = threading.Lock()
        self._shown: LiveTable | None = None
        self._receiving: LiveTable | None = None
        self._sorted: list[Row] | None = None
        self._failure: ClientError | None = None

    @property
    def is_settled(self) -> bool:
        """Whether there are rows to show, or never will be."""
        return self._shown is not None or self._failure is not None

    def take(self, event: Event, schema: tuple[FieldSchema, ...]) -> None:
        """Fold an event of the live query; raise `LiveError` if the query lacks the primary key."""
        with self._lock:
            match event:
                case Anew():
                    self._receiving = None
                case Subscribed():
                    self._receiving = self._receiving or _table_of(schema)
                case Deliver(change):
                    assert self._receiving is not None, "changes follow the subscription"
                    self._receiving.apply(change)
                case SnapshotDone():
                    self._shown = self._receiving
            if self._shown is self._receiving:
                self._sorted = None
                self.version += 1

    def end(self, failure: ClientError) -> None:
        """Show no rows any more, but raise `failure`."""
        with self._lock:
            self._failure = failure
            self.version += 1

    def rows(self) -> tuple[int, list[Row]]:
        """Return the version, and the rows in order of their primary keys."""
        with self._lock:
            rows = self._table().rows
            if self._sorted is None:
                self._sorted = [rows[key] for key in sorted(rows, key=_order)]
            return self.version, [dict(row) for row in self._sorted]

    def find(self, key: Key) -> Row | None:
        """Return the row of this primary key."""
        with self._lock:
            row = self._table().rows.get(key)
            return None if row is None else dict(row)

    def _table(self) -> LiveTable:
        if self._failure is not None:
            raise self._failure
        if self._shown is None:
            raise ConnectionLost("the live table is not open; use it by `with`")
        return self._shown


class _Table:
    """What both live tables have in common: reading."""

    def __init__(self) -> None:
        self._kept = Kept()

    def rows(self) -> list[Row]:
        """Return copies of all rows, without system columns, ascending by primary key as SELECT has them.

        Text is ordered by code points. Raises what ended the live query: `LiveError`, `AuthenticationFailed`.
        """
        return self._kept.rows()[1]

    def get(self, key: Key) -> Row | None:
        """Return a copy of the row with this primary key (a tuple if it has several columns), or None."""
        return self._kept.find(key)


class Source(Protocol):
    """A live query of the synchronous client."""

    @property
    def schema(self) -> tuple[FieldSchema, ...]:
        """The columns."""

    def next_event(self) -> Event | None:
        """Wait for the next event; None after `close`."""

    def close(self) -> None:
        """End it, from any thread."""


class LiveRows(_Table):
    """A live table of the synchronous client; a thread of its own follows the query. Threads may share it."""

    def __init__(self, live: Source) -> None:
        super().__init__()
        self._live = live
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="upwell-live-table", daemon=True)

    def open(self) -> None:
        """Return when the snapshot is complete; raise what the server refuses."""
        self._thread.start()
        try:
            with self._grown:
                self._grown.wait_for(lambda: self._kept.is_settled)
            self._kept.rows()
        except BaseException:
            self.close()
            raise

    def wait(self, until: Until, timeout_s: float | None = None) -> list[Row]:
        """Return the rows as soon as `until(rows)` is true; raise `TimeoutError` if it isn't in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            version, rows = self._kept.rows()
            if until(rows):
                return rows
            left = None if deadline is None else deadline - time.monotonic()
            if not self._wait_beyond(version, left):
                raise TimeoutError(f"the rows are not what was waited for after {timeout_s} s")

    def close(self) -> None:
        """End the live query and its thread."""
        self._live.close()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_beyond(self, version: int, timeout_s: float | None) -> bool:
        with self._grown:
            return self._grown.wait_for(lambda: self._kept.version != version, timeout_s)

    def _follow(self) -> None:
        failure: ClientError = ConnectionLost("the live table is closed")
        try:
            while (event := self._live.next_event()) is not None:
                self._kept.take(event, self._live.schema)
                with self._grown:
                    self._grown.notify_all()
        except ClientError as error:
            failure = error
        finally:
            self._live.close()
            self._kept.end(failure)
            with self._grown:
                self._grown.notify_all()


class AsyncSource(Protocol):
    """A live query of the asynchronous client."""

    @property
    def schema(self) -> tuple[FieldSchema, ...]:
        """The columns."""

    async def next_event(self) -> Event | None:
        """Wait for the next event; None after `close`."""

    async def close(self) -> None:
        """End it."""


class AsyncLiveRows(_Table):
    """A live table of the asynchronous client; a task of its own follows the query."""

    def __init__(self, live: AsyncSource) -> None:
        super().__init__()
        self._live = live
        self._grown = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Return when the snapshot is complete; raise what the server refuses."""
        self._task = asyncio.create_task(self._follow(), name="upwell-live-table")
        try:
            async with self._grown:
                await self._grown.wait_for(lambda: self._kept.is_settled)
            self._kept.rows()
        except BaseException:
            await self.close()
            raise

    async def wait(self, until: Until, timeout_s: float | None = None) -> list[Row]:
        """Return the rows as soon as `until(rows)` is true; raise `TimeoutError` if it isn't in time."""
        async with asyncio.timeout(timeout_s):
            while True:
                version, rows = self._kept.rows()
                if until(rows):
                    return rows
                await self._wait_beyond(version)

    async def close(self) -> None:
        """End the live query and its task."""
        await self._live.close()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _wait_beyond(self, version: int) -> None:
        async with self._grown:
            await self._grown.wait_for(lambda: self._kept.version != version)

    async def _follow(self) -> None:
        failure: ClientError = ConnectionLost("the live table is closed")
        try:
            while (event := await self._live.next_event()) is not None:
                self._kept.take(event, self._live.schema)
                async with self._grown:
                    self._grown.notify_all()
        except ClientError as error:
            failure = error
        finally:
            await self._live.close()
            self._kept.end(failure)
            async with self._grown:
                self._grown.notify_all()


def _table_of(schema: tuple[FieldSchema, ...]) -> LiveTable:
    try:
        return LiveTable.of(schema)
    except ValueError as error:
        raise LiveError("PRIMARY_KEY_MISSING", str(error)) from error


def _order(key: Key) -> tuple[Any, ...]:
    return tuple(map(_rank, key if isinstance(key, tuple) else (key,)))


def _rank(value: Any) -> Any:
    """Return what orders a cell of a key: of a moment its number, since one beyond `datetime` is a number."""
    match value:
        case datetime():
            return (value - _EPOCH) // timedelta(microseconds=1)
        case date():
            return value.toordinal() - _EPOCH.toordinal()
        case _:
            return value
