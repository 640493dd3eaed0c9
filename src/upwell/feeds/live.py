"""Live queries: subscriptions read the log, each from its own cursor, and their frames go to sockets.

Law: what a subscription sends is its snapshot at seq s, then every later change that concerns it, once
and in order of seq, whatever is committed or flushed meanwhile, however slowly its socket reads.

One pump reads each growth of the log once for all subscriptions at the head. One whose socket is full
falls behind: nothing is queued for it, it reads the log for itself until it is at the head again.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from upwell.engine.catalog import Catalog
from upwell.engine.changelog import Changelog, Needed
from upwell.engine.query import QueryEngine
from upwell.engine.view import View
from upwell.errors import (
    InvalidOperation,
    QueryFailure,
    ReadOnly,
    RequestRefused,
    SeqTrimmed,
    TableNotFound,
    UpwellError,
)
from upwell.feeds.behind import LAG_S_MAX, PAGE_CHANGES, Behind
from upwell.feeds.cursor import Follower, Growth
from upwell.feeds.delta import Projection
from upwell.feeds.follow import follow
from upwell.feeds.gauge import Gauge
from upwell.feeds.match import Gaps, Index, Watch, judge, needs_decision
from upwell.feeds.resume import Resumes, Resuming
from upwell.feeds.sharing import Sharing
from upwell.feeds.snapshot import Page, Snapshot, expect_same_table, read_batch
from upwell.feeds.subscription import (
    Listing,
    Origin,
    Outbox,
    Outlet,
    State,
    Subscription,
    ending_code,
    listing,
    unexpected,
)
from upwell.logs import fields
from upwell.protocol.codec import PLAIN, Tail, encode, encode_frame
from upwell.protocol.messages import (
    BatchControl,
    Error,
    Protocol,
    Serialization,
    SubscriptionAck,
    SubscriptionOptions,
)
from upwell.storage.hot import Change
from upwell.types import Owner, TableId

log = logging.getLogger("upwell.live")
T = TypeVar("T")

SLICE_S = 0.01
SLICE_BYTES_MAX = 4 << 20
_READY = BatchControl(0, False, "ready", None)

_Tails = dict[tuple[Projection, str, Serialization], Tail]
"""What the subscribers of one change share."""


class LiveFeed:
    """All subscriptions of one event loop. Use it from that loop only; `threads` run reads of files."""

    def __init__(
        self,
        changelog: Changelog,
        growth: Growth,
        query: QueryEngine,
        threads: Executor,
        resumes: Resumes,
        *,
        lag_s_max: float = LAG_S_MAX,
    ) -> None:
        self._changelog = changelog
        self._growth = growth
        self._query = query
        self._threads = threads
        self._resuming = Resuming(resumes, growth, threads)
        self._behind = Behind(changelog, growth, threads, self._followed, lag_s_max=lag_s_max)
        self._follower = Follower(growth)
        self._catalog: Catalog = growth.view.catalog
        self._index: Index[Subscription] = Index()
        self._subscriptions: dict[Subscription, None] = {}
        self._by_user: Counter[str] = Counter()
        self.sockets, self.running = Gauge(), Gauge()
        self._tasks: set[asyncio.Task[None]] = set()
        self.sharing = Sharing(query)

    async def run(self) -> None:
        """Pump the log to the subscriptions at the head, until cancelled or the server is read-only."""
        try:
            while True:
                await self._follower.grown()
                # Answers to requests of the same group go out first.
                await asyncio.sleep(0)
                await self._advance_guarded(self._growth.view)
        except ReadOnly as failure:
            log.warning("live queries stand still", extra=fields(cause=str(failure)))

    async def close(self) -> None:
        """End all subscriptions without a word."""
        for subscription in list(self._subscriptions):
            self.unsubscribe(subscription)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def subscriptions(self) -> list[Listing]:
        """Return what there is, for `system.live`; any thread may call it."""
        return [listing(subscription) for subscription in list(self._subscriptions)]

    @property
    def total(self) -> int:
        """How many subscriptions there are."""
        return self.running.count

    def count(self, user: str) -> int:
        """Return how many subscriptions a user has, on all sockets together."""
        return self._by_user[user]

    def kill(self, live_id: str, user: str | None) -> bool:
        """End the subscriptions of this id that are the user's (None: anybody's); whether there were any."""
        found = [
            each
            for each in self._subscriptions
            if live_id.endswith(each.id) and each.live_id == live_id and user in (None, each.origin.user)
        ]
        for subscription in found:
            text = "The live query was ended by KILL LIVE QUERY"
            self.end(subscription, RequestRefused("SUBSCRIPTION_KILLED", text))
        return bool(found)

    def adopt(self, subscription: Subscription, seq: int) -> None:
        """Count and list a subscription that has read up to `seq`; a lookout feeds its own."""
        self._follower.begin(seq)
        self._subscriptions[subscription] = None
        self._by_user[subscription.origin.user] += 1
        self.running.enter()

    def end(self, subscription: Subscription, failure: UpwellError) -> None:
        """End a subscription that can't go on, and say why."""
        if not subscription.is_ended:
            self.unsubscribe(subscription)
            # As text, whatever was negotiated: it is what every client reads.
            frame = encode(Error(subscription.id, ending_code(failure), str(failure)))
            subscription.outlet.write([frame])

    async def subscribe(
        self,
        watch: Watch,
        *,
        subscription_id: str,
        outlet: Outlet,
        options: SubscriptionOptions | None,
        protocol: Protocol = PLAIN,
        origin: Origin = Origin(),  # noqa: B008 — a frozen value: nobody
    ) -> Subscription:
        """Acknowledge, send batch 0 if `options` were given, and go live after the last batch.

        Raises `TableNotFound` (also for a resume after a seq that is older than the table), `SeqTrimmed` for
        a resume from below the log's floor, `InvalidInput` for options, and what a query raises; nothing is
        left then.
        """
        if watch.condition is not None and options is None:
            # Who gets a snapshot hears from that what is wrong with the query.
            await self._in_thread(partial(watch.condition.check, self._growth.view))
        view = self._growth.view
        if watch.table.id not in view.catalog.by_id:
            raise TableNotFound(f"{watch.table.full_name} was dropped")
        expect_same_table(watch.table, options)
        watch = self._followed(watch, view.catalog)
        snapshot = Snapshot.begin(options, until=view.seq) if options is not None else None
        subscription = Subscription(
            subscription_id, watch, outlet, view.seq, origin, protocol, snapshot=snapshot
        )
        self.adopt(subscription, view.seq)
        try:
            if snapshot is None:
                outlet.write([self._ack(subscription, _READY)])
                self._join(subscription)
            else:
                await self._resuming.start(subscription, snapshot)
                await self._send_batch(subscription, snapshot)
        except BaseException:
            self.unsubscribe(subscription)
            raise
        return subscription

    async def next_batch(self, subscription: Subscription) -> None:
        """Send the snapshot's next batch; raise `InvalidOperation` if there is none."""
        snapshot = subscription.snapshot
        if snapshot is None or subscription.state is not State.LOADING:
            raise InvalidOperation("the subscription has no further batch")
        try:
            await self._send_batch(subscription, snapshot)
        except (SeqTrimmed, InvalidOperation) as failure:
            self.end(subscription, failure)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Send nothing more; an ended one stays ended."""
        subscription.state = State.ENDED
        self._index.discard(subscription)
        if subscription in self._subscriptions:
            del self._subscriptions[subscription]
            self._forget(subscription.origin.user)
        if subscription.task is not None and subscription.task is not asyncio.current_task():
            subscription.task.cancel()

    def _forget(self, user: str) -> None:
        self.running.leave()
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]
        if not self._subscriptions:
            self._follower.rest()

    # The snapshot

    async def _send_batch(self, subscription: Subscription, snapshot: Snapshot) -> None:
        await subscription.outlet.drained()
        try:
            page, frame = await self._in_thread(partial(self._read_batch, subscription, snapshot))
            await self._resuming.keep(subscription, snapshot, page)
        except UpwellError:
            raise
        except Exception as error:
            raise unexpected(subscription) from error
        if subscription.state is not State.LOADING:
            return
        is_first = snapshot.batch_num == 0
        frames = [self._ack(subscription, page.control(0)), frame] if is_first else [frame]
        subscription.outlet.write(frames)
        snapshot.batch_num += 1
        snapshot.newest = None
        if page.has_more:
            assert page.last_seq is not None, "a page that isn't the last has rows"
            snapshot.after = page.last_seq
        else:
            subscription.legs, subscription.gaps = snapshot.legs(), snapshot.gaps
            subscription.snapshot = None
            subscription.taken = partial(self._resuming.taken, subscription, snapshot)
            self._fall_behind(subscription, after=subscription.after)

    def _read_batch(self, subscription: Subscription, snapshot: Snapshot) -> tuple[Page, bytes]:
        """Return the next page and its frame."""
        view, protocol = self._growth.view, subscription.protocol
        watch = self._followed(subscription.watch, view.catalog)
        page = read_batch(self._changelog, self._query, view, watch, snapshot, protocol.serialization)
        return page, page.frame(subscription.id, snapshot.batch_num, protocol)

    def _ack(self, subscription: Subscription, control: BatchControl) -> bytes:
        schema = subscription.watch.projection.schema()
        return encode_frame(SubscriptionAck(subscription.id, 0, control, schema), subscription.protocol)

    # At the head

    async def _advance_guarded(self, view: View) -> None:
        """Advance; what fails unexpectedly ends who was at the head, and neither the pump nor the server.

        Nobody knows what of these changes they have: they are told, and resume from what they hold.
        """
        try:
            await self._advance(view)
        except Exception:
            log.exception("the pump of live queries failed unexpectedly")
            text = "live queries failed unexpectedly; the server's log says why: resume with `from`"
            for subscription in list(self._subscriptions):
                if subscription.state is State.HEAD and subscription.watch.table.id:
                    self.end(subscription, UpwellError(text))

    async def _advance(self, view: View) -> None:
        after = self._follower.seq
        # Set first: who joins from now on has read up to here, and is skipped by what follows.
        self._follower.seq = view.seq
        is_altered = view.catalog.tables is not self._catalog.tables
        if is_altered:
            self._catalog = view.catalog
            await self._for_each(partial(self._follow_guarded, view.catalog))
        changes = self._changelog.tail(view, after=after)
        if changes is not None:
            await self._dispatch(changes)
        else:
            await self._dispatch_partitions(view, after)
        if is_altered:
            await self._for_each(partial(self._end_if_dropped, view.catalog))

    async def _for_each(self, act: Callable[[Subscription], None]) -> None:
        """Do something for each subscription, in slices between which others run."""
        now = asyncio.get_running_loop().time
        until = now() + SLICE_S
        for subscription in list(self._subscriptions):
            if not subscription.is_ended:
                act(subscription)
            if now() >= until:
                await asyncio.sleep(0)
                until = now() + SLICE_S

    def _follow_guarded(self, catalog: Catalog, subscription: Subscription) -> None:
        try:
            self._follow(subscription, catalog)
        except UpwellError as failure:
            self.end(subscription, failure)
        except Exception:  # noqa: BLE001 — one live query must not take the pump, and the server, with it
            self.end(subscription, unexpected(subscription))

    def _follow(self, subscription: Subscription, catalog: Catalog) -> None:
        """Go on with the table as `catalog` has it; raise `InvalidOperation` if that cannot be."""
        watch = self._followed(subscription.watch, catalog)
        if watch is not subscription.watch:
            # The index finds it by the place of a column, which may be another one now.
            self._index.discard(subscription)
            subscription.watch = watch
            if subscription.state is State.HEAD:
                self._index.add(subscription)

    def _followed(self, watch: Watch, catalog: Catalog) -> Watch:
        table = catalog.by_id.get(watch.table.id)
        if table is None or table.version <= watch.table.version:
            return watch
        if watch.require is not None:
            watch.require(table)
        return follow(watch, table, self.sharing.projection)

    async def _dispatch_partitions(self, view: View, after: int) -> None:
        """Read what memory no longer has, for each partition that somebody watches."""
        await self._for_each(partial(self._read_alone, after))
        for table, owner in self._index.partitions():
            cursor = after
            while cursor < view.seq:
                read = partial(
                    self._changelog.read,
                    view,
                    TableId(table),
                    Owner(owner),
                    after=cursor,
                    limit=PAGE_CHANGES,
                    needed=Needed.ENDS,
                )
                try:
                    changes = await self._in_thread(read)
                except SeqTrimmed as failure:
                    self._end_partition(table, owner, failure)
                    break
                await self._dispatch(changes)
                cursor = changes[-1].seq if len(changes) == PAGE_CHANGES else view.seq

    def _read_alone(self, after: int, subscription: Subscription) -> None:
        """Let one read on for itself of whose rows the log may have no more than who lags makes do with."""
        if subscription.state is State.HEAD and subscription.watch.has_gaps:
            self._fall_behind(subscription, after=max(after, subscription.after))

    async def _dispatch(self, changes: Sequence[Change]) -> None:
        """Write each change to all at the head whom it concerns, in slices between which others run."""
        outbox = Outbox(self._fall_behind, self.unsubscribe)
        now = asyncio.get_running_loop().time
        until = now() + SLICE_S
        for change in changes:
            tails: _Tails = {}
            for subscription in self._index.concerned(change):
                if subscription.state is State.HEAD and change.seq > subscription.after:
                    self._put(outbox, subscription, change, tails)
                if outbox.size_bytes >= SLICE_BYTES_MAX or now() >= until:
                    outbox.flush()
                    await asyncio.sleep(0)
                    until = now() + SLICE_S
        outbox.flush()

    def _put(self, outbox: Outbox, subscription: Subscription, change: Change, tails: _Tails) -> None:
        watch = subscription.watch
        try:
            if watch.condition is not None:
                # Only the query engine can tell, and nobody else waits for that: it reads on for itself.
                if needs_decision(watch, change):
                    self._fall_behind(subscription, after=change.seq - 1)
                return
            kind = judge(watch, change)
            if kind is None:
                return
            serialization = subscription.protocol.serialization
            place = (watch.projection, kind, serialization)
            tail = tails.get(place)
            if tail is None:
                tail = tails[place] = watch.projection.tail(kind, change, serialization)
        except QueryFailure as failure:
            self._end_after(outbox, subscription, failure)
        except Exception:  # noqa: BLE001 — one live query must not take the pump, and the server, with it
            self._end_after(outbox, subscription, unexpected(subscription))
        else:
            outbox.put(subscription, change.seq, subscription.frame(tail))

    def _end_after(self, outbox: Outbox, subscription: Subscription, failure: UpwellError) -> None:
        """End a subscription behind the changes that it has coming; one without room meets this again."""
        outbox.flush()
        if subscription.state is State.HEAD:
            self.end(subscription, failure)

    def _end_partition(self, table: int, owner: str, failure: UpwellError) -> None:
        for subscription in list(self._subscriptions):
            watch = subscription.watch
            if subscription.state is State.HEAD and (watch.table.id, watch.owner) == (table, owner):
                self.end(subscription, failure)

    def _end_if_dropped(self, catalog: Catalog, subscription: Subscription) -> None:
        table = subscription.watch.table
        # Who came meanwhile may watch a table that is newer than `catalog`.
        is_newer = table.id in self._growth.view.catalog.by_id
        if table.id and table.id not in catalog.by_id and not is_newer:
            self.end(subscription, TableNotFound(f"{table.full_name} was dropped"))

    def _join(self, subscription: Subscription) -> None:
        assert subscription.after >= self._follower.seq, "who joins has read what the pump has taken up"
        subscription.state, subscription.gaps = State.HEAD, None
        self._index.add(subscription)

    # Behind

    def _fall_behind(self, subscription: Subscription, *, after: int) -> None:
        self._index.discard(subscription)
        subscription.state = State.BEHIND
        subscription.after = after
        subscription.gaps = subscription.gaps or Gaps(subscription.watch, after=after)
        subscription.task = asyncio.create_task(self._catch_up(subscription))
        self._tasks.add(subscription.task)
        subscription.task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, subscription: Subscription) -> None:
        try:
            if await self._behind.catch_up(subscription):
                self._join(subscription)
        except UpwellError as failure:
            self.end(subscription, failure)
        except Exception:  # noqa: BLE001 — nobody awaits this task: its client would wait for ever
            self.end(subscription, unexpected(subscription))
        finally:
            if subscription.task is asyncio.current_task():
                subscription.task = None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
