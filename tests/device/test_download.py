"""A download brings the server's rows in, fires no cascade, loses nothing of either side and never wedges."""

import json
from typing import Any

import pytest

from upwell.device import FileRefused, Response, Unreachable


def row(key: str, name: str = "n", **more: Any) -> dict[str, Any]:
    return {"id": key, "name": name, "email": None, "created_at": None, **more}


def users(phone: Any) -> dict[str, str]:
    return dict(phone.run("SELECT id, name FROM users"))


def test_changes_of_others_come_in_uncaptured_and_in_pages(install: Any, server: Any) -> None:
    phone = install(download_limit=3)
    for index in range(10):
        server.write("users", f"u{index}", row(f"u{index}"))
    server.write("users", "u0", None)
    report = phone.device.download()
    assert (report.requests, report.received, report.cursor) == (4, 11, 11)
    assert len(users(phone)) == 9
    assert phone.pending() == {}
    assert phone.versions()["u0"] == (2, 1)
    assert phone.device.download().received == 0


def test_own_changes_are_not_downloaded_and_uploads_move_no_cursor(install: Any, server: Any) -> None:
    phone, laptop = install("phone"), install("laptop")
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    server.write("users", "b", row("b"))
    phone.device.upload()
    assert phone.device.status().cursor == 0
    phone.device.download()
    laptop.device.sync()
    assert users(phone) == users(laptop) == {"a": "x", "b": "n"}


def test_a_pending_edit_is_not_overwritten_and_then_meets_its_conflict(install: Any, server: Any) -> None:
    phone = install()
    server.write("users", "a", row("a", "v1"))
    phone.device.download()
    phone.run("UPDATE users SET name = 'mine'")
    server.write("users", "a", row("a", "theirs"))

    report = phone.device.download()
    assert (report.applied, report.withheld) == (0, 1)
    assert users(phone) == {"a": "mine"}
    assert phone.pending() == {"a": ("UPDATE", 1)}

    assert phone.device.upload().conflicts == 1
    assert users(phone) == {"a": "theirs"}
    assert phone.versions() == {"a": (2, 0)}
    assert phone.device.status().withheld == 0


def test_a_row_withheld_behind_a_lost_answer_comes_in(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'mine')")
    phone.wire.drop_answers = 1
    with pytest.raises(Unreachable):
        phone.device.upload()
    server.write("users", "a", row("a", "edited by another"))
    phone.device.download()
    assert users(phone) == {"a": "mine"}
    phone.device.upload()
    assert users(phone) == {"a": "edited by another"}
    assert phone.versions() == {"a": (2, 0)}


def test_versions_never_go_back(install: Any, server: Any) -> None:
    phone = install()
    server.write("users", "a", row("a", "v1"))
    server.write("users", "a", row("a", "v2"))
    phone.device.download()
    phone.run("UPDATE _sync_client_info SET last_server_seq_seen = 0")
    phone.device.hydrate()
    assert users(phone) == {"a": "v2"}
    assert phone.versions() == {"a": (2, 0)}


def test_an_update_of_a_parent_fires_no_cascade(install: Any, server: Any) -> None:
    schema = """
    CREATE TABLE files (id TEXT PRIMARY KEY, name TEXT);
    CREATE TABLE reviews (id TEXT PRIMARY KEY, file_id TEXT REFERENCES files (id) ON DELETE CASCADE);"""
    phone = install(schema=schema, tables=["files", "reviews"])
    server.write("files", "f", {"id": "f", "name": "1"})
    server.write("reviews", "r", {"id": "r", "file_id": "f"})
    phone.device.download()
    server.write("files", "f", {"id": "f", "name": "2"})
    phone.device.download()
    assert phone.run("SELECT name FROM files") == [("2",)]
    assert phone.run("SELECT id FROM reviews") == [("r",)]


