"""`POST /dummy-signin`, the sign-in of development servers, and `GET /health`.

Written from the device sync contract, sections 1.1, 1.4 and 1.5.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from upwell.testing import ServerProcess
from upwell.testing.sync_world import Handset, World, key, now_s, upsert
from upwell.testing.wire import Site

SIGNIN = "/dummy-signin"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A development server."""
    directory: Path = tmp_path_factory.mktemp("dev") / "data"
    with ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4"}, args=["--dev"]) as server:
        with World(server) as world:
            yield world
        assert "Traceback" not in server.log_text(), server.log_tail()


def signed_in(world: World, **body: Any) -> dict[str, Any]:
    answer = world.http.post(SIGNIN, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert set(found) == {"token", "expires_in", "user", "device"}
    return found


def test_any_password_gives_a_token_of_five_minutes(world: World) -> None:
    before = now_s()
    found = signed_in(world, user="alice", password="any", device="phone")
    assert (found["user"], found["device"], found["expires_in"]) == ("alice", "phone", 300)
    claims = jwt.decode(found["token"], world.server.jwt_secret, ["HS256"])
    assert (claims["sub"], claims["did"]) == ("alice", "phone")
    assert before + 300 <= claims["exp"] <= now_s() + 300
    phone = Handset(world.http, found["token"], world.ns)
    assert phone.put(upsert(1, "users", key(1), name="n")) == [1]
    assert world.sql("alice", "SELECT name FROM {ns}.users") == [{"name": "n"}]


def test_a_device_without_a_name_gets_one_of_its_own(world: World) -> None:
    names = [signed_in(world, user="alice", **extra)["device"] for extra in ({}, {"device": ""})]
    assert len(set(names)) == 2
    for name in names:
        assert re.fullmatch(r"device-[0-9a-z]+", name)


def test_a_token_opens_the_device_endpoints_and_nothing_else(world: World) -> None:
    token = signed_in(world, user="alice", device="phone")["token"]
    wire = world.wire(token)
    wire.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    assert wire.call("GET", "/v1/api/auth/me").status == 401
    assert wire.call("POST", "/v1/api/auth/device", {"device": "other"}).status == 401


@pytest.mark.parametrize("role", ["service", "dba", "system"])
def test_accounts_above_role_user_are_refused(world: World, role: str) -> None:
    for name in ("root", world.account(role)[0]):
        answer = world.http.post(SIGNIN, json={"user": name, "password": "p", "device": "phone"})
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
        assert set(answer.json()) == {"error", "message"}
    name, _ = world.account()
    assert signed_in(world, user=name, device="phone")["user"] == name


def test_what_it_can_not_read_it_refuses(world: World) -> None:
    def refusal(**options: Any) -> tuple[int, dict[str, str]]:
        answer = world.http.post(SIGNIN, **options)
        return answer.status_code, answer.json()

    required = {"error": "invalid_request", "message": "user required"}
    assert refusal(json={}) == refusal(json={"user": "", "device": "d"}) == (400, required)
    unreadable = {"error": "invalid_request", "message": "invalid JSON"}
    for content in (b"", b"{", b"[]", b'{"user":7}', b'{"user":"\xff"}', b"[" * 10_000):
        assert refusal(content=content) == (400, unreadable), content
    assert refusal(json={"user": "a", "device": "x" * 257})[0] == 400
    assert refusal(json={"user": "x" * 257})[0] == 400
    assert refusal(json={"user": "x" * 100_000})[0] == 413
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = world.http.request(method, SIGNIN)
        assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")


def test_health_is_open_and_says_healthy(world: World) -> None:
    answer = world.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "healthy")
    assert answer.headers["content-type"] == "application/json"


def test_without_dev_there_is_no_such_path(site: Site) -> None:
    wire = site.wire()
    for method in ("POST", "GET"):
        answer = wire.call(method, SIGNIN, {"user": "alice", "password": "p", "device": "d"})
        unknown = wire.call(method, "/no-such-path", {})
        assert (answer.status, answer.json["error"]) == (404, "not_found")
        assert (answer.status, set(answer.json)) == (unknown.status, set(unknown.json))
