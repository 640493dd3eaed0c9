"""The live socket on ASGI alone, without a transport: sign-in, accounts that change, and its own pace."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from upwell.clock import ManualClock
from upwell.config import Config
from upwell.edge.connection import Allowance, Connection
from upwell.edge.wire import QueuedWire
from upwell.edge.ws import LiveSocket
from upwell.effects import NoPoints, OsFiles
from upwell.engine.catalog import Access, Role, Table, TableKind, User
from upwell.engine.commit import Committer
from upwell.engine.expression import Context
from upwell.engine.overlay import Overlay
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import Lookouts
from upwell.feeds.resume import Resumes
from upwell.ids import Snowflakes
from upwell.session.auth import LEEWAY_S, Authenticator
from upwell.session.policy import Principal
from upwell.session.threads import QueryThreads
from upwell.storage.cold import ColdCache
from upwell.storage.hot import Batch, Kind, RecordWrite, RowWrite
from upwell.storage.memory import MemoryStore
from upwell.storage.storages import Storages
from upwell.testing import wait_until
from upwell.types import Column, Op, SqlType, TableId

WAIT_S = 20.0
COLUMNS = (Column(1, "id", SqlType.BIGINT, False, True), Column(2, "at", SqlType.TIMESTAMP))


class Peer:
    """The client's end of an ASGI socket."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "websocket.connect"})
        self._news = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(dict(message))
        self._news.set()
        if message["type"] == "websocket.close":
            self.leave()

    def say(self, frame: dict[str, Any]) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(frame)})

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1005})

    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(message["text"]) for message in self.sent if message["type"] == "websocket.send"]

    async def frame(self, kind: str, number: int = 0) -> dict[str, Any]:
        """Return the frame of a type with this number, as soon as there is one."""
        async with asyncio.timeout(WAIT_S):
            while len(found := [frame for frame in self.frames() if frame["type"] == kind]) <= number:
                self._news.clear()
                await self._news.wait()
        return found[number]

    async def closed(self) -> tuple[int, str]:
        async with asyncio.timeout(WAIT_S):
            while not (found := [each for each in self.sent if each["type"] == "websocket.close"]):
                self._news.clear()
                await self._news.wait()
        return found[0]["code"], found[0]["reason"]


@dataclass
class Server:
    clock: ManualClock
    committer: Committer
    schema: Schema
    authenticator: Authenticator
    feed: LiveFeed
    socket: LiveSocket
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def account(self, name: str, role: Role) -> str:
        """Make an account and return a token for it."""
        user = User(name, role)
        self.committer.publication.wait(self.schema.create_user(user))
        return self.authenticator.log_in(user).access.text

    def table(self, name: str, kind: TableKind, access: Access = Access.PRIVATE) -> Table:
        made = Table(TableId(0), "default", name, kind, COLUMNS, access=access)
        seq, table = self.schema.create_table(made, if_not_exists=False)
        assert seq is not None
        self.committer.publication.wait(seq)
        return table

    def insert(self, table: Table, user: str, key: int, at_us: int | None = None) -> int:
        write = RowWrite(table.id, table.owner_for(user), key, Op.INSERT, 1, None, [key, at_us], 1, 0)
        seq = self.committer.apply(Batch([write]))
        self.committer.publication.wait(seq)
        return seq

    def connect(self, *, token: str | None = None, path: str = "/v1/ws") -> Peer:
        peer = Peer()
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"compress=false",
            "headers": headers,
            "extensions": {},
        }
        self.tasks.append(asyncio.create_task(self.socket.serve(scope, peer.incoming.get, peer.send)))
        return peer


async def look_at_nothing(principal: Principal, text: str) -> pa.Table:
    raise AssertionError("no test here follows a system table")


