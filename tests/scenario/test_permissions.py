"""The matrix of `permissions.toml`: role × statement × route, and nothing changed by what was refused.

The matrix is written from the contract and knows nothing of the server's own rules.
"""

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

from upwell.testing.websocket import Socket
from upwell.testing.wire import Site, Wire

ROLES = ("user", "service", "dba", "system")
MATRIX: dict[str, list[dict[str, str]]] = tomllib.loads(
    Path(__file__).with_name("permissions.toml").read_text(encoding="utf-8")
)
SECRET = "a-secret-of-root"
QUERY_ROUTES = {
    "direct": "SELECT * FROM {t}",
    "batch": "SELECT 1; SELECT * FROM {t}",
    "subquery": "SELECT COUNT(*) FROM (SELECT * FROM {t}) AS q",
    "CTE": "WITH q AS (SELECT * FROM {t}) SELECT * FROM q",
    "EXISTS": "SELECT 1 WHERE EXISTS (SELECT 1 FROM {t})",
    "scalar": "SELECT (SELECT COUNT(*) FROM {t})",
    "UNION": "SELECT 1 UNION ALL SELECT COUNT(*) FROM {t}",
    "EXCEPT": "SELECT 1 EXCEPT SELECT COUNT(*) FROM {t}",
    "INTERSECT": "SELECT 1 INTERSECT SELECT COUNT(*) FROM {t}",
    "join": "SELECT COUNT(*) FROM {ns}.own CROSS JOIN {t} AS other",
    "INSERT SELECT": "INSERT INTO {ns}.own (id) SELECT {id} * 1000 + COUNT(*) FROM {t}",
    "UPDATE": "UPDATE {ns}.own SET v = 'x' WHERE id < 0 AND EXISTS (SELECT 1 FROM {t})",
    "transaction": "BEGIN; SELECT COUNT(*) FROM {t}; ROLLBACK",
}
CHANGE_ROUTES = {
    "insert": "INSERT INTO {t} (id, v) VALUES ({id}, 'new')",
    "insert many": "INSERT INTO {t} (id, v) VALUES ({id}, 'new'), ({id} + 1, 'new')",
    "insert select": "INSERT INTO {t} (id, v) SELECT {id}, 'new'",
    "insert or update": "INSERT INTO {t} (id, v) VALUES (1, 'new') ON CONFLICT (id) DO UPDATE SET v = 'new'",
    "insert returning": "INSERT INTO {t} (id, v) VALUES ({id}, 'new') RETURNING id",
    "update": "UPDATE {t} SET v = 'new' WHERE id = 1",
    "update returning": "UPDATE {t} SET v = 'new' RETURNING v",
    "update all": "UPDATE {t} SET v = 'new'",
    "delete": "DELETE FROM {t} WHERE id = 2",
    "delete all": "DELETE FROM {t} WHERE v <> 'nothing has this'",
    "batch": "SELECT 1; INSERT INTO {t} (id, v) VALUES ({id}, 'new')",
    "transaction": "BEGIN; INSERT INTO {t} (id, v) VALUES ({id}, 'new'); COMMIT",
}


class Place:
    """A namespace with a table of each kind, rows of root in them, and a connection of each role."""

    def __init__(self, site: Site) -> None:
        self.site, self.ns = site, site.namespace()
        self._numbers = itertools.count(100, 10)
        shared = {"public": "PUBLIC", "private": "PRIVATE", "restricted": "RESTRICTED", "admins": "DBA"}
        site.root.run(f"CREATE USER TABLE {self.ns}.own (id INT PRIMARY KEY, v TEXT)")
        for name, level in shared.items():
            options = f"WITH (ACCESS_LEVEL = '{level}')"
            site.root.run(f"CREATE SHARED TABLE {self.ns}.{name} (id INT PRIMARY KEY, v TEXT) {options}")
        self.tables = [f"{self.ns}.{name}" for name in ("own", *shared)]
        for table in self.tables:
            site.root.run(f"INSERT INTO {table} VALUES (1, '{SECRET}'), (2, '{SECRET}')")
        self.wires = {role: site.account(role)[1] for role in ROLES}
        for name, role in (("someone", "user"), ("a_service", "service"), ("an_admin", "dba")):
            site.root.run(f"DROP USER IF EXISTS {name}; CREATE USER {name} WITH INTERNAL ROLE {role}")

    def filled(self, text: str, table: str = "") -> str:
        number = next(self._numbers)
        text = text.replace("{t}", table).replace("{ns}", self.ns).replace("{id}", str(number))
        return text.replace("{new}", f"{self.ns}_{number}")

    def state(self) -> list[Any]:
        """Return what root sees of everything that the statements could change."""
        rows = [self.site.root.run(f"SELECT * FROM {table} ORDER BY id").rows for table in self.tables]
        questions = (
            "SELECT name FROM system.namespaces ORDER BY name",
            "SELECT namespace_id, table_name, version FROM system.tables ORDER BY 1, 2",
            "SELECT user_id, role, email, updated_at, deleted_at FROM system.users ORDER BY user_id",
            "SELECT storage_id FROM system.storages ORDER BY storage_id",
            "SELECT COUNT(*) FROM system.jobs WHERE job_type IN ('flush', 'compact')",
        )
        return [rows, *(self.site.root.run(question).rows for question in questions)]


