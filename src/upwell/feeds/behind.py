"""Readers that are behind: each reads the log from its own cursor, as fast as its socket takes it.

Law: nothing is queued for who lags: what it hasn't been sent is read again when it has room. Who lags for too
long is ended, and told the cursor to resume from.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from upwell.engine.catalog import Catalog
from upwell.engine.changelog import Changelog
from upwell.errors import RequestRefused
from upwell.feeds.cursor import Growth
from upwell.feeds.match import Watch, needs_decision
from upwell.feeds.snapshot import Leg
from upwell.feeds.subscription import Deltas, State, Subscription, deltas, leg_deltas
from upwell.ids import snowflake_ms

PAGE_CHANGES = 500
TAIL_CHANGES_MAX = 2_000
LAG_S_MAX = 600.0


class Behind:
    """Brings subscriptions to the head; `followed` is a watch as a catalog has its table by now."""

    def __init__(
        self,
        changelog: Changelog,
        growth: Growth,
        threads: Executor,
        followed: Callable[[Watch, Catalog], Watch],
        *,
        lag_s_max: float,
    ) -> None:
        self._changelog = changelog
        self._growth = growth
        self._threads = threads
        self._followed = followed
        self._lag_s_max = lag_s_max

    async def catch_up(self, subscription: Subscription) -> bool:
        """Send what is missing; return whether the subscription is at the head, else it has ended.

        Raises `SeqTrimmed`, `RequestRefused` if it lags for too long, and what a predicate raises.
        """
        began_s = asyncio.get_running_loop().time()
        while subscription.state is State.BEHIND:
            await self._room(subscription, began_s)
            if subscription.legs:
                await self._send_leg(subscription, subscription.legs[0])
            elif self._send_tail(subscription):
                return True
            else:
                await self._send_page(subscription)
        return False

    async def _room(self, subscription: Subscription, began_s: float) -> None:
        """Wait until the outlet takes more."""
        is_full = True
        while is_full:
            try:
                async with asyncio.timeout(self._lag_s_max):
                    await subscription.outlet.drained()
                is_full = False
            except TimeoutError:
                pass
            self._refuse_lag(subscription, began_s)

    def _refuse_lag(self, subscription: Subscription, began_s: float) -> None:
        """Raise if it has been behind for too long, and what it has still to be sent is that old."""
        behind_s = asyncio.get_running_loop().time() - began_s
        lag_s = (snowflake_ms(self._growth.view.seq) - snowflake_ms(subscription.after)) / 1000
        if min(behind_s, lag_s) > self._lag_s_max:
            raise RequestRefused(
                "LAG_LIMIT_EXCEEDED",
                f"The live query has been behind for more than {self._lag_s_max:g} s (ws_lag_s_max); "
                f"read faster, and resume with `from` {subscription.cursor}",
            )

    def _send_tail(self, subscription: Subscription) -> bool:
        """Send the rest from memory if it is short; tell whether the subscription is at the head now."""
        view = self._growth.view
        subscription.watch = self._followed(subscription.watch, view.catalog)
        changes = self._changelog.tail(view, after=subscription.after)
        if subscription.state is not State.BEHIND or changes is None or len(changes) > TAIL_CHANGES_MAX:
            return False
        watch = subscription.watch
        table, owner = watch.table.id, watch.owner
        own = [change for change in changes if change.table == table and change.owner == owner]
        if len(own) > PAGE_CHANGES or any(needs_decision(watch, change) for change in own):
            return False
        return _send(subscription, deltas(subscription, watch, own, view=view, until=view.seq))

    async def _send_leg(self, subscription: Subscription, leg: Leg) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, partial(self._read_leg, subscription, leg))
        if subscription.state is State.BEHIND:
            _write(subscription, found.frames, found.after)
            leg.after = found.after
            if found.is_whole:
                subscription.legs.remove(leg)
                assert subscription.gaps is not None, "it isn't at the head"
                subscription.gaps.add(leg.deletes)
                if not subscription.legs and subscription.taken is not None:
                    subscription.outlet.when_taken(subscription.taken)

    def _read_leg(self, subscription: Subscription, leg: Leg) -> Deltas:
        view = self._growth.view
        watch = self._followed(subscription.watch, view.catalog)
        changes = self._changelog.read(
            view, watch.table.id, watch.owner, after=leg.after, limit=PAGE_CHANGES, needed=watch.needed
        )
        found = leg_deltas(subscription, watch, leg, changes)
        is_more = len(changes) == PAGE_CHANGES and changes[-1].seq < leg.until
        if found.is_whole and is_more and leg.deletes:
            return Deltas(found.frames, changes[-1].seq, is_whole=False)
        return found

    async def _send_page(self, subscription: Subscription) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, partial(self._read_page, subscription))
        if subscription.state is State.BEHIND:
            _send(subscription, found)

    def _read_page(self, subscription: Subscription) -> Deltas:
        view = self._growth.view
        watch = self._followed(subscription.watch, view.catalog)
        changes = self._changelog.read(
            view,
            watch.table.id,
            watch.owner,
            after=subscription.after,
            limit=PAGE_CHANGES,
            needed=watch.needed,
        )
        is_last = len(changes) < PAGE_CHANGES
        until = view.seq if is_last else changes[-1].seq
        return deltas(subscription, watch, changes, view=view, until=until)


def _send(subscription: Subscription, found: Deltas) -> bool:
    _write(subscription, found.frames, found.after)
    subscription.after = found.after
    return found.is_whole


def _write(subscription: Subscription, frames: list[bytes], seq: int) -> None:
    if frames:
        subscription.outlet.write(frames)
        subscription.sent_changes += len(frames)
        subscription.sent_seq = seq