@asynccontextmanager
async def serving(directory: Path, config: Config) -> AsyncIterator[Server]:
    with ThreadPoolExecutor(1) as threads:
        clock = ManualClock()
        committer = Committer(MemoryStore(clock=clock), points=NoPoints())
        schema = Schema(committer, clock)
        schema.ensure_default_namespace()
        committer.publication.wait(committer.last_seq)
        growth = Growth(committer.publication, asyncio.get_running_loop())
        rows = Rows(ColdCache(Storages(directory, OsFiles()), partitions_max=1, group_bytes_max=1 << 20))
        query = QueryEngine(rows, Overlay())
        feed = LiveFeed(committer.changelog, growth, query, threads, Resumes(committer))
        authenticator = Authenticator(
            secret="a-secret-of-a-test-with-more-than-32-bytes",
            clock=clock, expiry_hours=1, device_expiry_hours=1, bcrypt_cost=4,
        )  # fmt: skip
        lookouts = Lookouts(feed, growth, Snowflakes(clock).next)
        queries = QueryThreads(threads, slots=1, timeout_s=60)
        context_for = partial(context_of, clock)
        socket = LiveSocket(
            feed, growth, authenticator, context_for, lookouts, look_at_nothing, queries, config
        )
        server = Server(clock, committer, schema, authenticator, feed, socket)
        background = [asyncio.create_task(feed.run()), asyncio.create_task(socket.run())]
        try:
            yield server
        finally:
            await socket.close()
            await asyncio.gather(*server.tasks)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await feed.close()
            committer.close()


def context_of(clock: ManualClock, principal: Principal) -> Context:
    user, role = principal.user, principal.role.value
    return Context(user, role, clock.now_us(), lambda: 1, lambda: "uuid", lambda: "ulid")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path, Config()) as server:
        yield server


async def settled() -> None:
    """Let the loop run until nothing but what waits for the other end can be left."""
    for _ in range(5_000):
        await asyncio.sleep(0)


def subscription(sql: str, **options: Any) -> dict[str, Any]:
    return {"type": "subscribe", "subscription": {"id": "s", "sql": sql, "options": options}}


async def test_live_on_plain_asgi(server: Server) -> None:
    items = server.table("items", TableKind.USER)
    peer = server.connect()
    peer.say({"type": "authenticate", "method": "jwt", "token": server.account("ann", Role.USER)})
    assert await peer.frame("auth_success") == {
        "type": "auth_success",
        "user": "ann",
        "role": "user",
        "protocol": {"serialization": "json", "compression": "none"},
    }
    peer.say(subscription("SELECT * FROM default.items"))
    await peer.frame("initial_data_batch")
    server.insert(items, "ben", 1)
    seq = server.insert(items, "ann", 2)
    assert (await peer.frame("change"))["rows"] == [
        {"id": "2", "at": None, "_seq": str(seq), "_deleted": False}
    ]
    [one] = server.feed.subscriptions()
    assert (one.id, one.table, one.user, one.state) == ("s", "default.items", "ann", "head")
    peer.leave()
    await server.tasks[0]
    assert server.feed.subscriptions() == []


@pytest.mark.parametrize("change", ["role", "dropped"])
async def test_a_socket_ends_with_the_rights_it_was_opened_with(server: Server, change: str) -> None:
    server.table("items", TableKind.USER)
    token = server.account("ann", Role.SERVICE)
    changed, other = server.connect(token=token), server.connect(token=server.account("ben", Role.USER))
    for peer in (changed, other):
        peer.say(subscription("SELECT * FROM default.items"))
        await peer.frame("initial_data_batch")
    if change == "role":
        server.schema.put_user(User("ann", Role.USER))
    else:
        server.committer.apply(Batch(records=[RecordWrite(Kind.USER, "ann", None)]))
    assert await changed.closed() == (1008, "Authentication failed")
    assert (await changed.frame("auth_error"))["message"]
    await server.tasks[0]
    assert [listing.user for listing in server.feed.subscriptions()] == ["ben"]
    again = server.connect(token=token)
    assert await again.closed() == (1008, "Authentication failed")
    assert (await again.frame("auth_error"))["message"] == "Invalid credentials"


