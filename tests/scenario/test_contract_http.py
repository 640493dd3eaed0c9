"""The JSON examples of the contract's sections 1 and 5, against a running server, and what clients first do.

An example is matched in full: the same keys, and for each value either the value itself or what stands in for
one that differs from run to run.
"""

import re
from datetime import datetime
from typing import Any

import jwt
import pytest

from upwell.testing.wire import PASSWORD, SQL, Answer, Site, Wire

AUTH = "/v1/api/auth"


class Like:
    """Stands for a value that is different each time: equal to what `check` accepts."""

    def __init__(self, name: str, check: Any) -> None:
        self.name = name
        self._check = check

    def __eq__(self, other: object) -> bool:
        return bool(self._check(other))

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _is_moment(value: object) -> bool:
    return isinstance(value, str) and value.endswith("+00:00") and bool(datetime.fromisoformat(value))


TEXT = Like("text", lambda value: isinstance(value, str) and value != "")
TOKEN = Like(
    "JWT", lambda value: isinstance(value, str) and jwt.get_unverified_header(value)["alg"] == "HS256"
)
MOMENT = Like("RFC 3339 with +00:00", _is_moment)
MS = Like("milliseconds, 3 decimals", lambda value: isinstance(value, float) and round(value, 3) == value)
COUNT = Like("count", lambda value: type(value) is int and value >= 0)
NUMBER = Like("number", lambda value: type(value) in (int, float))
TRANSACTION = Like(
    "a transaction's message", lambda text: re.fullmatch(r"Transaction \w+ \([0-9a-f-]{36}\)", text)
)


@pytest.fixture(scope="module", params=[False, True], ids=["shapes", "unshaped"])
def site(request: pytest.FixtureRequest, site: Site, unshaped: Site) -> Site:
    """A server with and one without the cache of shapes: their answers are the same."""
    return unshaped if request.param else site


@pytest.fixture(scope="module")
def app(site: Site) -> str:
    """The namespace and table of the examples."""
    name = site.namespace()
    site.root.run(
        f"CREATE SHARED TABLE {name}.todo (id BIGINT PRIMARY KEY, title TEXT, price DECIMAL(10, 2));"
        f"INSERT INTO {name}.todo VALUES (1738291029381029888, 'buy milk', 12.30)"
    )
    return name


def _body(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    return answer.json


# 1.3 and 1.4


def test_a_request_with_parameters_and_a_namespace(site: Site, app: str) -> None:
    request = {
        "sql": "SELECT id FROM todo WHERE id = $1; ",
        "params": [1738291029381029888],
        "namespace_id": app,
    }
    found = _body(site.root.call("POST", SQL, request))
    assert found["results"][0]["rows"] == [["1738291029381029888"]]
    request["params"] = [42, "x", None, True, 1.5]
    refused = site.root.call("POST", SQL, request).refused(400, "SQL_EXECUTION_ERROR")
    assert "Parameter count mismatch: expected 1 parameters, got 5" in refused
    kinds = site.root.run("SELECT $1 AS a, $2 AS b, $3 AS c, $4 AS d, $5 AS e", 42, "x", None, True, 1.5)
    assert kinds.rows == [["42", "x", None, True, 1.5]]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"sql": "SELECT $1", "params": [[1]]}, "INVALID_PARAMETER",
         "Parameter $1 invalid: Array parameters not yet supported"),
        ({"sql": "SELECT $1", "params": [{"a": 1}]}, "INVALID_PARAMETER",
         "Parameter $1 invalid: Object parameters not yet supported"),
        ({"sql": "SELECT $1", "params": [0] * 51}, "SQL_EXECUTION_ERROR",
         "Parameter count exceeded: maximum 50 parameters allowed, got 51"),
        ({"sql": "SELECT 1; SELECT $1", "params": [1]}, "PARAMS_WITH_BATCH", ""),
        ({"sql": "  -- nothing\n"}, "EMPTY_SQL", "No SQL statements provided"),
        ({"sql": " " * 1_048_577}, "INVALID_SQL",
         "SQL query too long: 1048577 bytes (maximum 1048576 bytes)"),
        ({"params": []}, "INVALID_INPUT", "Invalid JSON payload: "),
        ({"sql": 5}, "INVALID_INPUT", "Invalid JSON payload: "),
    ],
)  # fmt: skip
def test_requests_that_are_refused(site: Site, body: object, code: str, message: str) -> None:
    assert message in site.root.call("POST", SQL, body).refused(400, code)


def test_unknown_fields_of_a_request_are_ignored(site: Site) -> None:
    assert site.root.call("POST", SQL, {"sql": "SELECT 1", "colour": "red"}).status == 200


