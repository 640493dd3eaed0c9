"""Live queries without a network: snapshot + deltas = SELECT, each change once, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from upwell.clock import ManualClock
from upwell.effects import NoPoints, OsFiles
from upwell.engine.alter import AddColumn, Alteration, DropColumn, ModifyColumn, RenameColumn
from upwell.engine.catalog import Table, TableKind
from upwell.engine.changelog import Changelog
from upwell.engine.commit import Committer
from upwell.engine.expression import Arithmetic, ColumnRef, Compare, Literal, Node
from upwell.engine.flush import Flush
from upwell.engine.overlay import Overlay
from upwell.engine.partition import PartitionWriter
from upwell.engine.query import QueryEngine
from upwell.engine.result import result_rows
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.engine.source import Source
from upwell.engine.trim import LogLimits, LogTrim
from upwell.engine.write import Write
from upwell.errors import InvalidInput, InvalidOperation, TableNotFound, UpwellError
from upwell.feeds.cursor import Growth
from upwell.feeds.delta import Projection
from upwell.feeds.live import LiveFeed
from upwell.feeds.match import Watch
from upwell.feeds.resume import Resumes
from upwell.feeds.subscription import Origin, Subscription
from upwell.ids import snowflake_ms
from upwell.protocol.codec import Tail, decode_server_frame
from upwell.protocol.messages import Change as ChangeFrame
from upwell.protocol.messages import (
    ChangeType,
    Error,
    InitialDataBatch,
    Protocol,
    Serialization,
    ServerFrame,
    SubscriptionAck,
    SubscriptionOptions,
)
from upwell.storage.cold import ColdCache
from upwell.storage.hot import Change
from upwell.storage.memory import MemoryStore
from upwell.storage.storages import Storages
from upwell.types import SHARED, Column, Default, Owner, Row, SqlType, TableId

ANN, BEN = Owner("u:ann"), Owner("u:ben")
WAIT_S = 20.0
FENCE = 1_000
ITEMS = Table(
    TableId(0),
    "default",
    "items",
    TableKind.USER,
    (
        Column(1, "id", SqlType.BIGINT, False, True, physical="id"),
        Column(2, "kind", SqlType.TEXT, physical="kind"),
        Column(3, "size", SqlType.INT, physical="size"),
    ),
)
KIND_A: tuple[Node, str] = (Compare("=", ColumnRef(1), Literal("a")), "kind = 'a'")
SMALL: tuple[Node, str] = (Compare("<", ColumnRef(2), Literal(5)), "size < 5 -- and so on")
FILTERS: dict[str, tuple[Node, str] | None] = {"all": None, "kind": KIND_A, "small": SMALL}


class Rig:
    """An engine on a memory store, one USER table, and the feed."""

    def __init__(
        self, directory: Path, threads: ThreadPoolExecutor, tail_changes_max: int, lag_s_max: float
    ) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.committer = Committer(self.store, points=NoPoints())
        self.committer.changelog = Changelog(floor=self.store.last_seq, tail_changes_max=tail_changes_max)
        objects = Storages(directory, OsFiles())
        self.rows = Rows(ColdCache(objects, partitions_max=10, group_bytes_max=1 << 20))
        self.query = QueryEngine(self.rows, Overlay())
        partitions = PartitionWriter(
            self.committer, objects, clock=self.clock, points=NoPoints(), grace_s=60.0
        )
        self.flush = Flush(self.committer, partitions, points=NoPoints())
        self.schema = Schema(self.committer, self.clock)
        self.schema.ensure_default_namespace()
        seq, self.table = self.schema.create_table(ITEMS, if_not_exists=False)
        assert seq is not None
        self.committer.publication.wait(seq)
        self.threads = threads
        self.growth = Growth(self.committer.publication, asyncio.get_running_loop())
        self.feed = LiveFeed(
            self.committer.changelog,
            self.growth,
            self.query,
            threads,
            Resumes(self.committer),
            lag_s_max=lag_s_max,
        )

    def write(self, *steps: Callable[[Write], None]) -> int:
        """Commit some steps at once; returns the seq of the commit."""
        with self.committer.lock:
            write = Write(
                self.rows,
                self.committer.newest,
                self.committer.newest_catalog,
                may_block=True,
                find_children=lambda *_: (),
                view_seq=0,
            )
            for step in steps:
                step(write)
            return self.committer.apply(write.batch)

    def insert(self, owner: Owner, *rows: Row) -> int:
        return self.write(*(partial(Write.insert, table=self.table, owner=owner, row=row) for row in rows))

    def update(self, owner: Owner, row: Row) -> int:
        return self.write(partial(Write.update, table=self.table, owner=owner, key=row[0], row=row))

    def delete(self, owner: Owner, key: int) -> int:
        return self.write(partial(Write.delete, table=self.table, owner=owner, keys=[key]))

    def exists(self, owner: Owner, key: int) -> bool:
        found = self.rows.find(self.store, self.table, owner, key, may_block=True)
        return found.live is not None

    def add_column(self) -> int:
        """Give the table one more column, `more`, whose DEFAULT is 'm'."""
        column = Column(0, "more", SqlType.TEXT, default=Default(value="m"))
        return self.alter(AddColumn(replace(column, initial="m")))

    def alter(self, alteration: Alteration) -> int:
        seq, self.table = self.schema.alter_table("default", "items", alteration, refuse_rows=lambda *_: None)
        assert seq is not None
        return seq

    def watch(
        self, owner: Owner = ANN, filtered: tuple[Node, str] | None = None, *, view: bool = False
    ) -> Watch:
        predicate, where = filtered or (None, None)
        return Watch(
            self.table, owner, self.feed.sharing.projection(self.table, None), predicate, where, view
        )

    def select(self, owner: Owner, where: str | None) -> dict[int, Row]:
        """Return the rows of the newest View by key."""
        text = "SELECT id, kind, size FROM default.items" + (f" WHERE {where}\n" if where else "")
        source = Source(self.table, owner)
        found = self.query.run(self.growth.view, text, "default", [("default", "items")], lambda *_: source)
        return {int(row[0]): list(row) for row in result_rows(found)}  # type: ignore[arg-type]

    def log(self, owner: Owner, *, after: int, until: int | None = None) -> list[Change]:
        return self.store.read_log(self.table.id, owner, after, until, 1_000_000)

    async def in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)


@asynccontextmanager
async def running(
    directory: Path, *, tail_changes_max: int = 8_192, lag_s_max: float = 600.0
) -> AsyncIterator[Rig]:
    with ThreadPoolExecutor(2) as threads:
        rig = Rig(directory, threads, tail_changes_max, lag_s_max)
        pump = asyncio.create_task(rig.feed.run())
        try:
            yield rig
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            await rig.feed.close()
            await rig.in_thread(rig.committer.close)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


class Reader:
    """An outlet that a test reads from; while `is_stalled` it is full as soon as something is in it."""

    def __init__(self, *, is_stalled: bool = False) -> None:
        self.frames: list[ServerFrame] = []
        self.writes = 0
        self.is_stalled = is_stalled
        self._news = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.is_stalled

    def write(self, frames: Sequence[bytes]) -> None:
        self.writes += 1
        self.frames += map(decode_server_frame, frames)
        self._news.set()

    async def drained(self) -> None:
        while self.is_stalled:
            await self._next()

    def when_taken(self, then: Callable[[], None]) -> None:
        then()

    def release(self) -> None:
        self.is_stalled = False
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await self._next()

    async def until_seq(self, seq: int) -> None:
        await self.until(lambda: any(event[2] == seq for event in self.events()))

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()

    def batches(self) -> list[InitialDataBatch]:
        return [frame for frame in self.frames if isinstance(frame, InitialDataBatch)]

    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches() for row in batch.rows]

    def changes(self) -> list[ChangeFrame]:
        return [frame for frame in self.frames if isinstance(frame, ChangeFrame)]

    def errors(self) -> list[Error]:
        return [frame for frame in self.frames if isinstance(frame, Error)]

    def events(self) -> list[tuple[str, int, int]]:
        """Return (kind, key, seq) of each change."""
        return [(kind, key, seq) for kind, key, seq, _ in map(_event, self.changes())]

    def fold(self, table: dict[int, Row]) -> dict[int, Row]:
        """Apply everything to rows by key, as a client would."""
        for row in self.rows():
            table[int(row["id"])] = [int(row["id"]), row["kind"], row["size"]]
        for kind, key, _, row in map(_event, self.changes()):
            if kind == "delete":
                table.pop(key, None)
            else:
                table[key] = [key, row.get("kind"), row.get("size")]
        return table


def _event(frame: ChangeFrame) -> tuple[str, int, int, dict[str, Any]]:
    rows = frame.old_values if frame.change_type == "delete" else frame.rows
    assert rows is not UNSET
    [row] = rows
    return frame.change_type, int(row["id"]), int(row["_seq"]), row


class RawReader:
    """An outlet that keeps frames as they are written."""

    is_full = False

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._news = asyncio.Event()

    def write(self, frames: Sequence[bytes]) -> None:
        self.frames += frames
        self._news.set()

    async def drained(self) -> None:
        pass

    def when_taken(self, then: Callable[[], None]) -> None:
        then()

    async def until_frames(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.frames) < count:
                self._news.clear()
                await self._news.wait()


async def subscribe(
    rig: Rig,
    reader: Reader,
    watch: Watch,
    options: SubscriptionOptions | None = None,
    origin: Origin = Origin(),  # noqa: B008 — a frozen value: nobody
) -> Subscription:
    return await rig.feed.subscribe(watch, subscription_id="s", outlet=reader, options=options, origin=origin)


async def load(rig: Rig, reader: Reader, subscription: Subscription, between: Callable[[], object]) -> None:
    """Ask for all batches, with something happening between them."""
    while reader.batches()[-1].batch_control.has_more:
        between()
        await rig.feed.next_batch(subscription)


async def test_acknowledged_then_batches_then_changes(rig: Rig) -> None:
    rig.insert(ANN, [1, "a", 1], [2, "b", None])
    await rig.growth.reached(rig.insert(BEN, [1, "c", 3]))
    reader = Reader()
    subscription = await subscribe(rig, reader, rig.watch(), SubscriptionOptions(batch_size=1))
    ack, batch = reader.frames
    assert isinstance(ack, SubscriptionAck)
    assert isinstance(batch, InitialDataBatch)
    assert ack.total_rows == 0
    assert ack.batch_control == batch.batch_control
    assert batch.batch_control.status == "loading"
    later = rig.insert(ANN, [3, "a", 3])
    await rig.growth.reached(later)
    assert reader.changes() == [], "no change before the snapshot is complete"
    await rig.feed.next_batch(subscription)
    await reader.until_seq(later)
    assert [(b.batch_control.batch_num, b.batch_control.status) for b in reader.batches()] == [
        (0, "loading"),
        (1, "ready"),
    ]
    first, second = reader.rows()
    assert [first["id"], second["id"]] == ["1", "2"]
    assert {k: v for k, v in second.items() if k != "_seq"} == {
        "id": "2", "kind": "b", "size": None, "_deleted": False,
    }  # fmt: skip
    assert reader.batches()[1].batch_control.last_seq_id == int(second["_seq"])
    assert reader.events() == [("insert", 3, later)]
    with pytest.raises(InvalidOperation, match="no further batch"):
        await rig.feed.next_batch(subscription)


async def test_an_empty_table_is_ready_at_once(rig: Rig) -> None:
    reader = Reader()
    await subscribe(rig, reader, rig.watch(), SubscriptionOptions())
    [batch] = reader.batches()
    assert batch.rows == []
    control = batch.batch_control
    assert (control.status, control.has_more, control.last_seq_id) == ("ready", False, None)


async def test_without_options_there_are_changes_only(rig: Rig) -> None:
    await rig.growth.reached(rig.insert(ANN, [1, "a", 1]))
    reader = Reader()
    subscription = await subscribe(rig, reader, rig.watch())
    with pytest.raises(InvalidOperation, match="no further batch"):
        await rig.feed.next_batch(subscription)
    seq = rig.delete(ANN, 1)
    await reader.until_seq(seq)
    assert reader.batches() == []
    assert reader.events() == [("delete", 1, seq)]


async def test_nobody_sees_what_another_user_writes(rig: Rig) -> None:
    ann, ben = Reader(), Reader()
    await subscribe(rig, ann, rig.watch(ANN), SubscriptionOptions())
    await subscribe(rig, ben, rig.watch(BEN), SubscriptionOptions())
    hers = rig.insert(ANN, [1, "a", 1])
    his = rig.insert(BEN, [2, "b", 2])
    await ann.until_seq(hers)
    await ben.until_seq(his)
    assert ann.events() == [("insert", 1, hers)]
    assert ben.events() == [("insert", 2, his)]


async def test_last_rows_are_the_newest_in_ascending_order(rig: Rig) -> None:
    for number in range(10):
        await rig.growth.reached(rig.insert(ANN, [number, "a", number]))
    reader = Reader()
    await subscribe(rig, reader, rig.watch(), SubscriptionOptions(batch_size=5, last_rows=3))
    assert [row["id"] for row in reader.rows()] == ["7", "8", "9"]
    assert reader.batches()[0].batch_control.has_more is False


async def test_a_refused_subscription_leaves_nothing(rig: Rig) -> None:
    reader = Reader()
    with pytest.raises(InvalidInput, match=r"^last_rows \(6\) cannot exceed batch_size \(5\); paginated"):
        await subscribe(rig, reader, rig.watch(), SubscriptionOptions(batch_size=5, last_rows=6))
    rig.schema.drop_table("default", "items", if_exists=False)
    await rig.growth.reached(rig.committer.last_seq)
    with pytest.raises(TableNotFound, match="was dropped"):
        await subscribe(rig, reader, rig.watch(), SubscriptionOptions())
    assert reader.frames == []
    assert rig.feed.subscriptions() == []


async def test_a_dropped_table_ends_its_subscriptions_and_says_so(rig: Rig) -> None:
    await rig.growth.reached(rig.insert(ANN, [1, "a", 1], [2, "a", 1]))
    live, loading = Reader(), Reader()
    await subscribe(rig, live, rig.watch())
    await subscribe(rig, loading, rig.watch(), SubscriptionOptions(batch_size=1))
    assert sorted(listing.state for listing in rig.feed.subscriptions()) == ["head", "loading"]
    rig.schema.drop_table("default", "items", if_exists=False)
    for reader in (live, loading):
        await reader.until(lambda reader=reader: bool(reader.errors()))
        [error] = reader.errors()
        assert (error.subscription_id, error.code) == ("s", "NOT_FOUND")
        assert error.message == "Table not found: default.items was dropped"
    assert rig.feed.subscriptions() == []


async def test_a_predicate_without_an_answer_ends_only_its_own_subscription(rig: Rig) -> None:
    broken, sound = Reader(), Reader()
    divided = Compare("=", Arithmetic("/", Literal(1), ColumnRef(2)), Literal(1))
    await subscribe(rig, broken, rig.watch(filtered=(divided, "1 / size = 1")))
    await subscribe(rig, sound, rig.watch())
    seq = rig.insert(ANN, [1, "a", 0])
    await sound.until_seq(seq)
    assert [error.code for error in broken.errors()] == ["SUBSCRIPTION_FAILED"]
    assert broken.changes() == []
    later = rig.insert(ANN, [2, "a", 1])
    await sound.until_seq(later)
    assert len(broken.frames) == 2
    assert [event[1] for event in sound.events()] == [1, 2]


async def test_what_came_before_a_row_without_an_answer_is_told(rig: Rig) -> None:
    divided = Compare("=", Arithmetic("/", Literal(1), ColumnRef(2)), Literal(1))
    watch = rig.watch(filtered=(divided, "1 / size = 1"))
    live, stalled = Reader(), Reader()
    await subscribe(rig, live, watch)
    await subscribe(rig, stalled, watch)
    stalled.is_stalled = True
    rig.insert(ANN, [1, "a", 1], [2, "a", 1], [3, "a", 0], [4, "a", 1])
    await live.until(lambda: bool(live.errors()))
    stalled.release()
    await stalled.until(lambda: bool(stalled.errors()))
    for reader in (live, stalled):
        assert [event[1] for event in reader.events()] == [1, 2]
        assert reader.frames[-1:] == reader.errors()


async def test_a_cursor_from_the_future_gets_every_change_from_now_on(rig: Rig) -> None:
    seq = rig.insert(ANN, [1, "a", 1])
    await rig.growth.reached(seq)
    reader, ahead_ms = Reader(), 10_000
    await subscribe(rig, reader, rig.watch(), SubscriptionOptions(from_seq=seq + (ahead_ms << 22)))
    assert reader.rows() == []
    rig.insert(ANN, [2, "a", 2])
    rig.update(ANN, [1, "b", 1])
    rig.clock.advance(2 * ahead_ms / 1000)
    rig.delete(ANN, 1)
    last = rig.insert(ANN, [3, "a", 3])
    assert last > seq + (ahead_ms << 22)
    await reader.until_seq(last)
    assert [event[:2] for event in reader.events()] == [
        ("insert", 2), ("update", 1), ("delete", 1), ("insert", 3)
    ]  # fmt: skip


class Faulty(Watch):
    """A watch with a bug: its predicate raises what no predicate should."""

    @property
    def matches(self) -> Callable[[Row, int], bool]:  # type: ignore[override]
        def fail(row: Row, seq: int) -> bool:
            raise ZeroDivisionError(f"a bug, at {seq}")

        return fail


@pytest.mark.parametrize("way", ["head", "tail", "page", "resume"])
async def test_a_fault_ends_only_its_own_subscription(
    tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, tail_changes_max=2 if way == "page" else 8_192) as rig:
        faulty = Faulty(rig.table, ANN, rig.feed.sharing.projection(rig.table, None))
        broken, sound = Reader(is_stalled=way in ("tail", "page")), Reader()
        first = rig.insert(ANN, [0, "a", 0])
        await rig.growth.reached(rig.insert(ANN, [1, "a", 0]))
        if way == "resume":
            with pytest.raises(UpwellError, match="failed unexpectedly"):
                await subscribe(rig, broken, faulty, SubscriptionOptions(from_seq=first))
        else:
            await subscribe(rig, broken, faulty)
        await subscribe(rig, sound, rig.watch())
        seqs = [rig.insert(ANN, [number, "a", 1]) for number in range(2, 12)]
        await sound.until_seq(seqs[-1])
        broken.release()
        if way != "resume":
            await broken.until(lambda: bool(broken.errors()))
            [error] = broken.errors()
            assert error.code == "SUBSCRIPTION_FAILED"
            assert "a bug" not in error.message
        await sound.until_seq(rig.insert(ANN, [12, "a", 1]))
        assert len(rig.feed.subscriptions()) == 1
        assert "ZeroDivisionError: a bug, at" in caplog.text


async def test_a_resume_from_before_the_table_was_made_is_refused(rig: Rig) -> None:
    cursor = rig.insert(ANN, [1, "a", 1])
    rig.clock.advance(0.001)
    rig.schema.drop_table("default", "items", if_exists=False)
    seq, rig.table = rig.schema.create_table(ITEMS, if_not_exists=False)
    assert seq is not None
    await rig.growth.reached(seq)
    reader = Reader()
    with pytest.raises(TableNotFound, match="made anew after this cursor; subscribe without `from`"):
        await subscribe(rig, reader, rig.watch(), SubscriptionOptions(from_seq=cursor))
    assert reader.frames == []
    assert rig.feed.subscriptions() == []
    await subscribe(rig, reader, rig.watch(), SubscriptionOptions(from_seq=seq))
    assert len(reader.batches()) == 1


async def test_kill_ends_only_what_it_names_and_may(rig: Rig) -> None:
    readers = {user: Reader() for user in ("ann", "ben")}
    for user, reader in readers.items():
        await rig.feed.subscribe(
            rig.watch(),
            subscription_id="s",
            outlet=reader,
            options=None,
            origin=Origin(user, "c1", created_at_us=rig.clock.now_us()),
        )
    seq = rig.insert(ANN, [1, "a", 1])
    await readers["ann"].until_seq(seq)
    listed = {each.user: each for each in rig.feed.subscriptions()}
    assert [(each.live_id, each.changes) for each in listed.values()] == [("ann-c1-s", 1), ("ben-c1-s", 1)]
    assert listed["ann"].updated_at_us == max(snowflake_ms(seq) * 1000, rig.clock.now_us())
    assert not rig.feed.kill("ann-c1-s", "ben")
    assert not rig.feed.kill("s", None)
    assert rig.feed.count("ann") == 1
    assert rig.feed.kill("ann-c1-s", None)
    assert (rig.feed.count("ann"), rig.feed.count("ben")) == (0, 1)
    assert [error.code for error in readers["ann"].errors()] == ["SUBSCRIPTION_KILLED"]
    assert rig.feed.kill("ben-c1-s", "ben")
    assert rig.feed.subscriptions() == []


async def test_subscribers_of_one_serialization_share_what_is_encoded(rig: Rig) -> None:
    encoded: list[str] = []

    class Counting(Projection):
        def tail(self, kind: ChangeType, change: Change, serialization: Serialization = "json") -> Tail:
            encoded.append(serialization)
            return super().tail(kind, change, serialization)

    found = rig.feed.sharing.projection(rig.table, None)
    watch = Watch(rig.table, ANN, Counting(found.outputs, found.key))
    gzip_json, plain_json = Protocol("json", "gzip"), Protocol("json", "none")
    protocols = [gzip_json, plain_json, Protocol("msgpack", "gzip"), Protocol("msgpack", "none")] * 5
    outlets = [RawReader() for _ in protocols]
    for outlet, protocol in zip(outlets, protocols, strict=True):
        await rig.feed.subscribe(watch, subscription_id="s", outlet=outlet, options=None, protocol=protocol)
    rig.insert(ANN, [1, "word " * 200, 1])
    await rig.growth.reached(rig.committer.last_seq)
    for outlet in outlets:
        await outlet.until_frames(2)
    assert sorted(encoded) == ["json", "msgpack"]
    assert len({outlet.frames[1] for outlet in outlets}) == 4


async def test_a_pump_that_finds_its_log_trimmed_ends_who_watches_and_goes_on(rig: Rig) -> None:
    cut, sound = Reader(), Reader()
    await subscribe(rig, cut, rig.watch(ANN))
    await subscribe(rig, sound, rig.watch(BEN))
    # Without a chance for the pump between them: a change, forgotten by memory, trimmed from the log.
    rig.insert(ANN, [1, "a", 1])
    rig.committer.changelog.forget()
    rig.clock.advance(10)
    limits = LogLimits(1.0, 1 << 30)
    trim = LogTrim(rig.committer, rig.clock, limits, lambda user, since_us, unread=None: None, NoPoints())
    assert trim.run() == 1
    await cut.until(lambda: bool(cut.errors()))
    [error] = cut.errors()
    assert (error.subscription_id, error.code) == ("s", "HISTORY_PRUNED")
    assert error.message.endswith("subscribe again without `from`")
    seq = rig.insert(BEN, [1, "a", 1])
    await sound.until_seq(seq)
    assert cut.changes() == []


async def test_an_ended_subscription_gets_nothing(rig: Rig) -> None:
    left, stays = Reader(), Reader()
    subscription = await subscribe(rig, left, rig.watch())
    await subscribe(rig, stays, rig.watch())
    rig.feed.unsubscribe(subscription)
    await stays.until_seq(rig.insert(ANN, [1, "a", 1]))
    assert left.changes() == []


async def test_a_commit_of_many_rows_is_written_at_once_and_in_order(rig: Rig) -> None:
    reader = Reader()
    await subscribe(rig, reader, rig.watch())
    writes = reader.writes
    await reader.until_seq(rig.insert(ANN, *([number, "a", number] for number in range(300))))
    assert [event[1] for event in reader.events()] == list(range(300))
    assert reader.writes == writes + 1


async def test_a_stalled_reader_holds_up_nobody_and_loses_nothing(rig: Rig) -> None:
    stalled, healthy = Reader(is_stalled=True), Reader()
    await subscribe(rig, stalled, rig.watch())
    await subscribe(rig, healthy, rig.watch())
    frames = len(stalled.frames)
    seqs = [rig.insert(ANN, [number, "a", number]) for number in range(200)]
    await healthy.until_seq(seqs[-1])
    assert [event[2] for event in healthy.events()] == seqs
    assert len(stalled.frames) == frames, "nothing is queued for one who doesn't read"
    stalled.release()
    last = rig.delete(ANN, 7)
    await stalled.until_seq(last)
    assert [event[2] for event in stalled.events()] == [*seqs, last]
    await healthy.until_seq(last)


@pytest.mark.parametrize("tail_changes_max", [2, 8_192])
async def test_who_is_behind_gets_there_while_others_write_on(tmp_path: Path, tail_changes_max: int) -> None:
    async with running(tmp_path, tail_changes_max=tail_changes_max) as rig:
        reader = Reader()
        await subscribe(rig, reader, rig.watch())
        seqs: list[int] = []
        for number in range(600):
            seqs.append(rig.insert(ANN, [number, "a", number]))
            if number % 50 == 0:
                reader.is_stalled = not reader.is_stalled
                await rig.growth.reached(seqs[-1])
        reader.release()
        await reader.until_seq(seqs[-1])
        assert [event[2] for event in reader.events()] == seqs


async def test_a_resume_gets_new_rows_then_missed_deletes_then_changes(rig: Rig) -> None:
    first = rig.insert(ANN, [1, "a", 1], [2, "a", 1], [3, "a", 1])
    updated = rig.update(ANN, [1, "a", 2])
    deleted = rig.delete(ANN, 2)
    rig.delete(ANN, 3)
    again = rig.insert(ANN, [3, "a", 9])
    rig.insert(ANN, [4, "a", 4])
    gone = rig.delete(ANN, 4)
    await rig.growth.reached(gone)
    reader = Reader()
    await subscribe(rig, reader, rig.watch(), SubscriptionOptions(from_seq=first, last_rows=1))
    later = rig.insert(ANN, [5, "a", 5])
    await reader.until_seq(later)
    assert [(row["id"], int(row["_seq"])) for row in reader.rows()] == [("1", updated), ("3", again)]
    assert reader.events() == [("delete", 2, deleted), ("delete", 4, gone), ("insert", 5, later)]
    [row] = reader.changes()[0].old_values or []
    assert (row["kind"], row["_deleted"], row["_seq"]) == ("a", True, str(deleted))


def write_something(rig: Rig, chance: random.Random) -> int:
    owner, key = chance.choice([ANN, BEN]), chance.randrange(12)
    row: Row = [key, chance.choice([None, "a", "b"]), chance.choice([None, 1, 4, 7, chance.randrange(1000)])]
    if not rig.exists(owner, key):
        return rig.insert(owner, row)
    if chance.random() < 0.4:
        return rig.delete(owner, key)
    return rig.update(owner, row)


def matches(name: str, row: Row | None) -> bool:
    """Judge a row by rules of this test's own."""
    if row is None:
        return False
    if name == "kind":
        return row[1] == "a"
    return name == "all" or (isinstance(row[2], int) and row[2] < 5)