async def test_who_is_being_closed_asks_in_vain(server: Server) -> None:
    server.table("items", TableKind.USER)
    peer = server.connect(token=server.account("ann", Role.USER))
    peer.say(subscription("SELECT * FROM default.items"))
    await peer.frame("initial_data_batch")
    peer.reads.clear()
    server.committer.apply(Batch(records=[RecordWrite(Kind.USER, "ann", None)]))
    gone = partial(wait_until, lambda: not server.feed.total, timeout_s=WAIT_S, what="the account's end")
    await asyncio.to_thread(gone)
    peer.say(subscription("SELECT * FROM default.items"))
    peer.incoming.put_nowait({"type": "websocket.receive", "text": "no frame"})
    await settled()
    assert server.feed.total == 0
    peer.reads.set()
    assert await peer.closed() == (1008, "Authentication failed")
    await settled()
    assert [each["type"] for each in peer.sent].count("websocket.close") == 1


async def test_rights_on_shared_tables(server: Server) -> None:
    server.table("open", TableKind.SHARED, Access.PUBLIC)
    server.table("inner", TableKind.SHARED, Access.PRIVATE)
    peer = server.connect(token=server.account("ann", Role.USER))
    peer.say(subscription("SELECT * FROM default.inner"))
    assert (await peer.frame("error"))["code"] == "UNAUTHORIZED"
    peer.say(subscription("SELECT * FROM default.nope"))
    assert (await peer.frame("error", 1))["code"] == "NOT_FOUND"
    peer.say(subscription("SELECT * FROM default.open"))
    assert (await peer.frame("initial_data_batch"))["rows"] == []


async def test_now_is_the_moment_of_the_subscription(server: Server) -> None:
    items = server.table("items", TableKind.USER)
    token = server.account("ann", Role.USER)
    moment = server.clock.now_us()
    server.insert(items, "ann", 1, moment - 1)
    server.insert(items, "ann", 2, moment + 1)
    peer = server.connect(token=token)
    peer.say(subscription("SELECT id FROM default.items WHERE at >= NOW()"))
    rows = (await peer.frame("initial_data_batch"))["rows"]
    assert [row["id"] for row in rows] == ["2"]
    server.clock.advance(3600)
    server.insert(items, "ann", 3, moment - 1)
    server.insert(items, "ann", 4, moment)
    assert [row["id"] for row in (await peer.frame("change"))["rows"]] == ["4"]


async def test_a_device_token_opens_no_live_query(server: Server) -> None:
    server.account("ann", Role.USER)
    peer = server.connect(token=server.authenticator.device_token("ann", "phone").text)
    assert await peer.closed() == (1008, "Authentication failed")


async def test_who_does_not_read_the_answers_is_not_listened_to(tmp_path: Path) -> None:
    async with serving(tmp_path, Config(ws_lag_bytes_max=1_000)) as server:
        peer = server.connect(token=server.account("ann", Role.USER))
        await peer.frame("auth_success")
        peer.reads.clear()
        for _ in range(1_000):
            peer.say({"type": "next_batch", "subscription_id": "none"})
        await settled()
        unheard = peer.incoming.qsize()
        peer.reads.set()
        assert unheard > 900
        await peer.frame("error", 999)


async def test_who_never_reads_the_answers_is_closed_as_silent(tmp_path: Path) -> None:
    async with serving(tmp_path, Config(ws_lag_bytes_max=1_000, ws_client_timeout_s=0.2)) as server:
        peer = server.connect(token=server.account("ann", Role.USER))
        await peer.frame("auth_success")
        peer.reads.clear()
        for _ in range(1_000):
            peer.say({"type": "next_batch", "subscription_id": "none"})
        peer.leave()
        async with asyncio.timeout(WAIT_S):
            await server.tasks[0]
        assert len(peer.frames()) == 1


