"""Signing in and tokens: who gets in, and every way in which a stranger does not.

Written from the reference contract, sections 1.2, 1.7, 5.1–5.4, and scenarios A1–A6.
"""

import base64
import hmac
import json
import time
from datetime import datetime
from typing import Any

import jwt
import pytest

from upwell.testing.wire import PASSWORD, SQL, Answer, Site, Wire

INVALID = (401, "INVALID_CREDENTIALS", "Invalid credentials")


def _claims(site: Site, sub: str, role: str, /, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "sub": sub,
        "iss": "kalamdb",
        "iat": now,
        "exp": now + 600,
        "email": None,
        "role": role,
        "token_type": "access",
    }
    return {name: value for name, value in (claims | changes).items() if value is not ...}


def _signed(
    site: Site, claims: dict[str, Any], *, secret: str | None = None, algorithm: str = "HS256"
) -> str:
    return jwt.encode(claims, secret or site.server.jwt_secret, algorithm)


def _ask(site: Site, authorization: str | None) -> Answer:
    headers = {} if authorization is None else {"Authorization": authorization}
    return site.wire().call("POST", SQL, {"sql": "SELECT 1"}, headers=headers)


def _fault(answer: Answer) -> tuple[int, str, str]:
    error = answer.json["error"]
    return answer.status, error["code"], answer.refused(answer.status, error["code"])


# Login


def test_a_login_gives_tokens_and_the_account(site: Site) -> None:
    name, _ = site.account("dba")
    answer = site.wire().call("POST", "/v1/api/auth/login", {"user": name, "password": PASSWORD})
    body = answer.json
    assert set(body) == {
        "user",
        "admin_ui_access",
        "expires_at",
        "access_token",
        "refresh_token",
        "refresh_expires_at",
    }
    assert {key: body["user"][key] for key in ("id", "role", "email")} == {
        "id": name,
        "role": "dba",
        "email": None,
    }
    for moment in (body["user"]["created_at"], body["user"]["updated_at"], body["expires_at"]):
        assert datetime.fromisoformat(moment).utcoffset() is not None
        assert moment.endswith("+00:00")
    assert body["admin_ui_access"] is True
    claims = jwt.decode(body["access_token"], site.server.jwt_secret, ["HS256"], issuer="kalamdb")
    # The contract's, and our own `era`: which account of this name it was given to.
    assert set(claims) == {"sub", "iss", "exp", "iat", "email", "role", "token_type", "era"}
    assert (claims["sub"], claims["role"], claims["token_type"]) == (name, "dba", "access")
    assert claims["exp"] - claims["iat"] == 24 * 3600
    refresh = jwt.decode(body["refresh_token"], site.server.jwt_secret, ["HS256"], issuer="kalamdb")
    assert refresh["token_type"] == "refresh"
    assert refresh["exp"] - refresh["iat"] == 7 * 24 * 3600


def test_a_login_sets_two_cookies_that_scripts_cannot_read(site: Site) -> None:
    wire = site.wire()
    body = json.dumps({"user": "root", "password": site.server.root_password}).encode()
    wire._connection.request("POST", "/v1/api/auth/login", body, {"Content-Type": "application/json"})
    answer = wire._connection.getresponse()
    answer.read()
    cookies = answer.headers.get_all("set-cookie") or []
    assert sorted(cookie.split("=")[0] for cookie in cookies) == ["kalamdb_auth", "kalamdb_refresh"]
    for cookie in cookies:
        assert "httponly" in cookie.lower()
        assert "samesite=strict" in cookie.lower()
        assert "path=/" in cookie.lower()


def test_the_alias_username_is_understood(site: Site) -> None:
    body = {"username": "root", "password": site.server.root_password}
    assert site.wire().call("POST", "/v1/api/auth/login", body).json["user"]["id"] == "root"


