"""An upload loses no edit and has no effect twice, whatever happens to answers and rows meanwhile."""

import json
from typing import Any

import pytest

from upwell.device import AnswerRefused, RequestRefused, Response, Unreachable


def add(phone: Any, key: str, name: str = "n") -> None:
    phone.run("INSERT INTO users (id, name) VALUES (?, ?)", key, name)


def names(server: Any) -> dict[str, str]:
    return {key: row["name"] for key, row in server.live("users").items()}


@pytest.mark.parametrize("has_extensions", [True, False])
@pytest.mark.parametrize("edit", ["UPDATE users SET name = 'new'", "DELETE FROM users", None])
@pytest.mark.parametrize("is_synced", [True, False])
def test_lost_answer_then_edit(
    install: Any, server: Any, edit: str | None, has_extensions: bool, is_synced: bool
) -> None:
    server.has_extensions = has_extensions
    phone = install()
    add(phone, "a", "first")
    if is_synced:
        phone.device.upload()
        phone.run("UPDATE users SET name = 'old'")
    phone.wire.drop_answers = 1
    with pytest.raises(Unreachable):
        phone.device.upload()
    if edit:
        phone.run(edit)
    local = dict(phone.run("SELECT id, name FROM users"))

    report = phone.device.upload()

    assert report.duplicates == 1
    assert (report.conflicts, report.pending) == (0, 0)
    assert names(server) == local == dict(phone.run("SELECT id, name FROM users"))
    expected = 1 + is_synced + bool(edit)
    assert phone.versions()["a"] == (expected, int(not local))
    assert [entry["server_version"] for entry in server.log] == list(range(1, expected + 1))


@pytest.mark.parametrize("is_synced", [True, False])
@pytest.mark.parametrize(
    "edits",
    [
        ["UPDATE users SET name = 'new'"],
        ["DELETE FROM users"],
        ["DELETE FROM users", "INSERT INTO users (id, name) VALUES ('a', 'again')"],
        ["UPDATE users SET name = 'x'", "UPDATE users SET name = 'sent'"],
    ],
)
def test_edit_while_the_upload_is_in_flight_survives(
    install: Any, server: Any, edits: list[str], is_synced: bool
) -> None:
    phone = install()
    add(phone, "a", "sent")
    if is_synced:
        phone.device.upload()
        phone.run("UPDATE users SET name = 'other'")
        phone.run("UPDATE users SET name = 'sent'")

    def edit_once(request: Any) -> None:
        phone.wire.on_send = None
        for sql in edits:
            phone.run(sql)

    phone.wire.on_send = edit_once
    report = phone.device.upload()

    assert (report.conflicts, report.pending) == (0, 0)
    assert names(server) == dict(phone.run("SELECT id, name FROM users"))
    assert phone.versions()["a"][0] == server.rows["users", "a"].version


def test_deletion_in_flight_and_new_row(install: Any, server: Any) -> None:
    phone = install()
    add(phone, "a")
    phone.device.upload()
    phone.run("DELETE FROM users")

    def insert_again(request: Any) -> None:
        phone.wire.on_send = None
        add(phone, "a", "again")

    phone.wire.on_send = insert_again
    phone.device.upload()
    assert names(server) == {"a": "again"}
    assert phone.versions() == {"a": (3, 0)}


def test_delete_insert_delete_reaches_the_server(install: Any, server: Any) -> None:
    phone = install()
    add(phone, "a")
    phone.device.upload()
    phone.run("DELETE FROM users")
    add(phone, "a")
    phone.run("DELETE FROM users")
    phone.device.upload()
    assert names(server) == {}
    assert phone.versions() == {"a": (2, 1)}


