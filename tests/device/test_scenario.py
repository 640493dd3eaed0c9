"""The document's scenario: heavy offline use, one upload, delete the app, install it: everything is back."""

import json
import logging
from collections import Counter
from typing import Any

import pytest


def user(index: int) -> str:
    return f"00000000-0000-4000-8000-{index:012d}"


def post(index: int, copy: int) -> str:
    return f"00000000-0000-4000-9000-{index:011d}{copy}"


def work_offline(phone: Any) -> int:
    """The 330 operations of phase 1; return how many there were."""
    count = 0

    def run(sql: str, *parameters: Any) -> None:
        nonlocal count
        count += 1
        phone.run(sql, *parameters)

    for i in range(1, 61):
        row = (user(i), f"Complex User {i}", f"u{i}@example.com", 1_760_000_000)
        run("INSERT INTO users VALUES (?, ?, ?, ?)", *row)
    for i in range(1, 61):
        for copy in (1, 2):
            run("INSERT INTO posts VALUES (?, ?, ?)", post(i, copy), f"Post {copy} of {i}", user(i))
    for i in range(1, 31):
        for k in range(1, 5):
            run("UPDATE users SET name = ? WHERE id = ?", f"Updated User {i} (Update #{k})", user(i))
    for i in range(51, 61):
        for copy in (1, 2):
            run("DELETE FROM posts WHERE id = ?", post(i, copy))
    for i in range(51, 61):
        run("DELETE FROM users WHERE id = ?", user(i))
    return count


def contents(phone: Any) -> dict[str, list[Any]]:
    return {table: phone.run(f"SELECT * FROM {table} ORDER BY id") for table in ("users", "posts")}


@pytest.mark.parametrize("limit", [200, 50, 7])
def test_complex_multi_batch(install: Any, server: Any, limit: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "upwell.device")
    phone = install("phone", source="device-complex-001", upload_limit=limit)
    assert work_offline(phone) == 330

    rows = phone.run("SELECT table_name, op, payload, base_version FROM _sync_pending")
    assert Counter((table, op) for table, op, _, _ in rows) == {
        ("users", "INSERT"): 50,
        ("users", "DELETE"): 10,
        ("posts", "INSERT"): 100,
        ("posts", "DELETE"): 20,
    }
    payloads = {json.loads(payload)["id"]: json.loads(payload) for _, _, payload, _ in rows}
    assert payloads[user(7)] == {
        "id": user(7),
        "name": "Updated User 7 (Update #4)",
        "email": "u7@example.com",
        "created_at": 1_760_000_000,
    }
    assert payloads[user(51)]["name"] == "Complex User 51"
    assert payloads[post(51, 2)] == {"id": post(51, 2), "title": "Post 2 of 51", "author_id": user(51)}

    report = phone.device.upload()
    assert (report.sent, report.applied, report.pending) == (180, 180, 0)
    assert report.requests == -(-180 // limit)
    assert "All changes uploaded successfully" in caplog.messages
    assert phone.run("SELECT count(*) FROM _sync_pending") == [(0,)]
    assert (len(server.live("users")), len(server.live("posts"))) == (50, 100)
    assert sum(row["name"].endswith("(Update #4)") for row in server.live("users").values()) == 30
    assert Counter(phone.versions().values()) == {(1, 0): 150, (0, 1): 30}
    before = contents(phone)
    phone.device.sign_out()
    phone.device.close()

    again = install("reinstalled", source="device-complex-001")
    assert contents(again) == {"users": [], "posts": []}
    hydrated = again.device.hydrate(page_rows=50)
    assert (hydrated.rows, hydrated.requests) == (150, 4)
    assert "Fresh install and hydration finished" in caplog.messages
    assert contents(again) == before
    assert again.run("PRAGMA foreign_key_check") == []
    assert again.pending() == {}
    assert again.device.status().next_change_id > max(change_id for _, change_id in server.receipts)

    again.run("UPDATE users SET name = 'edited after all' WHERE id = ?", user(1))
    report = again.device.upload()
    assert (report.applied, report.duplicates, report.conflicts) == (1, 0, 0)
    assert server.live("users")[user(1)]["name"] == "edited after all"
    assert again.versions()[user(1)] == (2, 0)


def test_a_given_source_hydrates_before_its_first_upload(install: Any, server: Any) -> None:
    phone = install("phone", source="one")
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'first')")
    phone.device.upload()
    phone.device.close()

    again = install("again", source="one")
    again.run("INSERT INTO users (id, name) VALUES ('b', 'second')")
    report = again.device.upload()

    paths = [request.path for request in again.wire.requests]
    assert paths == ["/sync/hydrate", "/sync/download", "/sync/upload"]
    assert (report.applied, report.duplicates) == (1, 0)
    assert set(server.live("users")) == {"a", "b"}
    assert again.run("SELECT id FROM users ORDER BY id") == [("a",), ("b",)]


def test_four_uploads_of_a_row_are_four_entries_of_the_log(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', '1')")
    for name in ("2", "3", "4"):
        phone.device.upload()
        phone.run("UPDATE users SET name = ?", name)
    phone.device.upload()
    assert [(entry["payload"]["name"], entry["server_version"]) for entry in server.log] == [
        ("1", 1),
        ("2", 2),
        ("3", 3),
        ("4", 4),
    ]
