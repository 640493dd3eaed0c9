"""Accounts by SQL: made, changed and dropped, by whom, and what the audit log says of it.

Written from the reference contract, sections 3.9, 4 and 5.3, and scenarios A6, A17–A22 and Y7.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from upwell.testing import ServerProcess
from upwell.testing.websocket import Socket
from upwell.testing.wire import PASSWORD, Answer, Site, Wire

LOGIN = "/v1/api/auth/login"


def _name(word: str = "u") -> str:
    return f"{word}_{uuid.uuid4().hex[:8]}"


def _log_in(site: Site, user: str, password: str) -> Answer:
    return site.wire().call("POST", LOGIN, {"user": user, "password": password})


def _user(site: Site, name: str) -> dict[str, Any]:
    answer = site.root.run(f"SELECT * FROM system.users WHERE user_id = '{name}'")
    return answer.by_key[name]


def _audit(site: Site, target: str) -> list[tuple[str, str, Any]]:
    """Return (action, actor, details) of what the log has on `target`."""
    answer = site.root.run(
        "SELECT action, actor_user_id, details FROM system.audit_log WHERE target = $1 ORDER BY audit_id",
        target,
    )
    return [(row[0], row[1], json.loads(row[2]) if row[2] else None) for row in answer.rows]


def test_the_messages_are_the_contracts(site: Site) -> None:
    name = _name()
    assert (
        site.root.run(f"CREATE USER {name} WITH PASSWORD 'x' ROLE user").message == f"User '{name}' created"
    )
    again = site.root.sql(f"CREATE USER {name} WITH PASSWORD 'x' ROLE user")
    assert f"Already exists: User '{name}' already exists" in again.refused(400, "SQL_EXECUTION_ERROR")
    assert site.root.run(f"ALTER USER {name} SET PASSWORD 'y'").message == f"User '{name}' updated"
    assert site.root.run(f"DROP USER '{name}'").message == f"User '{name}' dropped (soft delete)"
    gone = site.root.sql(f"DROP USER {name}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Not found: User '{name}' not found" in gone
    skipped = site.root.run(f"DROP USER IF EXISTS {name}").message
    assert skipped == f"User '{name}' does not exist (skipped)"
    missing = site.root.sql(f"ALTER USER {name} SET EMAIL 'e'").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Not found: User '{name}' not found" in missing


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("dba", "dba"), ("'admin'", "dba"), ("developer", "service"), ("'analyst'", "service"),
        ("SERVICE", "service"), ("viewer", "user"), ("readonly", "user"), ("'user'", "user"),
        ("system", "system"),
    ],
)  # fmt: skip
def test_roles_have_aliases(site: Site, written: str, role: str) -> None:
    name = _name()
    site.root.run(f"CREATE USER {name} WITH PASSWORD 'x' ROLE {written} EMAIL 'a@example.com'")
    assert (_user(site, name)["role"], _user(site, name)["email"]) == (role, "a@example.com")


@pytest.mark.parametrize(
    "text",
    [
        "CREATE USER U WITH PASSWORD 'x'",
        "CREATE USER U WITH PASSWORD 'x' ROLE emperor",
        "CREATE USER U ROLE user",
        "CREATE USER U WITH PASSWORD x ROLE user",
        "CREATE USER IF NOT EXISTS U WITH PASSWORD 'x' ROLE user",
        "CREATE USER '' WITH PASSWORD 'x' ROLE user",
        f"CREATE USER '{'u' * 129}' WITH PASSWORD 'x' ROLE user",
        "CREATE USER U WITH OAUTH ROLE user",
        "CREATE USER U WITH OAUTH 'google' ROLE user",
        'CREATE USER U WITH OAUTH \'{"provider":"google"}\' ROLE user',
        'CREATE USER U WITH OAUTH \'{"subject":"1"}\' ROLE user',
        'CREATE USER U WITH OAUTH \'{"provider":"","subject":"1"}\' ROLE user',
        "ALTER USER U",
        "ALTER USER U SET COLOUR 'red'",
        "ALTER USER U SET PASSWORD 'x' SET ROLE dba",
        "DROP USER",
        "DROP USER ''",
        "EXECUTE AS USER '' (SELECT 1)",
    ],
)
def test_what_is_no_statement_about_users(site: Site, text: str) -> None:
    name = _name()
    site.root.sql(text.replace("U", name) if " U" in text else text).refused(400, "INVALID_SQL")
    assert site.root.run("SELECT COUNT(*) FROM system.users WHERE user_id = $1", name).cell == "0"


def test_a_changed_password_replaces_the_old_one(site: Site) -> None:
    name, _ = site.account()
    site.root.run(f"ALTER USER {name} SET PASSWORD 'the-new-one'")
    assert _log_in(site, name, PASSWORD).status == 401
    assert _log_in(site, name, "the-new-one").status == 200
    wire = site.wire(site.login(name, "the-new-one")["access_token"])
    wire.run(f"ALTER USER {name} SET PASSWORD 'my-own-choice'")
    wire = site.wire(site.login(name, "my-own-choice")["access_token"])
    wire.run(f"ALTER USER {name} SET EMAIL 'me@example.com'")
    assert _user(site, name)["email"] == "me@example.com"
    assert _log_in(site, name, "my-own-choice").json["user"]["email"] == "me@example.com"


def test_a_new_password_ends_the_tokens_of_before(site: Site) -> None:
    name, wire = site.account()
    login, device = site.login(name), wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).json
    site.root.run(f"ALTER USER {name} SET EMAIL 'new@example.com'")
    wire.run("SELECT 1")
    wire.run(f"ALTER USER {name} SET PASSWORD 'another-password'")
    wire.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    refresh = site.wire(login["refresh_token"]).call("POST", "/v1/api/auth/refresh")
    assert (refresh.status, refresh.json["error"]) == (401, "unauthorized")
    fresh = site.login(name, "another-password")
    assert site.wire(fresh["access_token"]).run("SELECT CURRENT_USER()").cell == name
    again = site.wire(fresh["refresh_token"]).call("POST", "/v1/api/auth/refresh").json
    assert site.wire(again["access_token"]).run("SELECT CURRENT_USER()").cell == name
    offline = site.wire(device["token"]).call("GET", "/sync/schema-version")
    assert offline.status == 200, "what is on the device has to come up"


@pytest.mark.parametrize("role", ["user", "service"])
def test_ordinary_roles_change_nothing_but_themselves(site: Site, role: str) -> None:
    name, wire = site.account(role)
    other, _ = site.account()
    for text in (
        f"CREATE USER {_name()} WITH PASSWORD 'x' ROLE user",
        f"DROP USER {other}",
        f"DROP USER IF EXISTS {other}",
        "DROP USER IF EXISTS nobody_at_all",
        f"ALTER USER {name} SET ROLE dba",
        f"ALTER USER {name} SET ROLE {role}",
        f"ALTER USER {other} SET PASSWORD 'x'",
        f"ALTER USER {other} SET EMAIL 'x'",
        f"ALTER USER {other} SET ROLE service",
        "ALTER USER root SET PASSWORD 'x'",
        "ALTER USER nobody_at_all SET PASSWORD 'x'",
        f"SELECT 1; ALTER USER {other} SET ROLE service",
        f"EXECUTE AS USER '{name}' (ALTER USER {name} SET ROLE dba)",
    ):
        assert wire.sql(text).status in (400, 403), text
    assert _user(site, name)["role"] == role
    assert _user(site, other)["role"] == "user"
    message = wire.sql(f"ALTER USER {other} SET PASSWORD 'x'").refused(403, "PERMISSION_DENIED")
    assert "Only admins can change other users' passwords" in message
    message = wire.sql(f"ALTER USER {name} SET ROLE dba").refused(403, "PERMISSION_DENIED")
    assert "Only admins can change roles" in message


def test_nobody_reaches_above_their_own_role(site: Site) -> None:
    name, dba = site.account("dba")
    emperor, _ = site.account("system")
    for text in (
        f"CREATE USER {_name()} WITH PASSWORD 'x' ROLE system",
        f"ALTER USER {name} SET ROLE system",
        f"ALTER USER {emperor} SET PASSWORD 'x'",
        f"ALTER USER {emperor} SET EMAIL 'x'",
        f"ALTER USER {emperor} SET ROLE user",
        f"DROP USER {emperor}",
        "ALTER USER root SET PASSWORD 'x'",
        "DROP USER root",
    ):
        assert dba.sql(text).status in (400, 403), text
    assert (_user(site, emperor)["role"], _user(site, name)["role"]) == ("system", "dba")
    site.root.sql("DROP USER root").refused(400, "SQL_EXECUTION_ERROR")
    site.root.sql("ALTER USER root SET ROLE user").refused(400, "SQL_EXECUTION_ERROR")
    dba.sql(f"DROP USER {name}").refused(400, "SQL_EXECUTION_ERROR")
    service, _ = site.account("service")
    dba.run(f"ALTER USER {service} SET ROLE user")
    assert _user(site, service)["role"] == "user"


def test_a_changed_role_ends_the_tokens_of_the_old_one(site: Site) -> None:
    name, wire = site.account("user")
    refresh = site.login(name)["refresh_token"]
    site.root.run(f"ALTER USER {name} SET ROLE service")
    wire.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    assert site.wire(refresh).call("POST", "/v1/api/auth/refresh").status == 401
    assert site.wire(site.login(name)["access_token"]).run("SELECT CURRENT_ROLE()").cell == "service"


def test_a_dropped_user_is_out_and_stays_listed(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY)")
    name, wire = site.account()
    login = site.login(name)
    phone = site.wire(wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"])
    assert phone.call("GET", "/sync/schema-version").status == 200
    wire.run(f"INSERT INTO {namespace}.t VALUES (1)")
    site.root.run(f"DROP USER {name}")
    wire.sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    assert _log_in(site, name, PASSWORD).json == {"error": "unauthorized", "message": "Invalid credentials"}
    assert site.wire(login["refresh_token"]).call("POST", "/v1/api/auth/refresh").status == 401
    assert phone.call("GET", "/sync/schema-version").status == 401
    row = _user(site, name)
    assert row["deleted_at"] is not None
    assert row["password_hash"] == ""


def test_a_name_may_begin_anew_and_old_tokens_do_not_open_it(site: Site) -> None:
    name = _name()
    site.root.run(f"CREATE USER {name} WITH PASSWORD 'x' ROLE user")
    first = _log_in(site, name, "x").json
    # Within a second, as a rule, which is how tokens tell their time.
    site.root.run(f"DROP USER {name}; CREATE USER {name} WITH PASSWORD 'second' ROLE user")
    site.wire(first["access_token"]).sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
    created_s = _user(site, name)["created_at"] // 1_000_000
    claims = {"sub": name, "iss": "kalamdb", "role": "user", "token_type": "access", "exp": created_s + 9_999}
    before = jwt.encode(claims | {"iat": created_s - 5}, site.server.jwt_secret, "HS256")
    after = jwt.encode(claims | {"iat": created_s + 1}, site.server.jwt_secret, "HS256")
    for _ in range(2):
        site.wire(before).sql("SELECT 1").refused(401, "INVALID_CREDENTIALS")
        assert site.wire(after).run("SELECT CURRENT_USER()").cell == name
    assert _log_in(site, name, "x").status == 401
    assert _log_in(site, name, "second").json["user"]["role"] == "user"
    assert _user(site, name)["deleted_at"] is None


def test_users_have_the_contracts_columns(site: Site) -> None:
    name, _ = site.account()
    columns = [name for name, _ in site.root.run("SELECT * FROM system.users").columns]
    assert columns == [
        "user_id", "password_hash", "role", "email", "auth_type", "auth_data", "storage_mode", "storage_id",
        "failed_login_attempts", "locked_until", "last_login_at", "created_at", "updated_at", "last_seen",
        "deleted_at",
    ]  # fmt: skip
    row = _user(site, name)
    assert (row["auth_type"], row["storage_mode"], row["failed_login_attempts"]) == ("password", "table", 0)
    assert row["created_at"] <= row["last_login_at"]
    assert "$2b$" not in site.root.run("SELECT * FROM system.users").body.decode()


def test_an_oauth_account_has_no_password(site: Site) -> None:
    name, identity = _name(), '{"provider":"google","subject":"123"}'
    site.root.run(f"CREATE USER {name} WITH OAUTH '{identity}' ROLE user")
    row = _user(site, name)
    assert (row["auth_type"], json.loads(row["auth_data"])) == ("oauth", json.loads(identity))
    assert _log_in(site, name, "").status == 401
    site.root.sql(f"ALTER USER {name} SET PASSWORD 'x'").refused(400, "SQL_EXECUTION_ERROR")


def test_five_wrong_passwords_lock_an_account(site: Site) -> None:
    name, wire = site.account()
    for count in range(1, 6):
        assert _log_in(site, name, "wrong").json["error"] == "unauthorized"
        assert _user(site, name)["failed_login_attempts"] == count
    for password in ("wrong", PASSWORD):
        locked = _log_in(site, name, password)
        assert (locked.status, locked.json["error"]) == (401, "account_locked")
        assert "15 minute(s)" in locked.json["message"]
    assert _user(site, name)["locked_until"] > _user(site, name)["created_at"]
    # A stranger's guesses put nobody out: what is signed in stays so, and an administrator can help.
    assert wire.run("SELECT 1").cell is not None
    site.root.run(f"ALTER USER {name} SET PASSWORD 'fresh-start'")
    assert _log_in(site, name, "fresh-start").status == 200
    assert _user(site, name)["failed_login_attempts"] == 0


def test_a_right_password_forgets_the_wrong_ones(site: Site) -> None:
    name, _ = site.account()
    for _ in range(2):
        for _ in range(4):
            assert _log_in(site, name, "wrong").status == 401
        assert _log_in(site, name, PASSWORD).status == 200


@pytest.mark.parametrize(
    "change",
    ["DROP USER {}", "ALTER USER {} SET ROLE service", "ALTER USER {} SET PASSWORD 'another-password'"],
)
def test_the_sockets_of_a_changed_account_end(site: Site, change: str) -> None:
    name, wire = site.account()
    other, _ = site.account()
    with (
        Socket(site.server.port, wire.token) as ended,
        Socket(site.server.port, site.login(other)["access_token"]) as kept,
    ):
        site.root.run(change.format(name))
        assert ended.message("auth_error")["message"]
        assert ended.closed()[0] == 1008
        kept.say(type="authenticate", method="jwt", token="", protocol={})
        assert kept.message("auth_success")["user"] == other


# The audit log


def test_the_log_has_who_did_what_without_the_password(site: Site) -> None:
    name, (boss, dba) = _name(), site.account("dba")
    dba.run(f"CREATE USER {name} WITH PASSWORD 'top-secret-1' ROLE user EMAIL 'e@example.com'")
    dba.run(f"ALTER USER {name} SET PASSWORD 'top-secret-2'")
    dba.run(f"ALTER USER {name} SET ROLE service")
    dba.run(f"DROP USER {name}")
    created = {"role": "user", "auth_type": "password", "email": "e@example.com", "password": "[REDACTED]"}
    assert _audit(site, name) == [
        ("CREATE_USER", boss, created),
        ("ALTER_USER", boss, {"password": "[REDACTED]"}),
        ("ALTER_USER", boss, {"role": "service"}),
        ("DROP_USER", boss, {}),
    ]
    everything = site.root.run("SELECT * FROM system.audit_log").body.decode()
    assert "top-secret" not in everything
    row = site.root.run("SELECT * FROM system.audit_log WHERE target = $1 LIMIT 1", name)
    assert [column for column, _ in row.columns] == [
        "audit_id", "timestamp", "actor_user_id", "action", "target", "details", "ip_address",
        "subject_user_id",
    ]  # fmt: skip
    assert row.rows[0][6:] == ["127.0.0.1", None]


def test_what_failed_is_not_in_the_log(site: Site) -> None:
    name, wire = site.account()
    wire.sql(f"DROP USER {name}").refused(403, "PERMISSION_DENIED")
    site.root.sql(f"CREATE USER {name} WITH PASSWORD 'x' ROLE user").refused(400, "SQL_EXECUTION_ERROR")
    assert [action for action, _, _ in _audit(site, name)] == ["CREATE_USER"]


def test_logins_of_administrators_are_in_the_log(site: Site) -> None:
    boss, _ = site.account("dba")
    name, _ = site.account("user")
    assert [action for action, _, _ in _audit(site, boss)] == ["CREATE_USER", "LOGIN"]
    assert [action for action, _, _ in _audit(site, name)] == ["CREATE_USER"]


def test_definitions_are_in_the_log(site: Site) -> None:
    space = _name("n")
    site.root.run(
        f"CREATE NAMESPACE {space}; CREATE NAMESPACE IF NOT EXISTS {space};"
        f"CREATE USER TABLE {space}.t (id INT PRIMARY KEY); ALTER TABLE {space}.t ADD COLUMN v TEXT;"
        f"DROP TABLE {space}.t; DROP TABLE IF EXISTS {space}.t; DROP NAMESPACE {space}"
    )
    assert _audit(site, space) == [("CREATE_NAMESPACE", "root", None), ("DROP_NAMESPACE", "root", None)]
    actions = [action for action, _, _ in _audit(site, f"{space}.t")]
    assert actions == ["CREATE_TABLE", "ALTER_TABLE", "DROP_TABLE"]


def test_ordinary_roles_do_not_read_the_log(site: Site, alice: Wire) -> None:
    count = "SELECT COUNT(*) > 0 FROM system.audit_log"
    for wire in (alice, site.account("service")[1]):
        wire.sql(count).refused(403, "PERMISSION_DENIED")
    assert site.account("dba")[1].run(count).cell is True


# Enforced complexity, and limits


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with strict passwords and narrow limits."""
    limits = {"UPWELL_AUTH_ATTEMPTS_PER_S_MAX": "5", "UPWELL_QUERIES_PER_S_MAX": "20"}
    settings = {"UPWELL_BCRYPT_COST": "4", "UPWELL_ENFORCE_PASSWORD_COMPLEXITY": "true"}
    directory: Path = tmp_path_factory.mktemp("strict") / "data"
    with ServerProcess(directory, env={**limits, **settings}) as server:
        site = Site(server)
        yield site
        site.close()


