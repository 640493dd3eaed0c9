"""The facade: one user and one source per file, nothing lost by signing in or out, clear refusals."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upwell.device import (
    Device,
    FileRefused,
    NotSignedIn,
    PendingChanges,
    Progress,
    Request,
    Response,
)


def test_edits_before_the_first_sign_in_are_kept_and_sent(install: Any, server: Any) -> None:
    phone = install(is_signed_in=False)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    with pytest.raises(NotSignedIn):
        phone.device.upload()
    assert "sign in" in (phone.device.status().last_error or "")
    phone.device.close()
    phone = install()
    assert phone.device.upload().applied == 1
    phone.device.sign_out()
    phone.run("UPDATE users SET name = 'y'")
    assert phone.pending() == {"a": ("UPDATE", 1)}


def test_another_user_is_refused_until_the_file_is_wiped(install: Any, server: Any) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    with pytest.raises(FileRefused, match="belongs to user 'ada'"):
        phone.device.sign_in("fake:", "bob", token="opaque")
    with pytest.raises(PendingChanges):
        phone.device.wipe()
    assert phone.run("SELECT id FROM users") == [("a",)]
    phone.device.upload()
    phone.device.wipe()
    assert phone.run("SELECT id FROM users") == []
    assert phone.device.status().user == ""
    assert phone.pending() == {}
    assert set(server.live("users")) == {"a"}


CALLS: list[Callable[[Device], object]] = [
    Device.sync, Device.upload, Device.download, Device.hydrate, Device.start, Device.wait_until_synced
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_after_a_wipe_nobodys_rows_come_until_somebody_signs_in(
    install: Any, server: Any, token_of: Any, call: Callable[[Device], object]
) -> None:
    phone = install()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    phone.device.upload()
    phone.device.wipe()
    assert not phone.device.status().is_signed_in
    phone.run("INSERT INTO users (id, name) VALUES ('b', 'x')")
    with pytest.raises(NotSignedIn):
        call(phone.device)
    assert phone.run("SELECT id FROM users") == [("b",)]
    assert set(server.live("users")) == {"a"}
    phone.device.sign_in("fake:", "ada", token=token_of("phone"))
    phone.device.sync()
    assert phone.run("SELECT id FROM users ORDER BY id") == [("a",), ("b",)]


def test_a_file_that_another_process_gave_to_another_user_takes_nothing_of_the_first(
    install: Any, server: Any, token_of: Any
) -> None:
    phone, same = install(), install()
    server.write("users", "a", {"id": "a", "name": "ada's"})
    phone.device.wipe()
    phone.device.sign_in("fake:", "bob", token=token_of("phone", "bob"))
    phone.run("INSERT INTO users (id, name) VALUES ('b', 'bob''s')")
    requests = len(same.wire.requests)
    for call in (same.device.sync, same.device.upload, same.device.download, same.device.hydrate):
        with pytest.raises(NotSignedIn, match="sign in again"):
            call()
    with pytest.raises(NotSignedIn):
        same.device.wipe()
    assert not same.device.status().is_signed_in
    assert len(same.wire.requests) == requests
    assert phone.run("SELECT id FROM users") == [("b",)]


def test_another_source_is_refused(install: Any) -> None:
    install("phone", source="one").device.close()
    with pytest.raises(FileRefused, match="source 'one'"):
        install("phone", source="two")


def test_memory_is_no_file() -> None:
    with pytest.raises(FileRefused):
        Device.open(":memory:", schema="app", tables=[])


def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Dear Ada, this is a letter and no database. " * 50)
    for path, says in (
        (tmp_path / "nowhere" / "app.sqlite", "directory"),
        (text, "database"),
        (tmp_path, ""),
    ):
        with pytest.raises(FileRefused, match=f"{path} can't be .*{says}") as refused:
            Device.open(path, schema="app", tables=[])
        assert isinstance(refused.value.__cause__, sqlite3.DatabaseError)
    assert text.read_text().startswith("Dear Ada")


def test_password_and_access_token_are_exchanged_for_a_device_token(install: Any) -> None:
    sent: list[tuple[str, bytes | None, str | None]] = []

    class Wire:
        def send(self, request: Request) -> Response:
            sent.append((request.path, request.body, request.token))
            answers = {
                "/v1/api/auth/login": b'{"access_token":"access","token_type":"Bearer"}',
                "/v1/api/auth/device": b'{"token":"device","expires_in":60,"user":"ada","device":"phone"}',
                "/sync/upload": b'{"accepted":true,"highest_server_seq":1,"statuses":'
                b'[{"source_change_id":1,"status":"applied","new_server_version":1}]}',
            }
            return Response(200, answers[request.path])

        def close(self) -> None:
            """Nothing is open."""

    phone = install(is_signed_in=False)
    phone.device.close()
    with Device.open(phone.path, schema="app", tables=["users"], dial=lambda url: Wire()) as device:
        device.connection.execute("INSERT INTO users (id, name) VALUES ('a', 'x')")
        device.sign_in("fake:", "ada", password="secret")
        assert device.upload().applied == 1
    assert [(path, token) for path, _, token in sent] == [
        ("/v1/api/auth/login", None),
        ("/v1/api/auth/device", "access"),
        ("/sync/upload", "device"),
    ]
    assert sent[0][1] == b'{"user":"ada","password":"secret"}'
    assert sent[1][1] == b'{"device":"phone"}'


def test_progress_is_told_in_frozen_values(install: Any, server: Any) -> None:
    told: list[Progress] = []
    phone = install(source="one", upload_limit=2, on_progress=told.append)
    for index in range(5):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{index}")
    phone.device.sync()
    assert [event for event in told if event.phase == "upload"] == [
        Progress("upload", 2, 5),
        Progress("upload", 4, 5),
        Progress("upload", 5, 5),
    ]
    assert {event.phase for event in told} == {"hydrate", "upload", "download"}


def test_the_package_is_light() -> None:
    heavy = ["rocksdict", "datafusion", "pyarrow", "uvicorn", "starlette", "sqlglot"]
    program = f"import sys, upwell.device; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
