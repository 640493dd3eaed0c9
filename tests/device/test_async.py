"""The asynchronous device: the same as the blocking one, on an event loop that never waits for the file."""

import asyncio
import base64
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upwell.device import (
    AsyncDevice,
    FileRefused,
    NotSignedIn,
    NotSynced,
    Pace,
    PendingChanges,
    Progress,
    Response,
    Unreachable,
)
from upwell.testing.sync_watch import AsyncWatchedTransport, WatchedServer, WatchedTransport

WAIT_S_MAX = 20.0
SCHEMA = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT, created_at INTEGER);
CREATE TABLE posts (id TEXT PRIMARY KEY, title TEXT NOT NULL, author_id TEXT REFERENCES users (id));
"""
QUICK = Pace(edit_poll_s=0.005, poll_s=3600.0, backoff_min_s=0.005, backoff_max_s=0.02)


@dataclass
class Phone:
    """An installed app on the event loop."""

    device: AsyncDevice
    wire: WatchedTransport
    path: Path

    def run(self, sql: str, *parameters: Any) -> list[Any]:
        """Run one statement as the app does."""
        return self.device.connection.execute(sql, parameters).fetchall()

    def names(self) -> dict[str, str]:
        """Key → name of the users."""
        return dict(self.run("SELECT id, name FROM users"))


@pytest.fixture
def server() -> WatchedServer:
    return WatchedServer(references={"posts": {"author_id": "users"}})


@pytest.fixture
async def open_phone(tmp_path: Path, server: WatchedServer) -> AsyncIterator[Any]:
    """Install an app on a fresh file, signed in as ada."""
    async with AsyncExitStack() as stack:

        async def open_phone(name: str = "phone", *, is_signed_in: bool = True, **options: Any) -> Phone:
            path = tmp_path / f"{name}.sqlite"
            if not path.exists():
                with sqlite3.connect(path) as connection:
                    connection.executescript(SCHEMA)
                connection.close()
            wire = server.transport(name)
            options = {"pace": QUICK, "new_source": lambda: name} | options
            device = await stack.enter_async_context(
                AsyncDevice.open(
                    path,
                    schema="app",
                    tables=["users", "posts"],
                    dial=lambda url: AsyncWatchedTransport(wire),
                    **options,
                )
            )
            if is_signed_in:
                await device.sign_in("fake:", "ada", token=token(name))
            return Phone(device, wire, path)

        yield open_phone
    assert [t.name for t in threading.enumerate() if t.name.startswith("upwell")] == []
    assert tasks() == []


def token(source: str) -> str:
    """An unsigned token with the claims of a device token."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "ada", "did": source}).encode()).decode()
    return f"e30.{claims.rstrip('=')}.x"


def tasks() -> list[str]:
    return sorted(t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("upwell"))


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while True:
        if condition():
            return
        assert time.monotonic() < deadline_s, f"waited {WAIT_S_MAX:g} s for {what}"
        await asyncio.sleep(0.002)


async def test_every_call_of_the_blocking_device(open_phone: Any, server: WatchedServer) -> None:
    told: list[Progress] = []
    phone = await open_phone(is_signed_in=False, on_progress=told.append)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    assert [change.key for change in await phone.device.pending()] == ["a"]
    with pytest.raises(NotSignedIn):
        await phone.device.sync()
    with pytest.raises(NotSignedIn):
        await phone.device.start()
    assert "sign in" in ((await phone.device.status()).last_error or "")
    with pytest.raises(FileRefused, match="device 'other'"):
        await phone.device.sign_in("fake:", "ada", token=token("other"))
    await phone.device.sign_in("fake:", "ada", token=token("phone"))
    assert (await phone.device.upload()).applied == 1
    server.write("users", "b", {"id": "b", "name": "web"})
    assert (await phone.device.download()).applied == 1
    assert (await phone.device.hydrate()).rows == 2
    assert (await phone.device.hydrate(page_rows=1)).rows == 2
    report = await phone.device.sync()
    assert (report.hydrate, report.upload.sent, report.download.received) == (None, 0, 0)
    assert await phone.device.retry_refused() == 0
    phone.run("CREATE TABLE notes (id TEXT PRIMARY KEY)")
    await phone.device.register(["notes"])
    assert {event.phase for event in told} >= {"upload", "download", "hydrate"}
    status = await phone.device.status()
    assert (status.user, status.pending, status.is_signed_in, status.is_running) == ("ada", 0, True, False)
    phone.run("DELETE FROM users WHERE id = 'a'")
    with pytest.raises(PendingChanges):
        await phone.device.wipe()
    await phone.device.wait_until_synced(WAIT_S_MAX)
    await phone.device.wipe()
    assert phone.names() == {}
    assert not (await phone.device.status()).is_signed_in
    with pytest.raises(NotSignedIn):
        await phone.device.sync()


async def test_a_failure_is_told_and_loses_nothing(open_phone: Any, server: WatchedServer) -> None:
    phone = await open_phone()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    phone.wire.drop_answers = 1
    with pytest.raises(Unreachable):
        await phone.device.upload()
    assert (await phone.device.status()).last_error == "the answer was dropped"
    report = await phone.device.upload()
    assert (report.applied, report.duplicates) == (1, 1)
    assert len(server.log) == 1