def test_wrong_password_and_unknown_user_look_the_same(site: Site) -> None:
    wrong = site.wire().call("POST", "/v1/api/auth/login", {"user": "root", "password": "wrong"})
    unknown = site.wire().call("POST", "/v1/api/auth/login", {"user": "nobody", "password": "wrong"})
    assert wrong.status == unknown.status == 401
    assert wrong.json == unknown.json == {"error": "unauthorized", "message": "Invalid credentials"}
    assert "set-cookie" not in wrong.headers


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"user": 1, "password": "x"}',
        b'{"user": "root"}',
        b'{"password": "x"}',
        b'{"user": "root", "password": null}',
        b'{"user": "root", "password": "x", "colour": "red"}',
        b'{"user": "\\ud800", "password": "x"}',
        b'{"user": "\xff", "password": "x"}',
        json.dumps({"user": "u" * 129, "password": "x"}).encode(),
        json.dumps({"user": "root", "password": "x" * 257}).encode(),
    ],
)
def test_odd_login_bodies_are_refused(site: Site, raw: bytes) -> None:
    answer = site.wire().call("POST", "/v1/api/auth/login", raw=raw)
    assert answer.status == 400
    assert set(answer.json) == {"error", "message"}


def test_a_password_may_be_any_text(site: Site) -> None:
    for number, password in enumerate(["pass'word", "ünïcode ✓ パス", "x" * 72, " leading", "a\\b"]):
        name = f"odd_password_{number}"
        site.root.run(
            "CREATE USER " + name + " WITH PASSWORD '" + password.replace("'", "''") + "' ROLE user"
        )
        assert site.login(name, password)["user"]["id"] == name
        answer = site.wire().call("POST", "/v1/api/auth/login", {"user": name, "password": password + "x"})
        # bcrypt reads 72 bytes; what comes after must not open the account either.
        assert answer.status == 401, password


def test_an_empty_password_is_refused(site: Site) -> None:
    site.root.sql("CREATE USER blank WITH PASSWORD '' ROLE user").refused(400, "SQL_EXECUTION_ERROR")
    assert site.root.run("SELECT user_id FROM system.users WHERE user_id = 'blank'").rows == []


def test_an_account_without_a_password_cannot_log_in(site: Site) -> None:
    site.root.run("CREATE USER machine WITH INTERNAL ROLE service")
    for password in ("", "x", "nobody"):
        answer = site.wire().call("POST", "/v1/api/auth/login", {"user": "machine", "password": password})
        assert answer.status == 401


# Refresh, me, logout


def test_a_refresh_token_gives_a_fresh_login(site: Site) -> None:
    name, _ = site.account()
    login = site.login(name)
    answer = site.wire(login["refresh_token"]).call("POST", "/v1/api/auth/refresh")
    assert answer.status == 200
    assert set(answer.json) == set(login)
    assert site.wire(answer.json["access_token"]).run("SELECT CURRENT_USER()").cell == name
    cookie = {"Cookie": f"kalamdb_refresh={login['refresh_token']}"}
    assert site.wire().call("POST", "/v1/api/auth/refresh", headers=cookie).json["user"]["id"] == name


def test_an_access_token_does_not_refresh(site: Site) -> None:
    answer = site.wire(site.root.token).call("POST", "/v1/api/auth/refresh")
    assert answer.status == 401
    assert answer.json["message"] == "Refresh endpoint requires a refresh token"
    assert site.wire().call("POST", "/v1/api/auth/refresh").status == 401


def test_a_refresh_token_of_another_role_is_refused(site: Site) -> None:
    name, _ = site.account()
    token = _signed(site, _claims(site, name, "dba", token_type="refresh"))
    answer = site.wire(token).call("POST", "/v1/api/auth/refresh")
    assert answer.status == 401
    assert answer.json["message"] == "Token role does not match user role"


@pytest.mark.parametrize("changes", [{"iss": "somebody"}, {"exp": 1}, {"sub": "nobody"}, {"iss": ...}])
def test_a_refresh_token_is_checked_like_any_other(site: Site, changes: dict[str, Any]) -> None:
    token = _signed(site, _claims(site, "root", "system", token_type="refresh", **changes))
    assert site.wire(token).call("POST", "/v1/api/auth/refresh").status == 401