def expected_event(name: str, view: bool, change: Change) -> tuple[str, int, int] | None:
    was_in, is_in = matches(name, change.before), matches(name, change.after)
    if view:
        kind = {(False, True): "insert", (True, True): "update", (True, False): "delete"}.get((was_in, is_in))
    elif change.after is None:
        kind = "delete" if was_in else None
    else:
        kind = ("insert" if change.before is None else "update") if is_in else None
    return (kind, change.key, change.seq) if kind else None


def held_at(rig: Rig, name: str, until: int) -> dict[int, Row]:
    """Return what a client held that followed up to `until`."""
    held: dict[int, Row] = {}
    for change in rig.log(ANN, after=0, until=until):
        if matches(name, change.after):
            assert change.after is not None
            held[change.key] = change.after
        else:
            held.pop(change.key, None)
    return held


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tail_changes_max", [3, 8_192])
async def test_snapshot_and_deltas_are_the_select(tmp_path: Path, seed: int, tail_changes_max: int) -> None:
    """Random writes of two users, flushes, stalls; new subscriptions and resumes at any moment."""
    chance = random.Random(seed)
    async with running(tmp_path, tail_changes_max=tail_changes_max) as rig:
        readers: list[tuple[Reader, str, bool, int, int | None]] = []
        for _ in range(12):
            for _ in range(chance.randrange(12)):
                write_something(rig, chance)
            if chance.random() < 0.3:
                owner = chance.choice([ANN, BEN])
                await rig.in_thread(partial(rig.flush.flush_partition, rig.table, owner))
            for reader, *_ in readers:
                reader.is_stalled = chance.random() < 0.3
            name, view = chance.choice(list(FILTERS)), chance.random() < 0.6
            past = [change.seq for change in rig.log(ANN, after=0, until=rig.growth.view.seq)]
            resumed_after = chance.choice(past) if past and chance.random() < 0.5 else None
            reader = Reader()
            # Nothing is under way now, so the subscription begins at this View, too.
            begun = (await rig.growth.reached(rig.committer.last_seq)).seq
            subscription = await subscribe(
                rig,
                reader,
                rig.watch(ANN, FILTERS[name], view=view),
                SubscriptionOptions(batch_size=chance.choice([1, 7, 1000]), from_seq=resumed_after),
                # Apps of one user that are at it at once may be told more than they missed.
                Origin(f"app{len(readers)}"),
            )
            readers.append((reader, name, view, begun, resumed_after))
            await load(rig, reader, subscription, partial(write_something, rig, chance))
        for reader, *_ in readers:
            reader.release()
        fence = rig.insert(ANN, [FENCE, "a", 1])
        for reader, name, view, begun, resumed_after in readers:
            await reader.until_seq(fence)
            check(rig, reader, name, view, begun, resumed_after)


