"""A live table on a real server: its rows are those of the SELECT, whatever happens between two looks."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, Self

import jwt
import pytest

from upwell.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    LiveError,
    Patience,
    connect,
    connect_async,
)
from upwell.testing import ServerProcess
from upwell.testing.cable import Cable
from upwell.testing.wait import wait_until

WAIT_S = 30.0
QUICK = Patience(backoff_first_s=0.01, backoff_max_s=0.1, reconnects_max=10_000)
Row = dict[str, Any]


class Table(Protocol):
    """What both live tables are to these tests."""

    def rows(self) -> list[Row]: ...
    def get(self, key: Any) -> Row | None: ...
    def wait(self, until: Callable[[list[Row]], bool], timeout_s: float) -> list[Row]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *failure: Any) -> None: ...


class Loop:
    """An event loop in a thread, so that a test which blocks can use the asynchronous client."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Awaited:
    """An asynchronous live table, seen from a thread."""

    def __init__(self, loop: Loop, client: AsyncClient, sql: str) -> None:
        self._loop = loop
        self._table = client.live_table(sql, batch_size=3, patience=QUICK)
        self.rows, self.get = self._table.rows, self._table.get

    def wait(self, until: Callable[[list[Row]], bool], timeout_s: float) -> list[Row]:
        rows: list[Row] = self._loop.run(self._table.wait(until, timeout_s))
        return rows

    def __enter__(self) -> Self:
        self._loop.run(self._table.__aenter__())
        return self

    def __exit__(self, *failure: Any) -> None:
        self._loop.run(self._table.close())


OpenTable = Callable[..., Table]


@pytest.fixture(params=["sync", "async"])
def open_table(request: pytest.FixtureRequest) -> Iterator[OpenTable]:
    """Make a live table of the query, by either client."""
    with ExitStack() as stack:

        def by_thread(sql: str, url: str, **account: str) -> Table:
            client = stack.enter_context(connect(url, **account))
            return client.live_table(sql, batch_size=3, patience=QUICK)

        def by_loop(sql: str, url: str, **account: str) -> Table:
            loop = Loop()
            stack.callback(loop.close)
            client = connect_async(url, **account)
            stack.callback(lambda: loop.run(client.close()))
            return Awaited(loop, client, sql)

        yield by_thread if request.param == "sync" else by_loop


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests here, each of which makes the table anew."""
    with ServerProcess(tmp_path_factory.mktemp("live") / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        yield server


@pytest.fixture
def root(server: ServerProcess) -> Iterator[Client]:
    with connect(server.url, user="root", password=server.root_password) as client:
        client.execute("CREATE NAMESPACE IF NOT EXISTS app")
        client.execute("DROP TABLE IF EXISTS app.notes")
        client.execute(
            "CREATE TABLE app.notes (id BIGINT PRIMARY KEY, kind TEXT, size INT) WITH (TYPE='USER')"
        )
        yield client


def select(client: Client, sql: str) -> list[Row]:
    """Return the rows of the SELECT without system columns."""
    return [
        {name: cell for name, cell in row.items() if name not in ("_seq", "_deleted")}
        for row in client.query(sql)
    ]


def settled(table: Table, client: Client, sql: str) -> list[Row]:
    """Wait until the table has the rows of the SELECT, in its order; return them."""
    rows = select(client, sql)
    return table.wait(lambda seen: seen == rows, WAIT_S)


def test_rows_are_the_select_through_cuts_restarts_flushes_and_new_columns(
    server: ServerProcess, root: Client, open_table: OpenTable
) -> None:
    chance = random.Random(20)
    sql = "SELECT * FROM app.notes WHERE kind = 'a'"

    def change() -> None:
        key, kind, size = chance.randrange(12), chance.choice("aaab"), chance.choice([None, 1, 2])
        match chance.randrange(3):
            case 0:
                root.execute("DELETE FROM app.notes WHERE id = $1", [key])
            case _ if root.query("SELECT id FROM app.notes WHERE id = $1", [key]):
                root.execute("UPDATE app.notes SET kind = $2, size = $3 WHERE id = $1", [key, kind, size])
            case _:
                root.execute("INSERT INTO app.notes (id, kind, size) VALUES ($1, $2, $3)", [key, kind, size])

    for _ in range(20):
        change()
    seen = set()
    with (
        Cable(server.port) as cable,
        open_table(sql, cable.url, user="root", password=server.root_password) as table,
    ):
        assert table.rows() == select(root, sql)
        for step in range(40):
            match step:
                case 5 | 22:
                    root.execute("STORAGE FLUSH TABLE app.notes")
                case 10 | 26 | 33:
                    cable.cut()
                case 12 | 28 | 35:
                    server.restart()
                case 18:
                    root.execute("ALTER TABLE app.notes ADD COLUMN note TEXT DEFAULT 'none'")
                case 34:
                    root.execute("ALTER TABLE app.notes ADD COLUMN rank BIGINT NOT NULL DEFAULT 7")
                case 15 | 30 | 37:
                    cable.mend()
                case _:
                    change()
            if step == 18:
                # New columns show with the first change that has them.
                root.execute("INSERT INTO app.notes (id, kind) VALUES (100, 'a')")
            if step not in (*range(10, 15), *range(26, 30), *range(33, 37)):
                rows = settled(table, root, sql)
                seen |= {row["id"] for row in rows}
                assert table.rows() == rows
                assert [table.get(row["id"]) for row in rows] == rows
                assert table.get(-1) is None
    assert len(seen) > 5, "the steps move rows in and out"


def test_an_expired_token_is_renewed_and_nothing_missed(
    server: ServerProcess, root: Client, open_table: OpenTable
) -> None:
    claims = jwt.decode(root.login(), options={"verify_signature": False})
    claims["exp"] = int(time.time()) + 1
    token = jwt.encode(claims, server.jwt_secret, "HS256")
    sql = "SELECT * FROM app.notes"
    account = {"user": "root", "password": server.root_password, "token": token}
    with (
        Cable(server.port) as cable,
        open_table(sql, cable.url, **account) as table,
    ):
        while time.time() < claims["exp"]:
            root.execute("INSERT INTO app.notes VALUES (1, 'a', 1)")
            settled(table, root, sql)
            root.execute("DELETE FROM app.notes WHERE id = 1")
            settled(table, root, sql)
        # The sign-in is of a token that is no longer accepted now.
        cable.cut()
        root.execute("INSERT INTO app.notes VALUES (2, 'a', 1)")
        cable.mend()
        assert settled(table, root, sql) == [{"id": 2, "kind": "a", "size": 1}]


def is_pruned(client: Client, sql: str, cursor: int) -> bool:
    """Whether the server says that it can't resume from there."""
    try:
        with client.live(sql, from_seq=cursor) as live:
            live.snapshot()
    except LiveError as error:
        return error.code == "HISTORY_PRUNED"
    return False