async def test_who_asks_for_a_batch_and_never_reads_is_closed_as_silent(tmp_path: Path) -> None:
    config = Config(ws_lag_bytes_max=1, ws_client_timeout_s=0.05, ws_lag_s_max=0.1)
    async with serving(tmp_path, config) as server:
        table = server.table("items", TableKind.USER)
        for key in range(3):
            server.insert(table, "ann", key)
        peer = server.connect(token=server.account("ann", Role.USER))
        peer.say(subscription("SELECT * FROM default.items", batch_size=1))
        await peer.frame("initial_data_batch")
        peer.reads.clear()
        for _ in range(2):
            peer.say({"type": "next_batch", "subscription_id": "s"})
        gone = partial(wait_until, lambda: not server.feed.total, timeout_s=WAIT_S, what="it to be let go")
        await asyncio.to_thread(gone)
        peer.reads.set()
        assert await peer.closed() == (1000, "Heartbeat timeout")


async def test_pings_are_heard_from_one_who_reads_slowly(tmp_path: Path) -> None:
    async with serving(tmp_path, Config(ws_lag_bytes_max=1_000)) as server:
        peer = server.connect(token=server.account("ann", Role.USER))
        await peer.frame("auth_success")
        peer.reads.clear()
        for _ in range(12):
            peer.say({"type": "next_batch", "subscription_id": "none"})
        for _ in range(100):
            peer.say({"type": "ping"})
        await settled()
        unheard = peer.incoming.qsize()
        peer.reads.set()
        assert unheard == 0


async def test_a_long_id_is_refused_and_never_echoed(server: Server) -> None:
    server.table("items", TableKind.USER)
    long, longest = "x" * 257, "x" * 256
    early = server.connect()
    early.say({"type": "next_batch", "subscription_id": long})
    assert (await early.frame("error"))["subscription_id"] == "invalid_subscription"
    early.leave()
    peer = server.connect(token=server.account("ann", Role.USER))
    asked = subscription("SELECT * FROM default.items")
    peer.say({**asked, "subscription": {**asked["subscription"], "id": long}})
    peer.say({"type": "next_batch", "subscription_id": long})
    await peer.frame("error", 1)
    assert [(error["subscription_id"], error["code"]) for error in peer.frames() if "code" in error] == [
        ("invalid_subscription", "INVALID_SUBSCRIPTION_ID"),
        ("invalid_subscription", "BATCH_FETCH_FAILED"),
    ]
    peer.say({**asked, "subscription": {**asked["subscription"], "id": longest}})
    assert (await peer.frame("subscription_ack"))["subscription_id"] == longest


async def test_a_socket_ends_with_its_token(tmp_path: Path) -> None:
    async with serving(tmp_path, Config(ws_client_timeout_s=4.0)) as server:
        server.table("items", TableKind.USER)
        old = server.connect(token=server.account("ann", Role.USER))
        old.say(subscription("SELECT * FROM default.items"))
        await old.frame("initial_data_batch")
        server.clock.advance(3600 + LEEWAY_S)
        renewed = server.connect(token=server.authenticator.log_in(User("ann", Role.USER)).access.text)
        await renewed.frame("auth_success")
        barely = server.connect(token=server.account("ben", Role.USER))
        await barely.frame("auth_success")
        assert server.feed.subscriptions(), "within the leeway"
        server.clock.advance(1)
        assert await old.closed() == (1008, "Token expired")
        assert (await old.frame("auth_error"))["message"] == "the token has expired; sign in again"
        assert server.feed.subscriptions() == []
        for peer in (renewed, barely):
            assert [message["type"] for message in peer.sent] == ["websocket.accept", "websocket.send"]


async def test_a_resume_after_a_cursor_of_an_earlier_table_is_refused(server: Server) -> None:
    items = server.table("items", TableKind.USER)
    token = server.account("ann", Role.USER)
    cursor = server.insert(items, "ann", 1)
    server.clock.advance(1)
    server.schema.drop_table("default", "items", if_exists=False)
    again = server.table("items", TableKind.USER)
    peer = server.connect(token=token)
    peer.say(subscription("SELECT * FROM default.items", **{"from": cursor}))
    error = await peer.frame("error")
    assert error["code"] == "NOT_FOUND"
    assert error["message"].startswith("Not found: Table not found: default.items ")
    assert error["message"].endswith(" was made anew after this cursor; subscribe without `from`")
    peer.say(subscription("SELECT * FROM default.items", **{"from": server.insert(again, "ann", 2)}))
    await peer.frame("initial_data_batch")
    peer.say(subscription("SELECT * FROM default.items", **{"from": 0}))
    assert [row["id"] for row in (await peer.frame("initial_data_batch", 1))["rows"]] == ["2"]