def test_conflict_in_a_batch_leaves_the_others_alone(install: Any, server: Any) -> None:
    phone = install()
    for key in "abc":
        add(phone, key)
    phone.device.upload()
    server.write("users", "b", {"id": "b", "name": "theirs"})
    phone.run("UPDATE users SET name = 'mine'")

    report = phone.device.upload()

    assert (report.sent, report.applied, report.conflicts, report.pending) == (3, 2, 1, 0)
    assert names(server) == {"a": "mine", "b": "theirs", "c": "mine"}
    assert dict(phone.run("SELECT id, name FROM users")) == names(server)
    assert phone.versions()["b"] == (2, 0)
    (recorded,) = phone.run("SELECT base_payload, local_payload, server_payload FROM _sync_conflicts")
    assert [json.loads(payload)["name"] for payload in recorded] == ["n", "mine", "theirs"]


@pytest.mark.parametrize("has_local_keys", [True, False])
def test_children_before_their_parent_get_through(install: Any, server: Any, has_local_keys: bool) -> None:
    schema = "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);" + (
        "CREATE TABLE posts (id TEXT PRIMARY KEY, author_id TEXT"
        + (" REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED)" if has_local_keys else ")")
    )
    phone = install(schema=schema, upload_limit=200)
    phone.run("BEGIN")
    for index in range(250):
        phone.run("INSERT INTO posts (id, author_id) VALUES (?, 'u')", f"p{index}")
    add(phone, "u")
    phone.run("COMMIT")

    report = phone.device.upload()

    assert (report.applied, report.pending) == (251, 0)
    assert report.requests == (2 if has_local_keys else 3)
    assert len(server.live("posts")) == 250


def test_an_orphan_is_kept_and_stops_nobody(install: Any, server: Any) -> None:
    phone = install(upload_limit=3)
    phone.run("PRAGMA foreign_keys = OFF")
    for index in range(5):
        phone.run("INSERT INTO posts VALUES (?, 't', 'nobody')", f"orphan{index}")
    for index in range(5):
        add(phone, f"u{index}")

    report = phone.device.upload()

    assert (report.applied, report.deferred, report.pending, report.invalid) == (5, 5, 5, 0)
    assert {change.reason for change in phone.device.pending()} == {"fk_missing"}
    add(phone, "nobody")
    assert phone.device.upload().pending == 0


def test_too_large_batches_are_halved(install: Any, server: Any) -> None:
    server.batch_limit = 7
    phone = install()
    for index in range(60):
        add(phone, f"u{index}")
    assert phone.device.upload().pending == 0
    assert len(names(server)) == 60
    assert len(server.log) == 60


def test_refused_changes_are_quarantined_until_the_row_is_edited(install: Any, server: Any) -> None:
    phone = install()
    add(phone, "u")
    phone.wire.refuse = Response(413, b"")

    report = phone.device.upload()
    assert (report.applied, report.invalid, report.pending) == (0, 1, 1)
    phone.wire.refuse = None
    assert phone.device.upload().requests == 0
    (held,) = phone.device.pending()
    assert (held.is_quarantined, held.reason) == (True, "batch_too_large")
    assert phone.device.status().quarantined == 1

    phone.run("UPDATE users SET name = 'shorter'")
    assert phone.device.upload().pending == 0
    assert names(server) == {"u": "shorter"}


def test_quarantined_changes_are_tried_again_when_the_app_says_so(install: Any, server: Any) -> None:
    phone = install()
    for key in "ab":
        add(phone, key)
    phone.wire.refuse = Response(413, b"")
    assert phone.device.upload().invalid == 2
    phone.wire.refuse = None

    assert phone.device.retry_refused() == 2
    assert phone.device.retry_refused() == 0
    assert {(change.is_quarantined, change.reason) for change in phone.device.pending()} == {(False, None)}
    assert phone.device.upload().pending == 0
    assert set(names(server)) == {"a", "b"}