def test_below_the_floor_of_the_log_it_begins_anew(
    server: ServerProcess, root: Client, open_table: OpenTable
) -> None:
    server.restart(env={"UPWELL_LOG_RETENTION_S": "1", "UPWELL_LOG_TRIM_INTERVAL_S": "0.1"})
    sql = "SELECT * FROM app.notes"
    root.execute("INSERT INTO app.notes VALUES (1, 'a', 1), (2, 'a', 2)")
    with (
        Cable(server.port) as cable,
        open_table(sql, cable.url, user="root", password=server.root_password) as table,
    ):
        with root.live(sql) as live:
            cursor = live.snapshot()[-1].seq
        cable.cut()
        root.execute("DELETE FROM app.notes WHERE id = 1")
        root.execute("UPDATE app.notes SET kind = 'b' WHERE id = 2")
        wait_until(lambda: is_pruned(root, sql, cursor), timeout_s=WAIT_S, what="the log to be trimmed")
        assert [row["kind"] for row in table.rows()] == ["a", "a"]
        cable.mend()
        assert settled(table, root, sql) == [{"id": 2, "kind": "b", "size": 2}]
    server.restart()


def test_a_dropped_table_is_an_error_to_all_who_look(
    server: ServerProcess, root: Client, open_table: OpenTable
) -> None:
    with open_table(
        "SELECT * FROM app.notes", server.url, user="root", password=server.root_password
    ) as table:
        assert table.rows() == []
        root.execute("DROP TABLE app.notes")
        for look in (lambda: table.wait(lambda rows: False, WAIT_S), table.rows, lambda: table.get(1)):
            with pytest.raises(LiveError, match=r"NOT_FOUND.*app\.notes was dropped"):
                look()


def test_what_is_waited_for_in_vain_or_after_the_end_is_an_error(
    server: ServerProcess, root: Client, open_table: OpenTable
) -> None:
    account = {"user": "root", "password": server.root_password}
    with open_table("SELECT id FROM app.notes", server.url, **account) as table:
        with pytest.raises(TimeoutError):
            table.wait(lambda rows: bool(rows), 0.01)
        assert table.rows() == []
    with pytest.raises(ConnectionLost, match="closed"):
        table.rows()
    with pytest.raises(ConnectionLost, match="closed"):
        table.wait(lambda rows: True, WAIT_S)


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT * FROM app.nope", "NOT_FOUND"),
        ("SELECT * FROM app.notes LIMIT 1", "INVALID_SQL"),
        ("SELECT kind FROM app.notes", "PRIMARY_KEY_MISSING"),
    ],
)
def test_a_query_that_cannot_be_kept_is_refused_when_it_is_opened(
    server: ServerProcess, root: Client, open_table: OpenTable, sql: str, code: str
) -> None:
    table = open_table(sql, server.url, user="root", password=server.root_password)
    with pytest.raises(LiveError, match=code), table:
        pass


def test_a_client_that_is_closed_ends_its_live_tables(server: ServerProcess, root: Client) -> None:
    with connect(server.url, user="root", password=server.root_password) as client:
        table = client.live_table("SELECT * FROM app.notes")
        table.open()
    with pytest.raises(ConnectionLost, match="closed"):
        table.wait(lambda rows: False, WAIT_S)
    assert "upwell-live-table" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}
