"""Scenario 09, the schema changes while people read and watch."""

import threading
from typing import Any

import pytest

from upwell.testing import wait_until
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def data(site: Site, namespace: str) -> str:
    """A fresh USER table."""
    columns = "(id BIGINT PRIMARY KEY, name TEXT NOT NULL, value INT)"
    site.root.run(f"CREATE TABLE {namespace}.data {columns} WITH (TYPE = 'USER')")
    return f"{namespace}.data"


def put(wire: Wire, table: str, *ids: int) -> None:
    values = ", ".join(f"({n}, 'name {n}', {n})" for n in ids)
    assert wire.run(f"INSERT INTO {table} (id, name, value) VALUES {values}").count == len(ids)


def altered(site: Site, table: str, change: str, version: int) -> None:
    shown = change.partition(" DEFAULT")[0]
    message = site.root.run(f"ALTER TABLE {table} {change}").message
    assert message == f"Table {table} altered successfully: {shown} (version {version})"


def with_nulls(rows: Rows, *columns: str) -> Rows:
    """Return rows with NULL where a row is older than the column."""
    return {key: dict.fromkeys(columns) | row for key, row in rows.items()}


def test_a_subscription_gets_the_new_column(site: Site, alice: Wire, data: str) -> None:
    put(alice, data, *range(1, 11))
    with Socket(alice.port, alice.token) as socket:
        whole = Watched(socket, f"SELECT * FROM {data}", id="whole", options={}).snapshot()
        named = Watched(socket, f"SELECT id, name FROM {data}", id="named", options={}).snapshot()
        some = Watched(socket, f"SELECT * FROM {data} WHERE value > 5", id="some", options={}).snapshot()
        assert (whole.keys(), some.keys()) == ([*range(1, 11)], [6, 7, 8, 9, 10])
        altered(site, data, "ADD COLUMN description TEXT", 2)
        insert = "(id, name, value, description)"
        alice.run(f"INSERT INTO {data} {insert} VALUES (100, 'new', 100, 'described')")
        assert whole.change() == some.change() == named.change() == ("insert", "100")
        expected = {"id": "100", "name": "new", "value": 100, "description": "described"}
        assert whole.rows["100"] == some.rows["100"] == expected
        assert named.rows["100"] == {"id": "100", "name": "new"}

        old_seq = whole.batches[0]["rows"][0]["_seq"]
        alice.run(f"UPDATE {data} SET value = 50 WHERE id = 1")
        assert whole.change() == some.change() == ("update", "1")
        assert whole.last["old_values"] == [{"id": "1", "value": 1, "_seq": old_seq}]
        assert set(whole.last["rows"][0]) == {"id", "name", "value", "_seq", "_deleted"}
        alice.run(f"UPDATE {data} SET description = 'later' WHERE id = 2")
        assert whole.change() == ("update", "2")
        assert whole.rows["2"]["description"] == "later"
        alice.run(f"DELETE FROM {data} WHERE id = 100")
        assert whole.change() == ("delete", "100")
        assert whole.last["old_values"][0]["description"] == "described"

        rows = alice.run(f"SELECT * FROM {data}").by_key
        assert with_nulls(whole.rows, "description") == rows
        assert rows["3"]["description"] is None
        fresh = Watched(socket, f"SELECT * FROM {data}", id="fresh", options={}).snapshot()
        assert fresh.columns == ["id", "name", "value", "description"]
        assert fresh.rows == rows
        lately = f"SELECT id FROM {data} WHERE description IS NOT NULL"
        assert Watched(socket, lately, id="lately", options={}).snapshot().keys() == [2]


def test_the_schema_changes_within_a_snapshot(site: Site, alice: Wire, data: str) -> None:
    put(alice, data, *range(1, 11))
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {data}", options={"batch_size": 3})
        watched.batch()
        altered(site, data, "ADD COLUMN description TEXT", 2)
        alice.run(f"UPDATE {data} SET description = 'd' WHERE id IN (1, 9)")
        site.flush(data)
        watched.ask()
        watched.snapshot()
        alice.run(f"INSERT INTO {data} VALUES (100, 'fence', 0, 'f')")
        watched.until(100)
        rows = alice.run(f"SELECT * FROM {data}").by_key
        assert with_nulls(watched.rows, "description") == rows
        assert [key for key, row in rows.items() if row["description"] == "d"] == ["1", "9"]


def test_a_return_over_a_change_of_the_schema(site: Site, alice: Wire, data: str) -> None:
    put(alice, data, 1, 2, 3)
    site.flush(data)
    with Socket(alice.port, alice.token) as socket:
        before = Watched(socket, f"SELECT * FROM {data}", options={}).snapshot()
    altered(site, data, "ADD COLUMN description TEXT", 2)
    alice.run(f"UPDATE {data} SET description = 'later' WHERE id = 2")
    alice.run(f"DELETE FROM {data} WHERE id = 3")
    put(alice, data, 4)
    with Socket(alice.port, alice.token) as socket:
        after = Watched(socket, f"SELECT * FROM {data}", options={"from": before.cursor}).snapshot()
        assert after.keys() == [2, 4]
        assert after.rows["2"] == {"id": "2", "name": "name 2", "value": 2, "description": "later"}
        assert after.change() == ("delete", "3")