def test_me_tells_who_i_am(site: Site) -> None:
    name, wire = site.account("service")
    answer = wire.call("GET", "/v1/api/auth/me")
    assert answer.json["user"]["id"] == name
    assert answer.json["user"]["role"] == "service"
    assert answer.json["admin_ui_access"] is False
    by_cookie = site.wire().call("GET", "/v1/api/auth/me", headers={"Cookie": f"kalamdb_auth={wire.token}"})
    assert by_cookie.json == answer.json
    assert site.wire().call("GET", "/v1/api/auth/me").status == 401
    assert site.wire().call("GET", "/v1/api/auth/me", authorization="Basic cm9vdDp4").status == 401


def test_a_logout_expires_the_cookies(site: Site) -> None:
    answer = site.wire().call("POST", "/v1/api/auth/logout")
    assert answer.status == 200
    assert answer.json == {"message": "Logged out successfully"}
    assert "Max-Age=0" in answer.headers["set-cookie"]


# Tokens


def test_without_a_header(site: Site) -> None:
    assert _fault(_ask(site, None)) == (401, "MISSING_AUTHORIZATION", "Authentication required")


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic cm9vdDpyb290",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer ...",
        "Digest x",
        "x",
        "Bearer " + "x" * 8_000,
        "Bearer \xff\xfe",
    ],
)
def test_what_is_no_token(site: Site, authorization: str) -> None:
    assert _fault(_ask(site, authorization)) == INVALID


def test_a_token_of_our_own_making_is_accepted(site: Site) -> None:
    """What the next tests change is what they fail for."""
    assert _ask(site, "Bearer " + _signed(site, _claims(site, "root", "system"))).status == 200
    assert _ask(site, "bearer " + _signed(site, _claims(site, "root", "system"))).status == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"iss": ...},
        {"sub": ...},
        {"sub": ""},
        {"sub": "nobody"},
        {"sub": 5},
        {"role": ...},
        {"role": "user"},
        {"role": "SYSTEM"},
        {"role": None},
        {"token_type": "refresh"},
        {"token_type": ...},
        {"did": "phone"},
        {"exp": "soon"},
        {"exp": None},
    ],
    ids=str,
)
def test_tokens_with_other_claims(site: Site, changes: dict[str, Any]) -> None:
    assert (
        _fault(_ask(site, "Bearer " + _raw_token(site, _claims(site, "root", "system", **changes))))
        == INVALID
    )


def test_a_token_that_never_ends_is_refused(site: Site) -> None:
    assert _fault(_ask(site, "Bearer " + _signed(site, _claims(site, "root", "system", exp=...)))) == INVALID


@pytest.mark.parametrize("wait_s", [0, 1])
def test_an_expired_token(site: Site, wait_s: int) -> None:
    now = int(time.time())
    token = _signed(site, _claims(site, "root", "system", exp=now - 61 - wait_s, iat=now - 600))
    for _ in range(2):
        assert _fault(_ask(site, "Bearer " + token)) == (401, "TOKEN_EXPIRED", "Invalid credentials")
    within_leeway = _signed(site, _claims(site, "root", "system", exp=now - 20, iat=now - 600))
    assert _ask(site, "Bearer " + within_leeway).status == 200


def test_a_token_for_later_is_refused(site: Site) -> None:
    token = _signed(site, _claims(site, "root", "system", nbf=int(time.time()) + 3_600))
    assert _fault(_ask(site, "Bearer " + token)) == INVALID


def test_a_token_of_another_secret_or_algorithm(site: Site) -> None:
    claims = _claims(site, "root", "system")
    other = "another-secret-of-more-than-thirty-two-bytes-and-then-some-for-sha-512-too"
    assert _fault(_ask(site, "Bearer " + _signed(site, claims, secret=other))) == INVALID
    # HS512 with the right secret is still not the algorithm that we sign with.
    assert _fault(_ask(site, "Bearer " + _raw_token(site, claims, algorithm="HS512"))) == INVALID
    for name in ("none", "None", "NONE", ""):
        head, body = _part({"alg": name, "typ": "JWT"}), _part(claims)
        for signature in ("", _signed(site, claims).split(".")[2]):
            assert _fault(_ask(site, f"Bearer {head}.{body}.{signature}")) == INVALID