def check(rig: Rig, reader: Reader, name: str, view: bool, begun: int, resumed_after: int | None) -> None:
    where = FILTERS[name]
    seqs = [int(row["_seq"]) for row in reader.rows()]
    assert seqs == sorted(set(seqs)), "snapshot rows ascend, none is there twice"
    assert all((resumed_after or 0) < seq <= begun for seq in seqs)
    judged = [expected_event(name, view, change) for change in rig.log(ANN, after=begun)]
    later = [event for event in reader.events() if event[2] > begun]
    assert later == [event for event in judged if event is not None], "each change once, in order of seq"
    missed = [event for event in reader.events() if event[2] <= begun]
    assert reader.events() == missed + later
    assert missed == expected_missed(rig, name, view, begun, resumed_after)
    if view or where is None:
        held = held_at(rig, name, resumed_after) if resumed_after is not None else {}
        assert reader.fold(held) == rig.select(ANN, where[1] if where else None)


def expected_missed(
    rig: Rig, name: str, view: bool, begun: int, resumed_after: int | None
) -> list[tuple[str, int, int]]:
    """Return the rows that left after the cursor and weren't back when the resume began."""
    if resumed_after is None:
        return []
    last: dict[int, tuple[str, int, int]] = {}
    for change in rig.log(ANN, after=resumed_after, until=begun):
        event = expected_event(name, view, change)
        if event is not None:
            last[change.key] = event
    return sorted((event for event in last.values() if event[0] == "delete"), key=lambda event: event[2])


