"""Scenario 02, offline first: a snapshot in batches, drift, resume, and no seam between snapshot and live."""

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.websocket import PING, PONG, Frame, Socket, Watched
from upwell.testing.wire import Site, Wire

ITEMS = (
    "(id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), kind TEXT NOT NULL, title TEXT NOT NULL, body TEXT,"
    " tags TEXT, priority SMALLINT DEFAULT 0, is_done BOOLEAN DEFAULT FALSE,"
    " updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, device_id TEXT, meta TEXT) WITH (TYPE = 'USER')"
)
KINDS = ("note", "task", "message")
BATCH_ROWS = (1, 7, 50, 51, 1000)
SEAM_SEED, SEAM_ROUNDS = 20_260, 200


def insert(wire: Wire, table: str, ids: range) -> None:
    values = [f"({n}, '{KINDS[n % 3]}', 'item {n}', {n % 5})" for n in ids]
    sql = f"INSERT INTO {table} (id, kind, title, priority) VALUES {', '.join(values)}"
    assert wire.run(sql).count == len(ids)


def selected(wire: Wire, table: str) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = wire.run(f"SELECT * FROM {table} LIMIT 1000").by_key
    return rows


@pytest.fixture
def items(site: Site, namespace: str) -> str:
    """A fresh USER table of ten columns."""
    site.root.run(f"CREATE TABLE {namespace}.items {ITEMS}")
    return f"{namespace}.items"


def test_ten_users_load_fifty_items_in_batches_of_any_size(site: Site, items: str) -> None:
    """ceil(n / b) batches; half of the rows is cold."""
    users = [site.account()[1] for _ in range(10)]
    for number, wire in enumerate(users):
        insert(wire, items, range(number * 10_000, number * 10_000 + 25))
    site.flush(items)
    for number, wire in enumerate(users):
        insert(wire, items, range(number * 10_000 + 25, number * 10_000 + 50))

    def load(number: int) -> None:
        wire, expected = users[number], list(range(number * 10_000, number * 10_000 + 50))
        with Socket(wire.port, wire.token) as socket, Wire(wire.port, wire.token) as own:
            for rows in BATCH_ROWS if number < 2 else BATCH_ROWS[1:]:
                sql = f"SELECT * FROM {items}"
                watched = Watched(socket, sql, id=f"b{rows}", options={"batch_size": rows}).snapshot()
                assert len(watched.batches) == math.ceil(50 / rows)
                more = [batch["batch_control"]["has_more"] for batch in watched.batches]
                assert more == [True] * (len(more) - 1) + [False]
                assert sum(len(batch["rows"]) for batch in watched.batches) == 50
                assert {len(batch["rows"]) for batch in watched.batches[:-1]} <= {rows}
                assert watched.keys() == expected
                assert watched.rows == selected(own, items)

    with ThreadPoolExecutor(len(users)) as pool:
        list(pool.map(load, range(len(users))))
    row = selected(users[3], items)["30042"]
    assert (row["kind"], row["priority"], row["is_done"]) == (KINDS[30_042 % 3], 30_042 % 5, False)


def test_an_empty_table_is_ready_at_once(alice: Wire, items: str) -> None:
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {items}", options={"batch_size": 7}).snapshot()
        (batch,) = watched.batches
        ready = {"batch_num": 0, "has_more": False, "status": "ready", "last_seq_id": None}
        assert batch["batch_control"] == watched.ack["batch_control"] == ready


def test_five_thousand_rows_are_five_batches_of_a_thousand(site: Site, alice: Wire, items: str) -> None:
    for first in range(0, 5000, 500):
        insert(alice, items, range(first, first + 500))
        if first == 2000:
            site.flush(items)
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT id, title FROM {items}", options={"batch_size": 1000})
        watched.snapshot()
        shown = [(len(b["rows"]), b["batch_control"]["has_more"]) for b in watched.batches]
        assert shown == [(1000, True)] * 4 + [(1000, False)]
        assert watched.keys() == list(range(5000))
        assert set(watched.batches[0]["rows"][0]) >= {"id", "title", "_seq"}


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_last_rows_are_the_newest(alice: Wire, items: str, rows: int) -> None:
    insert(alice, items, range(10))
    alice.run(f"UPDATE {items} SET title = 'newest' WHERE id = 4")
    newest = [4, 9, 8, 7, 6, 5, 3, 2, 1, 0][:rows]
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {items}", options={"last_rows": rows}).snapshot()
        (batch,) = watched.batches
        assert [int(row["id"]) for row in batch["rows"]] == newest[::-1]
        assert batch["batch_control"]["has_more"] is False
        both = {"last_rows": 1, "from": watched.cursor}
        later = Watched(socket, f"SELECT * FROM {items}", id="both", options=both).snapshot()
        assert later.rows == {}, "`from` goes before `last_rows`"


