"""Subscriptions: a cursor over the log with a watch, and the outlet that its frames go to.

Law: a subscription at rest is this value and its place in the index; no task, queue or future is its own.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from upwell.engine.view import View
from upwell.errors import (
    PermissionDenied,
    QueryFailure,
    RequestRefused,
    SeqTrimmed,
    TableNotFound,
    UpwellError,
)
from upwell.feeds.match import Gaps, Watch, decide, judge
from upwell.feeds.snapshot import Leg, Snapshot
from upwell.ids import snowflake_ms
from upwell.logs import fields
from upwell.protocol import messages
from upwell.protocol.codec import PLAIN, Tail, change_head
from upwell.protocol.messages import SubscriptionOptions
from upwell.storage.hot import Change

log = logging.getLogger("upwell.live")

PAGE_BYTES_MAX = 256 * 1024


class Outlet(Protocol):
    """Where frames go, in the order written. Used from the event loop only; compared by identity."""

    @property
    def is_full(self) -> bool:
        """Whether so many bytes wait for the reader that no more should be written now."""
        ...

    def write(self, frames: Sequence[bytes]) -> None:
        """Take frames (text if they begin with `{`) without waiting; nothing once the reader is gone."""
        ...

    async def drained(self) -> None:
        """Return when the outlet isn't full, or its reader is gone."""
        ...

    def when_taken(self, then: Callable[[], None]) -> None:
        """Call `then` when the reader has shown that it took all that was written so far, if it does."""
        ...


class State(Enum):
    """Where a subscription gets its changes from."""

    LOADING = "loading"
    """Nowhere yet: its snapshot has further batches."""
    BEHIND = "behind"
    """The log, page by page, as fast as its reader takes them."""
    HEAD = "head"
    """The pump that all share."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a live query, where, when and how. `heard_at_us`: when the client last said anything."""

    user: str = ""
    connection: str = ""
    sql: str = ""
    options: SubscriptionOptions | None = None
    created_at_us: int = 0
    heard_at_us: Callable[[], int] = int


@dataclass(eq=False, slots=True)
class Subscription:
    """One live query of one socket. `after` is its cursor: what is later has still to be sent.

    At the head the cursor isn't moved; the pump only skips what isn't later. Before anything that is later
    than `after`, a resume has the deletes of `legs` to send, and then asks whether they came (`taken`).
    Who isn't at the head has `gaps`.
    `sent_changes` changes were written, the newest with `sent_seq`.
    """

    id: str
    watch: Watch
    outlet: Outlet
    after: int
    origin: Origin = Origin()
    protocol: messages.Protocol = PLAIN
    snapshot: Snapshot | None = None
    state: State = State.LOADING
    legs: list[Leg] = field(default_factory=list)
    gaps: Gaps | None = None
    taken: Callable[[], None] | None = None
    task: asyncio.Task[None] | None = None
    sent_changes: int = 0
    sent_seq: int = 0
    frame_head: bytes = b""
    is_gzip: bool = False

    def __post_init__(self) -> None:
        self.frame_head = change_head(self.id, self.protocol.serialization)
        self.is_gzip = self.protocol.compression == "gzip"

    @property
    def is_ended(self) -> bool:
        return self.state is State.ENDED

    @property
    def cursor(self) -> int:
        """Where to resume, for one who is told so now."""
        return min([self.after, *(leg.after for leg in self.legs)])

    @property
    def live_id(self) -> str:
        """What names the subscription among all of the server's."""
        return f"{self.origin.user}-{self.origin.connection}-{self.id}"

    def frame(self, tail: Tail) -> bytes:
        """Return the change frame around what all subscribers share."""
        return tail.frame(self.frame_head, gzip=self.is_gzip)


@dataclass(frozen=True, slots=True)
class Listing:
    """What others may know of a subscription, at one moment."""

    live_id: str
    id: str
    namespace: str
    table_name: str
    state: str
    origin: Origin
    changes: int
    updated_at_us: int
    """When the newest change that was sent was made, or the subscription, if that was later."""

    @property
    def user(self) -> str:
        return self.origin.user

    @property
    def table(self) -> str:
        return f"{self.namespace}.{self.table_name}"


def listing(subscription: Subscription) -> Listing:
    table, origin, seq = subscription.watch.table, subscription.origin, subscription.sent_seq
    return Listing(
        subscription.live_id,
        subscription.id,
        table.namespace,
        table.name,
        subscription.state.value,
        origin,
        subscription.sent_changes,
        max(origin.created_at_us, snowflake_ms(seq) * 1000 if seq else 0),
    )


def ending_code(failure: UpwellError) -> str:
    """Return the code of the error frame that ends a subscription."""
    match failure:
        case TableNotFound():
            return "NOT_FOUND"
        case PermissionDenied():
            return "UNAUTHORIZED"
        case SeqTrimmed():
            return "HISTORY_PRUNED"
        case RequestRefused():
            return failure.code
        case _:
            return "SUBSCRIPTION_FAILED"