async def test_a_row_that_is_written_again_while_a_snapshot_is_read_is_not_lost(rig: Rig) -> None:
    await rig.growth.reached(rig.insert(ANN, [1, "a", 1], [2, "b", 2]))
    reader = Reader()
    subscription = await subscribe(rig, reader, rig.watch(), SubscriptionOptions(batch_size=1))
    # No value changes, yet the row's `_seq` does: it is no row of the snapshot any more.
    seq = rig.update(ANN, [2, "b", 2])
    await rig.growth.reached(seq)
    await load(rig, reader, subscription, lambda: None)
    await reader.until_seq(seq)
    assert [row["id"] for row in reader.rows()] == ["1"]
    assert reader.fold({}) == {1: [1, "a", 1], 2: [2, "b", 2]}


async def test_a_shared_table_is_everybodys(rig: Rig) -> None:
    one, other = Reader(), Reader()
    for reader in (one, other):
        await subscribe(rig, reader, rig.watch(SHARED), SubscriptionOptions())
    seq = rig.insert(SHARED, [1, "a", 1])
    for reader in (one, other):
        await reader.until_seq(seq)
        assert reader.events() == [("insert", 1, seq)]


def whole(row: dict[str, Any]) -> list[Any]:
    """Return the cells of the three columns, and of the fourth if the row has it."""
    cells = [int(row["id"]), row.get("kind"), row.get("size")]
    return [*cells, row["more"]] if "more" in row else cells


