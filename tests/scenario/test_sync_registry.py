"""`system.sync_devices`: which devices there are, how far each has read, and who may know."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, key, upsert
from upwell.testing.wire import Site

Json = dict[str, Any]
COLUMNS = [
    "user_id", "source_id", "cursor", "lag_rows", "lag_seconds", "last_change_id", "first_seen", "last_seen",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def devices(world: World, user: str) -> dict[str, Json]:
    """What the table says of a user's devices, by source."""
    rows = world.root.query(f"SELECT * FROM system.sync_devices WHERE user_id = {quoted(user)}")
    return {row["source_id"]: row for row in rows}


def standing(device: Json) -> tuple[int | None, int, int | None]:
    return device["cursor"], device["lag_rows"], device["last_change_id"]


def test_a_device_is_there_as_soon_as_it_was(world: World) -> None:
    user = world.user()
    assert devices(world, user) == {}
    before = datetime.now(UTC) - timedelta(seconds=1)
    phone = world.handset(user)
    phone.put(*[upsert(number, "users", key(number), name="n") for number in (1, 2, 3)])
    (device,) = devices(world, user).values()
    assert list(device) == COLUMNS
    assert (device["source_id"], *standing(device)) == ("phone", None, 3, 3)
    assert before < device["first_seen"] == device["last_seen"] < before + timedelta(minutes=1)
    assert 0 <= device["lag_seconds"] < 60
    phone.call("GET", "/sync/schema-version")
    later = devices(world, user)["phone"]
    assert (later["first_seen"], later["last_seen"] > device["last_seen"]) == (device["first_seen"], True)


def test_the_cursor_is_what_a_device_asked_with(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(*[upsert(number, "users", key(number), name="n") for number in (1, 2, 3)])
    # An answer may get lost: what it said doesn't count before the device asks with it.
    assert tablet.download(after=0, limit=2)["next_after"] == 2
    assert standing(devices(world, user)["tablet"]) == (0, 3, None)
    assert tablet.download(after=2)["next_after"] == 3
    assert standing(devices(world, user)["tablet"]) == (2, 1, None)
    assert devices(world, user)["tablet"]["lag_seconds"] > 0
    tablet.download(after=3)
    assert standing(devices(world, user)["tablet"]) == (3, 0, None)
    assert devices(world, user)["tablet"]["lag_seconds"] == 0
    # Other requests leave it, a reinstalled app begins anew, and a number beyond the log is no debt.
    tablet.put(upsert(7, "users", key(7), name="n"))
    assert standing(devices(world, user)["tablet"]) == (3, 1, 7)
    tablet.download(after=0)
    assert standing(devices(world, user)["tablet"]) == (0, 4, 7)
    tablet.download(after=1000)
    assert standing(devices(world, user)["tablet"]) == (1000, 0, 7)
    assert standing(devices(world, user)["phone"]) == (None, 4, 3)


def test_the_lag_counts_all_namespaces_and_the_back_end(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.download(after=0)
    with World(world.server) as other:
        other.handset(user, "tablet").put(upsert(1, "notes", "a", body="b"))
    world.sql(user, "INSERT INTO {ns}.notes (id, body) VALUES ('a', 'b')")
    assert standing(devices(world, user)["phone"]) == (0, 2, None)


def test_a_refused_request_is_no_device(world: World) -> None:
    user = world.user()
    answer = world.http.get("/sync/download", headers={"authorization": f"Bearer {world.token(user, '')}"})
    assert answer.status_code == 401
    assert world.handset(user).call("GET", "/sync/download?limit=0").status_code == 400
    assert world.handset(user).call("PUT", "/sync/download").status_code == 405
    assert devices(world, user) == {}


def test_everybody_sees_their_own_devices_and_administrators_all(world: World) -> None:
    names = {role: world.account(role) for role in ("user", "service", "dba", "system")}
    stranger = world.user()
    alice, wire = names["user"]
    for user in (alice, stranger):
        world.handset(user).download(after=0)
    question = f"SELECT user_id FROM system.sync_devices WHERE user_id IN ('{alice}', '{stranger}')"
    assert wire.run(question).rows == [[alice]]
    assert names["service"][1].run(question).rows == []
    for role in ("dba", "system"):
        assert sorted(names[role][1].run(question).rows) == sorted([[alice], [stranger]])
    asked_as = world.root.query(f"EXECUTE AS USER '{stranger}' ({question})")
    assert asked_as == [{"user_id": stranger}]
    for table in ("sync_conflicts", "sync_dead_letters"):
        assert wire.run(f"SELECT * FROM system.{table} WHERE user_id <> '{alice}'").rows == []
    listed = wire.run(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = 'system' AND table_name LIKE 'sync%' ORDER BY table_name"
    ).rows
    assert listed == [["sync_conflicts"], ["sync_dead_letters"], ["sync_devices"]]


def test_users_and_sources_may_have_any_name(world: World) -> None:
    users = ["a/b", "a", "a%2Fb", "ü 🌊", "a'b"]
    for user in users:
        for source in ("s", "s/t", "/", "%"):
            world.handset(user, source).download(after=0)
    for user in users:
        assert set(devices(world, user)) == {"s", "s/t", "/", "%"}


def test_a_watching_device_is_seen(world: World) -> None:
    user = world.user()
    token = world.token(user, "watch")
    with world.http.stream(
        "GET", "/sync/watch?after=7", headers={"authorization": f"Bearer {token}"}
    ) as answer:
        assert answer.status_code == 200
        assert standing(devices(world, user)["watch"]) == (7, 0, None)


def test_devices_outlive_the_server(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4", "UPWELL_DEVICE_RECORDS_INTERVAL_S": "3600"})
    with World(server) as world:
        phone = world.handset("u", "phone")
        phone.put(upsert(1, "users", key(1), name="n"))
        phone.download(after=1)
        first = standing(devices(world, "u")["phone"]), devices(world, "u")["phone"]["first_seen"]
    assert server.terminate() == 0
    server.start()
    with World(server) as world:
        device = devices(world, "u")["phone"]
        assert (standing(device), device["first_seen"]) == first
        # What isn't recorded when the power goes is older afterwards, or not there; never newer.
        world.handset("u", "phone").download(after=1)
        world.handset("u", "tablet").put()
        assert set(devices(world, "u")) == {"phone", "tablet"}
    server.kill()
    server.start()
    with World(server) as world:
        assert devices(world, "u") == {"phone": device}
