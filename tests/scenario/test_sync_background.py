"""Devices that sync by themselves with a real server: everything arrives everywhere, through restarts, and
nothing is left behind when they stop.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.device import AsyncDevice, Device, NotSynced, Pace
from upwell.testing import ServerProcess, wait_until
from upwell.testing.sync_world import SQLITE, World, key

WAIT_S_MAX = 30.0
# Polls are far away: what arrives was told by the stream.
PACE = Pace(edit_poll_s=0.02, poll_s=3600.0, backoff_min_s=0.02, backoff_max_s=0.2)
TABLES = ["users", "posts", "comments"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("background") / "data"
    with ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4"}) as server:
        yield server
        assert "Traceback" not in server.log_text(), server.log_tail()


@pytest.fixture
def world(server: ServerProcess) -> Iterator[World]:
    with World(server) as world:
        yield world


@pytest.fixture
def install(world: World, tmp_path: Path) -> Callable[..., Device]:
    """Install the app for `user`, signed in and running."""

    def install(user: str, name: str, **options: Any) -> Device:
        path = tmp_path / f"{name}.sqlite"
        create(path)
        options = {"pace": PACE} | options
        device = Device.open(path, schema=world.ns, tables=TABLES, new_source=lambda: name, **options)
        world.stack.callback(device.close)
        device.sign_in(world.server.url, user, token=world.token(user, name))
        device.start()
        return device

    return install


def create(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(SQLITE)
    connection.close()


def rows(device: Device | AsyncDevice) -> list[Any]:
    return device.connection.execute("SELECT id, name FROM users ORDER BY id").fetchall()


def add(device: Device | AsyncDevice, number: int, name: str) -> None:
    device.connection.execute("INSERT INTO users (id, name) VALUES (?, ?)", (key(number), name))


def eventually(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, timeout_s=WAIT_S_MAX, what=what)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("upwell")]


def test_devices_and_the_back_end_converge(world: World, install: Callable[..., Device]) -> None:
    user = world.user()
    phone, laptop = install(user, "phone"), install(user, "laptop")
    for number in range(10):
        add(phone, number, f"phone {number}")
        add(laptop, 100 + number, f"laptop {number}")
    world.sql(user, f"INSERT INTO {{ns}}.users VALUES ('{key(200)}', 'sql', NULL)")
    wanted = [(key(number), f"phone {number}") for number in range(10)]
    wanted += [(key(100 + number), f"laptop {number}") for number in range(10)]
    wanted += [(key(200), "sql")]
    for device in (phone, laptop):
        eventually(lambda device=device: rows(device) == wanted, "all rows on each device")
    by_sql = world.sql(user, "SELECT id, name FROM {ns}.users ORDER BY id")
    assert [(row["id"], row["name"]) for row in by_sql] == wanted
    world.sql(user, f"DELETE FROM {{ns}}.users WHERE id = '{key(200)}'")
    for device in (phone, laptop):
        eventually(lambda device=device: rows(device) == wanted[:-1], "the deletion on each device")
        device.wait_until_synced(WAIT_S_MAX)
        status = device.status()
        assert (status.pending, status.lag, status.last_error) == (0, 0, None)
        assert status.last_synced_at is not None


def test_users_hear_of_their_own_changes_only(world: World, install: Callable[..., Device]) -> None:
    ada, bob = world.user(), world.user()
    phone, other = install(ada, "phone"), install(bob, "other")
    add(phone, 1, "ada's")
    phone.wait_until_synced(WAIT_S_MAX)
    other.wait_until_synced(WAIT_S_MAX)
    assert rows(other) == []
    assert other.status().cursor == 0


def test_a_restart_in_between_loses_nothing(
    world: World, server: ServerProcess, install: Callable[..., Device]
) -> None:
    user = world.user()
    phone, laptop = install(user, "phone"), install(user, "laptop")
    add(phone, 1, "before")
    eventually(lambda: rows(laptop) == [(key(1), "before")], "the row on the laptop")
    server.kill()
    add(phone, 2, "while it was down")
    eventually(lambda: phone.status().last_error, "the failure to be told")
    with pytest.raises(NotSynced):
        phone.wait_until_synced(0.05)
    assert phone.status().pending == 1
    server.start()
    wanted = [(key(1), "before"), (key(2), "while it was down")]
    eventually(lambda: rows(laptop) == wanted, "the row on the laptop")
    world.sql(user, f"UPDATE {{ns}}.users SET name = 'by sql' WHERE id = '{key(1)}'")
    wanted[0] = (key(1), "by sql")
    for device in (phone, laptop):
        eventually(
            lambda device=device: rows(device) == wanted, "the back end's change, told by a new stream"
        )
        device.wait_until_synced(WAIT_S_MAX)
        assert device.status().last_error is None


def test_signing_out_ends_the_loop_and_its_stream(world: World, install: Callable[..., Device]) -> None:
    # The default pace: nothing here waits for a poll or for a heartbeat.
    phone = install(world.user(), "phone", pace=Pace())
    phone.wait_until_synced(WAIT_S_MAX)
    assert sorted(threads()) == ["upwell-sync", "upwell-watch"]
    phone.sign_out()
    assert threads() == []
    assert not phone.status().is_running


async def test_the_asynchronous_device(world: World, tmp_path: Path, install: Callable[..., Device]) -> None:
    user = world.user()
    laptop = install(user, "laptop")
    path = tmp_path / "phone.sqlite"
    create(path)
    async with AsyncDevice.open(path, schema=world.ns, tables=TABLES, pace=PACE, source="phone") as phone:
        await phone.sign_in(world.server.url, user, token=world.token(user, "phone"))
        await phone.start()
        add(phone, 1, "phone")
        await phone.wait_until_synced(WAIT_S_MAX)
        await asyncio.to_thread(
            eventually, lambda: rows(laptop) == [(key(1), "phone")], "the phone's row on the laptop"
        )
        add(laptop, 2, "laptop")
        await asyncio.to_thread(
            eventually,
            lambda: rows(phone) == [(key(1), "phone"), (key(2), "laptop")],
            "the laptop's row on the phone",
        )
        await phone.wait_until_synced(WAIT_S_MAX)
        status = await phone.status()
        assert (status.pending, status.lag, status.is_running) == (0, 0, True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
