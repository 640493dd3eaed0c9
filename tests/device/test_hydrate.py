"""Hydration restores a fresh file completely, survives interruption anywhere, and keeps unsent edits."""

from typing import Any

import pytest

from upwell.device import Unreachable


def row(key: str, name: str = "n") -> dict[str, Any]:
    return {"id": key, "name": name, "email": None, "created_at": None}


def fill(server: Any, count: int = 25) -> None:
    for index in range(count):
        post = {"id": f"p{index:02}", "title": "t", "author_id": f"u{index:02}"}
        server.write("posts", f"p{index:02}", post)
        server.write("users", f"u{index:02}", row(f"u{index:02}"))
    server.write("posts", "p00", None)
    server.write("users", "u00", None)


def users(phone: Any) -> dict[str, str]:
    return dict(phone.run("SELECT id, name FROM users"))


@pytest.mark.parametrize("page_rows", [1, 7, 48, 1000])
def test_every_live_row_and_no_deleted_one(install: Any, server: Any, page_rows: int) -> None:
    fill(server)
    phone = install(source="one")
    report = phone.device.hydrate(page_rows=page_rows)
    assert report.rows == 48
    assert set(users(phone)) == set(server.live("users"))
    assert {key for (key,) in phone.run("SELECT id FROM posts")} == set(server.live("posts"))
    assert phone.run("PRAGMA foreign_key_check") == []
    assert phone.pending() == {}


def test_what_is_written_during_hydration_comes_from_the_log(install: Any, server: Any) -> None:
    fill(server)
    phone = install(source="one")

    def write(request: Any) -> None:
        if len(phone.wire.requests) == 2:
            server.write("users", "new", row("new"))
            server.write("users", "u01", row("u01", "edited"))
            server.write("posts", "p24", None)

    phone.wire.on_send = write
    report = phone.device.hydrate(page_rows=10)
    assert report.entries == 3
    assert users(phone) == {key: payload["name"] for key, payload in server.live("users").items()}
    assert {key for (key,) in phone.run("SELECT id FROM posts")} == set(server.live("posts"))


@pytest.mark.parametrize("cut", range(1, 8))
def test_interrupted_anywhere_it_goes_on_where_it_stopped(install: Any, server: Any, cut: int) -> None:
    fill(server)
    phone = install(source="one")

    def drop(request: Any) -> None:
        phone.wire.drop_answers = int(len(phone.wire.requests) == cut)

    phone.wire.on_send = drop
    try:
        phone.device.hydrate(page_rows=10)
    except Unreachable:
        phone.device.close()
        phone = install(source="one")
        report = phone.device.hydrate(page_rows=10)
        assert report.requests == 6 - (cut - 1)
    assert len(users(phone)) == 24
    assert phone.device.status().is_hydrated
    assert phone.run("PRAGMA foreign_key_check") == []


def test_edits_from_before_hydration_get_ids_that_the_server_does_not_know(install: Any, server: Any) -> None:
    first = install("first", source="one")
    for index in range(5):
        first.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{index}")
    first.device.upload()
    first.device.close()

    again = install("again", source="one")
    again.run("INSERT INTO users (id, name) VALUES ('mine', 'x')")
    again.run("INSERT INTO users (id, name) VALUES ('u1', 'typed in again')")
    report = again.device.sync()

    assert report.hydrate is not None
    assert (report.upload.applied, report.upload.conflicts, report.upload.duplicates) == (1, 1, 0)
    assert set(users(again)) == set(server.live("users"))
    assert users(again)["u1"] == "x"


def test_a_pruned_log_is_replaced_by_hydration(install: Any, server: Any) -> None:
    phone = install()
    fill(server, 5)
    phone.device.sync()
    server.write("users", "u04", None)
    server.write("posts", "p04", None)
    server.write("users", "u05", row("u05"))
    phone.run("UPDATE users SET name = 'mine' WHERE id = 'u01'")
    server.floor = len(server.log) - 1

    phone.device.download()

    assert set(users(phone)) == set(server.live("users"))
    assert users(phone)["u01"] == "mine"
    assert phone.run("SELECT id FROM posts ORDER BY id") == [("p01",), ("p02",), ("p03",)]
    assert phone.device.upload().applied == 1


def test_a_server_that_lost_its_history_gets_every_row_again(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x'), ('b', 'y')")
    phone.device.sync()
    phone.run("UPDATE users SET name = 'z' WHERE id = 'b'")
    server.rows.clear()
    server.log.clear()
    server.receipts.clear()
    server.stream = "stream-2"

    phone.device.download()
    phone.device.sync()

    assert {key: payload["name"] for key, payload in server.live("users").items()} == {"a": "x", "b": "z"}
    assert users(phone) == {"a": "x", "b": "z"}
    assert phone.pending() == {}


def test_a_table_registered_later_is_fetched_whole(install: Any, server: Any) -> None:
    fill(server, 3)
    phone = install(tables=["users"])
    phone.device.sync()
    assert phone.run("SELECT * FROM posts") == []
    phone.device.register(["posts"])
    phone.device.sync()
    assert phone.run("SELECT id FROM posts ORDER BY id") == [("p01",), ("p02",)]