def test_a_token_whose_body_was_changed(site: Site) -> None:
    name, wire = site.account()
    assert wire.token is not None
    head, _, signature = wire.token.split(".")
    raised = _part(_claims(site, name, "system"))
    assert _fault(_ask(site, f"Bearer {head}.{raised}.{signature}")) == INVALID


def test_a_role_above_the_account_is_refused_although_signed(site: Site) -> None:
    name, _ = site.account("service")
    for role in ("user", "dba", "system"):
        assert _fault(_ask(site, "Bearer " + _signed(site, _claims(site, name, role)))) == INVALID


def test_a_refresh_token_is_no_access_token(site: Site) -> None:
    token = site.login("root", site.server.root_password)["refresh_token"]
    assert _fault(_ask(site, f"Bearer {token}")) == INVALID
    assert site.wire(token).call("GET", "/v1/api/auth/me").status == 401


def test_cookies_do_not_open_the_sql_endpoint(site: Site) -> None:
    cookie = {"Cookie": f"kalamdb_auth={site.root.token}"}
    answer = site.wire().call("POST", SQL, {"sql": "SELECT 1"}, headers=cookie)
    assert _fault(answer)[1] == "MISSING_AUTHORIZATION"


# Device tokens


def test_a_device_token_opens_the_device_endpoints_only(site: Site) -> None:
    name, wire = site.account()
    answer = wire.call("POST", "/v1/api/auth/device", {"device": "phone-1"})
    assert answer.status == 200
    token = answer.json["token"]
    claims = jwt.decode(token, site.server.jwt_secret, ["HS256"], issuer="kalamdb")
    assert (claims["sub"], claims["did"]) == (name, "phone-1")
    phone = site.wire(token)
    assert phone.call("GET", "/sync/schema-version").status == 200
    assert _fault(phone.call("POST", SQL, {"sql": "SELECT 1"})) == INVALID
    assert phone.call("GET", "/v1/api/auth/me").status == 401
    assert phone.call("POST", "/v1/api/auth/refresh").status == 401
    assert phone.call("POST", "/v1/api/auth/device", {"device": "phone-2"}).status == 401


def test_an_access_token_does_not_open_the_device_endpoints(site: Site, alice: Wire) -> None:
    assert alice.call("POST", "/sync/upload", {"changes": []}).status == 401
    assert alice.call("GET", "/sync/download").status == 401


@pytest.mark.parametrize(
    "body", [{}, {"device": ""}, {"device": 5}, {"device": None}, {"device": "x" * 10_000}]
)
def test_odd_device_names_are_refused(site: Site, alice: Wire, body: object) -> None:
    assert alice.call("POST", "/v1/api/auth/device", body).status == 400


@pytest.mark.parametrize("role", ["service", "dba"])
def test_device_tokens_are_for_users_only(site: Site, role: str) -> None:
    _, wire = site.account(role)
    assert wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).status == 403


# Health


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/v1/api/healthcheck"])
def test_health_needs_no_credentials(site: Site, path: str) -> None:
    answer = site.wire().call("GET", path)
    assert answer.status == 200
    assert answer.json["status"] == "healthy"
    assert answer.json["api_version"] == "v1"
    assert all(isinstance(value, str) for value in answer.json.values())
    assert {"status", "version", "api_version", "build_date"} <= set(answer.json)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/api/sql/", "/v1/api/nothing", "/../etc/passwd", "/%00", "//health"]
)
def test_unknown_paths_are_not_found(site: Site, path: str) -> None:
    answer = site.wire().call("GET", path)
    assert answer.status == 404
    assert set(answer.json) == {"error", "message"}


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _raw_token(site: Site, claims: dict[str, Any], *, algorithm: str = "HS256") -> str:
    """Sign what a careful library would refuse to sign."""
    signed = f"{_part({'alg': algorithm, 'typ': 'JWT'})}.{_part(claims)}"
    digest = hmac.digest(site.server.jwt_secret.encode(), signed.encode(), algorithm.replace("HS", "sha"))
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
