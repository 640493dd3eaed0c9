"""Phones with real SQLite files, each with a wire of its own to one server in memory."""

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upwell.device import Device
from upwell.testing.sync_server import FakeServer, FakeTransport

SCHEMA = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT, created_at INTEGER);
CREATE TABLE posts (
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    author_id TEXT REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED);
"""


@dataclass
class Phone:
    """An installed app: its device, its wire and the file."""

    device: Device
    wire: FakeTransport
    path: Path

    def run(self, sql: str, *parameters: Any) -> list[Any]:
        """Run one statement as the app does."""
        return self.device.connection.execute(sql, parameters).fetchall()

    def pending(self) -> dict[str, tuple[str, int]]:
        """Key → (operation, base version)."""
        return {change.key: (change.op, change.base_version) for change in self.device.pending()}

    def versions(self) -> dict[str, tuple[int, int]]:
        """Key → (server version, deleted)."""
        return {r[0]: r[1:] for r in self.run("SELECT pk_uuid, server_version, deleted FROM _sync_row_meta")}


@pytest.fixture
def server() -> FakeServer:
    """A server that knows users and posts."""
    return FakeServer(references={"posts": {"author_id": "users"}})


@pytest.fixture
def install(tmp_path: Path, server: FakeServer) -> Iterator[Callable[..., Phone]]:
    """Install an app on a fresh file (or reopen one), signed in as ada unless told otherwise."""
    with ExitStack() as stack:

        def install(
            name: str = "phone", *, schema: str = SCHEMA, tables: Any = ("users", "posts"), **options: Any
        ) -> Phone:
            path = tmp_path / f"{name}.sqlite"
            if not path.exists():
                with sqlite3.connect(path) as connection:
                    connection.executescript(schema)
                connection.close()
            wires: list[FakeTransport] = []
            source = options.get("source", name)
            is_signed_in = options.pop("is_signed_in", True)

            def dial(url: str) -> FakeTransport:
                wires.append(server.transport(source))
                return wires[-1]

            options.setdefault("new_source", lambda: source)
            device = stack.enter_context(Device.open(path, schema="app", tables=tables, dial=dial, **options))
            if is_signed_in:
                device.sign_in("fake:", "ada", token=token(source))
            return Phone(device, wires[-1] if wires else server.transport(source), path)

        yield install


@pytest.fixture
def token_of() -> Callable[..., str]:
    """Makes tokens of a source, of ada unless told otherwise."""
    return token


def token(source: str, user: str = "ada") -> str:
    """An unsigned token with the claims of a device token."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": user, "did": source}).encode()).decode().rstrip("=")
    return f"e30.{claims}.x"
