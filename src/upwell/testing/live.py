"""Live queries inside a test's process: a subscriber of a `LiveFeed`, folded by hand, without a socket.

Law: the versions of a row come in seq order, each once; an update lacks exactly the NULL columns. What a
subscriber holds is what its frames said, and nothing else.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from upwell.feeds.live import LiveFeed
from upwell.feeds.subscription import Subscription
from upwell.protocol import messages
from upwell.protocol.messages import SubscriptionOptions
from upwell.session.watch import bind_watch
from upwell.testing.embedded import Embedded, principal

WAIT_S = 20.0
SYSTEM_COLUMNS = frozenset({"_seq", "_deleted"})

Row = dict[str, Any]
Event = tuple[str, Any, int]
"""(insert | update | delete, primary key, seq)"""


class Subscriber:
    """One live query of one user, and an outlet that is full while `is_stalled`.

    It is cut off when it has taken `frames_left` more frames, without anybody knowing; None: never.

    `rows` by primary key is what a client would hold; `events` are the changes since the snapshot;
    `told` is the newest seq that it has been told, from which it can resume.
    """

    def __init__(self, db: Embedded, feed: LiveFeed, user: str, sql: str, *, pk: str = "id") -> None:
        self.user = user
        self.sql = sql
        self.rows: dict[Any, Row] = {}
        self.events: list[Event] = []
        self.snapshot_keys: list[Any] = []
        self.errors: list[tuple[str, str]] = []
        self.told = 0
        self.is_stalled = False
        self.frames_left: int | None = None
        self.subscription: Subscription | None = None
        self._db = db
        self._feed = feed
        self._pk = pk
        self._seqs: dict[Any, int] = {}
        self._names: list[str] = []
        self._has_more = False
        self._resumed_at: int | None = None
        self._news = asyncio.Event()

    def copy(self, db: Embedded | None = None) -> Self:
        """Return a client of its own that holds what this one does, and hasn't subscribed; to `db` by now."""
        feed = self._feed if db is None else db.sessions.feed
        twin = type(self)(db or self._db, feed, self.user, self.sql, pk=self._pk)
        twin.rows, twin._seqs, twin.told = dict(self.rows), dict(self._seqs), self.told
        return twin

    async def open(self, between: Callable[[], Awaitable[object]] | None = None, **options: Any) -> Self:
        """Subscribe and take the whole snapshot; `after` resumes, `live_only` asks for no snapshot.

        `between` happens before each further batch.
        """
        asked = None if options.pop("live_only", False) else _options(options)
        query = messages.Subscription("s", self.sql, asked)
        who = principal(self.user)
        context = self._db.sessions.context(who)
        watch = bind_watch(query, who, self._db.view.catalog, context, self._feed)
        self._resumed_at = asked.after if asked is not None else None
        self._has_more = False
        self.subscription = await self._feed.subscribe(watch, subscription_id="s", outlet=self, options=asked)
        while self._has_more and self.frames_left != 0:
            if between is not None:
                await between()
            await self._feed.next_batch(self.subscription)
        return self

    def close(self) -> None:
        """Leave; what is held stays."""
        if self.subscription is not None:
            self._feed.unsubscribe(self.subscription)
            self.subscription = None

    async def resume(self, **options: Any) -> Self:
        """Leave and come back from the newest seq that was told."""
        self.close()
        return await self.open(after=self.told, **options)

    def shown(self, columns: Sequence[str]) -> dict[Any, Row]:
        """Return what is held of these columns, by primary key."""
        return {key: {name: row.get(name) for name in columns} for key, row in self.rows.items()}

    def release(self) -> None:
        """Read on."""
        self.is_stalled = False
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition on what was received."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    # The outlet

    @property
    def is_full(self) -> bool:
        return self.is_stalled

    def write(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if self.frames_left != 0:
                self._take(json.loads(frame))
            if self.frames_left:
                self.frames_left -= 1
        self._news.set()

    def when_taken(self, then: Callable[[], None]) -> None:
        if self.frames_left is None:
            then()

    async def drained(self) -> None:
        while self.is_stalled:
            self._news.clear()
            await self._news.wait()

    # The fold

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "subscription_ack":
                self._names = [field["name"] for field in frame["schema"]]
            case "initial_data_batch":
                self._has_more = frame["batch_control"]["has_more"]
                for row in frame["rows"]:
                    self.snapshot_keys.append(row[self._pk])
                    self._hold(row)
            case "change":
                self._change(frame)
            case "error":
                self.errors.append((frame["code"], frame["message"]))
            case other:
                raise AssertionError(f"no frame of a live query: {other}")

    def _change(self, frame: dict[str, Any]) -> None:
        kind = frame["change_type"]
        (row,) = frame["old_values" if kind == "delete" else "rows"]
        key, seq = row[self._pk], int(row["_seq"])
        self._hold(row)
        if kind == "delete":
            del self.rows[key]
        self.events.append((kind, key, seq))

    def _hold(self, row: Row) -> None:
        key, seq = row[self._pk], int(row["_seq"])
        assert seq > self._seqs.get(key, -1), f"{key} came again at {seq}"
        # Clients drop what isn't newer than the cursor that they resumed from.
        assert seq > (self._resumed_at or 0), f"{key} at {seq} is before the cursor {self._resumed_at}"
        self._seqs[key] = seq
        self.told = max(self.told, seq)
        shown = {name: value for name, value in row.items() if name not in SYSTEM_COLUMNS}
        names = [name for name in self._names if name not in SYSTEM_COLUMNS]
        self.rows[key] = dict.fromkeys((*names, *self.rows.get(key, ()))) | shown


def _options(options: dict[str, Any]) -> SubscriptionOptions:
    after = options.pop("after", None)
    return SubscriptionOptions(from_seq=after, **options)