@pytest.fixture(scope="module")
def place(site: Site) -> Place:
    return Place(site)


def _refused(wire: Wire, text: str) -> None:
    answer = wire.sql(text)
    message = answer.refused(403, "PERMISSION_DENIED")
    assert SECRET not in answer.body.decode(), (text, message)


@pytest.mark.parametrize("role", ROLES)
def test_queries(place: Place, role: str) -> None:
    wire = place.wires[role]
    before = place.state()
    for entry, (route, form) in itertools.product(MATRIX["query"], QUERY_ROUTES.items()):
        text = place.filled(form, place.filled(entry["table"]))
        if role in entry["roles"].split():
            assert wire.sql(text).status == 200, (role, route, text, wire.sql(text).body)
        else:
            _refused(wire, text)
    after = place.state()
    assert after[1:] == before[1:]
    assert after[0][1:] == before[0][1:]


@pytest.mark.parametrize("role", ROLES)
def test_live_queries(place: Place, role: str) -> None:
    token = place.wires[role].token
    with Socket(place.site.server.port, token) as socket:
        for number, entry in enumerate(MATRIX["query"]):
            table = place.filled(entry["table"])
            if table.startswith("system."):
                continue
            subscription = {"id": f"q{number}", "sql": f"SELECT * FROM {table}", "options": {}}
            socket.say(type="subscribe", subscription=subscription)
            found = socket.message_for(f"q{number}")
            if role in entry["roles"].split():
                assert found["type"] == "subscription_ack", found
                rows = socket.message_for(f"q{number}")["rows"]
                assert (SECRET in str(rows)) == (not table.endswith(".own"))
            else:
                assert (found["type"], found["code"]) == ("error", "UNAUTHORIZED"), found


@pytest.mark.parametrize("role", ROLES)
def test_changes(place: Place, role: str) -> None:
    wire = place.wires[role]
    for entry in MATRIX["change"]:
        table = place.filled(entry["table"])
        may = role in entry["roles"].split()
        before = place.state()
        for route, form in CHANGE_ROUTES.items():
            text = place.filled(form, table)
            if may:
                assert wire.sql(text).status == 200, (role, route, text, wire.sql(text).body)
            else:
                _refused(wire, text)
        after = place.state()
        if not may or table.endswith(".own"):
            assert after == before, (role, table)
        if may and not table.endswith(".own"):
            place.site.root.run(f"DELETE FROM {table}")
            place.site.root.run(f"INSERT INTO {table} VALUES (1, '{SECRET}'), (2, '{SECRET}')")


@pytest.mark.parametrize("role", ROLES)
def test_commands(place: Place, role: str) -> None:
    wire, before = place.wires[role], place.state()
    allowed = [entry["sql"] for entry in MATRIX["command"] if role in entry["roles"].split()]
    for sql in (entry["sql"] for entry in MATRIX["command"] if entry["sql"] not in allowed):
        for form in (sql, f"SELECT 1; {sql}"):
            _refused(wire, place.filled(form))
    assert place.state() == before
    for sql in allowed:
        for form in (sql, f"SELECT 1; {sql}"):
            text = place.filled(form)
            answer = wire.sql(text)
            # A job that nobody has can't be killed; that one may try is what counts.
            assert answer.status == (400 if "KILL" in text or "RESTORE" in text else 200), (
                role,
                text,
                answer.body,
            )
