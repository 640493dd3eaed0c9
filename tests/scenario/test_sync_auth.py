"""Who may use `/sync/…`: devices with a token of a user, and nobody else; such a token opens nothing else.

Written from the device sync contract, sections 1.3, 1.5 and 7.
"""

from collections.abc import Iterator

import httpx
import jwt
import pytest

from upwell.testing.sync_world import World, key, now_s, upsert
from upwell.testing.wire import PASSWORD, Site

PATHS = [
    ("POST", "/sync/upload"),
    ("GET", "/sync/download"),
    ("GET", "/sync/hydrate"),
    ("GET", "/sync/schema-version"),
]
OTHER_SECRET = "another-secret-with-more-than-32-bytes-in-it"


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def status(world: World, method: str, path: str, authorization: str | None) -> int:
    """Send a valid request with this header; a refusal has to be the contract's JSON."""
    headers = {} if authorization is None else {"authorization": authorization}
    body = {"json": {"changes": []}} if method == "POST" else {}
    answer = world.http.request(method, path, headers=headers, **body)
    if answer.status_code != 200:
        assert answer.json()["error"] == "authentication_failed"
        assert set(answer.json()) == {"error", "message"}
    return answer.status_code


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_only_a_device_token_opens_the_sync(world: World, method: str, path: str) -> None:
    user = world.user()
    good = world.token(user, "phone")
    tokens = {
        "of another secret": jwt.encode({"sub": user, "did": "phone"}, OTHER_SECRET, "HS256"),
        "unsigned": jwt.encode({"sub": user, "did": "phone"}, "", "none"),
        "without device": jwt.encode({"sub": user}, world.server.jwt_secret, "HS256"),
        "with an empty device": world.token(user, ""),
        "of nobody": world.token("", "phone"),
        "without user": jwt.encode({"did": "phone"}, world.server.jwt_secret, "HS256"),
        "expired": world.token(user, "phone", exp=now_s() - 1),
        "not valid yet": world.token(user, "phone", nbf=now_s() + 3600),
        "with a number as device": jwt.encode({"sub": user, "did": 7}, world.server.jwt_secret, "HS256"),
        "with a number as user": jwt.encode({"sub": 7, "did": "phone"}, world.server.jwt_secret, "HS256"),
        "garbage": "garbage",
        "cut": good[:-4],
        "an access token": world.account()[1].token or "",
    }
    for name, token in tokens.items():
        assert status(world, method, path, f"Bearer {token}") == 401, name
    for header in (None, "", "Bearer", f"Basic {good}", good):
        assert status(world, method, path, header) == 401, header
    for token in (good, world.token(user, "phone", exp=now_s() + 3600, iat=now_s(), iss="go-oversync")):
        assert status(world, method, path, f"Bearer {token}") == 200


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("claim", ["sub", "did"])
def test_a_name_that_would_fill_the_log_is_refused(world: World, claim: str, method: str, path: str) -> None:
    claims = {"sub": world.user(), "did": "phone"}
    body = {"json": {"changes": []}} if method == "POST" else {}

    def asked(name: str) -> httpx.Response:
        token = jwt.encode({**claims, claim: name}, world.server.jwt_secret, "HS256")
        return world.http.request(method, path, headers={"authorization": f"Bearer {token}"}, **body)

    assert asked("é" * 256).status_code == 200
    for name in ("é" * 257, "x" * 30_000):
        answer = asked(name)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
        assert f"the token's {claim} has more than 256 characters" in answer.json()["message"]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_an_apps_own_back_end_may_sign_with_any_hmac(world: World, algorithm: str) -> None:
    claims, secret = {"sub": world.user(), "did": "phone"}, world.server.jwt_secret
    assert status(world, "GET", "/sync/download", f"Bearer {jwt.encode(claims, secret, algorithm)}") == 200
    forged = jwt.encode(claims, OTHER_SECRET, algorithm)
    assert status(world, "GET", "/sync/download", f"Bearer {forged}") == 401