async def test_at_the_head_rows_have_a_new_column_as_soon_as_it_is_there(rig: Rig) -> None:
    await rig.growth.reached(rig.insert(ANN, [1, "a", 1]))
    everything, chosen = Reader(), Reader()
    await subscribe(rig, everything, rig.watch(filtered=SMALL, view=True))
    projection = rig.feed.sharing.projection(rig.table, ((0, "id"), (1, "kind")))
    await subscribe(rig, chosen, Watch(rig.table, ANN, projection))
    # One group: all of it is published at once.
    with rig.committer.lock:
        rig.update(ANN, [1, "b", 1])
        rig.add_column()
        rig.update(ANN, [1, "c", 1, "x"])
        rig.insert(ANN, [2, "d", None, None], [3, "e", 3, None])
        last = rig.delete(ANN, 1)
    await everything.until_seq(last)
    await chosen.until(lambda: len(chosen.changes()) == 5)
    found = [(kind, whole(row)) for kind, _, _, row in map(_event, everything.changes())]
    assert found[-3:] == [
        ("update", [1, "c", 1, "x"]),
        ("insert", [3, "e", 3, None]),
        ("delete", [1, "c", 1, "x"]),
    ]
    assert found[0][1][:3] == [1, "b", 1]
    assert {name for frame in chosen.changes() for name in _event(frame)[3]} == {"id", "kind", "_seq"}
    assert everything.errors() + chosen.errors() == []


