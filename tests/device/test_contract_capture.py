"""The file of our device looks as the reference client's does, and captures as that should have.

Written from the device sync contract, sections 5.2–5.4 and 7 (client tests) and 13.4.
"""

import json
import sqlite3
from typing import Any

import pytest

COLUMNS = {
    "_sync_client_info": [
        "user_id", "source_id", "next_change_id", "last_server_seq_seen", "apply_mode",
        "current_window_until",
    ],
    "_sync_row_meta": ["table_name", "pk_uuid", "server_version", "deleted", "updated_at"],
    "_sync_pending": ["table_name", "pk_uuid", "op", "base_version", "payload", "change_id", "queued_at"],
}  # fmt: skip
INSERT = "INSERT INTO users (id, name) VALUES ('a', 'x')"
UPDATE = "UPDATE users SET name = name || '+'"
DELETE = "DELETE FROM users"
REPLACE = "INSERT OR REPLACE INTO users (id, name) VALUES ('a', 'r')"
RENAME = "UPDATE users SET id = 'b'"


@pytest.mark.parametrize("table", sorted(COLUMNS))
def test_the_metadata_has_the_names_that_tools_read(install: Any, table: str) -> None:
    phone = install()
    found = [column[1] for column in phone.run(f"PRAGMA table_info({table})")]
    assert found[: len(COLUMNS[table])] == COLUMNS[table]


def test_what_stands_in_the_metadata(install: Any, server: Any) -> None:
    phone = install("phone-1")
    phone.run(INSERT)
    ((table, key, op, base, payload, change_id),) = phone.run(
        "SELECT table_name, pk_uuid, op, base_version, payload, change_id FROM _sync_pending"
    )
    assert (table, key, op, base, change_id) == ("users", "a", "INSERT", 0, 1)
    assert json.loads(payload) == {"id": "a", "name": "x", "email": None, "created_at": None}
    phone.device.upload()
    assert phone.run("SELECT count(*) FROM _sync_pending") == [(0,)]
    assert phone.run("SELECT table_name, pk_uuid, server_version, deleted FROM _sync_row_meta") == [
        ("users", "a", 1, 0)
    ]
    server.write("users", "b", {"id": "b", "name": "n"})
    phone.device.download()
    columns = "user_id, source_id, next_change_id, last_server_seq_seen, apply_mode"
    assert phone.run(f"SELECT {columns} FROM _sync_client_info") == [("ada", "phone-1", 2, 2, 0)]


def test_each_table_is_captured_by_triggers_that_any_connection_runs(install: Any) -> None:
    phone = install()
    tables = [name for (name,) in phone.run("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'")]
    assert {"users", "posts"} <= set(tables)
    phone.device.close()
    with sqlite3.connect(phone.path) as stranger:
        stranger.execute(INSERT)
        stranger.execute("INSERT INTO posts VALUES ('p', 't', 'a')")
    stranger.close()
    assert install().pending() == {"a": ("INSERT", 0), "p": ("INSERT", 0)}


def test_while_apply_mode_is_on_nothing_is_captured(install: Any) -> None:
    phone = install()
    phone.run("UPDATE _sync_client_info SET apply_mode = 1")
    for statement in (INSERT, UPDATE, REPLACE, RENAME, DELETE):
        phone.run(statement)
    assert phone.pending() == {}
    # A file that was left so, as by a crash, captures again when it is opened.
    phone.device.close()
    phone = install()
    phone.run(INSERT)
    assert phone.pending() == {"a": ("INSERT", 0)}


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([INSERT], {"a": ("INSERT", 0)}),
        ([INSERT, UPDATE, UPDATE], {"a": ("INSERT", 0)}),
        # A row that may have arrived already keeps its tombstone (D4).
        ([INSERT, DELETE], {"a": ("DELETE", 0)}),
        ([INSERT, UPDATE, DELETE], {"a": ("DELETE", 0)}),
        ([INSERT, DELETE, INSERT], {"a": ("INSERT", 0)}),
        ([REPLACE], {"a": ("INSERT", 0)}),
        ([INSERT, RENAME], {"a": ("DELETE", 0), "b": ("INSERT", 0)}),
    ],
)
def test_a_new_row(install: Any, statements: list[str], expected: dict[str, tuple[str, int]]) -> None:
    phone = install()
    for statement in statements:
        phone.run(statement)
    assert phone.pending() == expected


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([UPDATE], {"a": ("UPDATE", 3)}),
        ([UPDATE, UPDATE], {"a": ("UPDATE", 3)}),
        ([DELETE], {"a": ("DELETE", 3)}),
        ([UPDATE, DELETE], {"a": ("DELETE", 3)}),
        ([DELETE, INSERT], {"a": ("INSERT", 3)}),
        ([DELETE, INSERT, UPDATE], {"a": ("INSERT", 3)}),
        # The deletion is not forgotten (D6), the old key is deleted (D7), the version is kept (D8).
        ([DELETE, INSERT, DELETE], {"a": ("DELETE", 3)}),
        ([UPDATE, DELETE, INSERT, DELETE], {"a": ("DELETE", 3)}),
        ([RENAME], {"a": ("DELETE", 3), "b": ("INSERT", 0)}),
        ([REPLACE], {"a": ("UPDATE", 3)}),
    ],
)
def test_a_row_that_the_server_has_at_version_3(
    install: Any, server: Any, statements: list[str], expected: dict[str, tuple[str, int]]
) -> None:
    phone = install()
    for name in "123":
        server.write("users", "a", {"id": "a", "name": name})
    phone.device.download()
    for statement in statements:
        phone.run(statement)
    assert phone.pending() == expected
    phone.device.upload()
    assert phone.pending() == {}
    here = dict(phone.run("SELECT id, name FROM users"))
    assert {key: row["name"] for key, row in server.live("users").items()} == here


