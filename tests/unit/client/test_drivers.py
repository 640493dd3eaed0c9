"""Both drivers against a server on loopback: SQL, live queries, cut connections, revoked tokens."""

import asyncio
import gc
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from upwell.client import (
    AuthenticationFailed,
    Client,
    ConnectionLost,
    LiveError,
    LiveTable,
    Patience,
    ServerError,
    connect,
    connect_async,
)

SQL = "SELECT * FROM app.notes"
QUICK = Patience(backoff_first_s=0.01, backoff_max_s=0.05, heartbeat_s=0.01)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with connect(server.url, user="alice", password="wonderland", namespace="app") as client:
        yield client


def _catch_up(live: Any, table: LiveTable, seen: set[int], rows: Any) -> None:
    """Fold changes until the table is what the server has; none may come twice."""
    while table.rows != rows():
        change = live.receive(30)
        assert change is not None, f"nothing more comes, at {live.cursor}"
        assert change.seq not in seen
        seen.add(change.seq)
        table.apply(change)


def test_sql_logs_in_once_and_sends_parameters_and_namespace(server: Any, client: Client) -> None:
    assert client.query("SELECT id, body FROM notes WHERE id = $1", [1]) == [{"id": 1, "body": "hi"}]
    assert client.execute("SELECT 1", raw=True).rows == (("1", "hi"),)
    assert server.requests == [
        ("/v1/api/auth/login", {"user": "alice", "password": "wonderland"}),
        (
            "/v1/api/sql",
            {"sql": "SELECT id, body FROM notes WHERE id = $1", "params": [1], "namespace_id": "app"},
        ),
        ("/v1/api/sql", {"sql": "SELECT 1", "namespace_id": "app"}),
    ]


def test_an_expired_token_is_renewed_once(server: Any, client: Client) -> None:
    client.execute("SELECT 1")
    server.tokens.clear()
    assert client.execute("SELECT 1").row_count == 1
    assert [path for path, _ in server.requests].count("/v1/api/auth/login") == 2
    with connect(server.url, token="old") as stranger, pytest.raises(AuthenticationFailed) as caught:
        stranger.execute("SELECT 1")
    assert (caught.value.status, caught.value.code) == (401, "TOKEN_EXPIRED")


def test_refusals_carry_status_code_and_message(server: Any, client: Client) -> None:
    server.refuse_sql = {"code": "INVALID_SQL", "message": "Statement 1 failed: no"}
    with pytest.raises(ServerError, match="INVALID_SQL: Statement 1 failed: no") as caught:
        client.execute("nonsense")
    assert (caught.value.status, caught.value.code) == (400, "INVALID_SQL")
    with connect(server.url, user="alice", password="no") as wrong, pytest.raises(AuthenticationFailed):
        wrong.execute("SELECT 1")


def test_a_server_that_is_not_there_is_a_lost_connection(server: Any) -> None:
    server.close()
    with connect(server.url, token="t") as client:
        with pytest.raises(ConnectionLost):
            client.execute("SELECT 1")
        with pytest.raises(ConnectionLost):
            next(client.live(SQL))


def test_a_live_query_gives_the_snapshot_in_batches_and_then_every_change(
    server: Any, client: Client
) -> None:
    for key in range(5):
        server.put(key, f"v{key}")
    with client.live(SQL, batch_size=2) as live:
        assert not live.snapshot_complete
        snapshot = live.snapshot()
        assert [(change.kind, change.row["id"]) for change in snapshot] == [("snapshot", n) for n in range(5)]
        assert live.snapshot_complete
        assert live.receive(0.0) is None
        last = [server.put(9, "new"), server.put(0, None), server.delete(1)]
        changes = [live.receive(30) for _ in last]
        assert [(c.kind, c.seq, c.row["id"], c.row["body"]) for c in changes if c] == [
            ("insert", last[0], 9, "new"),
            ("update", last[1], 0, None),
            ("delete", last[2], 1, "v1"),
        ]
        assert live.cursor == last[2]
    assert next(iter(live), None) is None
    assert [frame["type"] for frame in server.frames] == ["subscribe", "next_batch", "next_batch"]