async def test_a_filter_of_a_new_column_joins_while_older_rows_are_on_their_way(rig: Rig) -> None:
    early, late = Reader(), Reader()
    await subscribe(rig, early, rig.watch())
    rig.insert(ANN, *([number, "a", number] for number in range(3_000)))
    await early.until(lambda: bool(early.frames[1:]))
    rig.add_column()
    by_more = Compare("=", ColumnRef(3), Literal("x")), "more = 'x'"
    await subscribe(rig, late, rig.watch(filtered=by_more))
    assert len(early.changes()) < 3_000, "the pump is still at it"
    last = rig.insert(ANN, [3_000, "a", 1, "x"])
    await late.until_seq(last)
    await early.until_seq(last)
    assert late.events() == [("insert", 3_000, last)]


@pytest.mark.parametrize("tail_changes_max", [8_192, 1])
async def test_who_is_behind_or_resumes_reads_across_a_new_column(
    tmp_path: Path, tail_changes_max: int
) -> None:
    async with running(tmp_path, tail_changes_max=tail_changes_max) as rig:
        start = rig.insert(ANN, [1, "a", 1])
        await rig.growth.reached(start)
        stalled = Reader(is_stalled=True)
        await subscribe(rig, stalled, rig.watch())
        for number in range(2, 6):
            await rig.growth.reached(rig.insert(ANN, [number, "a", number]))
        await rig.growth.reached(rig.delete(ANN, 4))
        await rig.growth.reached(rig.add_column())
        last = rig.update(ANN, [5, "b", 5, "x"])
        await rig.growth.reached(last)
        resumed = Reader()
        await subscribe(rig, resumed, rig.watch(filtered=SMALL), SubscriptionOptions(from_seq=start))
        stalled.release()
        await stalled.until_seq(last)
        newest = {key: row for _, key, _, row in map(_event, stalled.changes())}
        assert {key: whole(row) for key, row in newest.items() if key in (2, 5)} == {
            2: [2, "a", 2, "m"],
            5: [5, "b", 5, "x"],
        }
        await resumed.until(lambda: bool(resumed.changes()))
        assert sorted(map(whole, resumed.rows())) == [[2, "a", 2, "m"], [3, "a", 3, "m"]]
        assert [(kind, key) for kind, key, _ in resumed.events()] == [("delete", 4)]
        assert stalled.errors() + resumed.errors() == []


