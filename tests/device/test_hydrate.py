"""Hydration restores a fresh file completely, survives interruption anywhere, and keeps unsent edits."""

import json
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest

from upwell.device import AnswerRefused, Response, Unreachable
from upwell.device.apply import Applier
from upwell.device.file import SyncFile
from upwell.device.schema import read_shape


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


def page(table: str, columns: list[str], rows: list[list[Any]], **more: Any) -> dict[str, Any]:
    return {
        "schema": "app",
        "table": table,
        "columns": columns,
        "rows": rows,
        "versions": [1] * len(rows),
        **more,
    }


def answering(phone: Any, *tables: dict[str, Any]) -> None:
    """Let the server's only hydration page have these tables."""
    body = {"tables": tables, "has_more": False, "cursor": "end", "next_after": 0, "next_change_id": 1}
    original = phone.wire.server.answer

    def answer(request: Any, source: str) -> Response:
        if request.path == "/sync/hydrate":
            return Response(200, json.dumps(body).encode())
        found: Response = original(request, source)
        return found

    phone.wire.server.answer = answer


def test_values_that_no_statement_takes_at_once_stop_only_their_row(install: Any, server: Any) -> None:
    """One row lacks what its table demands: the others go in, and it waits aside."""
    for index in range(250):
        server.write("users", f"u{index:03}", row(f"u{index:03}"))
    server.write("users", "u100", {**row("u100"), "name": None})
    server.write("users", "u101", {**row("u101"), "created_at": 10**400})
    phone = install(source="one")
    assert phone.device.hydrate().rows == 250
    assert set(users(phone)) == set(server.live("users")) - {"u100", "u101"}
    assert phone.run("SELECT pk_uuid FROM _sync_withheld ORDER BY 1") == [("u100",), ("u101",)]
    assert phone.pending() == {}


def test_rows_of_all_forms_in_one_page(install: Any, server: Any) -> None:
    """Whole, short and exact rows; columns that the app lacks are kept, BLOBs are bytes, keys hexadecimal."""
    schema = "CREATE TABLE files (id BLOB PRIMARY KEY, Name TEXT, data BLOB, size INTEGER DEFAULT 7)"
    phone = install(schema=schema, tables=["files"])
    keys = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(5)]
    rows = [
        [keys[0], "a", "AAH/", 1, "new"],
        [keys[1], "b", None],
        [keys[2]],
        [keys[3]],
        [keys[4], "e", "", None, {"deep": [1, True]}],
    ]
    exact = {"2": {"name": "exact", "size": True, "later": [2]}}
    answering(phone, page("files", ["id", "name", "data", "size", "extra"], rows, exact=exact))
    assert phone.device.hydrate().rows == 5
    assert phone.run("SELECT lower(hex(id)), name, data, size FROM files ORDER BY id") == [
        (uuid.UUID(keys[0]).hex, "a", b"\x00\x01\xff", 1),
        (uuid.UUID(keys[1]).hex, "b", None, 7),
        (uuid.UUID(keys[2]).hex, "exact", None, 1),
        (uuid.UUID(keys[3]).hex, None, None, 7),
        (uuid.UUID(keys[4]).hex, "e", b"", None),
    ]
    kept = dict(phone.run("SELECT pk_uuid, payload FROM _sync_extra"))
    assert {key: json.loads(text) for key, text in kept.items()} == {
        uuid.UUID(keys[0]).hex: {"extra": "new"},
        uuid.UUID(keys[2]).hex: {"later": [2]},
        uuid.UUID(keys[4]).hex: {"extra": {"deep": [1, True]}},
    }


def test_a_page_leaves_pending_and_newer_rows_alone(install: Any, server: Any) -> None:
    fill(server, 10)
    phone = install()
    phone.device.sync()
    server.write("users", "u05", row("u05", "theirs"))
    server.write("users", "u06", row("u06", "news"))
    phone.run("UPDATE users SET name = 'mine' WHERE id = 'u05'")
    phone.run(
        "INSERT INTO _sync_extra VALUES ('users', 'u06', '{\"old\":1}'), ('users', 'u07', '{\"old\":1}')"
    )
    phone.run("UPDATE _sync_row_meta SET server_version = 9 WHERE pk_uuid = 'u08'")
    server.write("users", "u08", row("u08", "older than known"))
    server.floor = len(server.log)
    phone.device.download()
    assert {k: v for k, v in users(phone).items() if v != "n"} == {"u05": "mine", "u06": "news"}
    assert phone.run("SELECT pk_uuid, reason FROM _sync_withheld") == [("u05", "pending")]
    assert phone.run("SELECT pk_uuid FROM _sync_extra") == [("u07",)]
    assert phone.versions()["u08"] == (9, 0)
    assert phone.pending() == {"u05": ("UPDATE", 1)}


def test_a_statement_has_no_more_values_than_sqlite_takes(tmp_path: Path) -> None:
    """SQLite before 3.32 takes 999."""
    file = SyncFile.open(str(tmp_path / "phone.sqlite"), None, lambda: "one")
    connection = file.connection
    connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    names = [f"c{index}" for index in range(30)]
    connection.execute(f"CREATE TABLE wide (id TEXT PRIMARY KEY, {', '.join(names)})")
    rows = [(f"k{n:03}", *range(n, n + 30)) for n in range(230)]
    Applier(file).upsert_rows(read_shape(connection, "wide"), ["id", *names], rows)
    assert connection.execute("SELECT * FROM wide ORDER BY id").fetchall() == rows
    connection.close()


@pytest.mark.parametrize(
    "broken",
    [
        page("users", ["id", "name"], [["a", "x"]], versions=[]),
        page("users", ["id", "name"], [["a", "x", "too much"]]),
        page("users", ["id", "name"], [[]]),
        page("users", ["id", "name"], [[7, "x"]]),
    ],
)
def test_a_page_that_contradicts_itself_changes_nothing(install: Any, server: Any, broken: Any) -> None:
    phone = install()
    answering(phone, page("users", ["id", "name"], [["good", "x"]]), broken)
    with pytest.raises(AnswerRefused):
        phone.device.hydrate()
    assert phone.run("SELECT * FROM users") == []


def test_the_next_page_is_on_its_way_while_one_is_stored(install: Any, server: Any) -> None:
    """Each page is asked for once, and a page that is lost on its way stops nothing that came before."""
    fill(server)
    phone = install(source="one")
    phone.device.hydrate(page_rows=10)
    cursors = [dict(r.query).get("cursor") for r in phone.wire.requests if r.path == "/sync/hydrate"]
    assert cursors[0] is None
    assert len(cursors) == len(set(cursors)) == 5


def test_the_log_file_of_sqlite_is_cut_at_the_end(install: Any, server: Any) -> None:
    fill(server)
    phone = install()
    before = phone.run("PRAGMA wal_autocheckpoint")
    phone.device.hydrate(page_rows=5)
    assert phone.path.with_name(phone.path.name + "-wal").stat().st_size == 0
    assert phone.run("PRAGMA wal_autocheckpoint") == before
    assert phone.run("SELECT current_window_until FROM _sync_client_info") == [(len(server.log),)]
