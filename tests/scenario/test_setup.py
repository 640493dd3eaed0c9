"""The first start of a server that nobody has configured: set-up, once, and from this machine only.

Written from the reference contract, sections 1.7, 5.2 and 8.1, and scenario A20.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.wire import Answer, Wire

SETUP, STATUS, LOGIN = "/v1/api/auth/setup", "/v1/api/auth/status", "/v1/api/auth/login"
BODY = {"user": "admin", "password": "kalamdb123", "root_password": "kalamdb123", "email": None}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", root_password="", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        yield server
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


def _log_in(wire: Wire, user: str, password: str) -> Answer:
    return wire.call("POST", LOGIN, {"user": user, "password": password})


def test_a_server_is_set_up_once(server: ServerProcess) -> None:
    with Wire(server.port) as wire:
        status = wire.call("GET", STATUS)
        assert (status.status, status.json["needs_setup"]) == (200, True)
        assert set(status.json) == {"needs_setup", "message"}
        empty = _log_in(wire, "root", "")
        assert (empty.status, empty.json["error"]) == (428, "setup_required")
        assert _log_in(wire, "root", "guess").status == 401
        for changes, kind in (
            ({"password": "short"}, "weak_password"),
            ({"root_password": "password123"}, "weak_password"),
            ({"password": "x" * 73}, "weak_password"),
            ({"user": ""}, "invalid_user"),
            ({"user": "root"}, "invalid_user"),
            ({"colour": "red"}, "bad_request"),
            ({"user": None}, "invalid_user"),
        ):
            refused = wire.call("POST", SETUP, BODY | changes)
            assert (refused.status, refused.json["error"]) == (400, kind), changes
        forwarded = wire.call("POST", SETUP, BODY, headers={"X-Forwarded-For": "127.0.0.1"})
        assert (forwarded.status, forwarded.json["error"]) == (403, "forbidden")
        assert wire.call("GET", STATUS).json["needs_setup"] is True
        done = wire.call("POST", SETUP, BODY)
        assert done.status == 200
        assert set(done.json) == {"user", "message"}
        assert (done.json["user"]["id"], done.json["user"]["role"]) == ("admin", "dba")
        assert done.json["message"] == (
            "Server setup complete. Root password configured and DBA user 'admin' created. "
            "Please login to continue."
        )
        again = wire.call("POST", SETUP, BODY | {"user": "other"})
        assert (again.status, again.json["error"]) == (409, "already_configured")
        assert wire.call("GET", STATUS).json["needs_setup"] is False
        assert _log_in(wire, "root", "").status == 401
        _check_accounts(wire)
        _lock(wire, "eve")
    server.terminate()
    server.start()
    with Wire(server.port) as wire:
        _check_accounts(wire)
        assert _log_in(wire, "eve", "the-right-one").json["error"] == "account_locked"


def _lock(wire: Wire, name: str) -> None:
    admin = _log_in(wire, "admin", "kalamdb123").json["access_token"]
    with Wire(wire.port, admin) as dba:
        dba.run(f"CREATE USER {name} WITH PASSWORD 'the-right-one' ROLE user")
    assert _log_in(wire, name, "the-right-one").status == 200
    for _ in range(5):
        assert _log_in(wire, name, "a-wrong-one").status == 401


def _check_accounts(wire: Wire) -> None:
    assert _log_in(wire, "root", "kalamdb123").json["user"]["role"] == "system"
    admin = _log_in(wire, "admin", "kalamdb123").json
    assert (admin["user"]["role"], admin["admin_ui_access"]) == ("dba", True)
    with Wire(wire.port, admin["access_token"]) as dba:
        names = dba.run("SELECT user_id, role FROM system.users ORDER BY user_id").rows
    assert [row for row in names if row[0] != "eve"] == [["admin", "dba"], ["root", "system"]]