async def test_chosen_columns_and_filters_follow_when_others_go(rig: Rig) -> None:
    """`kind` goes: `size`, which is filtered and shown, has another place from then on."""
    await rig.growth.reached(rig.insert(ANN, [1, "a", 1], [9, "a", 99]))
    filtered, chosen, resumed = Reader(), Reader(), Reader()
    await subscribe(rig, filtered, rig.watch(filtered=SMALL, view=True))
    projection = rig.feed.sharing.projection(rig.table, ((2, "size"), (0, "id")))
    watch = Watch(rig.table, ANN, projection)
    await subscribe(rig, chosen, watch)
    start = rig.alter(DropColumn("kind"))
    with rig.committer.lock:
        rig.update(ANN, [1, 2])
        rig.update(ANN, [9, 100])
        last = rig.insert(ANN, [2, 3])
    await filtered.until_seq(last)
    await chosen.until_seq(last)
    await subscribe(rig, resumed, watch, SubscriptionOptions(from_seq=start))
    await resumed.until(lambda: len(resumed.rows()) == 3)
    assert [(int(row["id"]), row["size"]) for row in resumed.rows()] == [(1, 2), (9, 100), (2, 3)]
    assert [key for _, key, _, _ in map(_event, filtered.changes())] == [1, 2]
    assert all("kind" not in _event(frame)[3] for frame in filtered.changes())
    assert [(key, row["size"]) for _, key, _, row in map(_event, chosen.changes())] == [
        (1, 2), (9, 100), (2, 3),
    ]  # fmt: skip
    assert filtered.errors() + chosen.errors() + resumed.errors() == []