def unexpected(subscription: Subscription) -> UpwellError:
    """Log the exception that is being handled; return what the client is told of it."""
    table = subscription.watch.table.full_name
    log.exception("a live query failed unexpectedly", extra=fields(table=table))
    return UpwellError(f"the live query of {table} failed unexpectedly; the server's log says why")


@dataclass(frozen=True, slots=True)
class Deltas:
    """Frames of the log after a cursor; `after` is the new cursor. Not `is_whole` if more has to be read."""

    frames: list[bytes]
    after: int
    is_whole: bool


def deltas(
    subscription: Subscription, watch: Watch, changes: Sequence[Change], *, view: View, until: int
) -> Deltas:
    """Return frames for all changes up to `until`, or up to a page's bytes; any thread may call it.

    It blocks if a change `needs_decision`.

    `watch` is the subscription's, taken before the changes were read, so that they have its columns.
    Raises `QueryFailure` where the predicate has no answer for the first change; before a later one it stops.
    """
    frames: list[bytes] = []
    size = 0
    verdicts = decide(view, watch, changes)
    gaps = subscription.gaps
    assert gaps is not None, "it isn't at the head"
    for change in changes:
        try:
            kind = judge(watch, change, verdicts, is_gap=gaps.has(change))
        except QueryFailure:
            if not frames:
                raise
            return Deltas(frames, change.seq - 1, is_whole=False)
        gaps.pass_by(change)
        if kind is None:
            continue
        tail = watch.projection.tail(kind, change, subscription.protocol.serialization)
        frames.append(subscription.frame(tail))
        size += len(tail.body)
        if size >= PAGE_BYTES_MAX:
            return Deltas(frames, change.seq, is_whole=change is changes[-1] and change.seq == until)
    return Deltas(frames, until, is_whole=True)


def leg_deltas(subscription: Subscription, watch: Watch, leg: Leg, changes: Sequence[Change]) -> Deltas:
    """Return frames for the deletes of `leg` among these changes, as `deltas` does."""
    frames: list[bytes] = []
    size = 0
    for change in changes:
        if change.seq > leg.until:
            break
        asked = leg.deletes.get(change.key)
        if asked is None or change.seq < asked or change.before is None:
            continue
        del leg.deletes[change.key]
        told = change if leg.told_seq is None else msgspec.structs.replace(change, seq=leg.told_seq)
        tail = watch.projection.tail("delete", told, subscription.protocol.serialization)
        frames.append(subscription.frame(tail))
        size += len(tail.body)
        if size >= PAGE_BYTES_MAX:
            return Deltas(frames, change.seq, is_whole=not leg.deletes)
    return Deltas(frames, leg.until, is_whole=True)


class Outbox:
    """Frames of one slice, by outlet, so that each outlet is written to once.

    An outlet that can't be written to loses its own subscriptions, by `drop`, and nobody else's.
    """

    def __init__(self, fall_behind: Callable[..., None], drop: Callable[[Subscription], None]) -> None:
        self.size_bytes = 0
        self._fall_behind = fall_behind
        self._drop = drop
        self._entries: dict[Outlet, list[tuple[Subscription, int, bytes]]] = {}

    def put(self, subscription: Subscription, seq: int, frame: bytes) -> None:
        self._entries.setdefault(subscription.outlet, []).append((subscription, seq, frame))
        self.size_bytes += len(frame)

    def flush(self) -> None:
        """Write what there is; subscriptions of a full outlet fall behind, just before their first frame."""
        for outlet, entries in self._entries.items():
            try:
                self._give(outlet, entries)
            except Exception:  # noqa: BLE001 — one socket must not take the pump, and the server, with it
                self._drop_all(entries)
        self._entries.clear()
        self.size_bytes = 0

    def _give(self, outlet: Outlet, entries: list[tuple[Subscription, int, bytes]]) -> None:
        if outlet.is_full:
            for subscription, seq, _ in entries:
                if subscription.state is State.HEAD:
                    self._fall_behind(subscription, after=seq - 1)
        else:
            self._write(outlet, entries)

    def _drop_all(self, entries: list[tuple[Subscription, int, bytes]]) -> None:
        for subscription, _, _ in entries:
            if not subscription.is_ended:
                unexpected(subscription)
                self._drop(subscription)

    def _write(self, outlet: Outlet, entries: list[tuple[Subscription, int, bytes]]) -> None:
        frames: list[bytes] = []
        for subscription, seq, frame in entries:
            if subscription.state is State.HEAD:
                frames.append(frame)
                subscription.sent_changes += 1
                subscription.sent_seq = seq
        outlet.write(frames)