def test_readers_beside_a_change_of_the_schema(site: Site, alice: Wire, data: str) -> None:
    """Ten of ten reads while it happens, each of the old columns or of the new, and never old after new."""
    put(alice, data, *range(20))
    is_begun, is_altered = threading.Event(), threading.Event()
    seen: list[tuple[str, ...]] = []

    def read() -> None:
        with Wire(alice.port, alice.token) as wire:
            while len(seen) < 10 or not is_altered.is_set():
                answer = wire.run(f"SELECT * FROM {data} ORDER BY id LIMIT 10")
                assert [row[0] for row in answer.rows] == [str(n) for n in range(10)]
                seen.append(tuple(name for name, _ in answer.columns))
                is_begun.set()
            answer = wire.run(f"SELECT * FROM {data} LIMIT 1")
            seen.append(tuple(name for name, _ in answer.columns))

    reading = threading.Thread(target=read)
    reading.start()
    assert is_begun.wait(20)
    altered(site, data, "ADD COLUMN extra TEXT", 2)
    is_altered.set()
    reading.join()
    old, new = (
        ("id", "name", "value", "_seq", "_deleted"),
        ("id", "name", "value", "extra", "_seq", "_deleted"),
    )
    assert set(seen) == {old, new}
    assert seen == sorted(seen, key=len)


def test_three_schemas_in_two_tiers(site: Site, alice: Wire, data: str) -> None:
    put(alice, data, 1, 2, 3)
    site.flush(data)
    altered(site, data, "ADD COLUMN a INT", 2)
    alice.run(f"INSERT INTO {data} VALUES (4, 'four', 4, 1)")
    site.flush(data)
    put(alice, data, 5)
    altered(site, data, "ADD COLUMN b INT DEFAULT 7", 3)
    alice.run(f"INSERT INTO {data} VALUES (6, 'six', 6, NULL, 3)")
    put(alice, data, 7)
    rows = alice.run(f"SELECT * FROM {data}").by_key
    assert {key: row["a"] for key, row in rows.items()} == dict.fromkeys("123567") | {"4": 1}
    assert {key: row["b"] for key, row in rows.items()} == dict.fromkeys("123457", 7) | {"6": 3}
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {data}", options={"batch_size": 2}).snapshot()
        assert watched.rows == rows
        sql = f"SELECT * FROM {data} WHERE b = 7 AND a IS NULL"
        assert Watched(socket, sql, id="b", options={}).snapshot().keys() == [1, 2, 3, 5, 7]
        refused = alice.sql(f"INSERT INTO {data} (id, name, nope) VALUES (9, 'x', 1)")
        assert refused.status == 400
        assert "nope" in refused.body.decode()
        alice.run(f"UPDATE {data} SET a = 2 WHERE id = 1")
        assert watched.change() == ("update", "1")
        assert watched.rows["1"] == {"id": "1", "name": "name 1", "value": 1, "a": 2, "b": 7}
        assert watched.last["old_values"] == [
            {"id": "1", "_seq": next(r["_seq"] for b in watched.batches for r in b["rows"] if r["id"] == "1")}
        ]


def test_a_dropped_table_ends_its_subscriptions_only(site: Site, alice: Wire, data: str) -> None:
    other = f"{data}_other"
    site.root.run(f"CREATE TABLE {other} (id BIGINT PRIMARY KEY) WITH (TYPE = 'USER')")
    put(alice, data, 1, 2)
    with Socket(alice.port, alice.token) as socket:
        gone = Watched(socket, f"SELECT * FROM {data}", id="gone", options={}).snapshot()
        half = Watched(socket, f"SELECT * FROM {data}", id="half", options={"batch_size": 1})
        half.batch()
        lives = Watched(socket, f"SELECT * FROM {other}", id="lives", options={}).snapshot()
        site.root.run(f"DROP TABLE {data}")
        for ended in (gone, half):
            code, message = ended.error()
            assert code == "NOT_FOUND"
            assert data in message
            assert "dropped" in message
        site.root.run(f"CREATE TABLE {data} (id BIGINT PRIMARY KEY, other TEXT) WITH (TYPE = 'USER')")
        alice.run(f"INSERT INTO {data} VALUES (1, 'of the new table')")
        alice.run(f"INSERT INTO {other} VALUES (1)")
        assert lives.change() == ("insert", "1")
        again = Watched(socket, f"SELECT * FROM {data}", id="gone", options={}).snapshot()
        assert again.rows == {"1": {"id": "1", "other": "of the new table"}}
        alice.run(f"INSERT INTO {data} VALUES (2, 'live')")
        assert again.change() == ("insert", "2")
        alice.run(f"INSERT INTO {other} VALUES (2)")
        assert lives.change() == ("insert", "2")