def test_a_refused_upload_writes_nothing(world: World) -> None:
    user = world.user()
    body = {"changes": [{**upsert(1, "users", key(1), name="n"), "schema": world.ns}]}
    token = jwt.encode({"sub": user, "did": "phone"}, OTHER_SECRET, "HS256")
    answer = world.http.post("/sync/upload", json=body, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert world.handset(user).log() == []


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_wrong_method_is_not_allowed(world: World, method: str, path: str) -> None:
    phone = world.handset()
    for wrong in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {method}:
        answer = phone.call(wrong, path)
        assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")
    assert phone.call("GET", path + "/more").status_code == 404


def test_a_logged_in_user_gets_a_token_for_each_device(world: World) -> None:
    name, alice = world.account()
    for device in ("phone", "Ünïcode 🌊", "x" * 256):
        answer = alice.call("POST", "/v1/api/auth/device", {"device": device})
        assert answer.status == 200
        body = answer.json
        assert (body["user"], body["device"], body["expires_in"] > 3600) == (name, device, True)
        claims = jwt.decode(body["token"], world.server.jwt_secret, ["HS256"])
        assert (claims["sub"], claims["did"]) == (name, device)
        assert status(world, "POST", "/sync/upload", f"Bearer {body['token']}") == 200
    for device in ("", "x" * 257):
        assert alice.call("POST", "/v1/api/auth/device", {"device": device}).status == 400
    for raw in (b"", b"{}", b"not json", b'{"device":7}'):
        assert alice.call("POST", "/v1/api/auth/device", raw=raw).status == 400
    assert world.wire().call("POST", "/v1/api/auth/device", {"device": "phone"}).status == 401


@pytest.mark.parametrize("role", ["service", "dba", "system"])
def test_accounts_above_role_user_are_no_devices(world: World, role: str) -> None:
    name, wire = world.account(role)
    assert wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).status == 403
    assert status(world, "GET", "/sync/download", f"Bearer {world.token(name, 'phone')}") == 401
    assert status(world, "GET", "/sync/download", f"Bearer {world.token('root', 'phone')}") == 401


def test_a_name_that_begins_anew_is_not_open_to_the_phones_of_before(world: World) -> None:
    name, wire = world.account()
    before = wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"]
    assert status(world, "GET", "/sync/download", f"Bearer {before}") == 200
    world.root.execute(f"DROP USER '{name}'")
    assert status(world, "GET", "/sync/download", f"Bearer {world.token(name, 'phone')}") == 401
    _, wire = world.account(name=name)  # within the same second, as a rule
    for method, path in PATHS:
        assert status(world, method, path, f"Bearer {before}") == 401
    (row,) = world.root.query(f"SELECT created_at FROM system.users WHERE user_id = '{name}'")
    created_s = int(row["created_at"].timestamp())
    for issued_s, expected in ((created_s - 5, 401), (created_s, 401), (created_s + 1, 200), (None, 401)):
        claims = {} if issued_s is None else {"iat": issued_s}
        token = world.token(name, "phone", **claims)
        assert status(world, "GET", "/sync/download", f"Bearer {token}") == expected
    device = wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"]
    assert status(world, "GET", "/sync/download", f"Bearer {device}") == 200


def test_a_device_token_opens_nothing_but_the_sync(world: World) -> None:
    _, alice = world.account()
    device = alice.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"]
    access = jwt.decode(alice.token or "", world.server.jwt_secret, ["HS256"])
    # Neither as it is, nor with all the claims of an access token beside its device.
    for token in (device, jwt.encode({**access, "did": "phone"}, world.server.jwt_secret, "HS256")):
        wire = world.wire(token)
        wire.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
        assert wire.call("POST", "/v1/api/auth/device", {"device": "other"}).status == 401
        assert wire.call("GET", "/v1/api/auth/me").status == 401
        assert wire.call("POST", "/v1/api/auth/refresh").status == 401
    assert alice.run("SELECT 1").status == 200


def test_an_apps_own_user_needs_no_account(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    assert phone.put(upsert(1, "users", key(1), name="n")) == [1]
    assert [row["name"] for row in world.sql(user, "SELECT name FROM {ns}.users")] == ["n"]


def test_what_a_user_uploaded_is_theirs_when_the_account_comes_later(world: World) -> None:
    user = world.user()
    world.handset(user).put(upsert(1, "users", key(1), name="n"))
    _, wire = world.account(name=user)
    assert wire.run(f"SELECT name FROM {world.ns}.users").rows == [["n"]]


def test_a_phone_signs_in_with_a_password(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    name, _ = world.account()
    phone = world.phone(tmp_path_factory.mktemp("phone"), name)
    phone.device.sign_out()
    phone.run("INSERT INTO users (id, name) VALUES (?, 'offline')", key(1))
    phone.device.sign_in(world.server.url, name, password=PASSWORD)
    assert phone.device.sync().upload.applied == 1
    phone.check()
