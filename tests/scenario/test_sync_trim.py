"""A server that keeps its log for a second only: whoever was away longer starts anew and loses nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.stock import StockClient
from upwell.testing.sync_world import SQLITE, World, key, upsert

SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_LOG_RETENTION_S": "1",
    "UPWELL_LOG_TRIM_INTERVAL_S": "0.2",
    "UPWELL_DEVICE_RECORDS_INTERVAL_S": "0.05",
}


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server(env=SETTINGS)


@pytest.fixture
def world(server: ServerProcess) -> Iterator[World]:
    with World(server) as opened:
        yield opened


def wait_for_trim(world: World, user: str) -> None:
    """Wait until nothing is left of a user's log."""
    wait_until(
        lambda: world.sql(user, "SELECT count(*) AS n FROM system.changes") == [{"n": "0"}],
        timeout_s=30.0,
        what="the log is trimmed",
    )


def test_a_device_that_was_away_hydrates_and_keeps_its_edits(world: World, tmp_path: Path) -> None:
    user = world.user()
    phone = world.phone(tmp_path, user, "phone")
    phone.run("INSERT INTO users VALUES (?, 'one', NULL), (?, 'two', NULL)", key(1), key(2))
    phone.device.sync()
    world.sql(user, f"DELETE FROM {{ns}}.users WHERE id = '{key(2)}'")
    world.sql(user, f"INSERT INTO {{ns}}.users VALUES ('{key(3)}', 'three', NULL)")
    phone.run("UPDATE users SET email = 'edited away' WHERE id = ?", key(1))
    wait_for_trim(world, user)
    report = phone.device.sync()
    assert report.download.received > 0 or report.hydrate is not None
    phone.check()
    expected = [(key(1), "one", "edited away"), (key(3), "three", None)]
    assert phone.contents("users") == {"users": expected}
    rows = world.sql(user, "SELECT id, name, email FROM {ns}.users ORDER BY id")
    assert [tuple(row.values()) for row in rows] == expected


def test_a_raw_cursor_below_the_floor_is_told_so(world: World) -> None:
    user = world.user()
    handset = world.handset(user)
    handset.put(*(upsert(n, "users", key(n), name="n") for n in range(1, 6)))
    wait_for_trim(world, user)
    answer = handset.call("GET", "/sync/download", params={"after": 2})
    assert (answer.status_code, answer.json()["error"]) == (409, "history_pruned")
    page = handset.download(after=5)
    assert (page["changes"], page["next_after"], page["has_more"]) == ([], 5, False)


@pytest.mark.parametrize("limit", [2, 1000])
def test_a_stock_client_is_restored_from_a_trimmed_log(world: World, tmp_path: Path, limit: int) -> None:
    user = world.user()

    def install(name: str) -> StockClient:
        client = StockClient(
            tmp_path / f"{name}.sqlite", base_url=world.server.url, secret=world.server.jwt_secret,
            user=user, source="stock", schema=world.ns, tables=["users", "posts"], ddl=SQLITE,
        )  # fmt: skip
        world.stack.callback(client.close)
        client.bootstrap()
        return client

    first = install("first")
    for number in range(1, 6):
        first.run("INSERT INTO users VALUES (?, 'n', NULL)", key(number))
        first.run("INSERT INTO posts VALUES (?, 't', ?)", key(100 + number), key(number))
    first.upload_all()
    for number in range(1, 4):
        first.run("UPDATE users SET name = 'newer' WHERE id = ?", key(number))
    first.run("DELETE FROM posts WHERE id = ?", key(101))
    first.upload_all()
    wait_for_trim(world, user)
    world.server.restart()
    again = install("again")
    assert again.hydrate(limit=limit) == 5 + 4 + 1, "live rows, and a tombstone"
    for table in ("users", "posts"):
        question = f"SELECT * FROM {table} ORDER BY id"
        assert again.run(question) == first.run(question)
    assert again.run("PRAGMA foreign_key_check") == []
    again.run("INSERT INTO users VALUES (?, 'after', NULL)", key(9))
    again.upload_all()
    [status] = again.answers[-1]["statuses"]
    assert (status["status"], status["new_server_version"]) == ("applied", 1)


def test_what_a_live_device_has_not_read_is_kept(world: World) -> None:
    user = world.user()
    reader, writer = world.handset(user, "reader"), world.handset(user, "writer")
    writer.put(*(upsert(n, "users", key(n), name="n") for n in range(1, 11)))
    kept = 4

    def others_are_trimmed() -> bool:
        # The reader stays at its cursor, and says so again and again: it is live, but slow.
        assert reader.download(after=kept, limit=1)["changes"] != []
        left = world.sql(user, "SELECT count(*) AS n FROM system.changes")
        return left == [{"n": str(10 - kept)}]

    wait_until(others_are_trimmed, timeout_s=30.0, what="what the reader has read is trimmed")
    page = reader.download(after=kept, limit=100)
    assert [change["pk"] for change in page["changes"]] == [key(n) for n in range(kept + 1, 11)]