async def test_a_socket_that_fails_is_cut_off_alone(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching over sockets goes on when it fails for one of them."""
    broken = server.connect(token=server.account("ann", Role.USER))
    await broken.frame("auth_success")
    say = Connection.say

    def fail(socket: Connection, frame: Any) -> None:
        assert socket.principal is not None
        if socket.principal.user == "ann":
            raise ZeroDivisionError("a bug")
        say(socket, frame)

    sound = server.connect(token=server.account("ben", Role.USER))
    await sound.frame("auth_success")
    monkeypatch.setattr(Connection, "say", fail)
    for name in ("ann", "ben"):
        account = server.committer.newest_catalog.users[name]
        server.committer.publication.wait(server.schema.put_user(replace(account, role=Role.SERVICE)))
    await sound.frame("auth_error")
    assert await sound.closed() == (1008, "Authentication failed")
    assert "ZeroDivisionError: a bug" in caplog.text
    broken.leave()


async def test_what_fails_unexpectedly_ends_no_socket(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    mine = server.table("mine", TableKind.USER)
    peer = server.connect(token=server.account("ann", Role.DBA))
    # The look at system tables is broken here.
    peer.say(subscription("SELECT * FROM system.jobs"))
    error = await peer.frame("error")
    assert (error["subscription_id"], error["code"]) == ("s", "SUBSCRIPTION_FAILED")
    assert "no test here" not in error["message"]
    assert "no test here follows a system table" in caplog.text
    peer.say(subscription("SELECT * FROM default.mine"))
    await peer.frame("subscription_ack")
    server.insert(mine, "ann", 1)
    assert (await peer.frame("change"))["rows"][0]["id"] == "1"
    peer.leave()


async def test_other_paths_are_refused(server: Server) -> None:
    peer = server.connect(path="/v1/other")
    await server.tasks[0]
    assert [message.get("status") for message in peer.sent] == [404, None]


async def test_shutting_down_closes_and_then_refuses(server: Server) -> None:
    peer = server.connect(token=server.account("ann", Role.USER))
    await peer.frame("auth_success")
    await server.socket.close()
    assert await peer.closed() == (1001, "server is shutting down")
    late = server.connect()
    await server.tasks[1]
    assert late.sent[0]["status"] == 503


async def test_a_queued_wire_is_full_until_its_reader_took_enough() -> None:
    taken: list[dict[str, Any]] = []
    gate = asyncio.Semaphore(0)

    async def send(message: Any) -> None:
        await gate.acquire()
        taken.append(message)

    wire = QueuedWire(send, lag_bytes_max=10, now=0.0)
    wire.write([b"{2345", b"67890"])
    assert not wire.is_full
    wire.write([b"more"])
    assert wire.is_full
    waiting = asyncio.create_task(wire.drained())
    gate.release()
    gate.release()
    gate.release()
    await waiting
    assert not wire.is_full
    text, binary = taken[:2]
    assert text == {"type": "websocket.send", "text": "{2345"}
    assert binary == {"type": "websocket.send", "bytes": b"67890"}
    await wire.close()


async def test_a_queued_wire_whose_reader_left_keeps_nothing() -> None:
    async def send(message: Any) -> None:
        raise OSError("gone")

    wire = QueuedWire(send, lag_bytes_max=1, now=0.0)
    wire.write([b"frame"])
    await wire.drained()
    wire.write([b"another"])
    assert not wire.is_full
    await wire.close()


def test_an_allowance_refills_with_time_up_to_a_second_s_worth() -> None:
    allowance = Allowance(4, at=10.0)
    assert [allowance.take(10.0) for _ in range(5)] == [True, True, True, True, False]
    assert [allowance.take(10.5) for _ in range(3)] == [True, True, False]
    assert [allowance.take(99.0) for _ in range(5)] == [True, True, True, True, False]
