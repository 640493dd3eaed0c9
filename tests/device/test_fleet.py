"""Devices and a back end edit at random while answers are lost: all agree afterwards, nothing is doubled.

The fake server fails the run if a change id is ever used for two contents.
"""

import base64
import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from upwell.device import Device, Unreachable, client_wins, server_wins
from upwell.testing.sync_server import FakeServer, FakeTransport

SCHEMA = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);
CREATE TABLE posts (id TEXT PRIMARY KEY, title TEXT, author_id TEXT REFERENCES users (id));
"""
KEYS = st.sampled_from("abc")
DEVICES = st.sampled_from([0, 1])


def token(source: str) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "ada", "did": source}).encode()).decode().rstrip("=")
    return f"e30.{claims}.x"


class Fleet(RuleBasedStateMachine):
    """Two devices with different conflict rules on one server."""

    @initialize(limit=st.sampled_from([1, 2, 200]), has_extensions=st.booleans())
    def begin(self, limit: int, has_extensions: bool) -> None:
        self.limit = limit
        self.directory = tempfile.TemporaryDirectory()
        self.server = FakeServer(references={"posts": {"author_id": "users"}}, has_extensions=has_extensions)
        self.wires: list[FakeTransport] = [self.server.transport(f"s{index}") for index in (0, 1)]
        self.devices = [self.open(0), self.open(1)]

    def open(self, index: int) -> Device:
        path = Path(self.directory.name) / f"{index}.sqlite"
        if not path.exists():
            with sqlite3.connect(path) as connection:
                connection.executescript(SCHEMA)
            connection.close()
        device = Device.open(
            path,
            schema="app",
            tables=["users", "posts"],
            source=f"s{index}",
            upload_limit=self.limit,
            download_limit=2,
            resolver=(server_wins, client_wins)[index],
            dial=lambda url: self.wires[index],
        )
        device.sign_in("fake:", "ada", token=token(f"s{index}"))
        return device

    def teardown(self) -> None:
        if not hasattr(self, "devices"):
            return
        try:
            self.converge()
        finally:
            for device in self.devices:
                device.close()
            self.directory.cleanup()

    def converge(self) -> None:
        for _ in range(4):
            for index in (0, 1):
                self.wires[index].drop_answers = 0
                self.devices[index].sync()
        expected = {table: self.server.live(table) for table in ("users", "posts")}
        for device in self.devices:
            status = device.status()
            assert (status.pending, status.withheld, status.quarantined) == (0, 0, 0), device.pending()
            assert device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
            assert {table: contents(device, table) for table in expected} == expected
            versions = device.connection.execute(
                "SELECT pk_uuid, server_version FROM _sync_row_meta WHERE NOT deleted"
            )
            assert dict(versions) == {pk: r.version for (_, pk), r in self.server.rows.items() if r.payload}
        for (table, pk), row in self.server.rows.items():
            entries = [e["server_version"] for e in self.server.log if (e["table"], e["pk"]) == (table, pk)]
            assert entries == list(range(1, row.version + 1))

    @rule(device=DEVICES, key=KEYS, name=st.integers(0, 99))
    def write_user(self, device: int, key: str, name: int) -> None:
        self.devices[device].connection.execute(
            "INSERT INTO users VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET name = ?2", (key, str(name))
        )

    @rule(device=DEVICES, key=KEYS, author=KEYS)
    def write_post(self, device: int, key: str, author: str) -> None:
        app = self.devices[device].connection
        if app.execute("SELECT 1 FROM users WHERE id = ?", (author,)).fetchone():
            app.execute("INSERT OR REPLACE INTO posts VALUES (?, 't', ?)", (f"p{key}", author))

    @rule(device=DEVICES, key=KEYS)
    def delete_user(self, device: int, key: str) -> None:
        app = self.devices[device].connection
        app.execute("DELETE FROM posts WHERE author_id = ?", (key,))
        app.execute("DELETE FROM users WHERE id = ?", (key,))

    @rule(device=DEVICES, key=KEYS)
    def delete_post(self, device: int, key: str) -> None:
        self.devices[device].connection.execute("DELETE FROM posts WHERE id = ?", (f"p{key}",))

    @rule(key=KEYS, name=st.integers(100, 199))
    def back_end_writes(self, key: str, name: int) -> None:
        self.server.write("users", key, {"id": key, "name": str(name)})

    @rule(
        device=DEVICES, drop=st.sampled_from([0, 0, 1]), step=st.sampled_from(["sync", "upload", "download"])
    )
    def talk(self, device: int, drop: int, step: str) -> None:
        self.wires[device].drop_answers = drop
        try:
            getattr(self.devices[device], step)()
        except Unreachable:
            assert drop

    @rule(device=DEVICES, key=KEYS, name=st.integers(200, 299), step=st.sampled_from(["sync", "upload"]))
    def edit_in_flight(self, device: int, key: str, name: int, step: str) -> None:
        def edit(request: Any) -> None:
            self.wires[device].on_send = None
            self.write_user(device, key, name)

        self.wires[device].drop_answers = 0
        self.wires[device].on_send = edit
        getattr(self.devices[device], step)()
        self.wires[device].on_send = None

    @rule(device=DEVICES)
    def restart(self, device: int) -> None:
        self.devices[device].close()
        self.devices[device] = self.open(device)


def contents(device: Device, table: str) -> dict[str, dict[str, Any]]:
    found = device.connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in found.description]
    return {row[0]: dict(zip(names, row, strict=True)) for row in found}


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30)