@pytest.mark.parametrize(
    ("alteration", "said"),
    [
        (DropColumn("size"), "column 'size' of default.items was dropped"),
        (RenameColumn("size", "big"), "column 'size' of default.items was altered"),
        (ModifyColumn("size", SqlType.DOUBLE), "column 'size' of default.items was altered"),
    ],
)
async def test_a_query_whose_filter_is_gone_ends_and_says_so(
    rig: Rig, alteration: Alteration, said: str
) -> None:
    reader, everything = Reader(), Reader()
    await subscribe(rig, reader, rig.watch(filtered=SMALL))
    await subscribe(rig, everything, rig.watch())
    await rig.growth.reached(rig.alter(alteration))
    await reader.until(lambda: bool(reader.errors()))
    (error,) = reader.errors()
    assert error.code == "SUBSCRIPTION_FAILED"
    assert said in error.message
    row = [1, "a"] if isinstance(alteration, DropColumn) else [1, "a", 1]
    await everything.until_seq(rig.insert(ANN, row))
    assert everything.errors() == []


async def test_a_snapshot_goes_on_across_a_new_column(rig: Rig) -> None:
    await rig.growth.reached(rig.insert(ANN, *([number, "a", number] for number in range(6))))
    reader = Reader()
    subscription = await subscribe(rig, reader, rig.watch(), SubscriptionOptions(batch_size=2))
    await rig.growth.reached(rig.add_column())
    await rig.growth.reached(rig.update(ANN, [5, "b", 5, "x"]))
    await load(rig, reader, subscription, lambda: None)
    last = rig.insert(ANN, [9, "c", 9, None])
    await reader.until_seq(last)
    folded = reader.fold({})
    assert folded == {
        **{number: [number, "a", number] for number in range(5)},
        5: [5, "b", 5],
        9: [9, "c", 9],
    }
    assert [whole(row)[3:] for row in reader.rows()[-2:]] == [["m"], ["m"]]
    assert reader.errors() == []


async def test_who_lags_for_too_long_is_told_the_cursor_and_can_resume(tmp_path: Path) -> None:
    async with running(tmp_path, lag_s_max=0.05) as rig:
        slow, beside = Reader(), Reader()
        await subscribe(rig, slow, rig.watch(), SubscriptionOptions())
        await subscribe(rig, beside, rig.watch(), SubscriptionOptions())
        seen = rig.insert(ANN, [1, "a", 1])
        for reader in (slow, beside):
            await reader.until_seq(seen)
        slow.is_stalled = True
        for key in (2, 3):
            last = rig.insert(ANN, [key, "a", 1])
            rig.clock.advance(60)
        await beside.until_seq(last)
        await slow.until(lambda: slow.errors() != [])
        [error] = slow.errors()
        assert error.code == "LAG_LIMIT_EXCEEDED"
        cursor = int(error.message.rpartition(" ")[2])
        assert seen <= cursor < last
        assert [key for _, key, _ in slow.events()] == [1]
        assert [each.state for each in rig.feed.subscriptions()] == ["head"], "nothing of it is left"
        again = Reader()
        await subscribe(rig, again, rig.watch(), SubscriptionOptions(from_seq=cursor))
        assert [row["id"] for row in again.rows()] == ["2", "3"]


async def test_who_stalls_while_nothing_happens_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, lag_s_max=0.05) as rig:
        slow = Reader()
        await subscribe(rig, slow, rig.watch(), SubscriptionOptions())
        slow.is_stalled = True
        missed = rig.insert(ANN, [1, "a", 1])
        await rig.growth.reached(missed)
        await asyncio.sleep(0.2)
        assert slow.errors() == []
        slow.release()
        await slow.until_seq(missed)
