"""Subscriptions: a cursor over the log with a watch, and the outlet that its frames go to.

Law: a subscription at rest is this value and its place in the index; no task, queue or future is its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from upwell.feeds.match import Watch, judge
from upwell.feeds.snapshot import Snapshot
from upwell.protocol.codec import change_frame
from upwell.storage.hot import Change
from upwell.types import Key, owner_user

PAGE_BYTES_MAX = 256 * 1024


class Outlet(Protocol):
    """Where frames go, in the order written. Used from the event loop only; compared by identity."""

    @property
    def is_full(self) -> bool:
        """Whether so many bytes wait for the reader that no more should be written now."""
        ...

    def write(self, frames: Sequence[bytes]) -> None:
        """Take frames (text in UTF-8) without waiting; does nothing once the reader is gone."""
        ...

    async def drained(self) -> None:
        """Return when the outlet isn't full, or its reader is gone."""
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


@dataclass(eq=False, slots=True)
class Subscription:
    """One live query of one socket. `after` is its cursor: what is later has still to be sent.

    At the head the cursor isn't moved; the pump only skips what isn't later. Up to `missed_until` a resume
    sends nothing but the deletes in `missed` (key → seq).
    """

    id: str
    watch: Watch
    outlet: Outlet
    after: int
    snapshot: Snapshot | None = None
    state: State = State.LOADING
    missed: dict[Key, int] = field(default_factory=dict)
    missed_until: int = 0
    task: asyncio.Task[None] | None = None
    frame_head: bytes = b""

    def __post_init__(self) -> None:
        self.frame_head = change_frame(self.id, b"")

    @property
    def is_ended(self) -> bool:
        return self.state is State.ENDED


@dataclass(frozen=True, slots=True)
class Listing:
    """What others may know of a subscription; `user` None for a SHARED table."""

    id: str
    table: str
    user: str | None
    state: str


def listing(subscription: Subscription) -> Listing:
    watch = subscription.watch
    state = subscription.state.value
    return Listing(subscription.id, watch.table.full_name, owner_user(watch.owner), state)


@dataclass(frozen=True, slots=True)
class Deltas:
    """Frames of the log after a cursor; `after` is the new cursor. Not `is_whole` if cut for its size."""

    frames: list[bytes]
    after: int
    is_whole: bool


def deltas(subscription: Subscription, watch: Watch, changes: Sequence[Change], *, until: int) -> Deltas:
    """Return frames for all changes up to `until`, or up to a page's bytes; any thread may call it.

    `watch` is the subscription's, taken before the changes were read, so that they have its columns.
    Raises `QueryFailure` where the predicate has no answer.
    """
    frames: list[bytes] = []
    size = 0
    for change in changes:
        if change.seq <= subscription.missed_until and subscription.missed.get(change.key) != change.seq:
            continue
        kind = judge(watch, change)
        if kind is None:
            continue
        frames.append(subscription.frame_head + watch.projection.tail(kind, change))
        size += len(frames[-1])
        if size >= PAGE_BYTES_MAX:
            return Deltas(frames, change.seq, is_whole=change is changes[-1] and change.seq == until)
    return Deltas(frames, until, is_whole=True)