async def test_the_event_loop_goes_on_while_the_file_is_worked_on(
    open_phone: Any, server: WatchedServer
) -> None:
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def on_progress(progress: Progress) -> None:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(WAIT_S_MAX)

    phone = await open_phone(on_progress=on_progress)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    upload = asyncio.create_task(phone.device.upload())
    # Only a loop that runs sees this, and lets the work go on.
    await reached.wait()
    go_on.set()
    assert (await upload).applied == 1


async def test_a_cancelled_call_can_be_made_again(open_phone: Any, server: WatchedServer) -> None:
    phone = await open_phone(upload_limit=1)
    for number in range(5):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
    current: list[asyncio.Task[Any]] = []

    def cancel(request: Any) -> None:
        if len(server.log) == 2:
            current[0].cancel()

    phone.wire.on_send = cancel
    current.append(asyncio.create_task(phone.device.sync()))
    await asyncio.wait(current)
    assert current[0].cancelled()
    phone.wire.on_send = None
    await phone.device.sync()
    assert sorted(entry["pk"] for entry in server.log) == [f"u{number}" for number in range(5)]


async def test_opened_by_await_and_closed_by_hand(tmp_path: Path) -> None:
    with pytest.raises(FileRefused):
        await AsyncDevice.open(":memory:", schema="app", tables=[])
    device = await AsyncDevice.open(tmp_path / "app.sqlite", schema="app", tables=[])
    assert isinstance(device.connection, sqlite3.Connection)
    await device.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith("upwell")] == []


async def test_two_devices_converge_in_the_background(open_phone: Any, server: WatchedServer) -> None:
    phones = [await open_phone(name) for name in ("phone", "laptop")]
    for phone in phones:
        await phone.device.start()
    for index in range(20):
        phones[index % 2].run("INSERT INTO users (id, name) VALUES (?, ?)", f"u{index}", f"n{index}")
    server.write("users", "web", {"id": "web", "name": "web", "email": None, "created_at": None})
    wanted = {f"u{index}": f"n{index}" for index in range(20)} | {"web": "web"}
    for phone in phones:
        await eventually(lambda phone=phone: phone.names() == wanted, "all rows on each device")
    assert {pk: row["name"] for pk, row in server.live("users").items()} == wanted


async def test_offline_then_online(open_phone: Any, server: WatchedServer) -> None:
    phone = await open_phone()
    await phone.device.start()
    await phone.device.wait_until_synced(WAIT_S_MAX)
    server.is_down = True
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    while (await phone.device.status()).last_error is None:
        await phone.device.pending()
    with pytest.raises(NotSynced, match="the server is down; pending: users a"):
        await phone.device.wait_until_synced(0.05)
    status = await phone.device.status()
    assert (status.pending, status.is_running, status.last_error) == (1, True, "the server is down")
    server.is_down = False
    await eventually(lambda: set(server.live("users")) == {"a"}, "the edit on the server")
    server.write("users", "b", {"id": "b", "name": "web"})
    await eventually(lambda: set(phone.names()) == {"a", "b"}, "the server's row, told by a new stream")


async def test_sign_out_and_close_leave_no_task(open_phone: Any, server: WatchedServer) -> None:
    phone = await open_phone()
    for _ in range(3):
        await phone.device.start()
        await phone.device.start()
        await eventually(lambda: tasks() == ["upwell-device", "upwell-sync", "upwell-watch"], "the loop")
        await phone.device.stop()
        await phone.device.stop()
        assert tasks() == []
    await phone.device.start()
    await phone.device.sign_out()
    assert tasks() == []
    assert not (await phone.device.status()).is_running
    assert server.listeners == []


async def test_stopping_in_the_middle_of_a_round_loses_nothing(
    open_phone: Any, server: WatchedServer
) -> None:
    phone = await open_phone(upload_limit=1)
    for number in range(20):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
    stops = 0
    while len(server.live("users")) < 20:
        before = len(server.log)
        await phone.device.start()
        await eventually(lambda before=before: len(server.log) > before, "one more row")
        await phone.device.stop()
        stops += 1
    assert stops > 1
    await phone.device.wait_until_synced(WAIT_S_MAX)
    assert sorted(entry["pk"] for entry in server.log) == sorted(f"u{number}" for number in range(20))


@pytest.mark.parametrize("is_running", [True, False])
async def test_wait_until_synced(open_phone: Any, server: WatchedServer, is_running: bool) -> None:
    phone = await open_phone(upload_limit=2)
    if is_running:
        await phone.device.start()
    for number in range(7):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
    server.write("users", "web", {"id": "web", "name": "web"})
    await phone.device.wait_until_synced()
    assert set(server.live("users")) == {f"u{number}" for number in range(7)} | {"web"}
    assert set(phone.names()) == set(server.live("users"))


async def test_a_refusal_without_the_loop_is_raised(open_phone: Any) -> None:
    phone = await open_phone()
    phone.wire.refuse = Response(401, b'{"error":"token_expired","message":"sign in again"}')
    with pytest.raises(Exception, match="401 token_expired"):
        await phone.device.wait_until_synced(WAIT_S_MAX)