@pytest.mark.parametrize("name", ["from", "from_seq_id"])
@pytest.mark.parametrize("is_cold", [False, True])
def test_a_return_brings_the_difference(
    site: Site, alice: Wire, items: str, name: str, *, is_cold: bool
) -> None:
    """Five new rows, one updated, two deleted while the client was away, and nothing that it knows."""
    insert(alice, items, range(1, 11))
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {items}", options={}).snapshot()
        assert watched.keys() == list(range(1, 11))
    if is_cold:
        site.flush(items)
    insert(alice, items, range(11, 16))
    alice.run(f"UPDATE {items} SET title = 'drifted' WHERE id = 1")
    alice.run(f"DELETE FROM {items} WHERE id IN (2, 3)")
    alice.run(f"INSERT INTO {items} (id, kind, title) VALUES (99, 'note', 'came and went')")
    alice.run(f"DELETE FROM {items} WHERE id = 99")
    if is_cold:
        site.flush(items)
    with Socket(alice.port, alice.token) as socket:
        fresh = Watched(socket, f"SELECT * FROM {items}", id="fresh", options={}).snapshot()
        assert fresh.keys() == [1, *range(4, 16)]
        options = {name: watched.cursor, "batch_size": 4}
        resumed = Watched(socket, f"SELECT * FROM {items}", options=options).snapshot()
        assert [len(batch["rows"]) for batch in resumed.batches] == [4, 2]
        assert resumed.keys() == [1, *range(11, 16)]
        assert resumed.rows["1"]["title"] == "drifted"
        insert(alice, items, range(100, 101))
        missed = resumed.until(100)
        # Of a row that nobody held a delete may be told or not.
        assert sorted(missed, key=lambda change: int(change[1]))[:2] == [("delete", "2"), ("delete", "3")]
        assert {key for _, key in missed} <= {"2", "3", "99"}
        assert fresh.change() == ("insert", "100"), "what was missed is no news for others"


def test_a_snapshot_that_breaks_off_is_continued(site: Site, alice: Wire, items: str) -> None:
    insert(alice, items, range(50))
    sql = f"SELECT * FROM {items}"
    socket = Socket(alice.port, alice.token)
    broken = Watched(socket, sql, options={"batch_size": 7})
    for _ in range(3):
        broken.batch()
        broken.ask()
    socket.reset()
    held = broken.keys()
    assert held == list(range(21))
    alice.run(f"DELETE FROM {items} WHERE id IN (5, 40)")
    alice.run(f"UPDATE {items} SET title = 'new' WHERE id IN (6, 41)")
    site.flush(items)
    with Socket(alice.port, alice.token) as again:
        rest = Watched(again, sql, options={"batch_size": 7, "from": broken.cursor}).snapshot()
        assert rest.keys() == [6, *(n for n in range(21, 50) if n != 40)]
        insert(alice, items, range(100, 101))
        assert ("delete", "5") in rest.until(100)
        whole = {key: row for key, row in broken.rows.items() if key != "5"} | rest.rows
        assert whole == selected(alice, items)


@pytest.mark.parametrize("answers", [True, False])
def test_deletes_come_again_unless_their_arrival_was_shown(alice: Wire, items: str, *, answers: bool) -> None:
    """After the missed deletes comes a ping: who was cut off before it may come back from its newest seq."""
    insert(alice, items, range(1, 6))
    sql = f"SELECT * FROM {items}"
    with Socket(alice.port, alice.token) as socket:
        held = Watched(socket, sql, options={}).snapshot()
    alice.run(f"DELETE FROM {items} WHERE id = 1")
    insert(alice, items, range(6, 7))
    alice.run(f"DELETE FROM {items} WHERE id = 2")
    with Socket(alice.port, alice.token) as socket:
        held = Watched(socket, sql, options={"from": held.cursor}, held=held).snapshot()
        assert [held.change(), held.change()] == [("delete", "1"), ("delete", "2")]
        ping = socket.frame()
        assert (ping.opcode, len(ping.payload)) == (PING, 8)
        socket.send(Frame(PONG, b"no answer"), *[Frame(PONG, ping.payload)] * answers * 2)
        came = held.cursor
    fences = iter(range(10, 1000))

    def told_again() -> list[tuple[str, str]]:
        fence = next(fences)
        with Socket(alice.port, alice.token) as socket:
            again = Watched(socket, sql, options={"from": came}).snapshot()
            insert(alice, items, range(fence, fence + 1))
            return again.until(fence)

    if answers:
        wait_until(lambda: told_again() == [], timeout_s=20, what="the answer to count")
    else:
        assert told_again() == [("delete", "1"), ("delete", "2")]


