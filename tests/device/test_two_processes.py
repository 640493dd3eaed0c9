"""Two processes sync one file, as an app and its worker do: no late answer undoes what was stored since.

Each has a `Device` of its own, and acts while an answer to the other is under way. Expected: both laws of the
device, that no edit is lost, and that the file ends up with what the server has.
"""

import sqlite3
from typing import Any

import pytest

from upwell.device import DeviceError, NotSignedIn, Request, Response
from upwell.testing.sync_server import FakeServer


def add(phone: Any, key: str, name: str = "n") -> None:
    phone.run("INSERT INTO users (id, name) VALUES (?, ?)", key, name)


def at_request(phone: Any, number: int, act: Any) -> None:
    """Call `act` once, when the server has answered the `number`th request but the device has not heard."""
    seen = 0

    def on_send(_: Request) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            act()

    phone.wire.on_send = on_send


def check(server: FakeServer, *phones: Any) -> None:
    """The file has what the server has, and nothing waits."""
    for phone in phones:
        phone.wire.on_send = None
        phone.device.sync()
    rows = {key: (row["name"],) for key, row in server.live("users").items()}
    with sqlite3.connect(phones[0].path) as connection:
        found = connection.execute("SELECT id, name FROM users").fetchall()
    connection.close()
    assert {key: (name,) for key, name in found} == rows
    assert [phone.device.status().pending for phone in phones] == [0] * len(phones)


def test_a_late_answer_acknowledges_nothing_that_came_after_it(install: Any, server: FakeServer) -> None:
    app, worker = install(), install()
    app.device.sync()
    add(app, "a")

    def meanwhile() -> None:
        worker.device.upload()
        add(worker, "b")
        worker.wire.refuse = Response(503, b'{"error":"busy","message":"later"}')
        with pytest.raises(DeviceError):
            worker.device.upload()
        worker.wire.refuse = None

    at_request(app, 1, meanwhile)
    assert app.device.upload().pending == 0
    assert set(server.live("users")) == {"a", "b"}
    check(server, app, worker)


@pytest.mark.parametrize("limit", [0, 2])
def test_both_send_what_is_pending(install: Any, server: FakeServer, limit: int) -> None:
    """Also where the server takes few changes at a time, and each halves its batch."""
    server.batch_limit = limit
    app, worker = install(), install()
    for number in range(5):
        add(app, f"a{number}")

    def meanwhile() -> None:
        add(worker, "w")
        worker.run("UPDATE users SET name = 'edited' WHERE id = 'a1'")
        worker.run("DELETE FROM users WHERE id = 'a2'")
        worker.device.sync()
        add(worker, "late")

    at_request(app, 3, meanwhile)
    app.device.sync()
    check(server, app, worker)
    assert set(server.live("users")) == {"a0", "a1", "a3", "a4", "w", "late"}
    assert server.live("users")["a1"]["name"] == "edited"


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("deed", ["sync", "edit", "fill again"])
def test_while_one_fills_the_file_the_other_works(
    install: Any, server: FakeServer, number: int, deed: str
) -> None:
    other = install("other")
    for key in "abcd":
        add(other, key)
    other.device.sync()
    app, worker = install(download_limit=1), install(download_limit=1)
    app.device.sync()

    def meanwhile() -> None:
        add(other, "e")
        other.run("DELETE FROM users WHERE id = 'b'")
        other.device.sync()
        if deed == "edit":
            add(worker, "own")
            worker.run("UPDATE users SET name = 'edited' WHERE id = 'c'")
            worker.run("DELETE FROM users WHERE id = 'd'")
        if deed == "fill again":
            worker.device.hydrate(page_rows=1)
        worker.device.sync()

    at_request(app, number, meanwhile)
    app.device.hydrate(page_rows=1)
    check(server, app, worker)
    if deed == "edit":
        assert set(server.live("users")) == {"a", "c", "e", "own"}


@pytest.mark.parametrize("number", range(1, 6))
def test_while_one_reads_the_log_the_other_fills_the_file(
    install: Any, server: FakeServer, number: int
) -> None:
    other = install("other")
    app, worker = install(download_limit=1), install(download_limit=1)
    app.device.sync()
    for key in "abc":
        add(other, key)
    other.device.sync()

    def meanwhile() -> None:
        worker.device.hydrate(page_rows=1)
        add(worker, "own")
        worker.device.upload()

    at_request(app, number, meanwhile)
    app.device.download()
    check(server, app, worker)


def test_nothing_of_the_next_user_is_sent_in_the_name_of_the_one_before(
    install: Any, server: FakeServer, token_of: Any
) -> None:
    """The worker has sent all, and gave the file away, when the app hears that its batch was too large."""
    server.batch_limit = 1
    app, worker = install(), install()
    app.device.sync()
    for key in "ab":
        add(app, key)

    def meanwhile() -> None:
        worker.device.upload()
        worker.device.wipe()
        worker.device.sign_in("fake:", "bob", token=token_of("phone", "bob"))
        add(worker, "c", "bob's")

    at_request(app, 1, meanwhile)
    with pytest.raises(NotSignedIn):
        app.device.upload()
    assert [request for request in app.wire.requests if b"bob" in (request.body or b"")] == []
