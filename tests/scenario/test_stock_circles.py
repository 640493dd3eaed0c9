"""A stock client, which checks references at the end of each page, gets rows in circles whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.stock import StockClient
from upwell.testing.sync_world import TABLES, World, key

TRIM = {"UPWELL_LOG_RETENTION_S": "1", "UPWELL_LOG_TRIM_INTERVAL_S": "0.1"}
LIMITS = (1, 2, 3, 7)
NODES = """
CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    up TEXT REFERENCES nodes (id) DEFERRABLE INITIALLY DEFERRED, side TEXT REFERENCES nodes (id));
"""
ALBUMS = """
CREATE TABLE albums (id TEXT PRIMARY KEY, cover TEXT REFERENCES photos (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE photos (id TEXT PRIMARY KEY, album TEXT NOT NULL REFERENCES albums (id));
"""


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server(env={"UPWELL_BCRYPT_COST": "4"})


@pytest.fixture
def world(server: ServerProcess) -> Iterator[World]:
    albums = ("albums (id UUID PRIMARY KEY, cover UUID)",)
    photos = ("photos (id UUID PRIMARY KEY, album UUID NOT NULL REFERENCES {ns}.albums (id))",)
    with World(server, tables=(*TABLES, *albums, *photos)) as world:
        world.root.execute(
            f"ALTER TABLE {world.ns}.albums ADD FOREIGN KEY (cover) REFERENCES {world.ns}.photos (id)"
        )
        yield world


def install(world: World, directory: Path, user: str, source: str) -> StockClient:
    client = StockClient(
        directory / f"{source}.sqlite", base_url=world.server.url, secret=world.server.jwt_secret,
        user=user, source=source, schema=world.ns, tables=["nodes", "albums", "photos"], ddl=NODES + ALBUMS,
    )  # fmt: skip
    world.stack.callback(client.close)
    client.bootstrap()
    return client


def write(client: StockClient, *rows: tuple[int, int | None, int | None]) -> None:
    """Write nodes, their references by number, and send them."""
    client.run("BEGIN")
    for values in rows:
        refs = [None if number is None else key(number) for number in values]
        client.run("INSERT INTO nodes VALUES (?, ?, ?)", *refs)
    client.run("COMMIT")
    client.upload_all()


def nodes(client: StockClient) -> list[tuple[str, str | None, str | None]]:
    return client.run("SELECT * FROM nodes ORDER BY id")


def test_a_circle_reaches_a_stock_client_whole(world: World, tmp_path: Path) -> None:
    user = world.user()
    phone = install(world, tmp_path, user, "phone")
    write(phone, (1, 2, None), (2, 3, None), (3, 1, None), (4, 1, None))
    early = {limit: install(world, tmp_path, user, f"early{limit}") for limit in LIMITS}
    for limit, client in early.items():
        assert client.download_once(limit) == max(3, min(limit, 4))
        client.download_all(limit)
        assert nodes(client) == nodes(phone)
    by_sql = f"('{key(6)}', '{key(5)}', NULL), ('{key(5)}', '{key(4)}', '{key(6)}')"
    world.sql(user, f"INSERT INTO {{ns}}.nodes VALUES {by_sql}")
    phone.download_all(1)
    phone.run("UPDATE nodes SET side = ? WHERE id = ?", key(6), key(1))
    phone.upload_all()
    for limit, client in early.items():
        client.download_all(limit)
        assert nodes(client) == nodes(phone)
    _trim(world, user)
    for limit in LIMITS:
        fresh = install(world, tmp_path, user, f"fresh{limit}")
        while fresh.download_once(limit):
            pass
        assert nodes(fresh) == nodes(phone)
        assert len(nodes(fresh)) == 6
    world.sql(user, f"DELETE FROM {{ns}}.nodes WHERE id < '{key(9)}'")
    for limit, client in early.items():
        client.download_all(limit)
        assert nodes(client) == []


def test_tables_that_refer_to_each_other(world: World, tmp_path: Path) -> None:
    user = world.user()
    phone = install(world, tmp_path, user, "phone")
    phone.run("BEGIN")
    for album in range(1, 5):
        phone.run("INSERT INTO albums VALUES (?, ?)", key(album), key(10 * album))
        phone.run("INSERT INTO photos VALUES (?, ?)", key(10 * album), key(album))
        phone.run("INSERT INTO photos VALUES (?, ?)", key(10 * album + 1), key(album))
    phone.run("COMMIT")
    phone.upload_all()
    early = {limit: install(world, tmp_path, user, f"early{limit}") for limit in LIMITS}
    for limit, client in early.items():
        assert client.download_once(limit) == {1: 2, 2: 2, 3: 4, 7: 8}[limit]
        client.download_all(limit)
        assert albums(client) == albums(phone)
    _trim(world, user)
    for limit in LIMITS:
        fresh = install(world, tmp_path, user, f"fresh{limit}")
        while fresh.download_once(limit):
            pass
        assert albums(fresh) == albums(phone)
        assert [len(rows) for rows in albums(fresh)] == [4, 8]
    phone.run("BEGIN")
    phone.run("DELETE FROM photos WHERE album < ?", key(3))
    phone.run("DELETE FROM albums WHERE id < ?", key(3))
    phone.run("COMMIT")
    phone.upload_all()
    for limit, client in early.items():
        client.download_all(limit)
        assert albums(client) == albums(phone)
        assert [len(rows) for rows in albums(client)] == [2, 4]


def albums(client: StockClient) -> list[list[tuple[str, str | None]]]:
    return [client.run(f"SELECT * FROM {table} ORDER BY id") for table in ("albums", "photos")]


def _trim(world: World, user: str) -> None:
    """Let the whole log go; then nothing more of it."""
    world.server.restart(env=TRIM)
    wait_until(
        lambda: not world.sql(user, "SELECT 1 FROM system.changes"),
        timeout_s=30,
        what="the log to be trimmed",
    )
    world.server.restart()
