"""What the state machine of the fleet found, each in its smallest form."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.inprocess import App, CrashPoints, SyncServer

KEYS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(1, 4)]

APP_TABLES = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);
CREATE TABLE posts (id TEXT PRIMARY KEY, title TEXT, author TEXT REFERENCES users (id));
"""


class World:
    """A server with two synced tables, and apps of one user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        points = CrashPoints()
        self.db = Embedded(directory / "server", clock=self.clock, points=points)
        self.db.run("CREATE NAMESPACE app")
        self.db.run("CREATE TABLE app.users (id UUID PRIMARY KEY, name TEXT) WITH (TYPE='USER', SYNC=TRUE)")
        self.db.run(
            "CREATE TABLE app.posts (id UUID PRIMARY KEY, title TEXT, author UUID REFERENCES app.users (id))"
            " WITH (TYPE='USER', SYNC=TRUE)"
        )
        self.server = SyncServer(self.db, points)
        self.apps: list[App] = []

    def app(self, name: str, *, download_limit: int = 1000) -> App:
        path = self.directory / f"{name}.sqlite"
        with sqlite3.connect(path) as connection:
            connection.executescript(APP_TABLES)
        connection.close()
        app = App(
            path,
            self.server,
            user="ada",
            schema="app",
            tables=["users", "posts"],
            download_limit=download_limit,
            new_source=lambda: name,
        )
        self.apps.append(app)
        return app

    def sql(self, statement: str, *parameters: str) -> None:
        assert self.db.change(statement, parameters, user="ada") == 1

    def insert(self, key: str) -> None:
        self.sql("INSERT INTO app.users VALUES ($1, 'Ada')", key)

    def close(self) -> None:
        for app in self.apps:
            app.device.close()
        self.server.close()
        self.db.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("download_limit", [1, 2, 200])
def test_a_hydration_from_zero_skips_nothing_when_the_floor_is_low(world: World, download_limit: int) -> None:
    """A phone synced while there was nothing, was away longer than the log is kept, and comes back."""
    app = world.app("phone", download_limit=download_limit)
    app.device.sync()
    world.insert(KEYS[2])
    world.clock.advance(RETENTION_S + 1)
    world.db.trim.run()
    for key in KEYS[:2]:
        world.insert(key)

    app.device.sync()

    rows = app.device.connection.execute("SELECT id FROM users ORDER BY id").fetchall()
    assert [key for (key,) in rows] == KEYS


def test_a_conflict_brings_no_orphan(world: World) -> None:
    """An upload takes the server's row, whose author this phone hasn't seen yet."""
    app = world.app("phone")
    world.sql("INSERT INTO app.posts VALUES ($1, 'draft', NULL)", KEYS[1])
    app.device.sync()
    world.insert(KEYS[0])
    world.sql("UPDATE app.posts SET author = $2 WHERE id = $1", KEYS[1], KEYS[0])
    app.device.connection.execute("UPDATE posts SET title = 'mine'")

    assert app.device.upload().conflicts == 1

    assert app.device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
    app.device.download()
    assert app.device.connection.execute("SELECT * FROM posts").fetchall() == [(KEYS[1], "draft", KEYS[0])]