def test_absent_columns_stay_and_unknown_ones_come_back_to_the_server(install: Any, server: Any) -> None:
    phone = install()
    server.write("users", "a", row("a", "v1", email="e@x", colour="red"))
    phone.device.download()
    server.write("users", "a", {"id": "a", "name": "v2", "colour": "blue"})
    phone.device.download()
    assert phone.run("SELECT name, email FROM users") == [("v2", "e@x")]

    phone.run("UPDATE users SET name = 'v3'")
    phone.device.upload()
    assert server.live("users")["a"] == row("a", "v3", email="e@x", colour="blue")

    phone.run("ALTER TABLE users ADD COLUMN colour TEXT")
    phone.device.download()
    assert phone.run("SELECT colour FROM users") == [("blue",)]
    assert phone.pending() == {}


def test_a_row_that_the_table_cannot_hold_waits_aside(install: Any, server: Any) -> None:
    phone = install(schema="CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT UNIQUE)", tables=["users"])
    phone.run("INSERT INTO users VALUES ('a', 'e')")
    server.write("users", "b", {"id": "b", "email": "e"})
    server.write("users", "c", {"id": "c", "email": "f"})
    phone.device.sync()
    assert phone.run("SELECT id FROM users ORDER BY id") == [("a",), ("c",)]
    assert phone.device.status().withheld == 1
    server.write("users", "a", {"id": "a", "email": "g"})
    phone.device.sync()
    assert phone.run("SELECT id FROM users ORDER BY id") == [("a",), ("b",), ("c",)]


def test_a_deleted_parent_of_an_unsent_child_comes_back(install: Any, server: Any) -> None:
    phone = install()
    server.write("users", "u", row("u"))
    phone.device.download()
    phone.run("INSERT INTO posts VALUES ('p', 't', 'u')")
    server.write("users", "u", None)

    report = phone.device.sync()

    assert report.upload.pending == 0
    assert set(server.live("users")) == {"u"}
    assert set(server.live("posts")) == {"p"}
    assert phone.run("PRAGMA foreign_key_check") == []


def test_a_child_without_parent_waits_aside_until_it_comes(install: Any, server: Any) -> None:
    phone = install()
    server.write("posts", "p", {"id": "p", "title": "t", "author_id": "u"})
    phone.device.download()
    assert phone.run("SELECT * FROM posts") == []
    server.write("users", "u", row("u"))
    phone.device.download()
    assert phone.run("SELECT id FROM posts") == [("p",)]
    assert phone.device.status().withheld == 0


def test_the_cursor_moves_only_with_what_it_covers(install: Any, server: Any) -> None:
    phone = install(download_limit=2)
    for index in range(6):
        server.write("users", f"u{index}", row(f"u{index}"))

    def fail_third(request: Any) -> None:
        if len(phone.wire.requests) == 3:
            phone.wire.drop_answers = 1

    phone.wire.on_send = fail_third
    with pytest.raises(Unreachable):
        phone.device.download()
    assert phone.device.status().cursor == 4
    assert len(users(phone)) == 4
    phone.wire.on_send = None
    phone.device.download()
    assert len(users(phone)) == 6


def test_integers_beyond_double_precision_and_nested_json(install: Any, server: Any) -> None:
    phone = install(schema="CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER, j TEXT, f BOOLEAN)", tables=["t"])
    server.write("t", "a", {"id": "a", "n": 2**62 + 1, "j": {"x": [1, None]}, "f": True})
    phone.device.download()
    ((n, j, f),) = phone.run("SELECT n, j, f FROM t")
    assert (n, json.loads(j), f) == (2**62 + 1, {"x": [1, None]}, 1)
    phone.run("UPDATE t SET n = n + 1")
    phone.device.upload()
    assert server.live("t")["a"]["n"] == 2**62 + 2