def test_a_change_keeps_its_id_while_it_only_grows(install: Any) -> None:
    phone = install()
    phone.run(INSERT)
    phone.run(UPDATE)
    phone.run(UPDATE)
    (change,) = phone.device.pending()
    assert change.change_id == 1
    assert json.loads(change.payload)["name"] == "x++"


def test_more_rows_than_a_batch_before_the_first_sign_in(install: Any, server: Any) -> None:
    """D5: each gets an id of its own, and those of later edits are new."""
    phone = install(is_signed_in=False, upload_limit=3)
    for index in range(10):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'n')", f"u{index}")
    phone.device.close()
    phone = install(upload_limit=3)
    for index in range(10, 14):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'n')", f"u{index}")
    report = phone.device.upload()
    assert (report.applied, report.duplicates, report.pending) == (14, 0, 0)
    assert len(server.receipts) == 14
    assert set(server.live("users")) == {f"u{index}" for index in range(14)}


def test_a_key_of_any_name(install: Any, server: Any) -> None:
    schema = "CREATE TABLE t (v INTEGER, code TEXT NOT NULL PRIMARY KEY)"
    phone, laptop = (install(name, schema=schema, tables=["t"]) for name in ("phone", "laptop"))
    phone.run("INSERT INTO t VALUES (1, 'k')")
    assert phone.pending() == {"k": ("INSERT", 0)}
    phone.device.upload()
    laptop.device.sync()
    laptop.run("UPDATE t SET v = 2")
    laptop.device.sync()
    phone.device.sync()
    assert phone.run("SELECT * FROM t") == [(2, "k")]


def test_blobs_are_hex_in_the_file_and_base64_on_the_wire(install: Any, server: Any) -> None:
    """D17: NULL stays NULL, empty stays empty, and text that looks like something else stays what it is."""
    schema = "CREATE TABLE files (id BLOB PRIMARY KEY, data BLOB, thumb BLOB)"
    phone, laptop = (install(name, schema=schema, tables=["files"]) for name in ("phone", "laptop"))
    keys = [bytes([number]) * 16 for number in range(5)]
    # In base64 the last ones read as 32 hex digits, as a UUID without dashes.
    values = [None, b"", b"\x00", bytes.fromhex("69b71d" * 8), bytes.fromhex("d35db7" * 8)]
    for key, value in zip(keys, values, strict=True):
        phone.run("INSERT INTO files VALUES (?, ?, ?)", key, value, value)
    captured = phone.run("SELECT pk_uuid, payload FROM _sync_pending ORDER BY pk_uuid")
    assert [(key, json.loads(payload)["data"]) for key, payload in captured] == [
        (key.hex(), None if value is None else value.hex()) for key, value in zip(keys, values, strict=True)
    ]
    phone.device.upload()
    sent = {pk: row["data"] for pk, row in server.live("files").items()}
    assert sent["00000000-0000-0000-0000-000000000000"] is None
    assert list(sent.values()) == [None, "", "AA==", "abcd" * 8, "0123" * 8]
    laptop.device.sync()
    assert laptop.run("SELECT id, data, thumb FROM files ORDER BY id") == [
        (key, value, value) for key, value in zip(keys, values, strict=True)
    ]
