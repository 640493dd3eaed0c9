"""Whatever the server answers, no edit is dropped; whatever it sends, no cursor skips and no row is lost.

Written from the device sync contract, sections 5.6, 5.7, 7 (client tests), 10 and 12.
"""

import json
from typing import Any

import pytest

from upwell.device import Request, Response, client_wins

USER = {"name": "n", "email": None, "created_at": None}


def add(phone: Any, key: str, name: str = "n") -> None:
    phone.run("INSERT INTO users (id, name) VALUES (?, ?)", key, name)


def answered(phone: Any, respond: Any) -> None:
    """Put `respond` in the server's place: it gets a request and returns the body of the answer."""

    def send(request: Request) -> Response:
        phone.wire.requests.append(request)
        return Response(200, json.dumps(respond(request)).encode())

    phone.wire.send = send


def restored(phone: Any) -> None:
    """Put the server back in its place."""
    del phone.wire.send


@pytest.mark.parametrize(
    "reason",
    [
        "bad_payload", "unregistered_table", "fk_missing", "precheck_error", "internal_error",
        "batch_too_large", "has_children", "invalid_value", "constraint_violation", "a_reason_of_tomorrow",
    ],
)  # fmt: skip
def test_no_reason_destroys_an_edit(install: Any, server: Any, reason: str) -> None:
    """The reference drops the change for `bad_payload` and `unregistered_table`; ours for no reason."""
    phone = install()
    add(phone, "a", "first")
    phone.device.upload()
    phone.run("UPDATE users SET name = 'mine'")

    def refuse(request: Request) -> dict[str, Any]:
        changes = json.loads(request.body or b"")["changes"]
        refusal = {"status": "invalid", "message": "no", "invalid": {"reason": reason, "details": {}}}
        statuses = [{"source_change_id": change["source_change_id"], **refusal} for change in changes]
        return {"accepted": False, "highest_server_seq": 1, "statuses": statuses}

    answered(phone, refuse)
    assert phone.device.upload().pending == 1
    assert phone.pending() == {"a": ("UPDATE", 1)}
    restored(phone)
    phone.device.retry_refused()
    assert phone.device.upload().pending == 0
    assert server.live("users")["a"]["name"] == "mine"


def test_ids_far_apart_skip_no_peers_changes(install: Any) -> None:
    """History 10.2: an upload's answer never moves the cursor, however far the numbers are apart."""
    phone = install()
    log: list[dict[str, Any]] = [
        {
            "server_id": number * 100_000, "schema": "app", "table": "users", "op": "INSERT",
            "pk": f"u{number}", "payload": {"id": f"u{number}", **USER}, "server_version": 1,
            "deleted": False, "source_id": "laptop", "source_change_id": number, "ts": "2026-01-01T00:00:00Z",
        }
        for number in range(1, 8)
    ]  # fmt: skip

    def respond(request: Request) -> dict[str, Any]:
        if request.path == "/sync/upload":
            changes = json.loads(request.body or b"")["changes"]
            statuses = [
                {"source_change_id": c["source_change_id"], "status": "applied", "new_server_version": 1}
                for c in changes
            ]
            return {"accepted": True, "highest_server_seq": 9_000_000, "statuses": statuses}
        after = int(dict(request.query)["after"])
        page = [entry for entry in log if entry["server_id"] > after][:2]
        return {
            "changes": page, "has_more": len(page) == 2, "window_until": 9_000_000,
            "next_after": page[-1]["server_id"] if page else after,
        }  # fmt: skip

    answered(phone, respond)
    add(phone, "mine")
    assert phone.device.upload().applied == 1
    assert phone.device.status().cursor == 0
    phone.device.download()
    assert {key for (key,) in phone.run("SELECT id FROM users")} == {"mine", *(f"u{n}" for n in range(1, 8))}


@pytest.mark.parametrize("download_limit", [1, 2, 3, 1000])
def test_a_row_that_is_deleted_and_born_again_is_there(
    install: Any, server: Any, download_limit: int
) -> None:
    phone = install(download_limit=download_limit)
    for payload in ({"id": "a", **USER}, None, {"id": "a", **USER, "name": "again"}):
        server.write("users", "a", payload)
    server.write("users", "b", {"id": "b", **USER})
    server.write("users", "b", None)
    phone.device.download()
    assert phone.run("SELECT id, name FROM users") == [("a", "again")]
    assert phone.versions() == {"a": (3, 0), "b": (2, 1)}
    assert phone.pending() == {}


def test_a_deletion_elsewhere_of_a_row_that_was_deleted_and_inserted_here(install: Any, server: Any) -> None:
    phone = install(resolver=client_wins)
    server.write("users", "a", {"id": "a", **USER})
    phone.device.download()
    phone.run("DELETE FROM users")
    add(phone, "a", "again")
    server.write("users", "a", None)
    phone.device.sync()
    assert phone.pending() == {}
    assert phone.run("SELECT id, name FROM users") == [("a", "again")]
    assert server.live("users")["a"]["name"] == "again"


def test_an_empty_answer_to_an_empty_server_moves_no_cursor_back(install: Any, server: Any) -> None:
    phone = install()
    for number in range(3):
        server.write("users", f"u{number}", {"id": f"u{number}", **USER})
    phone.device.download()
    assert phone.device.status().cursor == 3

    def respond(request: Request) -> dict[str, Any]:
        return {"changes": [], "has_more": False, "next_after": 0, "window_until": 0}

    answered(phone, respond)
    phone.device.download()
    assert phone.device.status().cursor == 3
    assert len(phone.run("SELECT id FROM users")) == 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_answer_with_another_number_of_statuses_changes_nothing(
    install: Any, server: Any, count: int
) -> None:
    phone = install()
    for key in "ab":
        add(phone, key)
    before = phone.device.pending()
    status = {"source_change_id": 1, "status": "applied", "new_server_version": 1}
    answered(phone, lambda request: {"accepted": True, "highest_server_seq": 0, "statuses": [status] * count})
    with pytest.raises(Exception, match="status"):
        phone.device.upload()
    assert phone.device.pending() == before
    restored(phone)
    assert phone.device.upload().applied == 2


def test_fields_of_tomorrow_are_ignored_outside_the_payload(install: Any) -> None:
    phone = install()
    add(phone, "a")

    def respond(request: Request) -> dict[str, Any]:
        status = {"source_change_id": 1, "status": "applied", "new_server_version": 1, "later": {"x": 1}}
        return {"accepted": True, "highest_server_seq": 1, "statuses": [status], "commit_seq": 9, "later": []}

    answered(phone, respond)
    report = phone.device.upload()
    assert (report.applied, report.pending) == (1, 0)
    assert phone.versions() == {"a": (1, 0)}