def test_changes_of_a_table_the_server_lacks_wait_for_it(install: Any, server: Any) -> None:
    server.known_tables = {"users"}
    phone = install(upload_limit=2)
    for key in "abc":
        phone.run("INSERT INTO posts VALUES (?, 't', NULL)", key)
        add(phone, key)

    for _ in range(2):
        report = phone.device.upload()
        assert (report.invalid, report.deferred, report.pending) == (3, 3, 3)
        assert set(names(server)) == set("abc")
    assert {(c.is_quarantined, c.reason) for c in phone.device.pending()} == {(False, "unregistered_table")}
    status = phone.device.status()
    assert status.quarantined == 0
    assert "app.posts (3 pending)" in (status.last_error or "")
    add(phone, "new")
    phone.device.upload()
    assert server.uploads[-2]["changes"][0]["pk"] == "new"  # what waits is behind the rest

    server.known_tables = None
    assert phone.device.upload().pending == 0
    assert set(server.live("posts")) == set("abc")
    assert phone.device.status().last_error is None


def test_a_deletion_is_not_undone_because_a_table_was_missing(install: Any, server: Any) -> None:
    phone = install()
    add(phone, "u")
    phone.run("INSERT INTO posts VALUES ('p', 't', 'u')")
    phone.device.upload()
    phone.run("DELETE FROM posts")
    phone.run("DELETE FROM users")
    server.known_tables = set()
    assert phone.device.upload().invalid == 2
    server.known_tables = {"users"}
    assert phone.device.upload().pending == 2  # the server still has the user's post

    server.known_tables = None
    assert phone.device.upload().pending == 0
    assert (server.live("users"), server.live("posts")) == ({}, {})
    assert phone.run("SELECT id FROM users") == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500, 503])
def test_an_error_status_deletes_nothing(install: Any, server: Any, status: int) -> None:
    phone = install()
    for key in "abc":
        add(phone, key)
    phone.run("DELETE FROM users WHERE id = 'c'")
    before = phone.device.pending()
    phone.wire.refuse = Response(status, b"Authorization header required")
    if status == 413:
        assert phone.device.upload().pending == 3
        assert phone.device.retry_refused() == 3
    else:
        with pytest.raises(RequestRefused):
            phone.device.upload()
        assert phone.device.pending() == before
    phone.wire.refuse = None
    assert phone.device.upload().pending == 0
    assert set(names(server)) == {"a", "b"}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"accepted":true,"highest_server_seq":0,"statuses":[]}', b"<html>"]
)
def test_an_answer_that_is_not_the_protocol_changes_nothing(install: Any, body: bytes) -> None:
    phone = install()
    add(phone, "a")
    before = phone.device.pending()
    phone.wire.refuse = Response(200, body)
    with pytest.raises(AnswerRefused):
        phone.device.upload()
    assert phone.device.pending() == before


def test_ids_of_changes_are_used_once_over_restarts(install: Any, server: Any) -> None:
    phone = install(is_signed_in=False, upload_limit=2)
    for index in range(5):
        add(phone, f"u{index}")
    phone.device.close()
    phone = install(upload_limit=2)
    add(phone, "later")
    assert phone.device.upload().pending == 0
    assert len({change_id for _, change_id in server.receipts}) == 6


def test_wire_change_has_the_contracts_form(install: Any, server: Any) -> None:
    phone = install()
    add(phone, "a")
    add(phone, "b")
    phone.run("DELETE FROM users WHERE id = 'b'")
    phone.device.upload()
    (body,) = server.uploads
    row = {"id": "a", "name": "n", "email": None, "created_at": None}
    change = {"source_change_id": 1, "schema": "app", "table": "users", "pk": "a", "server_version": 0}
    deletion = {**change, "source_change_id": 3, "pk": "b"}
    assert body["changes"] == [{**change, "op": "INSERT", "payload": row}, {**deletion, "op": "DELETE"}]


def test_statuses_of_other_changes_are_no_answer(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users VALUES ('a', 'n', NULL, NULL), ('b', 'n', NULL, NULL)")
    before = phone.pending()
    statuses = [
        {"source_change_id": number, "status": "applied", "new_server_version": 1} for number in (99, 98)
    ]
    answer = {"accepted": True, "highest_server_seq": 1, "statuses": statuses}
    phone.wire.refuse = Response(200, json.dumps(answer).encode())
    with pytest.raises(AnswerRefused):
        phone.device.upload()
    assert phone.pending() == before