def test_a_select_has_schema_and_rows(site: Site, app: str) -> None:
    found = _body(site.root.sql(f"SELECT id, title, price FROM {app}.todo"))
    error = {"error": None} if "error" in found else {}
    assert found == {
        "status": "success",
        "results": [
            {
                "schema": [
                    {"name": "id", "data_type": "BigInt", "index": 0, "flags": ["nn", "pk", "uq"]},
                    {"name": "title", "data_type": "Text", "index": 1},
                    {"name": "price", "data_type": {"Decimal": {"precision": 10, "scale": 2}}, "index": 2},
                ],
                "rows": [["1738291029381029888", "buy milk", "12.30"]],
                "row_count": 1,
                "as_user": "root",
            }
        ],
        "took": MS,
        **error,
    }
    empty = _body(site.root.sql(f"SELECT id FROM {app}.todo WHERE id = 0"))["results"][0]
    assert (empty["rows"], empty["row_count"], len(empty["schema"])) == ([], 0, 1)


def test_a_batch_sums_its_changes_at_the_end(site: Site, app: str) -> None:
    sql = (
        f"BEGIN; INSERT INTO {app}.todo (id) VALUES (1); INSERT INTO {app}.todo (id) VALUES (2); COMMIT;"
        f"SELECT COUNT(*) AS n FROM {app}.todo; UPDATE {app}.todo SET title = 'x' WHERE id < 3;"
        f"DELETE FROM {app}.todo WHERE id < 3"
    )
    found = _body(site.root.sql(sql))
    assert found["results"] == [
        {"row_count": 0, "message": TRANSACTION, "as_user": "root"},
        {"row_count": 0, "message": TRANSACTION, "as_user": "root"},
        {
            "schema": [{"name": "n", "data_type": "BigInt", "index": 0}]
            if "flags" not in found["results"][2]["schema"][0]
            else [{"name": "n", "data_type": "BigInt", "index": 0, "flags": ["nn"]}],
            "rows": [["3"]],
            "row_count": 1,
            "as_user": "root",
        },
        {"row_count": 2, "message": "Inserted 2 row(s)", "as_user": "root"},
        {"row_count": 2, "message": "Updated 2 row(s)", "as_user": "root"},
        {"row_count": 2, "message": "Deleted 2 row(s)", "as_user": "root"},
    ]


def test_an_error_of_a_statement(site: Site, app: str, alice: Wire) -> None:
    sql = f"CREATE SHARED TABLE {app}.todo (id INT PRIMARY KEY)"
    assert _body(site.root.sql(sql), 400) == {
        "status": "error",
        "results": [],
        "took": MS,
        "error": {
            "code": "SQL_EXECUTION_ERROR",
            "message": f"Statement 1 failed: Already exists: Table {app}.todo already exists",
            "details": sql,
        },
    }
    second = site.root.sql(f"SELECT 1; {sql}").refused(400, "SQL_EXECUTION_ERROR")
    assert second.startswith("Statement 2 failed: Already exists: ")
    denied = _body(alice.sql("CREATE NAMESPACE x"), 403)["error"]
    assert denied["code"] == "PERMISSION_DENIED"
    assert "Admin privileges (DBA or System role) required for" in denied["message"]
    assert "details" not in denied


# 1.7


def test_a_login(site: Site) -> None:
    name, _ = site.account("dba")
    site.root.run(f"ALTER USER {name} SET EMAIL 'boss@example.com'")
    found = _body(site.wire().call("POST", f"{AUTH}/login", {"username": name, "password": PASSWORD}))
    user = {
        "id": name,
        "role": "dba",
        "email": "boss@example.com",
        "created_at": MOMENT,
        "updated_at": MOMENT,
    }
    expected = {
        "user": user,
        "admin_ui_access": True,
        "expires_at": MOMENT,
        "access_token": TOKEN,
        "refresh_token": TOKEN,
        "refresh_expires_at": MOMENT,
    }
    assert found == expected
    assert _body(site.wire(found["refresh_token"]).call("POST", f"{AUTH}/refresh")) == expected
    me = _body(site.wire(found["access_token"]).call("GET", f"{AUTH}/me"))
    assert me == {"user": user, "admin_ui_access": True}
    assert _body(site.wire().call("POST", f"{AUTH}/logout")) == {"message": "Logged out successfully"}


def test_what_signing_in_refuses(site: Site) -> None:
    name, wire = site.account()
    invalid = {"error": "unauthorized", "message": "Invalid credentials"}
    for user, password in (("root", "wrong"), ("nobody", "x"), (name, "")):
        body = {"user": user, "password": password}
        assert _body(site.wire().call("POST", f"{AUTH}/login", body), 401) == invalid
    assert _body(wire.call("POST", f"{AUTH}/refresh"), 401) == {
        "error": "unauthorized",
        "message": "Refresh endpoint requires a refresh token",
    }
    again = {"user": "admin", "password": "kalamdb123", "root_password": "kalamdb123", "email": None}
    assert _body(site.wire().call("POST", f"{AUTH}/setup", again), 409) == {
        "error": "already_configured",
        "message": TEXT,
    }
    assert _body(site.wire().call("GET", f"{AUTH}/status")) == {"needs_setup": False, "message": TEXT}


