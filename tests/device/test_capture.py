"""Capture keeps, for every row, the one change from what the server acknowledged to what is there now."""

import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from upwell.device import Device, TableRefused

KEYS = ["a", "b", "c", "d"]
SYNCED = {"a": 3, "b": 7}


class Coalescing(RuleBasedStateMachine):
    """Random statements on new and on synced rows; the model keeps one expected change per row."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        path = str(Path(self.directory.name) / "app.sqlite")
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY, v INTEGER)")
        connection.close()
        self.device = Device.open(path, schema="app", tables=["t"])
        # The app may write through any connection, also one that knows nothing of this package.
        self.app = sqlite3.connect(path, isolation_level=None)
        self.rows: dict[str, int] = {}
        self.pending: dict[str, tuple[str, int, dict[str, Any]]] = {}

    @initialize()
    def sync_some_rows(self) -> None:
        self.app.execute("UPDATE _sync_client_info SET apply_mode = 1")
        for key, version in SYNCED.items():
            self.app.execute("INSERT INTO t VALUES (?, 0)", (key,))
            self.app.execute("INSERT INTO _sync_row_meta VALUES ('t', ?, ?, 0, '', 0)", (key, version))
            self.rows[key] = 0
        self.app.execute("UPDATE _sync_client_info SET apply_mode = 0")

    def teardown(self) -> None:
        self.app.close()
        self.device.close()
        self.directory.cleanup()

    def expect_row(self, key: str, value: int) -> None:
        base = SYNCED.get(key, 0)
        before = self.pending.get(key, ("UPDATE" if base and key in self.rows else "INSERT",))[0]
        operation = "INSERT" if before == "DELETE" else before
        self.pending[key] = (operation, base, {"id": key, "v": value})
        self.rows[key] = value

    def expect_deletion(self, key: str) -> None:
        self.pending[key] = ("DELETE", SYNCED.get(key, 0), {"id": key, "v": self.rows.pop(key)})

    @rule(key=st.sampled_from(KEYS), value=st.integers(0, 9))
    def insert_or_update(self, key: str, value: int) -> None:
        if key in self.rows:
            self.app.execute("UPDATE t SET v = ? WHERE id = ?", (value, key))
        else:
            self.app.execute("INSERT INTO t VALUES (?, ?)", (key, value))
        self.expect_row(key, value)

    @rule(key=st.sampled_from(KEYS), value=st.integers(0, 9))
    def insert_or_replace(self, key: str, value: int) -> None:
        self.app.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, value))
        self.expect_row(key, value)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.rows)))
        self.app.execute("DELETE FROM t WHERE id = ?", (key,))
        self.expect_deletion(key)

    @precondition(lambda self: self.rows and len(self.rows) < len(KEYS))
    @rule(data=st.data())
    def change_primary_key(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.rows)))
        new = data.draw(st.sampled_from(sorted(set(KEYS) - self.rows.keys())))
        value = self.rows[key]
        self.app.execute("UPDATE t SET id = ? WHERE id = ?", (new, key))
        self.expect_deletion(key)
        self.expect_row(new, value)

    @rule()
    def reopen(self) -> None:
        path = self.app.execute("PRAGMA database_list").fetchone()[2]
        self.device.close()
        self.device = Device.open(path, schema="app", tables=["t"])

    @invariant()
    def one_change_per_row(self) -> None:
        changes = self.device.pending()
        assert {c.key: (c.op, c.base_version, json.loads(c.payload or "")) for c in changes} == self.pending
        ids = [c.change_id for c in changes]
        assert len(set(ids)) == len(ids)
        assert all(change_id < self.device.status().next_change_id for change_id in ids)


TestCoalescing = Coalescing.TestCase
TestCoalescing.settings = settings(max_examples=60, stateful_step_count=25)


def test_deletion_of_a_row_that_was_never_acknowledged_gets_a_fresh_change_id(install: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    (first,) = phone.device.pending()
    phone.run("UPDATE users SET name = 'y'")
    assert phone.device.pending()[0].change_id == first.change_id
    phone.run("DELETE FROM users")
    (tombstone,) = phone.device.pending()
    assert (tombstone.op, tombstone.base_version) == ("DELETE", 0)
    assert tombstone.change_id > first.change_id


def test_rows_from_before_registration_are_queued(install: Any) -> None:
    schema = "CREATE TABLE notes (id TEXT PRIMARY KEY, n); INSERT INTO notes VALUES ('a', 1), ('b', 2);"
    phone = install(schema=schema, tables=["notes"])
    assert phone.pending() == {"a": ("INSERT", 0), "b": ("INSERT", 0)}
    assert [change.change_id for change in phone.device.pending()] == [1, 2]
    assert phone.device.status().next_change_id == 3


def test_values_are_captured_exactly(install: Any) -> None:
    phone = install(schema="CREATE TABLE t (id TEXT PRIMARY KEY, v)", tables=["t"])
    values = [None, 2**63 - 1, -(2**63), 0.1 + 0.2, 0.1, 1e300, 'O\'Hara "é" \n', "", "12", b"\x00\xff"]
    for index, value in enumerate(values):
        phone.run("INSERT INTO t VALUES (?, ?)", str(index), value)
    captured = [json.loads(change.payload or "")["v"] for change in phone.device.pending()]
    assert captured == [*values[:-1], {"$blob": "00ff"}]


def test_cascades_are_captured(install: Any) -> None:
    schema = """
    CREATE TABLE files (id TEXT PRIMARY KEY, name TEXT);
    CREATE TABLE reviews (id TEXT PRIMARY KEY, file_id TEXT REFERENCES files (id) ON DELETE CASCADE);"""
    phone = install(schema=schema, tables=["files", "reviews"])
    phone.run("INSERT INTO files VALUES ('f', 'x')")
    phone.run("INSERT INTO reviews VALUES ('r', 'f')")
    phone.device.upload()
    phone.run("DELETE FROM files")
    assert phone.pending() == {"f": ("DELETE", 1), "r": ("DELETE", 1)}


def test_replace_over_another_unique_column_deletes_the_replaced_row(install: Any, server: Any) -> None:
    schema = "CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT UNIQUE)"
    phone = install(schema=schema, tables=["users"])
    phone.run("INSERT INTO users VALUES ('a', 'e')")
    phone.device.upload()
    phone.run("INSERT OR REPLACE INTO users VALUES ('b', 'e')")
    phone.device.upload()
    assert set(server.live("users")) == {"b"}


def test_triggers_follow_the_columns(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    phone.run("ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 1")
    phone.run("UPDATE users SET age = 41")
    phone.device.upload()
    assert server.live("users")["a"]["age"] == 41
    phone.run("UPDATE users SET age = 42")
    phone.device.upload()
    assert server.live("users")["a"]["age"] == 42


def test_tables_that_cannot_be_synced_are_refused_by_name(install: Any) -> None:
    for declared in ("id INTEGER PRIMARY KEY", "id TEXT", "a TEXT, b TEXT, PRIMARY KEY (a, b)"):
        with pytest.raises(TableRefused, match=r"'t'.*PRIMARY KEY"):
            install(f"phone-{len(declared)}", schema=f"CREATE TABLE t ({declared})", tables=["t"])


def test_a_wide_table_is_captured_whole(install: Any, server: Any) -> None:
    names = [f"c{index}" for index in range(150)]
    phone = install(schema=f"CREATE TABLE t (id TEXT PRIMARY KEY, {', '.join(names)})", tables=["t"])
    phone.run(f"INSERT INTO t VALUES ('a', {', '.join(str(i) for i in range(150))})")
    phone.device.upload()
    assert server.live("t") == {"a": {"id": "a", **{name: index for index, name in enumerate(names)}}}