def test_changes_and_a_flush_within_the_snapshot(site: Site, alice: Wire, items: str) -> None:
    insert(alice, items, range(50))
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {items}", options={"batch_size": 7})
        watched.batch()
        alice.run(f"UPDATE {items} SET title = 'new' WHERE id IN (3, 30)")
        alice.run(f"DELETE FROM {items} WHERE id IN (4, 40)")
        insert(alice, items, range(50, 55))
        site.flush(items)
        alice.run(f"DELETE FROM {items} WHERE id = 50")
        watched.ask()
        watched.snapshot()
        insert(alice, items, range(100, 101))
        changes = watched.until(100)
        assert len(changes) == len(set(changes)), "none twice"
        assert watched.rows == selected(alice, items)


def test_no_seam_between_snapshot_and_live(site: Site, namespace: str) -> None:
    """A writer adds rows 21–25 while 20 are read: the union is 1–25, each exactly once, in every round."""
    chance = random.Random(SEAM_SEED)
    table, (_, wire) = f"{namespace}.drift", site.account()
    columns = "(id BIGINT PRIMARY KEY, turn INT NOT NULL, n INT NOT NULL)"
    site.root.run(f"CREATE TABLE {table} {columns} WITH (TYPE = 'USER')")

    def add(turn: int, first: int, last: int) -> None:
        for n in range(first, last + 1):
            writer.run(f"INSERT INTO {table} VALUES ({turn * 100 + n}, {turn}, {n})")

    with Socket(wire.port, wire.token) as socket, Wire(wire.port, wire.token) as writer:
        for turn in range(SEAM_ROUNDS):
            values = ", ".join(f"({turn * 100 + n}, {turn}, {n})" for n in range(1, 21))
            wire.run(f"INSERT INTO {table} VALUES {values}")
            earlier, rows = chance.randint(0, 2), chance.choice((9, 20, 21, 1000))
            add(turn, 21, 20 + earlier)
            adding = threading.Thread(target=add, args=(turn, 21 + earlier, 25))
            adding.start()
            sql = f"SELECT id, n FROM {table} WHERE turn = {turn}"
            watched = Watched(socket, sql, id=f"turn{turn}", options={"batch_size": rows}).snapshot()
            adding.join()
            add(turn, 26, 26)
            live = watched.until(turn * 100 + 26)
            told = [int(row["n"]) for batch in watched.batches for row in batch["rows"]]
            told += [int(key) - turn * 100 for _, key in live]
            assert told == list(range(1, 26)), f"turn {turn} of seed {SEAM_SEED}"
            assert {kind for kind, _ in live} <= {"insert"}
            socket.say(type="unsubscribe", subscription_id=watched.id)


def test_a_return_after_a_restart_of_the_server(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    site = Site(server)
    site.root.run("CREATE NAMESPACE app")
    site.root.run(f"CREATE TABLE app.items {ITEMS}")
    insert(site.root, "app.items", range(1, 11))
    with Socket(server.port, site.root.token) as socket:
        watched = Watched(socket, "SELECT * FROM app.items", options={}).snapshot()
    site.root.run("DELETE FROM app.items WHERE id = 2")
    site.flush("app.items")
    insert(site.root, "app.items", range(11, 16))
    server.restart()
    site.root.run("UPDATE app.items SET title = 'drifted' WHERE id = 1")
    with Socket(server.port, site.root.token) as socket:
        options = {"from": watched.cursor, "batch_size": 4}
        resumed = Watched(socket, "SELECT * FROM app.items", options=options).snapshot()
        assert resumed.keys() == [1, *range(11, 16)]
        insert(site.root, "app.items", range(100, 101))
        assert resumed.until(100) == [("delete", "2")]
    site.close()