def test_health(site: Site) -> None:
    for path in ("/health", "/v1/api/healthcheck"):
        assert _body(site.wire().call("GET", path)) == {
            "status": "healthy",
            "version": TEXT,
            "api_version": "v1",
            "build_date": TEXT,
        }
    assert _body(site.wire().call("GET", "/v1/api/cluster/health")) == {
        "status": "healthy",
        "version": TEXT,
        "build_date": TEXT,
        "is_cluster_mode": False,
        "cluster_id": TEXT,
        "node_id": 1,
        "is_leader": True,
        "total_groups": COUNT,
        "groups_leading": COUNT,
        "current_term": COUNT,
        "last_applied": COUNT,
        "millis_since_quorum_ack": COUNT,
        "nodes": [
            {
                "node_id": 1,
                "role": "leader",
                "status": "active",
                "api_addr": TEXT,
                "is_self": True,
                "is_leader": True,
                "replication_lag": 0,
                "catchup_progress_pct": None,
                "hostname": TEXT,
                "memory_usage_mb": COUNT,
                "cpu_usage_percent": NUMBER,
                "uptime_seconds": COUNT,
                "uptime_human": TEXT,
            }
        ],
    }


# 5.4


@pytest.mark.parametrize(
    ("claims", "code", "message"),
    [
        (None, "MISSING_AUTHORIZATION", "Authentication required"),
        ({"exp": 1}, "TOKEN_EXPIRED", "Invalid credentials"),
        ({"token_type": "refresh"}, "INVALID_CREDENTIALS", "Invalid credentials"),
        ({"iss": "somebody"}, "INVALID_CREDENTIALS", "Invalid credentials"),
        ({"sub": "nobody"}, "INVALID_CREDENTIALS", "Invalid credentials"),
        ({"role": "dba"}, "INVALID_CREDENTIALS", "Invalid credentials"),
    ],
)
def test_a_token_that_does_not_open(
    site: Site, claims: dict[str, Any] | None, code: str, message: str
) -> None:
    own = {"sub": "root", "iss": "kalamdb", "iat": 1, "exp": 2**33, "role": "system", "token_type": "access"}
    token = None if claims is None else jwt.encode(own | claims, site.server.jwt_secret, "HS256")
    assert _body(site.wire(token).sql("SELECT 1"), 401) == {
        "status": "error",
        "error": {"code": code, "message": message},
        "results": [],
        "took": MS,
    }


# 8.1 and 8.3: what the command line and the TypeScript library do first


@pytest.mark.parametrize("role", ["user", "service", "dba"])
def test_the_command_line_opens_a_session(site: Site, app: str, role: str) -> None:
    name, _ = site.account(role)
    wire = site.wire()
    assert _body(wire.call("GET", f"{AUTH}/status"))["needs_setup"] is False
    wire.token = _body(wire.call("POST", f"{AUTH}/login", {"user": name, "password": PASSWORD}))[
        "access_token"
    ]
    # An error of the probe would end the session.
    assert len(wire.run("SELECT name FROM system.namespaces LIMIT 1").rows) == 1
    names = [row[0] for row in wire.run("SELECT name FROM system.namespaces ORDER BY name").rows]
    assert {"default", app} <= set(names)
    assert names == sorted(names)
    wire.run(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_schema NOT IN ('information_schema') ORDER BY table_schema, table_name"
    )
    columns = wire.run(
        "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position"
    )
    assert ["todo", "title"] in columns.rows
    if role == "dba":
        tables = wire.run(
            "SELECT namespace_id AS namespace, table_name, table_type FROM system.tables "
            "ORDER BY namespace_id, table_name"
        )
        assert [app, "todo", "shared"] in tables.rows
        wire.run("STORAGE FLUSH ALL", namespace=app)
        metrics = wire.run(
            "SELECT metric_name, metric_value FROM system.stats ORDER BY metric_name LIMIT 5000"
        )
        assert {"server_version", "total_tables"} <= {row[0] for row in metrics.rows}
        nodes = wire.run(
            "SELECT cluster_id, node_id, role, status, api_addr, is_self, is_leader, version "
            "FROM system.cluster ORDER BY is_leader DESC, node_id ASC"
        )
        assert nodes.rows[0][1:4] == ["1", "leader", "active"]
        assert nodes.rows[0][5:7] == [True, True]
        wire.run("SELECT * FROM system.sessions")
    described = wire.run(
        "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        f"WHERE table_schema = '{app}' AND table_name = 'todo' ORDER BY ordinal_position"
    )
    assert [row[0] for row in described.rows][:3] == ["id", "title", "price"]


def test_a_browser_may_ask(site: Site, alice: Wire) -> None:
    origin = {"Origin": "http://localhost:5173"}
    asked = {**origin, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    for path in (SQL, f"{AUTH}/login", f"{AUTH}/refresh"):
        preflight = site.wire().call("OPTIONS", path, headers=asked)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
    answer = alice.call("POST", SQL, {"sql": "SELECT 1"}, headers=origin)
    assert answer.headers["access-control-allow-origin"] == origin["Origin"]
    refused = site.wire().call("POST", SQL, {"sql": "SELECT 1"}, headers=origin)
    assert refused.headers["access-control-allow-origin"] == origin["Origin"], (
        "or TOKEN_EXPIRED is never seen"
    )