@pytest.mark.parametrize(
    ("password", "named"),
    [
        ("lower-1-case", "an uppercase letter"),
        ("UPPER-1-CASE", "a lowercase letter"),
        ("No-Digit-Here", "a digit"),
        ("NoSpecial1Char", "a special character"),
        ("Sh0rt!", "at least 8 characters"),
        ("Password1!", "too common"),
    ],
)
def test_a_weak_password_is_refused_by_name(strict: Site, password: str, named: str) -> None:
    name = _name()
    message = strict.root.sql(f"CREATE USER {name} WITH PASSWORD '{password}' ROLE user")
    assert named in message.refused(400, "SQL_EXECUTION_ERROR")
    strict.root.run(f"CREATE USER {name} WITH PASSWORD 'G00d-enough' ROLE user")
    changed = strict.root.sql(f"ALTER USER {name} SET PASSWORD '{password}'")
    assert named in changed.refused(400, "SQL_EXECUTION_ERROR")


def test_a_password_of_72_bytes_is_accepted(strict: Site) -> None:
    password = "Aa1!" * 18
    strict.root.run(f"CREATE USER {_name()} WITH PASSWORD '{password}' ROLE user")
    longer = strict.root.sql(f"CREATE USER {_name()} WITH PASSWORD '{password}x' ROLE user")
    assert "72 bytes" in longer.refused(400, "SQL_EXECUTION_ERROR")


def test_too_many_sign_ins_are_slowed_down(strict: Site) -> None:
    answers = [_log_in(strict, "nobody", "x") for _ in range(40)]
    assert {answer.status for answer in answers} == {401, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json == {
        "error": "rate_limited",
        "message": "Too many authentication attempts. Please retry shortly.",
    }


def test_too_many_queries_are_slowed_down(strict: Site) -> None:
    name = _name()
    strict.root.run(f"CREATE USER {name} WITH INTERNAL ROLE user")
    claims = {
        "sub": name,
        "iss": "kalamdb",
        "role": "user",
        "token_type": "access",
        "exp": 2**33,
        "iat": 2**32,
    }
    wire = strict.wire(jwt.encode(claims, strict.server.jwt_secret, "HS256"))
    answers = [wire.sql("SELECT 1") for _ in range(200)]
    assert {answer.status for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    message = refused.refused(429, "RATE_LIMIT_EXCEEDED")
    assert message == "Too many queries per second. Please slow down."
    assert strict.root.sql("SELECT 1").status == 200, "one user's haste is not another's"