def test_a_subscription_outlives_a_drop_or_says_why_it_cannot(site: Site, alice: Wire, data: str) -> None:
    """`name` goes: `*` follows, a filter by another column holds, what shows it ends and begins anew."""
    put(alice, data, 1, 2, 9)
    with Socket(alice.port, alice.token) as socket:
        whole = Watched(socket, f"SELECT * FROM {data}", id="whole", options={}).snapshot()
        some = Watched(
            socket, f"SELECT id, value FROM {data} WHERE value > 5", id="some", options={}
        ).snapshot()
        named = Watched(socket, f"SELECT id, name FROM {data}", id="named", options={}).snapshot()
        altered(site, data, "DROP COLUMN name", 2)
        code, message = named.error()
        assert code == "SUBSCRIPTION_FAILED"
        assert f"column 'name' of {data} was dropped" in message
        alice.run(f"INSERT INTO {data} (id, value) VALUES (3, 1), (4, 40)")
        assert [whole.change(), whole.change(), some.change()] == [
            ("insert", "3"), ("insert", "4"), ("insert", "4"),
        ]  # fmt: skip
        assert whole.last["rows"][0].keys() == {"id", "value", "_seq", "_deleted"}
        assert some.keys() == [4, 9]

        altered(site, data, "RENAME COLUMN value TO amount", 3)
        code, message = some.error()
        assert f"column 'value' of {data} was altered" in message
        alice.run(f"UPDATE {data} SET amount = 7 WHERE id = 1")
        assert whole.change() == ("update", "1")
        anew = Watched(
            socket, f"SELECT id, amount FROM {data} WHERE amount > 5", id="anew", options={}
        ).snapshot()
        assert anew.keys() == [1, 4, 9]
        assert "name" in alice.sql(f"INSERT INTO {data} (id, name) VALUES (5, 'x')").refused(
            400, "SQL_EXECUTION_ERROR"
        )


def test_what_was_flushed_is_shown_by_the_schema_of_now(site: Site, alice: Wire, data: str) -> None:
    """A dropped name that comes again begins empty; renamed and widened columns keep what they hold."""
    put(alice, data, 1, 2, 3)
    site.flush(data)
    put(alice, data, 4)
    with Socket(alice.port, alice.token) as socket:
        before = Watched(socket, f"SELECT * FROM {data}", id="before", options={}).snapshot()

        def shown_anew(version: int) -> Rows:
            watched = Watched(socket, f"SELECT * FROM {data}", id=f"v{version}", options={"batch_size": 2})
            rows = alice.run(f"SELECT * FROM {data}").by_key
            assert watched.snapshot().rows == rows
            return rows

        altered(site, data, "DROP COLUMN value", 2)
        altered(site, data, "ADD COLUMN value INT", 3)
        assert {row["value"] for row in shown_anew(3).values()} == {None}, "the old values are not back"
        assert alice.run(f"SELECT COUNT(*) FROM {data} WHERE value IS NOT NULL").cell == "0"
        alice.run(f"UPDATE {data} SET value = 9 WHERE id = 2")
        assert before.change() == ("update", "2")
        assert before.last["rows"][0]["value"] == 9
        assert "value" not in before.last["old_values"][0], "it was NULL before"
        site.flush(data)
        altered(site, data, "RENAME COLUMN name TO title", 4)
        altered(site, data, "MODIFY COLUMN value BIGINT", 5)
        rows = shown_anew(5)
        assert [row["title"] for row in rows.values()] == [f"name {n}" for n in range(1, 5)]
        assert [row["value"] for row in rows.values()] == [None, "9", None, None]
        alice.run(f"UPDATE {data} SET value = 5000000000 WHERE id = 3")
        assert before.change() == ("update", "3")
        assert {"title": "name 3", "value": "5000000000"}.items() <= before.last["rows"][0].items()

        # And while it is being flushed.
        put_more = ", ".join(f"({n}, 'name {n}', {n})" for n in range(100, 400))
        alice.run(f"INSERT INTO {data} (id, title, value) VALUES {put_more}")
        job = site.root.run(f"STORAGE FLUSH TABLE {data}").message.split("Job ID: ")[1]
        altered(site, data, "ADD COLUMN late INT DEFAULT 7", 6)
        alice.run(f"UPDATE {data} SET late = 8 WHERE id = 1")
        status = f"SELECT status FROM system.jobs WHERE job_id = '{job}'"
        wait_until(lambda: site.root.run(status).cell == "completed", timeout_s=20, what="the flush")
        rows = shown_anew(6)
        assert len(rows) == 304
        assert {key: row["late"] for key, row in rows.items()} == dict.fromkeys(rows, 7) | {"1": 8}
        namespace = data.partition(".")[0]
        versions = f"SELECT is_latest FROM system.schemas WHERE namespace_id = '{namespace}'"
        latest = site.root.run(f"{versions} ORDER BY schema_version").rows
        assert latest == [[False]] * 5 + [[True]], "one more by each"