def test_a_live_query_survives_cuts_anywhere_revoked_tokens_and_missed_deletes(
    server: Any, client: Client
) -> None:
    for key in range(7):
        server.put(key, "old")
    live = client.live(SQL, batch_size=2, patience=QUICK)
    server.cut_after_frames = 3
    live.open()
    table, seen = LiveTable.of(live.schema), set[int]()
    _catch_up(live, table, seen, lambda: server.rows)
    for cut_after in (1, 2, 3, 4, None):
        server.cut_after_frames = cut_after
        server.cut()
        server.tokens.clear()
        server.put(cut_after or 0, "new")
        server.delete(max(server.rows))
        server.put(50 + (cut_after or 0), None)
        _catch_up(live, table, seen, lambda: server.rows)
    live.close()
    assert server.connections > 6


def test_a_stored_cursor_resumes_with_what_was_missed(server: Any, client: Client) -> None:
    for key in range(3):
        server.put(key, "old")
    with client.live(SQL) as live:
        table = LiveTable.of(live.schema)
        for change in live.snapshot():
            table.apply(change)
        cursor = live.cursor
    server.delete(1)
    server.put(2, "new")
    with client.live(SQL, from_seq=cursor) as live:
        for change in (*live.snapshot(), live.receive(30)):
            assert change is not None
            table.apply(change)
    assert table.rows == server.rows == {0: {"id": 0, "body": "old"}, 2: {"id": 2, "body": "new"}}


def test_a_refused_query_is_an_error_with_its_code(client: Client) -> None:
    with pytest.raises(LiveError, match="no such table") as caught:
        client.live("SELECT * FROM app.nope").open()
    assert caught.value.code == "NOT_FOUND"


def test_close_from_another_thread_ends_the_iteration(server: Any, client: Client) -> None:
    live = client.live(SQL)
    received: queue.Queue[int | None] = queue.Queue()

    def read() -> None:
        for change in live:
            received.put(change.seq)
        received.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    seq = server.put(1, "x")
    assert received.get(timeout=30) == seq
    live.close()
    assert received.get(timeout=30) is None
    reader.join()


def test_a_client_says_that_it_lives_while_its_user_is_busy(server: Any, client: Client) -> None:
    live = client.live(SQL, patience=QUICK)
    live.open()
    assert all(server.pings.acquire(timeout=30) for _ in range(3))
    live.close()


def test_a_live_query_that_is_dropped_ends_its_heart(server: Any, client: Client) -> None:
    server.put(1, "x")
    for change in client.live(SQL, patience=QUICK):
        assert change.row["id"] == 1
        break
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "upwell-live":
            thread.join(30)
            assert not thread.is_alive()


async def test_the_asynchronous_client_does_the_same(server: Any) -> None:
    for key in range(5):
        server.put(key, f"v{key}")
    async with connect_async(server.url, user="alice", password="wonderland") as client:
        assert await client.query("SELECT id, body FROM notes") == [{"id": 1, "body": "hi"}]
        server.refuse_sql = {"code": "INVALID_SQL", "message": "no"}
        with pytest.raises(ServerError, match="INVALID_SQL"):
            await client.execute("nonsense")
        async with client.live(SQL, batch_size=2, patience=QUICK) as live:
            table = LiveTable.of(live.schema)
            for change in await live.snapshot():
                table.apply(change)
            assert table.rows == server.rows
            assert await live.receive(0.01) is None
            server.cut_after_frames = 2
            server.cut()
            server.tokens.clear()
            server.delete(3)
            server.put(1, None)
            server.put(7, "x")
            last = server.put(8, "y")
            async for change in live:
                table.apply(change)
                if change.seq == last:
                    last = server.put(8, "end")
                if change.row["body"] == "end":
                    break
            assert table.rows == server.rows
        assert [change async for change in live] == []
        with pytest.raises(LiveError, match="NOT_FOUND"):
            await client.live("SELECT * FROM app.nope").open()


async def test_an_asynchronous_live_query_that_is_dropped_ends_its_heart(server: Any) -> None:
    server.put(1, "x")
    async with connect_async(server.url, user="alice", password="wonderland") as client:
        async for change in client.live(SQL, patience=QUICK):
            assert change.row["id"] == 1
            break
        gc.collect()
        hearts = {task for task in asyncio.all_tasks() if "_beat" in repr(task)}
        assert len(hearts) == 1
        async with asyncio.timeout(30):
            await asyncio.wait(hearts)


async def test_a_cancelled_wait_loses_nothing(server: Any) -> None:
    async with (
        connect_async(server.url, user="alice", password="wonderland") as client,
        client.live(SQL) as live,
    ):
        await live.snapshot()
        waiting = asyncio.create_task(live.receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        seq = server.put(1, "x")
        change = await live.receive(30)
        assert change is not None
        assert change.seq == seq