def test_blob_keys_and_columns_round_trip(install: Any, server: Any) -> None:
    schema = """
    CREATE TABLE files (id BLOB PRIMARY KEY, data BLOB NOT NULL, thumb BLOB) WITHOUT ROWID;
    CREATE TABLE reviews (id BLOB PRIMARY KEY, file_id BLOB REFERENCES files (id));"""
    tables = ["files", "reviews"]
    phone = install("phone", schema=schema, tables=tables)
    laptop = install("laptop", schema=schema, tables=tables)
    key, child = bytes(range(16)), bytes(range(16, 32))
    # Sixteen bytes whose base64 could be taken for something else must come back as they are.
    data = b"\x69\xb7\x1d" * 8
    phone.run("INSERT INTO files VALUES (?, ?, NULL)", key, data)
    phone.run("INSERT INTO reviews VALUES (?, ?)", child, key)
    assert phone.device.pending()[0].payload == json.dumps(
        {"id": key.hex(), "data": data.hex(), "thumb": None}, separators=(",", ":")
    )
    phone.device.upload()
    assert server.live("files") == {
        "00010203-0405-0607-0809-0a0b0c0d0e0f": {
            "id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
            "data": "abcd" * 8,
            "thumb": None,
        }
    }
    laptop.device.sync()
    for table in tables:
        assert laptop.run(f"SELECT * FROM {table}") == phone.run(f"SELECT * FROM {table}")
    laptop.run("DELETE FROM reviews")
    laptop.run("UPDATE files SET data = x'', thumb = x'00'")
    laptop.device.sync()
    phone.device.sync()
    assert phone.run("SELECT * FROM files") == [(key, b"", b"\0")]
    assert phone.run("SELECT * FROM reviews") == []


def test_quoted_names(install: Any, server: Any) -> None:
    schema = 'CREATE TABLE "Order ""1""" ("the Key" TEXT PRIMARY KEY, "it\'s" TEXT, "select" INTEGER)'
    phone = install("phone", schema=schema, tables=['order "1"'])
    laptop = install("laptop", schema=schema, tables=['Order "1"'])
    phone.run('INSERT INTO "Order ""1""" VALUES (\'k\', \'v\', 1)')
    phone.run('UPDATE "Order ""1""" SET "select" = 2')
    phone.device.upload()
    assert server.live('order "1"') == {"k": {"the key": "k", "it's": "v", "select": 2}}
    laptop.device.sync()
    assert laptop.run('SELECT * FROM "Order ""1"""') == [("k", "v", 2)]


def test_an_empty_page_with_more_behind_it_is_not_the_end(install: Any, server: Any) -> None:
    phone = install()
    page = {"changes": [], "has_more": True, "next_after": 5, "window_until": 9}

    phone.wire.refuse = Response(200, json.dumps(page).encode())
    original = phone.wire.send

    def send(request: Any) -> Response:
        answer = original(request)
        phone.wire.refuse = None
        return answer

    phone.wire.send = send
    for index in range(9):
        server.write("users", f"u{index}", row(f"u{index}"))
    phone.device.download()
    assert set(users(phone)) == {"u5", "u6", "u7", "u8"}


@pytest.mark.parametrize("rule", ["ROLLBACK", "IGNORE", "REPLACE", "FAIL"])
def test_a_constraint_of_the_app_stops_only_its_row(install: Any, server: Any, rule: str) -> None:
    """Whatever the app's table says about conflicts: the server's other rows come in, and nothing is lost."""
    schema = f"CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT UNIQUE ON CONFLICT {rule});"
    phone = install(schema=schema, tables=["users"])
    for key, name in (("a", "same"), ("b", "same"), ("c", "other")):
        server.write("users", key, {"id": key, "name": name})
    phone.device.download()
    assert phone.run("SELECT id FROM users ORDER BY id") == [("a",), ("c",)]
    assert phone.run("SELECT pk_uuid FROM _sync_withheld") == [("b",)]
    assert phone.pending() == {}


def test_a_trigger_that_rolls_back_stops_the_sync_and_loses_nothing(install: Any, server: Any) -> None:
    schema = """
    CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);
    CREATE TRIGGER strict BEFORE INSERT ON users WHEN NEW.name = 'bad'
    BEGIN SELECT RAISE(ROLLBACK, 'no'); END;
    """
    phone = install(schema=schema, tables=["users"])
    for key, name in (("a", "good"), ("b", "bad"), ("c", "good")):
        server.write("users", key, {"id": key, "name": name})
    with pytest.raises(FileRefused, match="users"):
        phone.device.download()
    assert phone.run("SELECT * FROM users") == []
    assert (phone.pending(), phone.device.status().cursor) == ({}, 0)
    phone.run("DROP TRIGGER strict")
    phone.device.download()
    assert phone.run("SELECT id FROM users ORDER BY id") == [("a",), ("b",), ("c",)]
