"""Event streams on ASGI alone: heartbeats, tokens that end, events that become one, and a slow device."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from upwell.clock import ManualClock
from upwell.edge.stream import LogStreams
from upwell.effects import NoPoints
from upwell.engine.catalog import Role, Table, TableKind, User
from upwell.engine.changelog import Changelog
from upwell.engine.commit import Committer
from upwell.engine.schema import Schema
from upwell.errors import RequestRefused
from upwell.feeds.cursor import Growth
from upwell.session.auth import Authenticator
from upwell.storage.hot import Batch, RowWrite
from upwell.storage.memory import MemoryStore
from upwell.types import Column, Op, SqlType, TableId, user_owner

WAIT_S = 20.0
BEAT = b": \n\n"


def event(number: int) -> bytes:
    """The bytes of an event."""
    return b'event: log\ndata: {"max_server_id": %d}\n\n' % number


class Peer:
    """The device's end of one answer."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.said: list[bytes] = []
        self.is_over = False
        self.reads = asyncio.Event()
        self.reads.set()
        self._news = asyncio.Event()
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.said += [message["body"]] if message["body"] else []
            self.is_over = not message.get("more_body", False)
        self._news.set()

    def leave(self) -> None:
        self._gone.set()

    async def hears(self, text: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while text not in self.said:
                self._news.clear()
                await self._news.wait()


class Desk:
    """Streams over a store in memory, and users that write."""

    def __init__(self, *, heartbeat_s: float = WAIT_S, streams_max: int = 10, tail: int = 100) -> None:
        self.clock = ManualClock(1_800_000_000_000_000)
        store = MemoryStore(clock=self.clock)
        self.committer = Committer(store, points=NoPoints())
        schema = Schema(self.committer, self.clock)
        schema.ensure_default_namespace()
        columns = (Column(1, "id", SqlType.TEXT, False, True),)
        made = Table(TableId(0), "default", "notes", TableKind.USER, columns)
        seq, self.table = schema.create_table(made, if_not_exists=False)
        assert seq is not None
        self.committer.publication.wait(seq)
        self.schema = schema
        self.authenticator = Authenticator(
            secret="s" * 32, clock=self.clock, expiry_hours=1, device_expiry_hours=1, bcrypt_cost=4
        )
        growth = Growth(self.committer.publication, asyncio.get_running_loop())
        changelog = self.committer.changelog if tail else Changelog(floor=1 << 62)
        self.streams = LogStreams(
            growth, changelog, self.authenticator, streams_max=streams_max, heartbeat_s=heartbeat_s
        )
        self._number = 0

    def write(self, user: str, count: int = 1) -> None:
        """Commit rows, one after the other, and wait until they are published."""
        for _ in range(count):
            self._number += 1
            key = f"{self._number:06d}"
            row = RowWrite(self.table.id, user_owner(user), key, Op.INSERT, 1, None, [key], 1, 0)
            seq = self.committer.apply(Batch(rows=[row]))
        self.committer.publication.wait(seq)

    def watch(self, peer: Peer, user: str, after: int | None = None) -> "asyncio.Task[None]":
        authorization = f"Bearer {self.authenticator.device_token(user, 'phone').text}"
        scope = {"headers": [(b"authorization", authorization.encode())]}
        device = self.authenticator.device(authorization, self.committer.publication.view.catalog)
        return asyncio.create_task(self.streams.serve(device, scope, peer.receive, peer.send, after=after))


@asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[Desk]:
    """Watch the log as the server does; nothing is left open at the end."""
    pump = asyncio.create_task(desk.streams.run())
    yield desk
    desk.streams.close()
    pump.cancel()
    desk.committer.close()


async def test_a_quiet_stream_has_heartbeats() -> None:
    async with running(Desk(heartbeat_s=0.001)) as desk:
        peer = Peer()
        task = desk.watch(peer, "a", after=0)
        await peer.hears(BEAT)
        desk.write("a")
        await peer.hears(event(1))
        assert set(peer.said) == {BEAT, event(1)}
        assert peer.said.count(event(1)) == 1
        peer.leave()
        await task
        assert peer.is_over


async def test_a_token_that_ends_ends_its_stream() -> None:
    async with running(Desk(heartbeat_s=0.001)) as desk:
        peer = Peer()
        task = desk.watch(peer, "a")
        await peer.hears(BEAT)
        desk.clock.advance(3600)
        await task
        assert peer.is_over


async def test_an_account_that_rises_ends_its_stream_without_another_event() -> None:
    async with running(Desk()) as desk:
        peer = Peer()
        task = desk.watch(peer, "a")
        await peer.hears(event(0))
        boss = User("a", Role.DBA, None, None, "internal", 0, 0)
        desk.committer.publication.wait(desk.schema.create_user(boss))
        desk.write("a")
        await task
        assert peer.said == [event(0)]


async def test_what_comes_while_a_device_does_not_read_becomes_one_event() -> None:
    async with running(Desk()) as desk:
        peer, other = Peer(), Peer()
        tasks = [desk.watch(peer, "a"), desk.watch(other, "a")]
        await peer.hears(event(0))
        peer.reads.clear()
        desk.write("a")
        await other.hears(event(1))
        desk.write("a", 50)
        await other.hears(event(51))
        peer.reads.set()
        await peer.hears(event(51))
        assert peer.said in ([event(0), event(1), event(51)], [event(0), event(51)])
        peer.leave()
        other.leave()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("tail", [0, 100])
async def test_streams_hear_of_their_owner_also_beyond_the_tail(tail: int) -> None:
    async with running(Desk(tail=tail)) as desk:
        peers = {user: Peer() for user in "abc"}
        tasks = [desk.watch(peer, user, after=0) for user, peer in peers.items()]
        await asyncio.sleep(0)
        desk.write("b", 3)
        await peers["b"].hears(event(3))
        desk.write("c")
        await peers["c"].hears(event(1))
        assert peers["a"].said == []
        desk.streams.close()
        await asyncio.gather(*tasks)
        assert all(peer.is_over and peer.status == 200 for peer in peers.values())


async def test_there_are_so_many_streams_and_no_more() -> None:
    async with running(Desk(streams_max=1)) as desk:
        first, second = Peer(), Peer()
        task = desk.watch(first, "a")
        await first.hears(event(0))
        with pytest.raises(RequestRefused, match="1 streams"):
            await desk.watch(second, "b")
        assert second.status is None
        first.leave()
        await task
        third = Peer()
        task = desk.watch(third, "b")
        await third.hears(event(0))
        desk.streams.close()
        await task
        with pytest.raises(RequestRefused, match="shutting down"):
            await desk.watch(Peer(), "a")
